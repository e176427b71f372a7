"""Accelerators by a roofline: arrays, rates, bytes, anchors, and what a profile must give."""

from __future__ import annotations

from typing import Any

import pytest

from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.context import HardwareContext
from kasmina_edge.hardware_simulator.networks import table
from kasmina_edge.hardware_simulator.networks.building import LayerTable
from kasmina_edge.hardware_simulator.npu_layer import NpuLayer
from kasmina_edge.hardware_simulator.workload import Workload


def npu(coefficients: dict[str, float], **changes: Any) -> HardwareProfile:
    fields: dict[str, Any] = {
        "name": "chip", "description": "a chip", "chip": "chip", "clock_mhz": 1000.0, "runtime": "its own",
        "runtime_version": "1", "engines": ["litert"], "ram_bytes": 2**30, "kind": "npu", "error_band": 0.5,
        "source": "made up for a test", "coefficients": coefficients, "sources": {"coefficients": "made up"},
    }  # fmt: skip
    if not coefficients:
        del fields["coefficients"], fields["sources"]
    return HardwareProfile.parse(fields | changes, where="test")


def product(pixels: int, depth: int, outputs: int) -> Workload:
    net = LayerTable("product")
    return net.build(net.conv(net.input((1, 1, pixels, depth)), outputs, 1))


def latency_us(profile: HardwareProfile, work: Workload) -> float:
    return NpuLayer(profile).costs(work).latency_ms * 1000.0


def test_an_array_takes_whole_tiles() -> None:
    array = npu({"array_rows": 128, "array_columns": 128}, parameter_sram_bytes=10**9)
    one = latency_us(array, product(1000, 128, 128))
    assert one == pytest.approx((1000 + 256) / 1000.0)
    assert latency_us(array, product(1000, 129, 128)) == pytest.approx((2000 + 256) / 1000.0), "one row more: one tile"
    assert latency_us(array, product(1000, 1, 1)) == pytest.approx(one), "a small product leaves the array idle"
    assert latency_us(array, product(10, 128, 128)) == pytest.approx((128 + 256) / 1000.0), "weights load as long"


def test_a_depthwise_filter_leaves_the_other_columns_idle() -> None:
    array = npu({"array_rows": 128, "array_columns": 128}, parameter_sram_bytes=10**9)
    net, point = LayerTable("depthwise"), LayerTable("point")
    deep = net.build(net.depthwise(net.input((1, 64, 64, 128))))
    plain = point.build(point.conv(point.input((1, 64, 64, 128)), 128, 1))
    assert latency_us(array, deep) / latency_us(array, plain) > 50 and deep.macs < plain.macs


def test_an_operation_takes_its_products_or_its_bytes() -> None:
    work = product(1000, 256, 256)
    busy = npu({"product_macs_per_cycle": 100.0}, memory_bytes_per_s=1e12)
    starved = npu({"product_macs_per_cycle": 1e6}, memory_bytes_per_s=1e9)
    assert latency_us(busy, work) == pytest.approx(work.macs / 100.0 / 1000.0)
    assert latency_us(starved, work) == pytest.approx(work.constant_bytes / 1e9 * 1e6)
    assert NpuLayer(busy).costs(work).ops[0].bound == "compute"
    assert NpuLayer(starved).costs(work).ops[0].bound == "memory"
    held = npu({"product_macs_per_cycle": 1e6}, memory_bytes_per_s=1e9, parameter_sram_bytes=10**6)
    assert latency_us(held, work) < latency_us(starved, work), "weights that stay on the chip do not stream"
    assert not any("streams" in note for note in NpuLayer(held).costs(work).notes)
    assert any("streams" in note for note in NpuLayer(starved).costs(work).notes)


def test_what_is_fed_crosses_the_link_once() -> None:
    rate, work = {"product_macs_per_cycle": 1e9, "call_us": 3.0}, product(1000, 256, 256)
    linked = npu(rate, link="pcie", link_bytes_per_s=1e9, parameter_sram_bytes=10**9)
    assert NpuLayer(linked).costs(work).fixed_us == pytest.approx(3.0 + (256_000 + 256_000) / 1e9 * 1e6)


def test_shares_are_of_the_peak_and_fall_back_to_it() -> None:
    work = product(1000, 256, 256)
    peak = npu({}, peak_int8_tops=2.0, anchors=[])
    half = npu({"product_share": 0.5}, peak_int8_tops=2.0)
    assert latency_us(half, work) == pytest.approx(2 * latency_us(peak, work))
    assert latency_us(peak, work) == pytest.approx(work.macs / 1e6)


