"""An index of embeddings answers as a full sort would, says no to everything hostile, and keeps its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kasmina_edge.contracts.arrays import pack_arrays, unpack_arrays
from kasmina_edge.embedding_index import MOST_FILE_BYTES, EmbeddingIndex
from kasmina_edge.errors import BundleError, InputError, KasminaError

WIDE = st.floats(-(2.0**100), 2.0**100, width=32)


def some(rows: int = 20, width: int = 16, *, seed: int = 0, int8: bool = False) -> EmbeddingIndex:
    values = np.random.default_rng(seed).normal(size=(rows, width))
    return EmbeddingIndex.build(values, [f"thing {i} é" for i in range(rows)], int8=int8, space="towers 1.0.0")


def parts(index: EmbeddingIndex) -> dict[str, Any]:
    return dict(unpack_arrays(index.to_bytes(), where="index"))


@settings(max_examples=60, deadline=None)
@given(
    values=arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 12)), elements=st.floats(-9, 9, width=16)),
    k=st.integers(1, 50),
    seed=st.integers(0, 99),
    int8=st.booleans(),
)
def test_top_is_what_a_full_sort_says(values: Any, k: int, seed: int, int8: bool) -> None:
    values[~values.any(1)] = 1.0
    index = EmbeddingIndex.build(values, [str(i) for i in range(len(values))], int8=int8)
    asked = np.random.default_rng(seed).normal(size=values.shape[1])
    cosines = index.cosines(asked)
    best = sorted(range(len(values)), key=lambda i: (-cosines[i], i))[:k]
    assert [hit.row for hit in index.top(asked, k)] == best
    real = values.astype(np.float64) @ asked / np.linalg.norm(values.astype(np.float64), axis=1) / np.linalg.norm(asked)
    assert np.abs(cosines - real).max() < (0.02 * np.sqrt(values.shape[1]) if int8 else 1e-5)
    assert all(hit.name == str(hit.row) and hit.cosine == cosines[hit.row] for hit in index.top(asked, k))


def test_of_equals_the_first_one_stands_first() -> None:
    index = EmbeddingIndex.build(np.ones((6, 3)), list("abcdef"))
    assert [hit.name for hit in index.top(np.ones(3), 4)] == list("abcd")


@pytest.mark.parametrize("int8", [False, True])
def test_neither_length_nor_batch_axis_of_the_question_matters(int8: bool) -> None:
    index = some(int8=int8)
    asked = np.random.default_rng(5).normal(size=16).astype(np.float32)
    for other in (asked * 1e-30, asked * 1e30, asked[None]):
        assert [h.row for h in index.top(other, 5)] == [h.row for h in index.top(asked, 5)]


def test_every_row_finds_itself_and_int8_takes_a_quarter() -> None:
    values = np.random.default_rng(1).normal(size=(500, 64))
    names = [str(i) for i in range(500)]
    whole, small = EmbeddingIndex.build(values, names), EmbeddingIndex.build(values, names, int8=True)
    assert [small.top(row)[0].row for row in values] == list(range(500))
    assert small.rows.nbytes * 4 == whole.rows.nbytes
    worst = max(float(np.abs(small.cosines(row) - whole.cosines(row)).max()) for row in values[:50])
    assert 0 < worst < 0.01


@pytest.mark.parametrize("int8", [False, True])
def test_file_round_trip_is_exact(tmp_path: Path, int8: bool) -> None:
    index = some(int8=int8)
    digest = index.write(tmp_path / "words.index")
    again = EmbeddingIndex.open(tmp_path / "words.index", digest=digest, space="towers 1.0.0")
    assert (again.names, again.scale, again.space) == (index.names, index.scale, index.space)
    assert again.rows.dtype == index.rows.dtype
    assert (again.rows == index.rows).all()
    assert again.to_bytes() == index.to_bytes() == some(int8=int8).to_bytes()
    assert again.digest == digest != some(seed=1, int8=int8).digest


def test_another_digest_another_space_and_no_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "words.index"
    some().write(path)
    with pytest.raises(BundleError, match="expected"):
        EmbeddingIndex.open(path, digest="0" * 64)
    with pytest.raises(InputError, match=r"towers 1\.0\.0.*towers 2"):
        EmbeddingIndex.open(path, space="towers 2")
    with pytest.raises(InputError, match="no such file"):
        EmbeddingIndex.open(tmp_path / "none.index")
    with pytest.raises(KasminaError, match="directory"):
        EmbeddingIndex.open(tmp_path)
    path.write_bytes(bytes(MOST_FILE_BYTES + 1))
    with pytest.raises(BundleError, match="more than"):
        EmbeddingIndex.open(path)


def replaced(**changed: Any) -> bytes:
    return pack_arrays({**parts(some(int8=True)), **changed})


HOSTILE = {
    "another format": replaced(format=np.array([2])),
    "a format of many": replaced(format=np.array([1, 1])),
    "rows of doubles": replaced(rows=np.ones((20, 16))),
    "rows in a line": replaced(rows=np.ones(320, np.int8)),
    "a row of zeros": replaced(rows=np.r_[np.zeros((1, 16)), np.ones((19, 16))].astype(np.int8)),
    "rows that are no numbers": replaced(rows=np.full((20, 16), np.nan, np.float32), scale=np.array([1.0])),
    "rows whose length overflows": replaced(rows=np.full((20, 16), 3e38, np.float32), scale=np.array([1.0])),
    "fewer rows than names": replaced(rows=np.ones((19, 16), np.int8)),
    "no rows": replaced(rows=np.ones((0, 16), np.int8)),
    "a scale of nothing": replaced(scale=np.array([0.0])),
    "a scale of no number": replaced(scale=np.array([np.nan])),
    "a scale as integer": replaced(scale=np.array([1])),
    "floats with a scale": replaced(rows=np.ones((20, 16), np.float32), scale=np.array([2.0])),
    "names that are no text": replaced(names=np.full(220, 0xFF, np.uint8)),
    "names as words": replaced(names=np.zeros(200, np.int64)),
    "ends that go back": replaced(ends=parts(some())["ends"][::-1].copy()),
    "ends beyond the names": replaced(ends=parts(some())["ends"] + 1),
    "ends below zero": replaced(ends=parts(some())["ends"] - 100),
    "no ends": replaced(ends=np.zeros(0, np.int64)),
    "a name with a line break": replaced(names=np.full(len(parts(some())["names"]), 10, np.uint8)),
    "a space that is no text": replaced(space=np.array([0xFF], np.uint8)),
    "a space that never ends": replaced(space=np.full(1000, 65, np.uint8)),
    "an array too many": replaced(more=np.zeros(1)),
    "an array too few": pack_arrays({k: v for k, v in parts(some()).items() if k != "scale"}),
    "a pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match=r"bad\.index"):
        EmbeddingIndex.from_bytes(HOSTILE[name], where="bad.index")


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 2**31), bits=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_or_is_another_index(at: int, bits: int, cut: bool) -> None:
    whole = some(4, 4, int8=True).to_bytes()
    at %= len(whole)
    data = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :]
    with pytest.raises(BundleError):
        EmbeddingIndex.from_bytes(data, where="bad.index")


@settings(max_examples=80, deadline=None)
@given(rows=arrays(np.float32, (3, 4), elements=WIDE), asked=arrays(np.float32, 4, elements=WIDE))
def test_any_finite_numbers_give_cosines_or_a_typed_error(rows: Any, asked: Any) -> None:
    try:
        found = EmbeddingIndex.build(rows, list("abc")).cosines(asked)
    except InputError as exc:
        assert "direction" in exc.message
        assert not rows.any(1).all() or not asked.any()
    else:
        assert np.isfinite(found).all()
        assert np.abs(found).max() <= 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (np.ones(15), "16 numbers"), (np.ones((2, 16)), "16 numbers"), (np.zeros(16), "no direction"),
        (np.full(16, np.nan), "no direction"), (np.full(16, np.inf), "no direction"), (np.array(["a"] * 16), "numbers"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_is_refused(asked: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        some().top(asked)


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (np.ones((2, 3)), ["a"], "1 names"), (np.ones(3), ["a"], "expected"), (np.ones((0, 3)), [], "0 rows"),
        (np.zeros((1, 3)), ["a"], "no direction"), (np.full((1, 3), np.inf), ["a"], "no direction"),
        (np.ones((1, 3)), ["a" * 201], "200"), (np.ones((1, 3)), ["a\nb"], "printable"),
        (np.ones((1, 3)), [""], "text"),
        (np.ones((1, 3), bool), ["a"], "numbers"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("int8", [False, True])
def test_an_index_that_says_nothing_cannot_be_built(rows: Any, names: list[str], message: str, int8: bool) -> None:
    with pytest.raises(InputError, match=message):
        EmbeddingIndex.build(rows, names, int8=int8)


def test_fewer_than_one_answer_is_refused() -> None:
    with pytest.raises(InputError, match="top 0"):
        some().top(np.ones(16), 0)
