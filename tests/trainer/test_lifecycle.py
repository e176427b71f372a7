"""The life of a seed site: which steps are allowed, what is recorded, and that a step that fails changes nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from worlds.hosts import make_batch, make_host

from kasmina_edge.contracts.manifest import Acceptance
from kasmina_edge.errors import InputError
from kasmina_edge.safety.audit import AuditLog, verify
from kasmina_trainer.blueprints.registry import GraftBlueprint, Shape, find_blueprint
from kasmina_trainer.seeds import STEPS, LifeCycle, SeededNetwork, SiteState, Step, attach_seeds, audit_steps

D, P, A, R = SiteState.DORMANT, SiteState.PROBING, SiteState.ACTIVE, SiteState.REMOVED
ALLOWED = {(D, P), (P, A), (P, R), (P, D), (A, P), (A, R), (R, P)}
ROADS = {D: (), P: (P,), A: (P, A), R: (P, R)}


def verdict(*, accepted: bool = True) -> Acceptance:
    """A measurement."""
    return Acceptance(
        samples=100,
        clean_before=0.9,
        clean_after=0.9,
        target_before=0.4,
        target_after=0.8,
        gain_low=0.3,
        gain_high=0.5,
        clean_loss_high=0.01,
        accepted=accepted,
        reasons=() if accepted else ("too dear",),
    )


@pytest.fixture
def network() -> SeededNetwork:
    """Two sites on a network that is not ours."""
    return attach_seeds(make_host("residual"), example=make_batch("residual"))


def test_the_table_is_the_table():
    assert {(a, b) for a, after in STEPS.items() for b in after} == ALLOWED
    assert set(STEPS) == set(SiteState)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(SiteState, SiteState)))
def test_every_step_is_allowed_or_refused_as_the_table_says(before: SiteState, after: SiteState):
    life = LifeCycle(["a", "b"], clock=lambda: 7.0, host="f" * 64)
    for state in ROADS[before]:
        life.move("a", state, reason="on the way")
    history = life.history
    if (before, after) in ALLOWED:
        step = life.move("a", after, reason="because", gain=0.5)
        assert step == Step("a", before, after, "because", {"gain": 0.5}, 7.0, "f" * 12)
        assert life.states == {"a": after, "b": D} and life.history == (*history, step) and life.last("a") == step
    else:
        with pytest.raises(InputError, match=f"site a is {before}: it cannot become {after}") as caught:
            life.move("a", after, reason="because")
        assert all(str(allowed) in caught.value.next_step for allowed in STEPS[before])
        assert life.states["a"] is before and life.history == history


def test_a_record_that_fails_stops_the_step():
    def refuse(step: Step) -> None:
        raise OSError("disk full")

    life = LifeCycle(["a"], record=refuse)
    with pytest.raises(OSError, match="disk full"):
        life.move("a", P, reason="x")
    assert life.states == {"a": D} and life.history == ()
    with pytest.raises(InputError, match="no seed site is called 'z'; sites are a"):
        life.move("z", P, reason="x")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(SiteState)), max_size=30))
def test_any_walk_can_be_saved_and_read_back(wishes: list[tuple[str, SiteState]]):
    life = LifeCycle(["a", "b"], clock=lambda: 3.0)
    for site, state in wishes:
        if state in STEPS[life.states[site]]:
            life.move(site, state, reason="r", n=1)
    twin = LifeCycle(["a", "b"])
    twin.from_json(json.loads(json.dumps(life.to_json())))
    assert twin.states == life.states and twin.history == life.history
    timeless = LifeCycle(["a", "b"])
    timeless.from_json(life.to_json(times=False))
    assert all(step.at_s == 0 for step in timeless.history) and timeless.states == life.states


def test_a_history_that_lies_is_refused():
    life = LifeCycle(["a"])
    life.move("a", P, reason="r")
    good = life.to_json()

    def refused(changed: dict[str, object], message: str) -> None:
        fresh = LifeCycle(["a"])
        with pytest.raises(InputError, match=message):
            fresh.from_json({**good, **changed})
        assert fresh.states == {"a": D} and fresh.history == ()

    refused({"states": {"a": "active"}}, "said to be active, its steps say probing")
    refused({"states": {"b": "probing"}}, "sites b; expected a")
    refused({"states": {"a": "asleep"}}, "malformed")
    refused({"history": [{**good["history"][0], "after": "active"}]}, "cannot go from dormant to active")
    refused({"history": [{"site": "a"}]}, "malformed")
    refused({"history": 3}, "malformed")


def test_the_audit_log_has_every_step(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.log", clock=lambda: 5.0)
    network = attach_seeds(
        make_host("residual"), example=make_batch("residual"), clock=lambda: 5.0, record=audit_steps(log)
    )
    network.graft("act1", "adapter", reason="worth a try")
    network.accept(acceptance=verdict())
    network.set_intensity("act1", 0.5)
    network.set_intensity("act1", 1.0)
    network.remove("act1", reason="harm")
    lines = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["seed.probing", "seed.active", "seed.probing", "seed.removed"]
    assert lines[0]["fields"]["reason"] == "worth a try" and lines[0]["fields"]["evidence"]["blueprint"] == "adapter"
    assert lines[1]["fields"]["evidence"] == {"gain_low": 0.3, "clean_loss_high": 0.01, "samples": 100}
    assert {line["fields"]["host"] for line in lines} == {network.host_hash[:12]}
    assert verify(tmp_path / "audit.log").ok


def test_raising_an_accepted_graft_asks_for_a_new_verdict_and_lowering_it_does_not(network: SeededNetwork):
    network.graft("act1", "adapter", intensity=0.5)
    network.accept()
    network.set_intensity("act1", 0.25)
    assert network.states["act1"] is A
    network.set_intensity("act1", 0.3)
    assert network.states["act1"] is P and "raised from 0.25 to 0.3" in network.lifecycle.history[-1].reason


def test_a_lost_probe_leaves_no_scar(network: SeededNetwork):
    x = make_batch("residual")
    with torch.no_grad():
        expected = network(x)
        network.graft("act1", "adapter")
        network.withdraw("act1")
        assert torch.equal(network(x), expected)
    assert network.states["act1"] is D and network.grafts == ()
    network.graft("act1", "adapter")
    network.accept(["act1"])
    with pytest.raises(InputError, match="it cannot become dormant"):
        network.withdraw("act1")
    assert network.states["act1"] is A and len(network.grafts) == 1


def test_accepting_what_is_not_there_changes_nothing(network: SeededNetwork):
    network.graft("act1", "adapter")
    with pytest.raises(InputError, match=r"site layer2\.0\.act1 is dormant: it cannot become active"):
        network.accept(["act1", "layer2.0.act1"])
    with pytest.raises(InputError, match="refused act1: too dear"):
        network.accept(acceptance=verdict(accepted=False))
    assert network.states["act1"] is P
    network.accept()
    network.accept()
    assert network.states["act1"] is A


def test_accepting_where_nothing_grew_is_said(network: SeededNetwork):
    for _ in range(2):
        with pytest.raises(InputError, match=r"nothing has grown at .*act1.*: nothing to accept") as caught:
            network.accept()
        assert "Grow a graft first" in caught.value.next_step
        network.graft("act1", "adapter")
        network.withdraw("act1")
    assert {step.after for step in network.lifecycle.history} == {P, D}


class _Falling(GraftBlueprint):
    name, version = "falling", 1

    def _build(self, shape: Shape) -> nn.Module | None:
        raise MemoryError("no room for it")


class _Heavy(nn.Module):
    """Cannot be moved to any device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0

    def _apply(self, fn: object, recurse: bool = True) -> nn.Module:
        raise RuntimeError("out of memory")


