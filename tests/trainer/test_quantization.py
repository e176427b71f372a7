"""Ranges as data: snapping survives a file, errors are what they are called, and the choice follows its rule."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_quantizer import qtyping
from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.errors import InputError, KasminaError
from kasmina_trainer import quantization
from kasmina_trainer.quantization import Candidate, Observed

NUMBERS = st.floats(-1e4, 1e4, allow_nan=False, width=32)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_a_snapped_range_survives_float32_and_covers(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    scale, zero = quantization.snap(low, high)
    again = quantization.range_of(scale, zero)
    assert quantization.snap(*again) == (scale, zero)
    stored = np.float32(again[1]) - np.float32(again[0])
    assert np.float32(stored / np.float32(255)) == np.float32(scale) == scale
    assert -128 <= zero <= 127
    assert again[0] <= max(low, 0) + scale and again[1] >= min(high, 0) - scale
    assert again[0] - scale / 2 <= min(low, 0) and again[1] + scale / 2 >= max(high, 0)


@settings(deadline=None)
@given(NUMBERS, NUMBERS)
def test_the_quantizer_finds_the_snapped_scheme_again(a: float, b: float) -> None:
    scale, zero = quantization.snap(min(a, b), max(a, b))
    low, high = (np.asarray(v, np.float32).reshape(1, 1) for v in quantization.range_of(scale, zero))
    found = uniform_quantize_tensor.tensor_zp_scale_from_min_max(
        low, high, 8, False, qtyping.QuantGranularity.TENSORWISE
    )
    if scale > 1e-8:  # the quantizer's own floor
        assert (int(found[0].item()), float(found[1].item())) == (zero, scale)


def observed(values: np.ndarray) -> Observed:
    return quantization.observe(lambda: iter([{"t": values}]))["t"]


def test_errors_are_mean_squares() -> None:
    values = np.random.default_rng(0).normal(0, 1, 50_000)
    seen = observed(values)
    for allowed in ((-1.0, 1.0), (-2.0, 0.5), (0.0, 9.0)):
        cut = values - np.clip(values, *allowed)
        assert seen.clipping_error(allowed) == pytest.approx(float((cut * cut).mean()), rel=0.02, abs=1e-6)
    assert seen.strain((seen.low, seen.high)) < 1e-3
    assert seen.strain((0.0, seen.high)) > 100


def test_tight_beats_the_whole_range() -> None:
    values = np.append(np.random.default_rng(1).normal(0, 1, 50_000), [9.0, -9.0])
    seen = observed(values)

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        rounded = np.clip(np.rint(values / step) * step, low, high)
        return float(((values - rounded) ** 2).mean())

    assert error(*seen.tight()) < 0.9 * error(seen.low, seen.high)
    assert seen.tight()[1] < seen.high


def test_a_constant_tensor_and_one_that_is_not_finite() -> None:
    assert observed(np.zeros(10)).tight() == (0.0, 0.0)
    assert quantization.snap(0.0, 0.0)[0] > 0
    with pytest.raises(KasminaError, match=r"tensor t: .*nan|tensor t: .*inf"):
        observed(np.array([1.0, np.inf]))


def test_headroom_widens_all_but_the_border() -> None:
    assert quantization.with_headroom({"a": (-1.0, 4.0), "in": (0.0, 1.0)}, 0.5, keep=("in",)) == {
        "a": (-1.5, 6.0),
        "in": (0.0, 1.0),
    }
    with pytest.raises(InputError, match=r"got -0\.1"):
        quantization.with_headroom({}, -0.1)


def test_pinning_gives_up_strained_ranges_only() -> None:
    rng = np.random.default_rng(2)
    seen = {"fits": observed(rng.uniform(0, 1, 5000)), "strained": observed(rng.uniform(-1, 1, 5000))}
    seen["new"] = seen["fits"]
    free = dict.fromkeys(seen, (0.0, 7.0))
    host = {"fits": (0.0, 1.2), "strained": (0.0, 1.2)}
    assert quantization.pinned(free, host, seen) == {**host, "new": (0.0, 7.0)}
    assert quantization.pinned(free, host, seen, most_strain=3.0) == {**free, "fits": (0.0, 1.2)}


def version(name: str, agreement: float, accuracy: float | None) -> Candidate:
    return Candidate(name, name.encode(), 0, 0, agreement, accuracy)


@pytest.mark.parametrize(
    ("versions", "taken"),
    [
        ([("pinned", 1.0, 0.9), ("free", 1.0, 0.9)], "pinned"),
        ([("pinned", 1.0, 0.896), ("free", 1.0, 0.9)], "pinned"),
        ([("pinned", 1.0, 0.89), ("free", 1.0, 0.9)], "free"),
        ([("pinned", 0.98, 0.9), ("partly", 0.99, 0.9), ("free", 1.0, 0.9)], "partly"),
        ([("pinned", 0.97, 0.9), ("free", 0.98, 0.9)], "free"),
        ([("pinned", 0.995, None), ("free", 1.0, None)], "pinned"),
    ],
)
def test_the_choice(versions: list[tuple[str, float, float | None]], taken: str) -> None:
    assert quantization.choose([version(*v) for v in versions]).name == taken


def test_luck_above_the_float_network_sets_no_mark() -> None:
    versions = [version("pinned", 1.0, 0.90), version("free", 1.0, 0.92)]
    assert quantization.choose(versions, 0.90).name == "pinned"
    assert quantization.choose(versions, 0.92).name == "free"
    assert quantization.choose(versions, 0.95).name == "free"


def test_nothing_to_choose_from() -> None:
    with pytest.raises(InputError):
        quantization.choose([])
