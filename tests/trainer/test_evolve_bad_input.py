"""What must not be grown from is told in one sentence, before anything was trained, written or changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


def reshaped(samples: Samples, shape: tuple[int, ...]) -> Samples:
    rng = np.random.default_rng(5)
    return rng.uniform(0, 1, (len(samples[0]), *shape)).astype(np.float32), samples[1]


def same_scene(samples: Samples) -> Samples:
    return np.repeat(samples[0][:1], len(samples[0]), axis=0), samples[1]


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
    "rows of another size": (
        {"target": reshaped(TARGET, (1, 12, 12))},
        r"target: inputs of shape \(1, 12, 12\), those of train are \(1, 8, 8\)", "",
    ),
    "held-out rows of another size": (
        {"holdout_target": reshaped(TARGET, (2, 8, 8))}, r"held-out target: inputs of shape \(2, 8, 8\), those", "",
    ),
    "nothing to judge by": ({"holdout_target": (TARGET[0][:0], TARGET[1][:0])}, "held-out target: 0 rows", ""),
    "one scene": (
        {"target": same_scene(TARGET), "holdout_target": None}, "90 rows of 1 scenes give 0 to judge", "Capture",
    ),
    "one scene to race on": (
        {"train": same_scene(CLEAN), "blueprint": [Arm("se", ("s1",)), Arm("adapter", ("s1",))]},
        "train: 90 rows to learn from show too few scenes", "by name",
    ),
    "words as inputs": ({"target": (TARGET[0].astype(str), TARGET[1])}, "target: inputs of type", ""),
    "ragged inputs": ({"target": ([[1.0], [1.0, 2.0]], [0, 1])}, "target: inputs are no array", ""),
    "one label for all": ({"target": (TARGET[0], 1)}, "target: 90 inputs and 1 labels", ""),
    "a seed below 0": ({"seed": -1}, "seed -1: expected a whole number from 0", ""),
    "a seed of 70 bits": ({"seed": 2**70}, r"seed \d+: expected a whole number from 0", ""),
    "no steps": ({"settings": replace(small_growth.QUICK, steps=0)}, "settings: steps 0, expected", ""),
    "a rate below 0": (
        {"settings": replace(small_growth.QUICK, learning_rate=-1.0)}, "settings: learning rate -1, expected", "",
    ),
    "a rate that is none": (
        {"settings": replace(small_growth.QUICK, learning_rate=np.nan)}, "settings: learning rate nan, expected", "",
    ),
    "smoothing above 1": (
        {"settings": replace(small_growth.QUICK, label_smoothing=2.0)}, "settings: label_smoothing 2, expected", "",
    ),
    "a tuple of no arms": ({"blueprint": [()]}, "no arm was named", "auto"),
    "no arms at all": ({"blueprint": [3]}, r"blueprint \[3\]: expected a name, or a list of arms", ""),
    "a plain number as budget": ({"budget": 5}, "budget 5: expected Minutes, Macs or Parameters", ""),
    "a policy that chooses none": (
        {"blueprint": "auto", "choose": lambda arms, telemetry, budget: []}, "the policy chose none of", "by name",
    ),
    "answers of another number": (
        {"predictor": lambda network: lambda x: np.zeros(3)}, r"clean: the host gave answers of shape \(3,\)", "",
    ),
    "a bare number for a blueprint": ({"intensity": {"se": 0.5}}, "intensity of se: 0.5, expected", "gain"),
    "intensity": ({"intensity": 1.5}, "intensity 1.5: expected 0 to 1", ""),
    "intensity in words": ({"intensity": "high"}, "intensity 'high': expected 0 to 1", ""),
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
