"""Quantization: from a float network and calibration frames to int8 and int4 files, with activation ranges as data.

The steps in torch (`prepare`: folding, cross-layer equalisation, training against the rounding, bias correction) come
before the conversion, which is export's; then the file is watched on calibration frames, its ranges are made
(`versions`), the quantizer writes it (`quantize`) and measurement decides (`choose`).

Pinning a host's ranges costs accuracy where growth moves values out of them, so pinned and free versions are both built
and measured. What needs torch or an engine is loaded on first use: the ranges alone need numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kasmina_trainer.quantization.choice import ACCURACY_PRICE, Candidate, choose
from kasmina_trainer.quantization.ranges import (
    HEADROOM,
    STRAINS,
    Array,
    Observed,
    Range,
    Ranges,
    free_ranges,
    observe,
    pinned,
    range_of,
    snap,
    snapped,
    with_headroom,
)
from kasmina_trainer.quantization.tflite import quantize
from kasmina_trainer.quantization.watching import watch

if TYPE_CHECKING:
    from kasmina_trainer.quantization.calibration import require_frames, versions
    from kasmina_trainer.quantization.carrying import carried_ranges, layer_tensors, moved_values, tensor_bits
    from kasmina_trainer.quantization.config import QuantizeConfig
    from kasmina_trainer.quantization.preparing import Prepared, prepare
    from kasmina_trainer.quantization.report import QuantizationReport

__all__ = [
    "ACCURACY_PRICE",
    "HEADROOM",
    "STRAINS",
    "Array",
    "Candidate",
    "Observed",
    "Prepared",
    "QuantizationReport",
    "QuantizeConfig",
    "Range",
    "Ranges",
    "carried_ranges",
    "choose",
    "free_ranges",
    "layer_tensors",
    "moved_values",
    "observe",
    "pinned",
    "prepare",
    "quantize",
    "range_of",
    "require_frames",
    "snap",
    "snapped",
    "tensor_bits",
    "versions",
    "watch",
    "with_headroom",
]

_HOME = {
    "Prepared": "preparing",
    "QuantizationReport": "report",
    "QuantizeConfig": "config",
    "carried_ranges": "carrying",
    "layer_tensors": "carrying",
    "moved_values": "carrying",
    "prepare": "preparing",
    "require_frames": "calibration",
    "tensor_bits": "carrying",
    "versions": "calibration",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"kasmina_trainer.quantization.{_HOME[name]}"), name)
    raise AttributeError(f"module 'kasmina_trainer.quantization' has no attribute {name!r}")
