"""Checkpoints: growth stopped at any point and taken up again, on any host; older files; wrong hosts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from worlds.hosts import STOCK, make_batch, make_host

from kasmina_edge.contracts.arrays import pack_arrays, pack_members, unpack_members
from kasmina_edge.contracts.canonical import canonical_bytes
from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.safety.audit import AuditLog
from kasmina_trainer.checkpoints import load_checkpoint, save_host, save_network
from kasmina_trainer.hosts import build_host
from kasmina_trainer.nesting.seed import NestedBranch
from kasmina_trainer.seeds import SeededNetwork, SiteState, Step, attach_seeds, audit_steps


def stir(network: SeededNetwork) -> None:
    """Give every graft weights that are not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.graft_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def answers(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Without gradients."""
    with torch.no_grad():
        value: torch.Tensor = network(x)
    return value


def rewritten(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """The same file with another note."""
    members = unpack_members(path.read_bytes(), where="", max_bytes=10**8)
    note = json.loads(members["checkpoint.json"])
    change(note)
    path.write_bytes(pack_members({**members, "checkpoint.json": canonical_bytes(note)}))


LIVES: dict[str, Callable[[SeededNetwork, str], None]] = {
    "dormant": lambda network, site: None,
    "probing": lambda network, site: network.graft(site, "adapter", seed=3, config={"bottleneck": 3}, intensity=0.5),
    "active": lambda network, site: (network.graft(site, "adapter"), network.accept())[0],  # type: ignore[func-returns-value]
    "removed": lambda network, site: (network.graft(site, "adapter"), network.remove(site))[0],  # type: ignore[func-returns-value]
    "withdrawn": lambda network, site: (network.graft(site, "adapter"), network.withdraw(site))[0],  # type: ignore[func-returns-value]
    "no-op": lambda network, site: network.graft(site, "no-op"),
}


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("name", ["residual", "small-vit", "plain-cnn", "ecg"])
def test_growth_stops_and_goes_on_at_any_point(name: str, life: str, tmp_path: Path):
    host, x = make_host(name), make_batch(name)
    network = attach_seeds(host, example=x)
    LIVES[life](network, network.sites[0])
    stir(network)
    path = tmp_path / "one"
    save_network(path, network, foreign=True)
    back = load_checkpoint(path, host=make_host(name)).network
    assert torch.equal(answers(back, x), answers(network, x))
    assert back.states == network.states and back.ports == network.ports and back.grafts == network.grafts
    assert {n: (g.seed, g.config, g.intensity) for n, g in back.growths.items()} == {
        n: (g.seed, g.config, g.intensity) for n, g in network.growths.items()
    }
    assert [(s.site, s.after, s.reason, dict(s.evidence)) for s in back.lifecycle.history] == [
        (s.site, s.after, s.reason, dict(s.evidence)) for s in network.lifecycle.history
    ]
    save_network(tmp_path / "two", back, foreign=True)
    assert (tmp_path / "two").read_bytes() == path.read_bytes()
    if back.states[back.sites[0]] in (SiteState.PROBING, SiteState.ACTIVE):
        back.remove(back.sites[0])
    assert torch.equal(answers(back, x), answers(attach_seeds(host, example=x), x))


@pytest.mark.parametrize("name", STOCK)
def test_every_stock_host_travels(name: str, tmp_path: Path):
    host, x = make_host(name), make_batch(name)
    network = attach_seeds(host, example=x)
    network.graft(network.sites[0], "adapter")
    stir(network)
    save_network(tmp_path / "x", network, foreign=True)
    assert torch.equal(answers(load_checkpoint(tmp_path / "x", host=host).network, x), answers(network, x))


def test_a_second_value_and_a_hook_travel(tmp_path: Path):
    host, x = make_host("small-vit"), make_batch("small-vit")
    network = attach_seeds(host, ["blocks.1.add"], example=x, contexts={"blocks.1.add": "blocks.0.add"})
    network.graft("blocks.1.add", "cross-attention")
    stir(network)
    save_network(tmp_path / "x", network, foreign=True)
    back = load_checkpoint(tmp_path / "x", host=host).network
    assert back.contexts == {"blocks.1.add": "blocks.0.add"}
    assert torch.equal(answers(back, x), answers(network, x))
    hooked = SeededNetwork(host, {"norm": network.ports["blocks.1.add"]}, hooked=["norm"])
    hooked.graft("norm", "adapter")
    stir(hooked)
    save_network(tmp_path / "y", hooked, foreign=True)
    again = load_checkpoint(tmp_path / "y", host=host).network
    assert again.site("norm").kind == "hooked" and torch.equal(answers(again, x), answers(hooked, x))


def test_a_nested_seed_travels_with_what_it_holds(tmp_path: Path):
    host, x = make_host("residual"), make_batch("residual")
    network = attach_seeds(host, example=x)
    network.graft("act1", "nested-seed")
    branch = network.site("act1").branch
    assert isinstance(branch, NestedBranch)
    branch.spawn("left", "adapter", seed=1)
    branch.spawn("right", "se", seed=2)
    branch.retire("left", "no use")
    stir(network)
    save_network(tmp_path / "x", network, foreign=True)
    back = load_checkpoint(tmp_path / "x", host=host).network
    twin = back.site("act1").branch
    assert isinstance(twin, NestedBranch) and twin.structure() == branch.structure()
    assert twin.names == branch.names and "right" in twin.names and "left" not in twin.names
    assert torch.equal(answers(back, x), answers(network, x)) and back.grafts == network.grafts
    save_network(tmp_path / "y", back, foreign=True)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert network.grafts[0].config_digest and network.grafts[0].macs > 0


def test_another_host_is_told_from_the_right_one(tmp_path: Path):
    path = tmp_path / "x"
    network = attach_seeds(make_host("residual"), example=make_batch("residual"))
    save_network(path, network, foreign=True)
    with pytest.raises(InputError, match=f"another host: state {network.host_hash[:12]} there, [0-9a-f]{{12}} here"):
        load_checkpoint(path, host=make_host("residual", seed=1))
    with pytest.raises(InputError, match="another host"):
        load_checkpoint(path, host=make_host("plain-cnn"))
    with pytest.raises(InputError, match="whose class is not ours") as caught:
        load_checkpoint(path)
    assert "host=" in caught.value.next_step
    with pytest.raises(InputError, match="has no architecture name"):
        save_network(path, network)
    save_host(path, build_host(seed=0))
    assert load_checkpoint(path, host=build_host(seed=0)).network.sites == ("s1", "s2", "s3", "s4")
    with pytest.raises(InputError, match="another host"):
        load_checkpoint(path, host=build_host(seed=1))


def test_times_are_written_when_asked_for(tmp_path: Path):
    now = [100.0]
    network = attach_seeds(build_host(seed=0), clock=lambda: now[0])
    network.graft("s1", "depthwise")
    now[0] = 160.0
    save_network(tmp_path / "x", network, times=True)
    back = load_checkpoint(tmp_path / "x", clock=lambda: 190.0).network
    assert back.lifecycle.history == network.lifecycle.history
    assert back.report().as_dict()["sites"][0]["age_s"] == 90.0
    save_network(tmp_path / "y", network)
    quiet = load_checkpoint(tmp_path / "y", clock=lambda: 190.0).network
    assert quiet.report().as_dict()["sites"][0]["age_s"] is None


def test_steps_after_a_load_are_recorded_and_those_before_are_not(tmp_path: Path):
    log = AuditLog(tmp_path / "audit.log")
    network = attach_seeds(build_host(seed=0), record=audit_steps(log))
    network.graft("s1", "depthwise")
    save_network(tmp_path / "x", network, audit=log.head())
    steps: list[Step] = []
    back = load_checkpoint(tmp_path / "x", record=steps.append)
    assert back.audit == log.head() and steps == []
    back.network.remove("s1")
    assert [step.after for step in steps] == [SiteState.REMOVED]


def test_a_file_of_format_1_is_read(tmp_path: Path):
    host = build_host(seed=0)
    network = attach_seeds(host)
    network.graft("s2", "depthwise", intensity=0.75)
    stir(network)
    arrays = {k: v.numpy() for k, v in network.host_state().items()}
    note = {
        "format": 1,
        "architecture": "digits-separable",
        "settings": {"classes": 10},
        "host_hash": network.host_hash,
        "sites": {name: list(shape) for name, shape in network.shapes.items()},
        "grafts": [g.model_dump(mode="json") for g in network.grafts],
        "acceptance": None,
        "metadata": {"seed": 0},
    }
    path = tmp_path / "old"
    grafts = {k: v.numpy() for k, v in network.graft_state().items()}
    path.write_bytes(
        pack_members(
            {
                "checkpoint.json": canonical_bytes(note),
                "host.arrays": pack_arrays(arrays),
                "grafts.arrays": pack_arrays(grafts),
            }
        )
    )
    back = load_checkpoint(path)
    x = torch.from_numpy(np.random.default_rng(0).random((4, 1, 16, 16), dtype=np.float32))
    assert torch.equal(answers(back.network, x), answers(network, x))
    assert back.network.states["s2"] is SiteState.PROBING and back.network.grafts == network.grafts


def test_notes_that_contradict_themselves_are_refused(tmp_path: Path):
    path = tmp_path / "x"

    def refused(change: Callable[[dict[str, object]], None], message: str) -> None:
        network = attach_seeds(build_host(seed=0))
        network.graft("s1", "depthwise")
        save_network(path, network)
        rewritten(path, change)
        with pytest.raises(BundleError, match=message):
            load_checkpoint(path)

    refused(lambda note: note.update(growths=[]), "disagree")
    refused(lambda note: note.update(lifecycle=None), "no life cycle")
    refused(lambda note: note["lifecycle"]["states"].update(s1="dormant"), "its steps say probing")  # type: ignore[index]
    refused(lambda note: note["growths"][0].update(blueprint="depthwize"), "no blueprint is called")  # type: ignore[index]
    refused(lambda note: note["growths"][0].update(version=7), "v7 was asked for")  # type: ignore[index]
    refused(lambda note: note["growths"][0].update(config={"x": 1}), "disagree")  # type: ignore[index]
    refused(lambda note: note["growths"][0].update(structure={"children": []}), "disagree")  # type: ignore[index]
    refused(lambda note: note["ports"][0].update(shape=[16, 16]), "disagree")  # type: ignore[index]
    refused(lambda note: note["ports"][0].update(shape=[10**5] * 3), "holds 1000000000000000 numbers, expected at most")  # type: ignore[index]
    refused(lambda note: note["ports"][0].update(context=[2**24 + 1]), "context .* holds 16777217 numbers")  # type: ignore[index]
    refused(
        lambda note: note["ports"][0].update(shape=[32, 16, 16]),  # type: ignore[index]
        r"site s1: shape \(32, 16, 16\) in the note, \(16, 16, 16\) in the host",
    )
    refused(lambda note: note.update(audit={"seq": 1}), "disagree")
    refused(lambda note: note.update(format=3), "reads 1 and 2")
