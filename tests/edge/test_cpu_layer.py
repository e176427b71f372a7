"""The CPU layer: what it counts, what it refuses, and that it follows the profile's numbers and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge.contracts.profile import Anchor, HardwareProfile, load_profile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator import read_workload
from kasmina_edge.hardware_simulator.calibration_nets import KINDS, calibration_nets, mixtures
from kasmina_edge.hardware_simulator.cpu_kernels import Tiles, bound_of, delegated, fused, partitions, terms_of
from kasmina_edge.hardware_simulator.cpu_layer import CpuLayer
from kasmina_edge.hardware_simulator.net_writer import NetWriter
from kasmina_edge.hardware_simulator.nonnegative import fit_shares, nonnegative_least_squares
from kasmina_edge.hardware_simulator.workload import OpWork, Workload

TILES = Tiles(7, 16, 8, 32)
COEFFICIENTS = {
    "int8_tile_rows": 7.0, "int8_tile_columns": 16.0, "int8_tile_depth": 8.0, "int8_tile_channels": 32.0,
    "int8_call_ns": 1000.0, "int8_partition_ns": 100.0, "int8_conv_step_ns": 4.0, "int8_product_step_ns": 4.0,
    "int8_conv_block_ns": 20.0, "int8_sum_element_ns": 0.25,
}  # fmt: skip


BASE = load_profile("x86-cpu").model_dump()


def profile(**fields: object) -> HardwareProfile:
    plain = {**BASE, "anchors": (), "coefficients": {}, "sources": {}}
    return HardwareProfile.parse({**plain, "name": "made-up", "aliases": (), **fields}, where="test")


def conv(
    side: int = 7, channels: int = 16, depth: int = 8, kernel: int = 1, stride: int = 1, **fields: object
) -> OpWork:
    shape = (1, side, side, channels)
    made = OpWork(
        "conv_2d", ((1, side * stride, side * stride, depth),), (shape,), "int8",
        weights=(channels, kernel, kernel, depth), macs=math.prod(shape) * depth * kernel**2, stride=(stride, stride),
    )  # fmt: skip
    return replace(made, **fields)  # type: ignore[arg-type]


def net(*ops: OpWork) -> Workload:
    return Workload("made up", ops)


def test_tiles_are_counted_whole() -> None:
    counted = dict(terms_of(conv(side=7), TILES))  # 49 pixels: seven rows of tiles; 16 channels: one column
    assert (counted["product_row"], counted["product_block"], counted["product_step"]) == (7, 7, 7)
    more = dict(terms_of(conv(side=7, channels=17, depth=9), TILES))
    assert (more["product_block"], more["product_step"]) == (14, 28)


def test_one_pixel_one_tap_and_many_are_different_kernels() -> None:
    assert "vector_step" in dict(terms_of(conv(side=1), TILES))
    assert "product_step" in dict(terms_of(conv(), TILES))
    assert "conv_step" in dict(terms_of(conv(kernel=3), TILES))
    assert "conv_step" in dict(terms_of(conv(stride=2), TILES))
    taps = {k: dict(terms_of(conv(kernel=k), TILES))["conv_tap"] for k in (2, 3, 5)}
    assert taps == {2: 28, 3: 63, 5: 175}


@pytest.mark.parametrize(
    ("kernel", "name"), [((1, 3), "depth3"), ((3, 3), "depth9"), ((5, 5), "depth25"), ((7, 7), "group")]
)
def test_depthwise_kernels_by_their_taps(kernel: tuple[int, int], name: str) -> None:
    op = OpWork("depthwise_conv_2d", ((1, 8, 8, 40),), ((1, 8, 8, 40),), "int8", weights=(1, *kernel, 40))
    assert {term.split("_")[0] for term, _ in terms_of(op, TILES) if "far" not in term} == {name}


def test_parts_are_cut_where_the_delegate_does_not_take_an_operation() -> None:
    pooled = OpWork("average_pool_2d", ((1, 8, 8, 4),), ((1, 4, 4, 4),), "int8", stride=(2, 2))
    assert not delegated(pooled) and delegated(replace(pooled, dtype="float32"))
    assert partitions((conv(), conv())) == 1
    assert partitions((conv(), pooled, conv())) == 2
    assert partitions((pooled,)) == 0


def test_times_are_counts_times_nanoseconds() -> None:
    layer = CpuLayer(profile(coefficients=COEFFICIENTS))
    costs = layer.costs(net(conv(kernel=3)))
    assert costs.fixed_us == pytest.approx(1.1)
    assert costs.ops[0].latency_us == pytest.approx((7 * 20 + 7 * 9 * 4) / 1000)
    assert (costs.ops[0].where, costs.ops[0].bound) == ("cpu", "compute")
    assert costs.latency_ms == pytest.approx((1.1 + 0.392) / 1000)
    assert layer.costs(net(conv(kernel=3))) == costs


def test_the_band_is_the_type_s_own() -> None:
    layer = CpuLayer(profile(coefficients={**COEFFICIENTS, "int8_band": 0.07}, error_band=0.5))
    assert layer.costs(net(conv())).band == 0.07
    assert CpuLayer(profile(coefficients=COEFFICIENTS, error_band=0.5)).costs(net(conv())).band == 0.5


def test_a_type_that_was_not_calibrated_is_a_guess_and_said_so() -> None:
    costs = CpuLayer(profile(coefficients=COEFFICIENTS)).costs(net(conv(dtype="float32")))
    assert costs.band is None and "calibrated for int8 only" in costs.notes[0]
    assert costs.latency_ms > 0


def test_neither_anchors_nor_coefficients_is_refused() -> None:
    with pytest.raises(InputError, match="made-up: no anchors and no coefficients") as caught:
        CpuLayer(profile())
    assert "profile calibrate" in caught.value.next_step
    unknown = Anchor(network="nobody-knows-it", latency_ms=1.0, source="test")
    with pytest.raises(InputError, match="nobody-knows-it"):
        CpuLayer(profile(anchors=(unknown,)))


def test_raspberry_pi_4_is_known_for_float_and_guessed_for_int8() -> None:
    shipped = load_profile("raspberry-pi-4")
    layer = CpuLayer(shipped)
    known, guessed = layer.costs(net(conv(dtype="float32"))), layer.costs(net(conv()))
    assert known.band == shipped.error_band and not known.notes
    assert guessed.band is None and "float32 only" in guessed.notes[0]
    assert guessed.latency_ms < known.latency_ms
    with pytest.raises(InputError, match="raspberry-pi-4"):
        CpuLayer(shipped.model_copy(update={"anchors": ()}))


@pytest.mark.parametrize(
    "wrong", [{"int8_tile_rows": 0.0}, {"int8_conv_step_ns": -1.0}, {"int8_conv_step_ns": math.nan}]
)
def test_coefficients_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        CpuLayer(profile(coefficients={**COEFFICIENTS, **wrong}))


def test_anchors_set_the_scale() -> None:
    from kasmina_edge.hardware_simulator.networks import names, table

    known = [name for name in names() if table(name).ops[0].dtype == "int8"]
    if not known:
        pytest.skip("no network has a table")
    anchor = Anchor(network=known[0], latency_ms=7.0, source="test")
    layer = CpuLayer(profile(anchors=(anchor,), error_band=0.3))
    costs = layer.costs(table(known[0]))
    assert costs.latency_ms == pytest.approx(7.0) and costs.band == 0.3
    twice = CpuLayer(profile(anchors=(anchor.model_copy(update={"latency_ms": 14.0}),)))
    assert twice.costs(table(known[0])).latency_ms == pytest.approx(14.0)
    other = layer.costs(net(conv(dtype="float32")))
    assert other.band is None and other.notes


def test_a_profile_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="kind is npu"):
        CpuLayer(profile(kind="npu", coefficients=COEFFICIENTS))


shapes = st.tuples(st.integers(1, 40), st.integers(1, 80), st.integers(1, 80), st.sampled_from([1, 2, 3, 5]))


@given(shapes)
def test_more_work_never_takes_less_time(shape: tuple[int, int, int, int]) -> None:
    side, channels, depth, kernel = shape
    layer = CpuLayer(profile(coefficients=COEFFICIENTS))
    base = layer.costs(net(conv(side, channels, depth, kernel))).latency_ms
    for more in (conv(side, channels + 1, depth, kernel), conv(side, channels, depth + 1, kernel)):
        assert layer.costs(net(more)).latency_ms >= base


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_every_calibration_net_has_terms_for_every_operation(dtype: str) -> None:
    for made in [*calibration_nets(len(KINDS) + 4, dtype=dtype), *mixtures(4, dtype=dtype)]:
        work = read_workload(made.data)
        assert work.ops and work.dtypes[0] in (dtype, "int32")
        for op in work.ops:
            terms = terms_of(op, TILES)
            assert terms and all(count > 0 and math.isfinite(count) for _, count in terms)
            assert {bound_of(term) for term, _ in terms} <= {"compute", "memory", "overhead"}
            assert "other_mac" not in dict(terms)


def test_nets_are_the_same_every_time_and_judges_are_none_of_the_fitted() -> None:
    assert [n.data for n in calibration_nets(30)] == [n.data for n in calibration_nets(30)]
    assert not {n.data for n in calibration_nets(80)} & {n.data for n in mixtures(20)}


matrices = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.lists(st.floats(0, 100), min_size=k, max_size=k), min_size=k, max_size=12)
)


@given(matrices, st.integers(0, 2**31))
def test_no_negative_coefficient_and_no_direction_that_is_better(rows: list[list[float]], seed: int) -> None:
    a = np.array(rows)
    b = np.random.default_rng(seed).normal(size=len(rows)) * 10
    x = nonnegative_least_squares(a, b)
    assert (x >= 0).all() and np.isfinite(x).all()
    gradient = a.T @ (b - a @ x)
    scale = 1e-5 * max(1.0, np.abs(a).max()) * max(1.0, np.abs(b).max()) * len(rows)
    assert (gradient <= scale).all() and np.abs(gradient[x > 1e-6]).max(initial=0.0) <= scale


def test_shares_are_fitted_and_outliers_do_not_pull() -> None:
    rng = np.random.default_rng(0)
    counts = rng.uniform(1, 1000, (80, 4))
    truth = np.array([3.0, 0.0, 7.0, 0.5])
    times = counts @ truth
    assert fit_shares(counts, times) == pytest.approx(truth, abs=1e-6)
    times[:8] *= 3.0
    found = fit_shares(counts, times)
    assert np.abs(counts[8:] @ found / times[8:] - 1).max() < 0.05
    plain = nonnegative_least_squares(counts / times[:, None], np.ones(80))
    assert np.abs(counts[8:] @ plain / times[8:] - 1).max() > 0.05


def test_the_writer_s_shapes_are_the_file_s() -> None:
    made = NetWriter((1, 9, 9, 3))
    x = made.depthwise(made.conv(made.input, 8, 3, stride=2), 3, stride=2)
    x = made.concat([made.resize(made.pool(x, 2), 3), x])
    last = made.dense(made.flatten(made.mean(made.pad(x, 1))), 4)
    work = read_workload(made.finish())
    assert [op.outputs[0] for op in work.ops][:2] == [(1, 5, 5, 8), (1, 3, 3, 8)]
    assert work.ops[-1].outputs[0] == made.shape_of(last) == (1, 4)
    assert work.macs == 25 * 8 * 27 + 9 * 8 * 9 + 16 * 4
    assert made.parameters == 8 * 27 + 8 + 72 + 8 + 64 + 4


def test_a_pad_before_a_convolution_is_its_border_and_costs_nothing() -> None:
    made = NetWriter((1, 8, 8, 4))
    made.conv(made.pad(made.input, 1), 8, 3)
    costs = CpuLayer(profile(coefficients={**COEFFICIENTS, "int8_pad_pixel_ns": 10.0})).costs(
        read_workload(made.finish())
    )
    assert costs.ops[0].latency_us == 0.0 < costs.ops[1].latency_us
    alone = NetWriter((1, 8, 8, 4))
    padded = alone.pad(alone.input, 1)
    alone.add(alone.conv(padded, 4, 3), padded)  # two readers
    costs = CpuLayer(profile(coefficients={**COEFFICIENTS, "int8_pad_pixel_ns": 10.0})).costs(
        read_workload(alone.finish())
    )
    assert costs.ops[0].latency_us == pytest.approx(1.0)
    assert not fused(Workload("table", read_workload(made.finish()).ops))


def test_several_filters_a_channel_run_as_a_convolution() -> None:
    op = OpWork("depthwise_conv_2d", ((1, 7, 7, 1),), ((1, 7, 7, 16),), "int8", weights=(1, 3, 3, 16))
    assert dict(terms_of(op, TILES)) == {"conv_op": 1, "conv_row": 7, "conv_block": 7, "conv_tap": 63, "conv_step": 63}