def test_anchors_scale_everything_and_bring_the_band() -> None:
    anchors = [{"network": "mlperf-tiny-kws", "latency_ms": 4.0, "energy_uj": 40.0, "source": "x"}]
    scaled = npu({"product_macs_per_cycle": 10.0, "op_us": 1.0, "call_us": 5.0}, anchors=anchors)
    kws, vww = table("mlperf-tiny-kws"), table("mlperf-tiny-vww")
    found = HardwareContext(scaled).estimate(kws)
    assert found.latency_ms == pytest.approx(4.0) and found.energy_uj == pytest.approx(40.0) and found.band == 0.5
    bare = npu({"product_macs_per_cycle": 10.0, "op_us": 1.0, "call_us": 5.0})
    ratio = NpuLayer(scaled).costs(vww).latency_ms / NpuLayer(bare).costs(vww).latency_ms
    assert ratio == pytest.approx(4.0 / NpuLayer(bare).costs(kws).latency_ms)
    assert NpuLayer(bare).costs(vww).band is None


@pytest.mark.parametrize(
    ("coefficients", "said"),
    [
        ({"op_us": 1.0}, "no rate of multiply-accumulates"),
        ({"array_rows": 8.0}, "no rate of multiply-accumulates"),
        ({"product_macs_per_cycle": -1.0}, "unknown to an npu, or negative"),
        ({"products_per_cycle_us": 1.0}, "unknown to an npu"),
    ],
)
def test_what_a_profile_must_give(coefficients: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        NpuLayer(npu(coefficients))


@pytest.mark.parametrize("key", ["product_share", "depthwise_share", "dense_share", "depthwise_macs_per_cycle"])
def test_a_rate_of_nothing_is_refused_by_its_key(key: str) -> None:
    """It would divide by zero, in the file or in a profile that was made otherwise."""
    hailo = load_profile("hailo-8")
    changed = hailo.model_copy(update={"coefficients": {**hailo.coefficients, key: 0.0}})
    with pytest.raises(InputError, match=f"profile hailo-8: coefficients.{key} is 0, expected more than 0"):
        NpuLayer(changed)
    with pytest.raises(InputError, match=rf"test\.coefficients\.{key}: 0, expected more"):
        npu({**hailo.coefficients, key: 0.0})
    small = hailo.model_copy(update={"coefficients": {**hailo.coefficients, key: 1e-3}})
    assert NpuLayer(small).costs(table("mlperf-tiny-vww")).latency_ms > 0


def test_an_array_of_less_than_one_row_is_refused() -> None:
    with pytest.raises(InputError, match=r"coefficients\.array_rows is 0\.5, expected 1 or more"):
        NpuLayer(npu({"array_rows": 0.5, "array_columns": 8.0}))
    assert latency_us(npu({"array_rows": 1.0, "array_columns": 8.0}), product(10, 8, 8)) > 0
    assert latency_us(npu({"product_share": 0.5, "activations_moved_share": 0.0}, peak_int8_tops=1.0),
                      product(10, 8, 8)) > 0, "a cost may be nothing, a rate may not"  # fmt: skip


def test_the_two_operating_points_of_a_chip_share_their_rates() -> None:
    """The rates were found on both; MLPerf Tiny v1.0 has 5.122, 1.481 and 4.100 ms at 98.7 MHz."""
    slow = load_profile("syntiant-ndp9120")
    fast = slow.model_copy(update={"clock_mhz": 98.7, "anchors": slow.anchors[:1]})
    fast = fast.model_copy(update={"anchors": (fast.anchors[0].model_copy(update={"latency_ms": 5.122}),)})
    for network, published in (("mlperf-tiny-kws", 1.481), ("mlperf-tiny-vww", 4.1)):
        assert NpuLayer(fast).costs(table(network)).latency_ms == pytest.approx(published, rel=0.05)


def test_a_cloud_tpu_has_no_band_and_prefers_large_products() -> None:
    found = HardwareContext(load_profile("tpu-like")).estimate(table("resnet-50-224"))
    assert found.band is None and any("no anchor" in note for note in found.notes)
    rate = table("resnet-50-224").macs / found.latency_ms
    small = HardwareContext(load_profile("tpu-like")).estimate(table("mlperf-tiny-kws"))
    assert rate > 5 * table("mlperf-tiny-kws").macs / small.latency_ms
