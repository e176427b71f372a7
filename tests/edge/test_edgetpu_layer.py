"""The Edge TPU's layer: the formula's manners, the profiles' coefficients, and predictions of what was not fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks._coral_fit import (
    BOARDS,
    MACS_PER_US,
    SRAM_BYTES,
    band,
    board_values,
    coefficients,
    demand_of,
    fit,
    left_out,
    networks,
    predict,
    published_ms,
    stacked,
)
from benchmarks.coral import STRATA, halves, held_out, macs_only
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator import HardwareContext
from kasmina_edge.hardware_simulator.edgetpu_layer import EdgeTpuLayer
from kasmina_edge.hardware_simulator.edgetpu_timing import COEFFICIENTS, from_mapping, tile_macs, total_us
from kasmina_edge.hardware_simulator.networks import table
from kasmina_edge.hardware_simulator.networks.building import LayerTable
from kasmina_edge.hardware_simulator.workload import Workload


def changed(name: str = "coral-usb", *, coefficient: dict[str, float] | None = None, **fields: Any) -> HardwareProfile:
    profile = load_profile(name).model_dump()
    return HardwareProfile.parse(
        {**profile, "coefficients": {**profile["coefficients"], **(coefficient or {})}, **fields}
    )


def milliseconds(work: Workload, **how: Any) -> float:
    return EdgeTpuLayer(changed(**how)).costs(work).latency_ms


def one_conv(outputs: int, inputs: int = 64) -> Workload:
    t = LayerTable("t")
    return t.build(t.conv(t.input((1, 32, 32, inputs)), outputs, 1))


@pytest.mark.parametrize("board", BOARDS)
def test_operations_add_up_to_the_formula(board: str) -> None:
    """The layer spreads the network's time over its operations; nothing is lost or counted twice."""
    profile = load_profile(board)
    layer = EdgeTpuLayer(profile)
    c = from_mapping({**profile.coefficients, "link_bytes_per_us": (profile.link_bytes_per_s or 0) / 1e6})
    for name in networks():
        costs = layer.costs(table(name))
        assert len(costs.ops) == len(table(name).ops) and min(op.latency_us for op in costs.ops) >= 0
        whole = float(total_us(demand_of(name), c, MACS_PER_US, SRAM_BYTES)) / 1000
        assert costs.latency_ms == pytest.approx(whole, rel=1e-3)
        assert costs.band == profile.error_band


def test_the_profiles_carry_what_the_program_finds() -> None:
    theta = fit(networks())
    for board, name in enumerate(BOARDS):
        profile, values = load_profile(name), board_values(theta, board)
        assert profile.link_bytes_per_s == pytest.approx(1e6 * values.pop("link_bytes_per_us"), rel=1e-3)
        assert profile.coefficients == pytest.approx(values, rel=1e-3)
        assert set(profile.coefficients) == set(COEFFICIENTS) - {"link_bytes_per_us"}
        assert profile.parameter_sram_bytes == SRAM_BYTES


def test_the_printed_band_is_the_one_left_out_networks_give() -> None:
    assert load_profile("coral-usb").error_band == pytest.approx(band(left_out(networks())), abs=0.006)


def test_anchors_are_within_the_band() -> None:
    inside = []
    for name in BOARDS:
        profile = load_profile(name)
        context = HardwareContext(profile)
        for anchor in profile.anchors:
            guess = context.estimate(table(anchor.network)).latency_ms
            inside.append(abs(anchor.latency_ms / guess - 1) <= profile.error_band)
    assert np.mean(inside) >= 0.9


def test_networks_that_no_half_saw_are_predicted() -> None:
    found = held_out(3, balanced=True)
    assert found["error"] <= 0.15
    assert macs_only(3) > 2 * found["error"]  # the negative control: multiply-accumulates alone do not do it


@pytest.mark.slow
@pytest.mark.parametrize("balanced", [True, False])
def test_many_halves(balanced: bool) -> None:
    found = held_out(60, balanced=balanced)
    assert found["error"] <= 0.15 and found["covered"] >= 0.9


def test_halves_are_halves() -> None:
    assert sorted(n for group in STRATA for n in group) == sorted(networks())
    for fitted, rest in halves(5, balanced=True):
        assert len(fitted) == len(rest) == 8 and not set(fitted) & set(rest)
        assert {len(set(fitted) & set(group)) for group in STRATA} == {2, 3}
    assert list(halves(3, balanced=False)) == list(halves(3, balanced=False))


def test_the_band_is_conformal() -> None:
    errors = np.log1p(np.arange(1, 33) / 100)
    assert band(errors) == pytest.approx(0.30)  # the 30th of 32: ceil(0.9 * 33)
    assert band(errors[:16]) == pytest.approx(0.16)  # of 16 the largest
    assert band(-errors) == band(errors)


def test_a_shuffled_table_is_not_predicted() -> None:
    """The negative control of the fit: with the figures given to other networks the errors are large."""
    theta = fit(networks())
    shuffled = np.roll(published_ms(), 5, axis=0)
    assert np.median(np.abs(predict(theta, stacked(networks())) / shuffled - 1)) > 0.5


