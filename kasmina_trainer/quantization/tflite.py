"""From a float TFLite file and ranges to a quantized one, by ai-edge-quantizer.

Weights: symmetric int8, or int4 where asked, one scale a channel: ``max|w| / (2^(b-1) - 1)``. Activations: asymmetric
int8, one scale a tensor. Biases: int32. (Jacob et al. 2018; ai-edge-quantizer's configurations ``static_wi8_ai8``
and ``static_wi4_ai8``.) A layer at 32 bits stays in float between a de-quantization and a quantization.

int4 is stored, and computed, by LiteRT's CONV_2D and FULLY_CONNECTED alone. One scale a block of weights exists there
only for dynamic FULLY_CONNECTED, whose activations are float: it has no place in a full-integer file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from kasmina_edge.errors import InputError, KasminaError
from kasmina_trainer.quantization.ranges import Ranges

INT4_OPERATORS = ("CONV_2D", "FULLY_CONNECTED")
"""Operators whose weights LiteRT 2.3 stores and computes with at four bits."""


def quantize(float_model: bytes, ranges: Ranges, bits: Mapping[str, int] | None = None) -> bytes:
    """A quantized file: weights, activations, inputs and outputs.

    Args:
        float_model: TFLite file; tensor names are unique.
        ranges: Of every activation, by tensor name.
        bits: 4 or 32 for the operators that do not get 8-bit weights, by the name of the tensor that they write.

    Raises:
        InputError: A width is not 4, 8 or 32.
        KasminaError: The quantizer refuses; the message carries its reason.
    """
    from ai_edge_quantizer import quantizer

    statistics = {
        name: {"min": np.asarray(low, np.float32).reshape(1, 1), "max": np.asarray(high, np.float32).reshape(1, 1)}
        for name, (low, high) in ranges.items()
    }
    rules = recipe(bits or {})
    try:
        worker = quantizer.Quantizer(bytearray(float_model), rules)
        result = worker.quantize(statistics, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as exc:
        reason = next((line for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise KasminaError(f"int8 quantization failed: {reason}") from exc
    return bytes(result.quantized_model)


def recipe(bits: Mapping[str, int]) -> Any:
    """ai-edge-quantizer's rules: everything static int8, then what differs, scope by scope.

    Args:
        bits: As of `quantize`.

    Raises:
        InputError: A width is not 4, 8 or 32.
    """
    from ai_edge_quantizer import qtyping, recipe_manager
    from ai_edge_quantizer.recipe import static_wi8_ai8

    wrong = {name: width for name, width in bits.items() if width not in (4, 8, 32)}
    if wrong:
        name, width = next(iter(wrong.items()))
        raise InputError(f"weights of tensor {name}: {width} bits asked, expected 4, 8 or 32")
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(static_wi8_ai8())
    fours = sorted(name for name, width in bits.items() if width == 4)
    floats = sorted(name for name, width in bits.items() if width == 32)
    if fours:
        for operator in INT4_OPERATORS:
            manager.add_static_config(
                _scope(fours), qtyping.TFLOperationName[operator], activation_num_bits=8, weight_num_bits=4
            )
    if floats:
        manager.add_quantization_config(
            _scope(floats),
            qtyping.TFLOperationName.ALL_SUPPORTED,
            algorithm_key=recipe_manager.AlgorithmName.NO_QUANTIZE,
        )
    return manager.get_quantization_recipe()


def _scope(names: list[str]) -> str:
    """Exactly the operators that write these tensors; its scopes are output names, each with a semicolon."""
    return f"^(?:{'|'.join(re.escape(name) for name in names)});"
