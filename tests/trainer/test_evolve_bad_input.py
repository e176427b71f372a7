"""What must not be grown from is told in one sentence, before anything was trained, written or changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import small_growth

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.evolve import Event, Macs, Parameters, evolve
from kasmina_trainer.evolve.arms import Arm
from kasmina_trainer.seeds import SiteState

CLEAN, TARGET = small_growth.bars(90, 1), small_growth.inverted(small_growth.bars(90, 2))


def spoiled(samples: Samples, row: int, value: float) -> Samples:
    x = samples[0].copy()
    x[row, 0, 2, 2] = value
    return x, samples[1]


def relabelled(samples: Samples, change: Callable[[np.ndarray], Any]) -> Any:
    return samples[0], change(samples[1].copy())


def with_value(y: np.ndarray, row: int, value: Any, kind: Any) -> np.ndarray:
    y = y.astype(kind)
    y[row] = value
    return y


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown site": ({"sites": ("s7",)}, "no seed site is called 's7'; sites are s1, s2", "Did you mean s"),
    "unknown blueprint": ({"blueprint": "depthwize"}, "no blueprint is called 'depthwize'", "Did you mean depthwise"),
    "unknown blueprint in an arm": ({"blueprint": [Arm("sse", ("s1",))]}, "no blueprint is called .sse", "Did"),
    "unknown site in auto": ({"blueprint": "auto", "sites": ("x1",)}, "no seed site is called 'x1'", "Did you mean"),
    "over the budget of MACs": ({"budget": Macs(10)}, r"\d{3,} MACs a frame, the budget leaves 10", "Raise the budget"),
    "over the budget of values": ({"budget": Parameters(9)}, r"\d{2,} parameters, the budget leaves 9", "Raise"),
    "nothing fits a race": ({"blueprint": "auto", "budget": Parameters(1)}, "no blueprint fits", "Raise the budget"),
    "no arms": ({"blueprint": []}, "no arm was named", "auto"),
    "two at a site": (
        {"blueprint": [(Arm("depthwise", ("s1",)), Arm("no-op", ("s1",)))]}, "site s1 is asked for twice", "",
    ),
    "not a number in": ({"target": spoiled(TARGET, 17, np.nan)}, "target: row 17 holds nan, and 1 of 90 rows", "Leave"),
    "infinite in": ({"train": spoiled(CLEAN, 3, -np.inf)}, "train: row 3 holds -inf", "Leave"),
    "held-out not a number": (
        {"holdout_target": spoiled(small_growth.bars(60, 4), 5, np.nan)}, "held-out target: row 5 holds nan", "",
    ),
    "no labels": ({"target": (TARGET[0], None)}, "target: 90 inputs and no labels", "Label every row"),
    "a row without": (
        {"target": relabelled(TARGET, lambda y: with_value(y, 4, None, object))}, "row 4 has label None", "Label",
    ),
    "a label that is nan": (
        {"train": relabelled(CLEAN, lambda y: with_value(y, 6, np.nan, float))}, "train: row 6 has label nan", "Label",
    ),
    "half a label": (
        {"train": relabelled(CLEAN, lambda y: with_value(y, 6, 0.5, float))}, "train: row 6 has label 0.5", "Label",
    ),
    "outside the classes": (
        {"target": relabelled(TARGET, lambda y: with_value(y, 8, 3, int))}, "row 8 has label 3, expected 0 to 2", "",
    ),
    "below the classes": (
        {"target": relabelled(TARGET, lambda y: with_value(y, 8, -1, int))}, "row 8 has label -1, expected 0 to 2", "",
    ),
    "names as labels": ({"target": relabelled(TARGET, lambda y: y.astype(str))}, "labels of type", "Label"),
    "labels of two axes": ({"target": relabelled(TARGET, lambda y: y[:, None])}, r"labels of shape \(90, 1\)", ""),
    "one class": (
        {"target": relabelled(TARGET, lambda y: y * 0 + 1)}, "all 90 rows are of class 1, at least 2", "capture",
    ),
    "another shape": (
        {"train": (np.zeros((40, 3, 8, 8), np.float32), CLEAN[1][:40])}, "the host cannot take inputs of shape", "",
    ),
    "too few rows": ({"target": (TARGET[0][:9], TARGET[1][:9])}, "target: 9 rows to learn from, at least 20", ""),
    "intensity": ({"intensity": 1.5}, "intensity 1.5: expected 0 to 1", ""),
    "unknown rival": ({"rival": ("lora",)}, "no rival is called 'lora'", "lora-only"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_and_leaves_nothing(case: str, tmp_path: Path):
    options, message, step = CASES[case]
    seeds = small_growth.seeded()
    before = seeds.host_hash
    heard: list[Event] = []
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=message) as caught:
        evolve(
            seeds,
            **{**small_growth.task(), "rival": False, "folder": folder, "on_event": heard.append, **options},
        )
    assert step in caught.value.next_step and "\n" not in caught.value.message
    assert not heard and not folder.exists()
    assert seeds.current_host_hash() == before and set(seeds.states.values()) == {SiteState.DORMANT}


def test_the_task_itself_is_good():
    """The control: the same call without the bad input grows."""
    assert evolve(small_growth.seeded(), **small_growth.task(), rival=False).grafts


def test_a_host_that_changed_is_told_by_both_digests():
    seeds = small_growth.seeded()
    before = seeds.host_hash
    with torch.no_grad():
        next(seeds.body.parameters()).add_(0.01)
    with pytest.raises(InputError, match="the host changed under its grafts") as caught:
        evolve(seeds, **small_growth.task())
    assert before[:12] in caught.value.message and seeds.current_host_hash()[:12] in caught.value.message


def test_a_host_that_changes_while_it_grows_is_noticed():
    seeds = small_growth.seeded()

    def poke(event: Event) -> None:
        if event.kind == "step" and event.step == 6:
            with torch.no_grad():
                next(seeds.body.parameters()).add_(0.01)

    with pytest.raises(InputError, match="the host changed under its grafts"):
        evolve(seeds, **small_growth.task(), rival=False, on_event=poke)
