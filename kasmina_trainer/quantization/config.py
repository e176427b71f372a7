"""What quantization is asked for: one frozen value, checked by itself and against a hardware profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from kasmina_edge.contracts.canonical import Contract
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError, KasminaError
from kasmina_trainer.quantization.ranges import HEADROOM

Bits = Literal[4, 8, 32]
NO_INT4_RUNTIMES = ("tflite_runtime", "tflite-runtime", "tflm", "tflite-micro", "tensorflow lite micro")
"""Runtimes, by a part of their name, that load files with int4 weights and compute NaN, or refuse them."""


class QuantizeConfig(Contract):
    """How a network is quantized.

    Attributes:
        method: ``ptq``: calibrate alone. ``qat``: train against the rounding first.
        weight_bits: Width of all weights that LiteRT can store so; depthwise filters stay at 8.
        per_layer: Other widths by module name; 32 leaves a layer in float.
        calibration: How an activation's range follows from what calibration showed: all of it, a percentile of it, or
            the range of the smallest mean square error.
        percentile: Per cent of the values that a percentile range keeps, the rest cut off half at each end.
        headroom: Share by which ranges are widened, so that later grafts fit; 0 for a network that nothing grows on.
        equalize: Cross-layer equalisation first (Nagel et al. 2019).
        bias_correction: Take the mean rounding error out of no bias, of the last layer's, or of every layer's.
        clip_weights: Cut 4-bit weights off where that lowers their mean square error.
        qat_steps: Optimiser steps of ``qat``.
        qat_batch: Rows a step.
        qat_rate: Peak learning rate of ``qat``.
        distillation: Share of the loss of ``qat`` that keeps to the float network's answers, 0 to 1; the rest is the
            labels'. Without labels it is all of it.
        learn_ranges: Let ``qat`` learn the activation ranges (Bhalgat et al. 2020) instead of observing them again.
        seed: Chooses the order of ``qat``'s rows, and nothing else.

    >>> QuantizeConfig(weight_bits=4).weight_bits
    4
    """

    model_config = ConfigDict(extra="forbid")

    method: Literal["ptq", "qat"] = "ptq"
    weight_bits: Literal[4, 8] = 8
    per_layer: dict[str, Bits] = {}
    calibration: Literal["minmax", "percentile", "mse"] = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    headroom: Annotated[float, Field(ge=0, le=4)] = HEADROOM
    equalize: bool = False
    bias_correction: Literal["none", "last", "all"] = "last"
    clip_weights: bool = True
    qat_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    qat_batch: Annotated[int, Field(ge=1, le=65_536)] = 64
    qat_rate: Annotated[float, Field(gt=0, le=1)] = 5e-4
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.5
    learn_ranges: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed configuration is an `InputError`."""
        return InputError

    @classmethod
    def for_profile(cls, profile: HardwareProfile, changes: Mapping[str, Any] | None = None) -> QuantizeConfig:
        """The configuration for a target, with what the caller wants otherwise.

        Args:
            profile: The target.
            changes: Fields by name.

        Raises:
            InputError: A field is wrong, or the target cannot compute what is asked.
        """
        config = cls.parse(dict(changes or {}), where=f"quantization for profile {profile.name}")
        refuse_unfit(config, profile)
        return config

    def bits(self, layer: str, *, depthwise: bool = False) -> int:
        """Width of one layer's weights.

        Args:
            layer: Module name.
            depthwise: Whether it is a depthwise or transposed convolution: LiteRT has no int4 for those.

        Raises:
            InputError: 4 bits are asked of such a layer by name.
        """
        asked = self.per_layer.get(layer)
        if asked is None:
            return 8 if depthwise else self.weight_bits
        if asked == 4 and depthwise:
            raise InputError(
                f"per_layer.{layer}: 4 bits asked of a depthwise or transposed convolution, LiteRT has those with 8",
                "Give it 8 bits; such filters are a small share of a network.",
            )
        return asked


def refuse_unfit(config: QuantizeConfig, profile: HardwareProfile) -> None:
    """Stop at widths that the target does not compute with. Pure.

    An Edge TPU takes int8 weights and activations, and splits a graph at a float layer. Where a profile lists no 4
    among its ``weight_bits``, or its runtime is one of `NO_INT4_RUNTIMES`, 4-bit weights are refused: such runtimes
    were seen to give NaN silently.

    Raises:
        InputError: The message carries the width asked for, those the target has, and the reason.
    """
    asked = {"weight_bits": config.weight_bits, **{f"per_layer.{n}": b for n, b in config.per_layer.items()}}
    edgetpu = profile.kind == "edgetpu" or profile.accelerator == "edgetpu"
    runtime = profile.runtime.lower()
    seen_wrong = any(name in runtime for name in NO_INT4_RUNTIMES) or "tflite-runtime" in profile.engines
    no_int4 = seen_wrong or 4 not in profile.weight_bits
    has = (8,) if edgetpu else tuple(b for b in profile.weight_bits if not (b == 4 and no_int4))
    widths = ", ".join(map(str, has)) or "none"
    for place, width in asked.items():
        if edgetpu and width != 8:
            why = "a float layer splits the graph" if width == 32 else "its arithmetic is 8-bit"
            raise InputError(
                f"{place}: {width} bits asked, profile {profile.name} is an Edge TPU and computes with {widths}: {why}",
                "Use 8 bits, or a profile without accelerator.",
            )
        if width == 4 and no_int4:
            raise InputError(
                f"{place}: 4 bits asked, profile {profile.name} ({profile.runtime} {profile.runtime_version}) computes "
                f"with {widths}; int4 was seen to give NaN silently on such runtimes",
                "Use 8 bits, or a profile whose weight_bits hold 4.",
            )
