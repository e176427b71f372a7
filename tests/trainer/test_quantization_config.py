"""A configuration is refused where a target cannot compute it, and says why with both numbers."""

from __future__ import annotations

import pytest

from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.errors import InputError
from kasmina_trainer.quantization import QuantizeConfig

PLAIN = {
    "name": "plain",
    "description": "d",
    "chip": "c",
    "clock_mhz": 1.0,
    "runtime": "LiteRT with XNNPACK",
    "runtime_version": "2.3.0",
    "engines": ["litert"],
    "ram_bytes": 1,
    "error_band": 0.5,
    "source": "s",
    "weight_bits": [4, 8, 32],
}


def profile(**changes: object) -> HardwareProfile:
    return HardwareProfile.parse({**PLAIN, **changes})


def test_defaults_are_full_int8_on_every_profile() -> None:
    for name in ("x86-cpu", "coral-usb", "raspberry-pi-4"):
        config = QuantizeConfig.for_profile(load_profile(name))
        assert (config.weight_bits, config.per_layer, config.method) == (8, {}, "ptq")


def test_a_runtime_that_lists_four_bits_takes_them() -> None:
    config = QuantizeConfig.for_profile(profile(), {"weight_bits": 4, "per_layer": {"head": 32}})
    assert (config.weight_bits, config.bits("head"), config.bits("conv")) == (4, 32, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_bits": [8]},
        {"runtime": "tflite_runtime"},
        {"runtime": "TFLM with CMSIS-NN"},
        {"engines": ["litert", "tflite-runtime"]},
    ],
)
def test_int4_is_refused_where_it_was_seen_to_give_nan(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"weight_bits: 4 bits asked.*computes with 8.*NaN silently"):
        QuantizeConfig.for_profile(profile(**changes), {"weight_bits": 4})
    with pytest.raises(InputError, match=r"per_layer\.conv: 4 bits asked"):
        QuantizeConfig.for_profile(profile(**changes), {"per_layer": {"conv": 4}})
    QuantizeConfig.for_profile(profile(**changes), {"weight_bits": 8})


@pytest.mark.parametrize(("bits", "why"), [(32, "a float layer splits the graph"), (4, "its arithmetic is 8-bit")])
def test_an_edge_tpu_computes_with_eight_bits_alone(bits: int, why: str) -> None:
    with pytest.raises(InputError, match=rf"per_layer\.head: {bits} bits asked.*Edge TPU.*with 8: {why}"):
        QuantizeConfig.for_profile(load_profile("coral-usb"), {"per_layer": {"head": bits}})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weight_bits", 3, r"plain\.weight_bits: .*4 or 8.*got 3"),
        ("percentile", 20.0, r"percentile: .*greater than 50.*got 20"),
        ("per_layer", {"a": 16}, r"per_layer\.a: .*got 16"),
        ("colour", 1, r"colour: unknown field"),
        ("headroom", float("nan"), r"headroom: "),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        QuantizeConfig.for_profile(profile(), {field: value})


def test_depthwise_layers_stay_at_eight_unless_somebody_insists() -> None:
    assert QuantizeConfig(weight_bits=4).bits("dw", depthwise=True) == 8
    with pytest.raises(InputError, match=r"per_layer\.dw: 4 bits asked of a depthwise"):
        QuantizeConfig(per_layer={"dw": 4}).bits("dw", depthwise=True)