def test_a_graft_that_fails_half_way_leaves_everything_as_it_was(
    network: SeededNetwork, monkeypatch: pytest.MonkeyPatch
):
    x = make_batch("residual")
    with torch.no_grad():
        expected = network(x)
    keys, states = set(network.state_dict()), network.states

    def untouched() -> None:
        with torch.no_grad():
            assert torch.equal(network(x), expected)
        assert set(network.state_dict()) == keys and network.states == states
        assert network.lifecycle.history == () and network.grafts == ()

    kind = find_blueprint("depthwise")
    monkeypatch.setattr(kind, "_build", _Falling()._build, raising=False)
    monkeypatch.setattr(type(kind), "_takes_config", False)
    with pytest.raises(MemoryError, match="no room"):
        network.graft("act1", "depthwise")
    untouched()
    monkeypatch.setattr(kind, "_build", lambda port: _Heavy())
    with pytest.raises(RuntimeError, match="out of memory"):
        network.graft("act1", "depthwise")
    untouched()
    monkeypatch.undo()

    def refuse(step: Step) -> None:
        raise OSError("disk full")

    network.record_to(refuse)
    with pytest.raises(OSError, match="disk full"):
        network.graft("act1", "depthwise")
    untouched()
    network.record_to(None)
    network.graft("act1", "depthwise")
    network.record_to(refuse)
    for call in (lambda: network.remove("act1"), lambda: network.withdraw("act1"), lambda: network.accept()):
        with pytest.raises(OSError, match="disk full"):
            call()
        assert network.states["act1"] is P and network.site("act1").branch is not None


def test_settings_are_part_of_a_graft(network: SeededNetwork):
    kind = find_blueprint("adapter")
    network.graft("act1", "adapter", config={"bottleneck": 3}, seed=4)
    growth = network.growths["act1"]
    assert growth.config == kind.Config.parse({"bottleneck": 3}, where="") and growth.seed == 4
    assert network.grafts[0].config_digest == growth.config.digest()
    network.graft("layer2.0.act1", "adapter")
    assert network.grafts[1].config_digest == "", "defaults are not told"
    network.remove("act1")
    with pytest.raises(InputError, match="bottleneck"):
        network.graft("act1", "adapter", config={"bottleneck": -3})
    with pytest.raises(InputError):
        network.graft("act1", "adapter", config={"width_of_neck": 3})
    assert network.states["act1"] is R


def test_the_report_tells_every_site():
    now = [1000.0]
    network = attach_seeds(make_host("residual"), example=make_batch("residual"), clock=lambda: now[0])
    network.graft("act1", "adapter", intensity=0.5, reason="worth a try")
    now[0] = 1120.0
    report = network.report({"act1": {"variance": 0.25}})
    first, second = report.as_dict()["sites"]
    assert (first["site"], first["state"], first["blueprint"]) == ("act1", "probing", "adapter v1")
    assert first["parameters"] == network.grafts[0].parameters > 0 and first["macs"] > 0
    assert first["age_s"] == 120.0 and first["intensity"] == 0.5 and first["telemetry"] == {"variance": 0.25}
    assert first["reason"] == "worth a try" and first["evidence"]["seed"] == 0
    assert second["state"] == "dormant" and second["age_s"] is None and second["blueprint"] == ""
    assert json.dumps(report.as_dict())
    text = str(report)
    assert "2.0 min" in text and "worth a try" in text and "variance" in text and "layer2.0.act1" in text
    assert "<td>act1</td>" in report._repr_html_()
    from rich.console import Console

    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    assert "adapter v1" in console.export_text()
