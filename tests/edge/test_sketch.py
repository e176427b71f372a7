"""Sketches: quantiles within their promise, sums of a fleet in any order, bytes that round-trip, vector moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from worlds.telemetry import make_record

from kasmina_edge.contracts.record import MAX_COUNT, MAX_SKETCH_CHARACTERS, TelemetryRecord
from kasmina_edge.errors import InputError
from kasmina_edge.telemetry.seed_rows import merged_latency, merged_score
from kasmina_edge.telemetry.sketch import LAST_BUCKET, LogHistogram, VectorMoments, merge_sketches

values = st.lists(st.floats(1e-6, 1e9), max_size=60)
counts = st.dictionaries(st.integers(0, LAST_BUCKET), st.integers(1, MAX_COUNT), max_size=60)


def sketch_of(numbers: list[float]) -> LogHistogram:
    sketch = LogHistogram()
    for number in numbers:
        sketch.add(number)
    return sketch


def held(sketch: LogHistogram) -> dict[int, int]:
    return {index: count for index, count in sketch.counts.items() if count}


@given(counts)
def test_bytes_round_trip(buckets: dict[int, int]) -> None:
    text = LogHistogram(buckets).encode()
    assert held(LogHistogram.decode(text)) == buckets
    assert LogHistogram.decode(text).encode() == text


@given(values, values, values)
def test_merging_is_associative_and_commutative(a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = map(sketch_of, (a, b, c))
    assert held(x.merge(y)) == held(y.merge(x))
    assert held(x.merge(y).merge(z)) == held(x.merge(y.merge(z))) == held(sketch_of([*a, *b, *c]))
    assert held(merge_sketches([x, y, z])) == held(merge_sketches([z, x, y]))
    assert held(merge_sketches([])) == {}


@settings(max_examples=60)
@given(st.lists(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=40), min_size=1, max_size=8), st.floats(0, 1))
def test_a_fleet_s_quantiles_are_those_of_all_its_frames(devices: list[list[float]], share: float) -> None:
    texts = [sketch_of(numbers).encode() for numbers in devices]
    records = [
        make_record(i, device=f"cam-{i}", latency_sketch=text, score_sketch=text) for i, text in enumerate(texts)
    ]
    everything = np.array([number for numbers in devices for number in numbers])
    merged = merge_sketches(LogHistogram.decode(record.latency_sketch or "") for record in records)
    exact = float(np.quantile(everything, share, method="inverted_cdf"))
    found = merged.quantile(share)
    assert found is not None and abs(found / exact - 1.0) <= 0.0101
    fleet = merged_latency(records)
    assert fleet == merged_score(records) and fleet.count == len(everything)
    assert fleet.p99 == merged.quantile(0.99) and fleet.skipped == 0


def test_the_mean_of_quantiles_is_no_fleet_quantile() -> None:
    """Why sketches travel: one slow device of four hides in an average of the devices' own figures."""
    rng = np.random.default_rng(0)
    fleet = [rng.lognormal(3.0, 0.2, 2000), rng.lognormal(3.0, 0.2, 2000), rng.lognormal(3.0, 0.2, 2000)]
    fleet.append(rng.lognormal(6.0, 0.2, 2000))
    exact = float(np.quantile(np.concatenate(fleet), 0.5, method="inverted_cdf"))
    merged = merge_sketches(sketch_of(list(map(float, device))) for device in fleet).quantile(0.5)
    averaged = float(np.mean([np.quantile(device, 0.5) for device in fleet]))
    assert merged is not None and abs(merged / exact - 1.0) < 0.0101 < abs(averaged / exact - 1.0)


def test_a_minute_of_frames_is_small() -> None:
    rng = np.random.default_rng(1)
    text = sketch_of(list(map(float, rng.lognormal(3.3, 0.15, 1800)))).encode()
    assert len(text) <= 250


def test_values_that_the_format_cannot_say_are_counted_in_its_last_bucket() -> None:
    sketch = LogHistogram({-3: 2, LAST_BUCKET + 9: 1, LAST_BUCKET: 1, 7: 0})
    assert held(LogHistogram.decode(sketch.encode())) == {0: 2, LAST_BUCKET: 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "scheme missing"),
        ("!!", "not base64url"),
        ("AgEB", "scheme 2, this reader knows 1"),
        ("AQE", "cut off"),
        ("AYA", "cut off"),
        ("AQEA", "is empty or comes twice"),
        ("AQEBAAE", "is empty or comes twice"),
        ("Af____8PAQ", "bucket 4294967295"),
        ("A" * (MAX_SKETCH_CHARACTERS + 1), "characters, at most"),
        ("AQH_____________", "longer than 63 bits"),
    ],
)
def test_what_is_no_sketch_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LogHistogram.decode(text)


@given(st.binary(max_size=40))
@example(b"\x00\x01\x80:\x01\x10\x01\xa6m\x01\x8cx\x01A\x80\x01")  # a bucket beyond all floats
def test_any_bytes_are_a_sketch_or_refused(data: bytes) -> None:
    import base64

    text = base64.urlsafe_b64encode(b"\x01" + data).rstrip(b"=").decode()
    try:
        sketch = LogHistogram.decode(text)
    except InputError:
        return
    assert held(LogHistogram.decode(sketch.encode())) == held(sketch)
    sketch.quantile(0.5)


def test_a_sketch_of_another_scheme_is_counted_and_left_out() -> None:
    good = make_record(0, latency_sketch=sketch_of([10.0, 20.0]).encode())
    newer = make_record(1, latency_sketch="AgEB")
    found = merged_latency([good, newer, make_record(2)])
    assert (found.count, found.skipped) == (2, 1)
    assert merged_score([good]) == merged_score([]) and merged_score([]).p50 is None


def test_a_record_refuses_what_cannot_be_a_sketch() -> None:
    value = make_record(0).model_dump(mode="json")
    for text in ("<script>", "a" * (MAX_SKETCH_CHARACTERS + 1)):
        with pytest.raises(InputError, match="latency_sketch"):
            TelemetryRecord.parse({**value, "latency_sketch": text})


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), max_size=40), st.integers(0, 40))
def test_vector_moments_equal_numpy(rows: list[list[float]], cut: int) -> None:
    data = np.array(rows).reshape(-1, 3)
    parts = [VectorMoments(), VectorMoments()]
    parts[0].add(data[:cut])
    parts[1].add(data[cut:])
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        assert merged.count == len(data)
        if len(data):
            assert np.allclose(merged.mean, data.mean(axis=0), rtol=1e-9, atol=1e-6)
            assert np.allclose(merged.variance(), data.var(axis=0), rtol=1e-9, atol=1e-3)


def test_vector_moments_far_from_zero_keep_their_variance() -> None:
    """The naive sum of squares loses everything here; that it would is the negative control."""
    rows = np.random.default_rng(0).normal(1e8, 1.0, (4000, 2))
    moments = VectorMoments()
    for part in np.array_split(rows, 37):
        moments.add(part)
    assert moments.variance() == pytest.approx(rows.var(axis=0), rel=1e-6)
    flat = rows.astype(np.float32).astype(np.float64)
    naive = np.square(flat).mean(axis=0) - np.square(flat.mean(axis=0))
    assert not math.isclose(float(naive[0]), float(rows[:, 0].var()), rel_tol=1e-2)


def test_vector_moments_of_other_channels_do_not_merge() -> None:
    one, other = VectorMoments(), VectorMoments()
    one.add(np.ones((2, 3)))
    other.add(np.ones((2, 4)))
    with pytest.raises(InputError, match="channels"):
        one.merge(other)
