"""The trainer's seed telemetry: each figure follows an intervention, nothing is claimed that was not measured."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from worlds.hosts import STOCK, make_batch, make_host
from worlds.small_growth import Steady, bars, inverted, seeded

from kasmina_edge.contracts.change_plan import ChangePlan, HealthLimits
from kasmina_edge.contracts.record import SeedTelemetry, TelemetryRecord
from kasmina_edge.errors import InputError
from kasmina_edge.safety.drift import domain_statistics
from kasmina_edge.telemetry.details import SiteSource
from kasmina_edge.telemetry.hardware import HardwareReader
from kasmina_edge.telemetry.seed_rows import completed
from kasmina_edge.telemetry.site_measures import interface_drift
from kasmina_edge.telemetry.site_report import SiteContext
from kasmina_trainer.seeds import GradientGuard, SeededNetwork, attach_seeds
from kasmina_trainer.telemetry import SeedCollector, branch_weights, shown

X, Y = bars(64, 7)
BATCH = torch.from_numpy(X)
INSIDE = {"activation_variance", "interface_drift", "weights_l1", "mean_output", "contribution", "utilization"}


def network_with(*sites: str, scale: float = 0.3, blueprint: str = "depthwise", **options: Any) -> SeededNetwork:
    """The small host with grafts whose weights are drawn, so that they add something."""
    network = seeded() if not options else attach_seeds(seeded().host_copy(), **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for site in sites:
            network.graft(site, blueprint, seed=3)
            for parameter in network.graft_parameters(site):
                parameter.normal_(0.0, scale, generator=generator)
    return network


def rows_after(network: SeededNetwork, x: torch.Tensor = BATCH, **options: Any) -> dict[str, SeedTelemetry]:
    """Rows by site after one pass that is looked at, answers with each graft silenced among it."""
    with SeedCollector(network, every=1, **options) as collector, torch.no_grad():
        network(x)
        collector.contribution(x)
        return {row.site: row for row in collector.take()}


def step(network: SeededNetwork) -> None:
    network.zero_grad()
    loss = functional.cross_entropy(network(BATCH), torch.from_numpy(Y))
    loss.backward()  # type: ignore[no-untyped-call]


def plan(**limits: Any) -> ChangePlan:
    probes = "0" * 64
    return ChangePlan(
        bundle="bars", serial=1, hosts=(), blueprints={}, sites=(), maximum_growth_bytes=0,
        health=HealthLimits(probes=probes, minimum_accuracy=0.5), **limits,
    )  # fmt: skip


def branch_of(network: SeededNetwork, site: str) -> nn.Module:
    branch = network.site(site).branch
    assert branch is not None
    return branch


def kill_gate(network: SeededNetwork) -> None:
    network.set_intensity("s1", 0.0)


def kill_last_layer(network: SeededNetwork) -> None:
    with torch.no_grad():
        for parameter in branch_of(network, "s1").get_submodule("pointwise").parameters():
            parameter.zero_()


@pytest.mark.parametrize("kill", [kill_gate, kill_last_layer])
def test_a_killed_seed_is_not_used(kill: Callable[[SeededNetwork], None]) -> None:
    network = network_with("s1", "s2")
    before = rows_after(network)
    kill(network)
    after = rows_after(network)
    dead = after["s1"]
    assert (dead.interface_drift, dead.mean_output, dead.contribution, dead.utilization) == (0.0,) * 4
    assert (before["s1"].utilization or 0.0) > 0.15
    assert (after["s2"].utilization or 0.0) > 0.15  # the other one lives
    assert 0.0 < (after[""].utilization or 0.0) < (before[""].utilization or 0.0)


def test_a_stronger_graft_turns_its_site_further() -> None:
    network = network_with("s1")
    drifts, added = [], []
    for intensity in (0.2, 0.5, 1.0):
        network.set_intensity("s1", intensity)
        row = rows_after(network)["s1"]
        drifts.append(row.interface_drift)
        added.append(row.mean_output or 0.0)
    assert drifts == sorted(drifts, key=lambda d: d or 0.0) and drifts[0] != drifts[2]
    assert added == pytest.approx([0.2 * added[2], 0.5 * added[2], added[2]], rel=1e-4)


def test_shifted_inputs_drift_and_those_of_the_domain_do_not() -> None:
    domains = [domain_statistics("clean", bars(200, 1)[0], None, 32, 0)]
    network = network_with("s1")
    scores = {}
    for name, (x, _) in {"clean": bars(64, 9), "shifted": inverted(bars(64, 9))}.items():
        row = rows_after(network, torch.from_numpy(x), domains=domains, frames=64)[""]
        assert row.safety is not None and row.safety.drift is not None
        scores[name] = row.safety.drift
    assert scores["clean"] < 1.0 < scores["shifted"]
    few = rows_after(network, domains=domains, frames=4)[""]
    assert few.safety is None  # 4 rows cannot tell


def test_what_varies_less_has_less_variance() -> None:
    network = network_with("s1")
    flat = rows_after(network, torch.full_like(BATCH, 0.3))
    alive = rows_after(network)
    for site in ("s1", "s2"):
        assert (flat[site].activation_variance or 0.0) < 0.7 * (alive[site].activation_variance or 0.0)


def test_gradient_norms_are_torch_s_and_a_frozen_branch_has_none() -> None:
    network = network_with("s1", "s2")
    with SeedCollector(network) as collector:
        assert collector.gradient_norms() == {}  # nothing was propagated yet: not measured
        step(network)
        grads = [p.grad for p in network.graft_parameters("s1")]
        expected = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads if g is not None))
        rows = {row.site: row for row in collector.take()}
        assert rows["s1"].gradient_norm == pytest.approx(expected, rel=1e-4) and expected > 0
        both = math.hypot(rows["s1"].gradient_norm or 0.0, rows["s2"].gradient_norm or 0.0)
        assert rows[""].gradient_norm == pytest.approx(both, rel=1e-4)
        branch_of(network, "s1").requires_grad_(False)
        step(network)
        assert collector.gradient_norms()["s1"] == 0.0 < collector.gradient_norms()["s2"]
        assert all(row.is_measured("gradient_norm") for row in collector.take())
        weight = next(branch_of(network, "s2").parameters())
        weight.grad = torch.full_like(weight, math.nan)
        assert "s2" not in collector.gradient_norms()


def test_an_overdrawn_plan_is_below_zero() -> None:
    network = network_with("s1", "s2")
    spent = sum(graft.parameters for graft in network.grafts)
    for allowed in (spent + 5, spent - 7):
        context = SiteContext(plan=plan(maximum_parameters=allowed, maximum_latency_us=900))
        with SeedCollector(network, context=context) as collector:
            whole = collector.take(latency_us=1000.0)[0]
        assert whole.budget is not None and whole.budget.latency_us == -100.0
        assert whole.budget.parameters == allowed - spent
    assert rows_after(network)[""].budget is None  # no plan: not measured


def test_age_counts_from_growth() -> None:
    clock = Steady(1000.0, 10.0)
    network = network_with("s1", clock=clock)
    first, second = (rows_after(network, clock=clock) for _ in range(2))
    assert 0 < (first["s1"].age_s or 0.0) < (second["s1"].age_s or 0.0)
    assert second[""].age_s == second["s1"].age_s and second["s2"].age_s is None
    known = rows_after(network, clock=lambda: 500.0, context=SiteContext(committed_s=440.0))
    assert known["s1"].age_s == 60.0


def test_bits_say_what_was_measured() -> None:
    network = network_with("s1")
    rows = rows_after(network)
    for site in ("", "s1"):
        assert {name for name in SeedTelemetry.BITS if rows[site].is_measured(name)} == INSIDE | {"age_s"}
    assert rows["s2"].measured == 0b11 and rows["s2"].interface_drift == 0.0 and rows["s2"].blueprint is None
    with SeedCollector(network) as collector:
        silent = {row.site: row for row in collector.take()}  # nothing passed
    assert silent["s2"].measured == 0 and silent["s2"].looks == 0
    assert {n for n in SeedTelemetry.BITS if silent["s1"].is_measured(n)} == {"weights_l1", "age_s"}


def test_the_figures_are_the_formulas_on_what_torch_computes() -> None:
    network = network_with("s1")
    seen: list[torch.Tensor] = []
    host = network.host_copy()
    host.get_submodule("s1").register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    with torch.no_grad():
        host(BATCH)
        entry = seen[0]
        added = network.site("s1").gate * branch_of(network, "s1")(entry)
        row = rows_after(network, frames=64)["s1"]
    leave = (entry + added).permute(0, 2, 3, 1).double().numpy()
    variance = leave.reshape(-1, leave.shape[-1]).var(axis=0).mean()
    drifts = [interface_drift(a.numpy(), (a + b).numpy()) for a, b in zip(entry, added, strict=True)]
    assert row.looks == 64 and row.activation_variance == pytest.approx(variance, rel=1e-4)
    assert row.interface_drift == pytest.approx(np.mean([d for d in drifts if d is not None]), rel=1e-3)
    assert row.mean_output == pytest.approx(float(added.abs().mean()), rel=1e-4)
    layers = [p.detach().abs().sum() for p in network.graft_parameters() if p.ndim > 1]
    assert row.weights_l1 == pytest.approx(float(sum(layers)), rel=1e-4)


def test_silencing_is_removing() -> None:
    network = network_with("s1", "s2")
    with SeedCollector(network, every=1) as collector:
        found = collector.contribution(BATCH)
        collector._thread.silenced = frozenset({"s1"})
        silent = network(BATCH)
        collector._thread.silenced = None
        whole = network(BATCH)
    assert set(found) == {"s1", "s2", ""} and all(0.0 < share <= 1.0 for share in found.values())
    network.remove("s1")
    assert torch.equal(silent, network(BATCH)) and not torch.equal(silent, whole)


def test_looking_changes_no_bit() -> None:
    looked, bare = network_with("s1"), network_with("s1")
    looked.train()
    bare.train()
    with SeedCollector(looked, every=1) as collector, GradientGuard(looked) as guard:
        step(looked)
        collector.take()
        del guard
    step(bare)
    for a, b in zip(looked.graft_parameters(), bare.graft_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)
    assert torch.equal(looked(BATCH), bare(BATCH)) and looked.current_host_hash() == bare.host_hash


def test_most_passes_are_not_looked_at() -> None:
    network = network_with("s1")
    with SeedCollector(network, every=16, frames=3) as collector:
        for _ in range(33):
            network(BATCH)
        record = collector.record()
    assert (record.frames, record.sampled) == (33 * 64, 9)
    assert record.seeds is not None and [row.looks for row in record.seeds] == [9, 9, 9]


def test_the_record_is_the_device_s() -> None:
    network = network_with("s1")
    with SeedCollector(network, every=1, hardware=HardwareReader(mailbox=None)) as collector:
        assert isinstance(collector, SiteSource)
        network(BATCH)
        first, second = collector.record(), collector.record(bundle="bars 1.0.0")
    read = TelemetryRecord.from_bytes(first.to_bytes())
    assert read == first and (first.sequence, second.sequence) == (0, 1)
    assert first.bundle == network.host_hash and second.bundle == "bars 1.0.0" and second.frames == 0
    rows = completed(read)
    assert [row.site for row in rows] == ["", "s1", "s2"]
    assert all(row.hardware is not None and row.hardware.rss_bytes for row in rows)
    table = network.report(shown(rows)).as_dict()["sites"]
    assert table[0]["telemetry"]["utilization"] > 0 and set(table[1]["telemetry"]) == {
        "activation_variance", "interface_drift"
    }  # fmt: skip


def test_threads_can_look_and_take_at_once() -> None:
    network = network_with("s1", "s2")
    network.requires_grad_(False)
    looks, faults = [0], []

    def run() -> None:
        try:
            for _ in range(25):
                network(BATCH[:4])
        except Exception as exc:
            faults.append(exc)

    with SeedCollector(network, every=1, frames=4) as collector:
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            looks[0] += collector.take()[1].looks
        looks[0] += collector.take()[1].looks
    assert not faults and looks[0] == 4 * 25 * 4


def test_a_graft_that_leaves_takes_its_figures_along() -> None:
    network = network_with("s1")
    with SeedCollector(network, every=1) as collector:
        network(BATCH)
        collector.contribution(BATCH)
        network.remove("s1")
        network(BATCH)
        bare = collector.take()[1]
        assert bare.measured == 0b11 and bare.looks == 8
        network.graft("s1", "no-op")
        network(BATCH)
        idle = collector.take()[1]
    assert (idle.mean_output, idle.utilization, idle.weights_l1) == (0.0, 0.0, 0.0)
    assert idle.blueprint == "no-op"


def test_a_pass_that_fails_counts_no_look() -> None:
    network = network_with("s1")
    with SeedCollector(network, every=1) as collector:
        with pytest.raises(RuntimeError):
            network(torch.zeros(2, 3, 8, 8))
        assert collector.take()[1].looks == 0
        network(BATCH)
        assert collector.take()[1].looks == 8
        network(torch.full_like(BATCH, math.nan))
        assert collector.take()[1].looks == 0  # not finite: left out


def test_copies_are_looked_at_by_nobody() -> None:
    network = network_with("s1")
    with SeedCollector(network, every=1) as collector:
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), network.fresh()):
            other(BATCH)
            assert all(cast(SeededNetwork, other).site(name).tap is None for name in other.sites)
        network.module_for_export()(BATCH)
        assert collector.take()[1].looks == 0
        with pytest.raises(InputError, match="another collector"), SeedCollector(network):
            pass
        network(BATCH)
        assert collector.take()[1].looks == 8  # the first one goes on
    assert network.site("s1").tap is None and not network._forward_hooks and not network._forward_pre_hooks
    with pytest.raises(InputError, match="not looking at its network"):
        collector.contribution(BATCH)


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(InputError, match="every 0 passes, 8 frames"):
        SeedCollector(seeded(), every=0)


@pytest.mark.parametrize("name", sorted(STOCK))
def test_any_host_is_read_without_a_change(name: str) -> None:
    host, x = make_host(name), make_batch(name)
    network = attach_seeds(host, example=x)
    with SeedCollector(network, every=1) as collector, torch.no_grad():
        assert torch.equal(network(x), host(x))
        rows = {row.site: row for row in collector.take()}
    assert set(rows) == {"", *network.sites}
    for site in network.sites:
        assert rows[site].looks == len(x) and rows[site].measured == 0b11
    with torch.no_grad():
        assert torch.equal(network(x), host(x))


def test_weights_leave_biases_out_and_end_with_the_gate() -> None:
    network = network_with("s1")
    network.set_intensity("s1", 0.25)
    layers = branch_weights(network.site("s1"))
    assert layers is not None and layers[-1].tolist() == [0.25]
    assert len(layers) - 1 == sum(p.ndim > 1 for p in network.graft_parameters())
    assert branch_weights(network.site("s2")) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_that_are_no_numbers_measure_nothing_and_break_no_record(value: float) -> None:
    network, site = network_with("s1", "s2"), "s1"
    with SeedCollector(network, every=1) as collector:
        network(BATCH)
        sound = {row.site: row for row in collector.record().seeds or ()}
        with torch.no_grad():
            for parameter in network.graft_parameters(site):
                parameter.fill_(value)
        network(BATCH)
        record = collector.record()
    assert TelemetryRecord.from_bytes(record.to_bytes()) == record
    spoiled = {row.site: row for row in record.seeds or ()}
    assert sound[site].weights_l1 and not spoiled[site].is_measured("weights_l1")
