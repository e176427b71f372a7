"""Microcontrollers: counted kernels, factors learned from others, anchors, and the reference networks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from benchmarks._mlperf_tiny import (
    NETWORKS,
    band_from,
    core_of,
    counts_of,
    predict_held_out,
    predict_new_network,
    shipped_costs,
    systems,
    timings,
)
from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.anchoring import anchor_network
from kasmina_edge.hardware_simulator.context import HardwareContext
from kasmina_edge.hardware_simulator.mcu_fit import Timing, fit_factors
from kasmina_edge.hardware_simulator.mcu_kernels import COUNTED, TERMS, cycles, network_counts, op_counts
from kasmina_edge.hardware_simulator.mcu_layer import McuLayer
from kasmina_edge.hardware_simulator.networks import table
from kasmina_edge.hardware_simulator.networks.building import LayerTable

PUBLISHED = {
    "mlperf-tiny-ad": (264_192, 264_192),
    "mlperf-tiny-kws": (2_656_768, 22_016),
    "mlperf-tiny-vww": (7_489_664, 208_112),
    "mlperf-tiny-ic": (12_501_632, 77_360),
}


def mcu(**changes: Any) -> HardwareProfile:
    fields: dict[str, Any] = {
        "name": "board", "description": "a board", "chip": "chip", "clock_mhz": 100.0, "runtime": "tflm",
        "runtime_version": "1", "engines": ["litert"], "ram_bytes": 65_536, "flash_bytes": 1_048_576, "kind": "mcu",
        "error_band": 0.2, "source": "made up for a test",
        "anchors": [{"network": "mlperf-tiny-kws", "latency_ms": 50.0, "energy_uj": 500.0, "source": "made up"}],
    }  # fmt: skip
    return HardwareProfile.parse(fields | changes, where="test")


@pytest.mark.parametrize("name", PUBLISHED)
def test_reference_networks_have_the_published_counts(name: str) -> None:
    work = table(name)
    weights = sum(math.prod(op.weights) for op in work.ops if op.weights)
    assert (work.macs, weights) == PUBLISHED[name]
    assert (
        work.dtypes == ("int8",) and work.input_bytes == {"ad": 640, "kws": 490, "vww": 27_648, "ic": 3072}[name[12:]]
    )


def test_dead_filters_cost_nothing_where_they_are_left_out() -> None:
    full, live, onnc = (table(f"mlperf-tiny-vww{tail}").macs for tail in ("", "-live", "-onnc"))
    assert onnc < live < full and 0.5 < live / full < 0.6
    assert abs(live / 4_646_932 - 1.0) < 0.12, "X-CUBE-AI's own count of what it left, 8.1 and later"


def test_what_a_convolution_is_counted_as() -> None:
    net = LayerTable("one")
    x = net.input((1, 8, 8, 4))
    wide, point, dense = net.conv(x, 6, 3), net.conv(x, 6, 1), net.fully_connected(x, 5)
    ops = net.build(wide, point, dense).ops
    copy = TERMS.index("copy_cycles_per_byte")
    assert op_counts(ops[0]) == (8 * 8 * 6 * 36, 0, 0, 8 * 8 * 36, 8 * 8 * 6, 0, 0, 216, 1)
    assert op_counts(ops[1])[copy] == 0, "a kernel of one tap reads its input where it lies"
    assert op_counts(ops[2]) == (0, 0, 8 * 8 * 4 * 5, 0, 5, 0, 0, 1280, 1)


def test_every_operation_costs_something_and_the_sum_is_the_network() -> None:
    net = LayerTable("odd")
    x = net.input((1, 8, 8, 4))
    x = net.pad(net.depthwise(x), 1)
    x = net.concat([x, x])
    x = net.unary("logistic", net.resize(x, 5, 5))
    x = net.unary("somebody's own", net.reshape(x, (1, 200)))
    work = net.build(x)
    costs = tuple(COUNTED.values())
    each = [cycles(op_counts(op), costs) for op in work.ops]
    assert min(each) >= COUNTED["call_cycles_per_op"]
    assert sum(each) == pytest.approx(cycles(network_counts(work), costs))


def test_an_anchor_is_met_and_the_rest_follows_it() -> None:
    fast, slow = (HardwareContext(mcu(anchors=[{"network": "mlperf-tiny-kws", "latency_ms": ms, "source": "x"}]))
                  for ms in (50.0, 100.0))  # fmt: skip
    kws, vww = table("mlperf-tiny-kws"), table("mlperf-tiny-vww")
    assert fast.estimate(kws).latency_ms == pytest.approx(50.0)
    assert slow.estimate(vww).latency_ms == pytest.approx(2 * fast.estimate(vww).latency_ms)
    assert fast.estimate(vww).band == 0.2


def test_energy_is_the_power_of_the_anchors() -> None:
    found = HardwareContext(mcu()).estimate(table("mlperf-tiny-vww"))
    assert found.energy_uj == pytest.approx(10.0 * found.latency_ms) and "anchor" in found.energy_how


def test_what_fits_and_what_does_not() -> None:
    kws, vww = table("mlperf-tiny-kws"), table("mlperf-tiny-vww")
    context = HardwareContext(mcu())
    assert context.estimate(kws).fits and 15_000 < context.estimate(kws).arena_bytes < 17_000
    assert not HardwareContext(mcu(ram_bytes=15_000)).estimate(kws).fits
    assert not HardwareContext(mcu(flash_bytes=100_000)).estimate(vww).fits
    assert any("flash" in note for note in HardwareContext(mcu(flash_bytes=100_000)).estimate(vww).notes)


def test_other_numbers_than_int8_have_no_band() -> None:
    work = anchor_network("mlperf-tiny-kws-float32")
    assert work is not None
    found = McuLayer(mcu()).costs(work)
    assert found.band is None and any("float32" in note for note in found.notes)


def test_a_profile_without_an_anchor_knows_no_band() -> None:
    given = dict(zip(TERMS, COUNTED.values(), strict=True))
    found = McuLayer(mcu(anchors=[], coefficients=given, sources={"coefficients": "counted"}))
    assert found.costs(table("mlperf-tiny-kws")).band is None
    unknown = mcu(anchors=[{"network": "somebody's own", "latency_ms": 1.0, "source": "x"}])
    assert McuLayer(unknown).costs(table("mlperf-tiny-kws")).band is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"copy_cycles_per_byte": None}, "lack copy_cycles_per_byte"),
        ({"dense_cycles_per_mac": -1.0}, "no negative time"),
    ],
)
def test_costs_are_all_there_or_none(change: dict[str, float | None], said: str) -> None:
    given = {k: v for k, v in (dict(COUNTED) | change).items() if v is not None}
    with pytest.raises(InputError, match=said):
        McuLayer(mcu(coefficients=given, sources={"coefficients": "counted"}))


def test_a_layer_refuses_another_kind() -> None:
    with pytest.raises(InputError, match="kind is cpu"):
        McuLayer(mcu(kind="cpu"))


def test_factors_are_recovered_from_made_up_boards() -> None:
    rng = np.random.default_rng(0)
    truth = np.array(list(COUNTED.values())) * np.array([1.0, 1.6, 1.3, 1.0, 0.6, 1.0, 1.0, 1.0, 1.0])
    names = [f"mlperf-tiny-{n}" for n in NETWORKS]
    made = [
        Timing(f"b{board}", "tool", "core", counts_of(name), speed * cycles(counts_of(name), truth))
        for board in range(6)
        for speed in (math.exp(rng.normal()),)
        for name in names
    ]
    found = fit_factors(made, model_error=0.01)
    flat = [0.0] * len(TERMS)
    for name in names:
        counts, other = counts_of(name), counts_of("mlperf-tiny-ic")
        ratio = cycles(counts, found.costs("tool", "core")) / cycles(other, found.costs("tool", "core"))
        assert ratio == pytest.approx(cycles(counts, truth) / cycles(other, truth), rel=0.03)
    plain = fit_factors([t for t in made if t.latency_ms > 0][:1])
    assert np.allclose(plain.logs["common"], flat), "one latency of a board teaches nothing"
    assert found.knows("tool", "core") and not found.knows("tool", "new")


def test_a_fit_needs_something() -> None:
    with pytest.raises(InputError, match="no published latencies"):
        fit_factors([])


def test_no_figure_of_the_held_out_chip_or_network_reaches_the_prediction() -> None:
    """The negative control: wild figures of what is left out change nothing, and of what is kept they do."""
    subjects = [s for s in systems() if s.toolchain == "x-cube-ai"]
    chip, network = "STM32U385", "vww"

    def told_ms(which: Any) -> list[float]:
        """Predictions for it, where every latency that ``which`` names is seven times what was published."""
        spoilt = [
            dataclasses.replace(s, latency_ms={n: ms * (7.0 if which(s, n) else 1.0) for n, ms in s.latency_ms.items()})
            for s in subjects
        ]
        found = predict_held_out(spoilt, [*(n for n in NETWORKS if n != network), network], chips=[chip])
        cases = [p for p in found if p.network == network and p.anchor == "kws"]
        return [p.ratio * p.system.latency_ms[network] for p in cases]

    honest = told_ms(lambda s, n: False)
    assert told_ms(lambda s, n: n == network) == honest
    assert told_ms(lambda s, n: s.chip == chip and n != "kws") == honest
    assert told_ms(lambda s, n: s.chip != chip and n == "ic") != honest


def test_a_new_network_on_a_known_board() -> None:
    """Also where the shipped bands come from."""
    found = predict_new_network(systems())
    cube = [abs(1.0 / r - 1.0) for s, _, r in found if s.toolchain == "x-cube-ai" and not s.accelerator]
    held = load_profile("stm32u575").error_band
    assert len(cube) >= 60 and np.mean(np.array(cube) <= held) >= 0.9
    assert float(np.median(cube)) < 0.06


def test_a_band_needs_three_chips() -> None:
    some = predict_held_out([s for s in systems() if s.toolchain == "x-cube-ai"], chips=["STM32U385", "STM32H7A3"])
    assert band_from(some, familiar=True) is None
    assert band_from([], familiar=False) is None


def test_shipped_costs_are_what_the_program_prints() -> None:
    every = systems()
    by_name = {s.name: s for s in every}
    for profile, system in (
        ("stm32l4r5", "v1.2 STMicroelectronics NUCLEO_L4R5ZI"),
        ("stm32u385", "v1.3 STMicroelectronics NUCLEO_U385RG_Q"),
        ("ra8d1", "v1.2 Renesas EK-RA8D1"),
        ("gap9", "v1.0 greenwaves-technologies gap9_650_240"),
    ):
        subject = by_name[system]
        fitted = shipped_costs(every, subject.toolchain, core_of(subject))
        given = load_profile(profile).coefficients
        ratios = [given[term] / cost for term, cost in zip(TERMS, fitted, strict=True)]
        assert max(ratios) / min(ratios) < 1.01, f"{profile}: one factor, the board's speed"
        for anchor in load_profile(profile).anchors:
            assert anchor.latency_ms == pytest.approx(subject.latency_ms[anchor.network.split("-")[2]], rel=1e-3)


def test_the_results_file_is_whole() -> None:
    every = systems()
    assert len(every) >= 55 and len({s.chip for s in every}) >= 15
    assert len({s.name for s in every}) == len(every)
    for system in every:
        assert len(system.latency_ms) >= 3 and set(system.latency_ms) <= set(NETWORKS)
        assert set(system.energy_uj) <= set(system.latency_ms)
        for network in system.latency_ms:
            table(system.networks[network])
    assert len(timings(every, without_network=["ad"])) < len(timings(every))


@pytest.mark.slow
def test_held_out_by_network_and_chip() -> None:
    errors = sorted(p.error for p in predict_held_out(systems()))
    assert errors[len(errors) // 2] <= 0.12


@pytest.mark.parametrize(
    "changes",
    [
        {"coefficients": dict.fromkeys(TERMS, 0.0)},
        {"clock_mhz": 5e-324},
        {"clock_mhz": 1e308},
        {"anchors": [{"network": "mlperf-tiny-kws", "latency_ms": 5e-324, "source": "made up"}]},
        {"anchors": [{"network": "mlperf-tiny-kws", "latency_ms": 1e308, "source": "made up"}]},
    ],
    ids=["no cost", "slow clock", "fast clock", "tiny anchor", "huge anchor"],
)
def test_numbers_beyond_all_measure_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="profile board: anchor mlperf-tiny-kws took"):
        HardwareContext(mcu(**changes))


def test_an_estimate_of_no_time_is_refused() -> None:
    board = mcu(anchors=[], coefficients=dict.fromkeys(TERMS, 0.0))
    with pytest.raises(InputError, match="profile board: its coefficients give 0 ms for mlperf-tiny-kws"):
        HardwareContext(board).estimate(table("mlperf-tiny-kws"))