def test_narrow_layers_leave_the_array_idle() -> None:
    assert tile_macs(one_conv(1).ops[0]) == tile_macs(one_conv(64).ops[0])
    assert tile_macs(one_conv(65).ops[0]) == 2 * tile_macs(one_conv(64).ops[0])
    assert tile_macs(one_conv(64, 65).ops[0]) == 2 * tile_macs(one_conv(64, 64).ops[0])


def test_every_coefficient_has_its_direction() -> None:
    """Faster link, larger memory, larger shares: never slower; dearer operations: never faster."""
    for name in ("resnet-50-v1-299", "deeplab-v3-513", "mobilenet-v2"):
        work = table(name)
        now = milliseconds(work)
        profile = load_profile("coral-usb")
        for key, value in profile.coefficients.items():
            more = milliseconds(work, coefficient={key: 1.5 * value})
            gains = key.endswith(("_per_us", "array_share", "depthwise_share"))
            assert more <= now + 1e-9 if gains else more >= now - 1e-9, key
        assert milliseconds(work, link_bytes_per_s=1e9) < now
        assert milliseconds(work, parameter_sram_bytes=64_000_000) <= now


def test_what_streams_and_what_stays_on_the_host_is_said() -> None:
    costs = EdgeTpuLayer(load_profile("coral-usb")).costs(table("deeplab-v3-513"))
    said = " ".join(costs.notes)
    assert "68 of 70 ops map" in said and "stream over usb3" in said and "2 ops stay on the CPU" in said
    assert [op.where for op in costs.ops[-2:]] == ["cpu", "cpu"]
    assert {op.bound for op in costs.ops} >= {"compute", "memory", "transfer"}


def test_below_the_fastest_anchor_the_band_is_unknown() -> None:
    small = HardwareContext(load_profile("coral-usb")).estimate(one_conv(8))
    assert small.band is None and small.latency_ms < 2.1
    assert "faster than every anchor (2.1 ms): no band was measured there" in small.notes
    anchors = [{**a.model_dump(), "latency_ms": 0.9 * small.latency_ms} for a in load_profile("coral-usb").anchors[:1]]
    found = HardwareContext(changed(anchors=anchors)).estimate(one_conv(8))
    assert found.band == load_profile("coral-usb").error_band and not [n for n in found.notes if "faster" in n]


def test_the_energy_of_what_the_cpu_runs_is_not_the_accelerators() -> None:
    context = HardwareContext(load_profile("coral-usb"))
    t = LayerTable("floats", dtype="float32")
    floats = context.estimate(t.build(t.conv(t.input((1, 64, 64, 8)), 64, 3)))
    assert floats.energy_uj is None and "the profile's power is the accelerator's" in floats.energy_how
    mapped = context.estimate(table("mobilenet-v1"))
    assert mapped.energy_uj == pytest.approx(2.0 * mapped.latency_ms * 1e3) and mapped.energy_how == "power x time"


def test_a_float_network_runs_on_the_host_and_has_no_band() -> None:
    t = LayerTable("floats", dtype="float32")
    work = t.build(t.conv(t.input((1, 64, 64, 8)), 64, 3))
    costs = EdgeTpuLayer(load_profile("coral-usb")).costs(work)
    assert {op.where for op in costs.ops} == {"cpu"} and costs.band is None and costs.fixed_us == 0
    assert costs.latency_ms == pytest.approx(work.macs / 11220 / 1000, rel=1e-6)


def test_profiles_that_cannot_estimate_say_which_number_is_missing() -> None:
    profile = {**load_profile("coral-usb").model_dump(), "sources": {}}
    fewer = {k: v for k, v in profile["coefficients"].items() if k != "op_us"}
    for fields, word in (
        ({"coefficients": fewer}, "coefficients.op_us is missing"),
        ({"link_bytes_per_s": None}, "link_bytes_per_s is missing"),
        ({"parameter_sram_bytes": None}, "parameter_sram_bytes is missing"),
        ({"coefficients": {**profile["coefficients"], "op_us": 0.0}}, "op_us is 0.0"),
        ({"kind": "cpu"}, "kind is cpu"),
    ):
        with pytest.raises(InputError, match=word):
            EdgeTpuLayer(HardwareProfile.parse({**profile, **fields}))


def test_several_parts_cost_a_call_each() -> None:
    t = LayerTable("t")
    x = t.unary("hard_swish", t.conv(t.input((1, 16, 16, 64)), 64, 3))
    work, layer = t.build(t.conv(x, 64, 3)), EdgeTpuLayer(load_profile("coral-usb"))
    one, two = (layer.costs(work, layer.map(work, several=several)) for several in (False, True))
    assert [op.where for op in one.ops] == ["edgetpu", "cpu", "cpu"]
    assert [op.where for op in two.ops] == ["edgetpu", "cpu", "edgetpu"] and two.fixed_us > one.fixed_us + 300


def test_two_boards_share_the_chip() -> None:
    one = coefficients(fit(networks()))
    assert float(one.array_share[0, 0]) == float(one.array_share[0, 1])
    assert float(one.host_us_per_element[0, 0]) < float(one.host_us_per_element[0, 1])
