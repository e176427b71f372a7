"""Numbers between app and model: one rounding, no silent nonsense."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kasmina_edge.contracts.manifest import ModelIO, ModelTensor, Preprocessing
from kasmina_edge.engines.tensors import (
    InputConverter,
    OutputConverter,
    from_model,
    same_layout,
    softmax_score,
    to_model,
)
from kasmina_edge.errors import InputError

PLAIN = Preprocessing()
UNIT = Preprocessing(valid_range=(0.0, 1.0))


def tensor(dtype: Any = "int8", scale: float | None = 1 / 255, zero: int | None = -128, n: int = 4) -> ModelTensor:
    return ModelTensor(name="x", shape=(1, n), dtype=dtype, scale=scale, zero_point=zero)


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, (1, 6), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(["int8", "uint8", "int16", "int32"]),
    st.floats(1e-3, 2.0),
    st.integers(-20, 20),
    st.floats(-3, 3),
    st.floats(0.25, 4),
)
def test_quantization_is_the_formula_within_a_rounding(
    x: np.ndarray, dtype: Any, scale: float, zero: int, mean: float, std: float
) -> None:
    t = tensor(dtype, scale, zero, 6)
    got = to_model(x, t, Preprocessing(mean=mean, std=std)).astype(np.float64)
    info = np.iinfo(dtype)
    exact = np.clip((x.astype(np.float64) - mean) / std / scale + zero, info.min, info.max)
    assert np.abs(got - exact).max() <= 0.5 + 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32"])
def test_what_is_too_large_saturates(dtype: Any) -> None:
    t = tensor(dtype, 1e-6, 0)
    got = to_model(np.array([[-3e7, -1.0, 1.0, 3e7]], np.float32), t, PLAIN)
    info = np.iinfo(dtype)
    assert got.dtype == dtype
    assert got[0, 0] == info.min
    assert info.max - 128 <= got[0, 3] <= info.max


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["int8", "uint8"]), st.floats(1e-3, 10), st.integers(-100, 100))
def test_dequantization_is_exact_for_every_8_bit_value(dtype: Any, scale: float, zero: int) -> None:
    every = np.arange(256, dtype=np.uint8).view(dtype)[None]
    got = from_model(every, tensor(dtype, scale, zero, 256))
    assert np.array_equal(got, ((every.astype(np.float64) - zero) * scale).astype(np.float32))


def test_wide_integers_and_floats_come_back_as_floats() -> None:
    assert from_model(np.array([[1000, -5]], np.int16), tensor("int16", 0.5, 0, 2)).tolist() == [[500.0, -2.5]]
    assert from_model(np.array([[7, 8]], np.int32), tensor("int32", None, None, 2)).tolist() == [[7.0, 8.0]]
    raw = np.array([[1.5, 2.5]], np.float32)
    real = from_model(raw, tensor("float32", None, None, 2))
    assert real.tolist() == raw.tolist() and not np.shares_memory(real, raw)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 5), np.float32), r"expected shape \(1, 4\), got \(1, 5\)"),
        (np.zeros((2, 2), np.float32), r"expected shape \(1, 4\), got \(2, 2\)"),
        (np.zeros((1, 4), np.uint8), "expected float32 or int8, got uint8"),
        (np.zeros((1, 4), np.int64), "expected float32 or int8, got int64"),
        (np.zeros((1, 4), bool), "expected float32 or int8, got bool"),
        (np.zeros((1, 4), np.complex64), "expected float32 or int8, got complex64"),
        (np.zeros((1, 4), object), "expected float32 or int8, got object"),
        (np.zeros((1, 4), np.longdouble), "expected float32 or int8, got float128"),
        ("text", "expected float32 or int8, got <U4"),
        ([[1.0], [1.0, 2.0]], "not an array"),
        (None, "expected float32 or int8, got object"),
        (np.array([[0, 0, np.nan, 0]], np.float32), "holds NaN"),
        (np.array([[0, 0, np.inf, 0]], np.float32), "from 0 to 1, got 0 to inf"),
        (np.array([[0, -0.5, 2, 0]], np.float32), "from 0 to 1, got -0.5 to 2"),
        (np.array([[0, 0, 1e300, 0]]), "from 0 to 1, got 0 to inf"),
    ],
)
def test_a_wrong_frame_is_an_input_error_with_both_sides(x: object, message: str) -> None:
    io = ModelIO(name="image", shape=(1, 4))
    with pytest.raises(InputError, match=f"input 'image': .*{message}"):
        InputConverter(tensor(), UNIT, io).check(x)


def test_infinity_is_refused_without_a_range_too() -> None:
    with pytest.raises(InputError, match="got 0 to inf"):
        InputConverter(tensor(), PLAIN).check(np.array([[0, 0, np.inf, 0]], np.float32))


def test_float64_lists_and_the_short_shape_mean_the_same_frame() -> None:
    converter = InputConverter(tensor(), UNIT)
    x = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    expected = converter.convert(converter.check(x)).copy()
    for same in (x[0], x.astype(np.float64), x[0].tolist(), np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2]):
        assert np.array_equal(converter.convert(converter.check(same)), expected)
    assert expected.tolist() == [[-128, -64, 0, 127]] or expected.tolist() == [[-128, -64, -1, 127]]


def test_a_frame_is_never_changed_and_a_float_model_gets_it_whole() -> None:
    x = np.linspace(0, 1, 4, dtype=np.float32)
    before = x.copy()
    converter = InputConverter(tensor("float32", None, None), UNIT)
    assert np.array_equal(converter.convert(converter.check(x))[0], x)
    InputConverter(tensor(), UNIT).convert(InputConverter(tensor(), UNIT).check(x))
    assert np.array_equal(x, before)


def test_layouts_are_equal_up_to_ones_only() -> None:
    assert same_layout((1, 1, 16, 16), (1, 16, 16, 1))
    assert not same_layout((1, 3, 8, 8), (1, 8, 8, 3))
    assert not same_layout((1, 4), (1, 5))
    frame = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    t = ModelTensor(name="x", shape=(1, 1, 2, 2), dtype="float32")
    assert to_model(frame, t, PLAIN).tolist() == [[[[0, 1], [2, 3]]]]


@settings(max_examples=200, deadline=None)
@given(arrays(np.int8, (1, 10)), st.floats(1e-3, 2.0))
def test_the_table_scores_like_softmax(q: np.ndarray, scale: float) -> None:
    converter = OutputConverter(tensor("int8", scale, 3, 10))
    real = converter.convert(q)
    index, score = converter.top(q)
    exact = np.exp(real.astype(np.float64) - real.max())
    assert index == int(q.argmax())
    assert score == pytest.approx(float(1 / exact.sum()), rel=1e-4)
    assert softmax_score(real) == (index, pytest.approx(score, rel=1e-4))


def test_many_classes_and_a_nan_are_scored_honestly() -> None:
    wide = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)
    index, score = softmax_score(wide)
    exact = np.exp(wide.astype(np.float64))
    assert index == int(wide.argmax()) and score == pytest.approx(float(exact.max() / exact.sum()))
    for bad in ([1.0, math.nan, 2.0], [math.nan, 1.0], [math.inf, math.inf]):
        assert math.isnan(softmax_score(np.array(bad, np.float32))[1])


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, (1, 6), elements=st.floats(-300, 300, width=32)),
    st.sampled_from(["int8", "uint8", "int16", "int32", "float32"]),
    st.floats(1e-3, 2.0),
    st.integers(-128, 255),
    st.floats(-3, 3),
    st.sampled_from([None, (-300.0, 300.0), (-1.0, 1.0)]),
)
def test_the_hot_path_loads_what_check_and_convert_make(
    x: np.ndarray, dtype: Any, scale: float, zero: int, mean: float, valid: tuple[float, float] | None
) -> None:
    """It skips the clipping where the checked extremes say that nothing saturates; no value may differ for that."""
    quantized = dtype != "float32"
    t = tensor(dtype, scale if quantized else None, zero if quantized else None, 6)
    pre = Preprocessing(mean=mean, std=1.5, valid_range=valid)
    target = np.zeros((1, 6), dtype)
    plain, hot = InputConverter(t, pre), InputConverter(t, pre, None, target)
    try:
        expected = plain.convert(plain.check(x)).copy()
    except InputError as exc:
        with pytest.raises(InputError) as caught:
            hot.load(x)
        assert caught.value.message == exc.message and not target.any()
        return
    for same in (x, x[0], x.astype(np.float64)):
        assert hot.load(same) is target and np.array_equal(target, expected)
        target[...] = 0
    rows = plain.check_rows(np.stack([x, x]))
    assert rows is not None and len(rows) == 2 and np.array_equal(plain.convert(rows[1]), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.5])
@pytest.mark.parametrize("place", range(4))
def test_one_bad_value_anywhere_is_refused_and_nothing_is_written(bad: float, place: int) -> None:
    x = np.full((1, 4), 0.5, np.float32)
    x[0, place] = bad
    converter = InputConverter(tensor(), UNIT)
    converter.target[...] = 7
    for check in (converter.check, converter.load):
        with pytest.raises(InputError, match=r"holds NaN|expected values from 0 to 1"):
            check(x)
    assert (converter.target == 7).all()
    assert converter.check_rows(x[None]) is None, "one by one, which says which"


def test_the_models_own_integers_are_neither_scaled_nor_ranged() -> None:
    converter = InputConverter(tensor("uint8", 0.5, 3), UNIT)
    every = np.array([[0, 1, 254, 255]], np.uint8)
    assert np.array_equal(converter.load(every), every) and np.array_equal(converter.load(every[0]), every)
    assert converter.restore(every).tolist() == [[-1.5, -1.0, 125.5, 126.0]]
    with pytest.raises(InputError, match="expected float32 or uint8, got int8"):
        converter.load(every.view(np.int8))


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool", "float64"])
def test_inputs_that_are_no_quantization_take_their_own_type_alone(dtype: Any) -> None:
    t = ModelTensor(name="tokens", shape=(1, 4), dtype=dtype)
    converter = InputConverter(t, Preprocessing(mean=3.0), ModelIO(name="tokens", shape=(1, 4), dtype=dtype))
    x = np.array([[1, 0, 1, 1]], dtype)
    assert np.array_equal(converter.load(x), x) and np.array_equal(
        converter.check(x.tolist() if dtype != "int32" else x), x
    )
    with pytest.raises(InputError, match=f"expected {dtype}, got float32"):
        converter.load(x.astype(np.float32))
    if dtype == "float64":
        with pytest.raises(InputError, match="holds NaN"):
            converter.load(np.full((1, 4), np.nan))


def test_an_output_may_keep_its_own_type() -> None:
    t = ModelTensor(name="y", shape=(1, 2), dtype="int64")
    found = OutputConverter(t, ModelIO(name="y", shape=(2,), dtype="int64")).convert(np.array([[2**60, 3]], np.int64))
    assert found.dtype == np.int64 and found.tolist() == [2**60, 3]
