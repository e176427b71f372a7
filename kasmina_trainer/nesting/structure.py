"""What stands in a nested seed, as plain data, and back: for checkpoints, which keep weights and structure apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kasmina_edge.errors import InputError
from kasmina_trainer.nesting.config import NestedSeedConfig
from kasmina_trainer.nesting.pricing import misfit
from kasmina_trainer.seeds.lifecycle import SiteState, Step

if TYPE_CHECKING:
    from kasmina_trainer.nesting.seed import NestedBranch

FORMAT = 1
_STANDING = (SiteState.PROBING, SiteState.ACTIVE)


def structure_of(nest: NestedBranch, *, times: bool) -> dict[str, Any]:
    """Everything but the weights: settings of all levels, state of every child, and the steps that led there."""
    return {
        "format": FORMAT,
        "config": nest.config.model_dump(mode="json"),
        "states": {place: str(child.state) for place, child in nest.walk()},
        "steps": {place: [step.to_json(times=times) for step in below.history] for place, below in nest.nests()},
    }


def rebuilt(nest: NestedBranch, structure: Mapping[str, Any]) -> NestedBranch:
    """A seed for the same place with that structure, and weights as at birth; ``nest`` is not changed.

    Raises:
        InputError: The structure is malformed, of another format, or does not fit here.
    """
    where = f"seed {nest.port.name}: structure"
    try:
        number = structure["format"]
        if number != FORMAT:
            raise InputError(f"{where}: format {number}, this program reads {FORMAT}")
        config = NestedSeedConfig.parse(structure["config"], where=where)
        states = {str(place): SiteState(state) for place, state in structure["states"].items()}
        steps = {str(place): [_read_step(step) for step in told] for place, told in structure["steps"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as exc:
        raise InputError(f"{where}: malformed ({exc!r})") from exc
    if clause := misfit(nest.port, config, depth=nest.depth):
        raise InputError(f"{where}: {clause}")
    with torch.random.fork_rng(devices=[]):
        twin = type(nest)(nest.port, config)
        twin.sink(nest.depth)
        twin.plant(config)
    children, nests = dict(twin.walk()), dict(twin.nests())
    if set(states) != set(children) or set(steps) != set(nests):
        raise InputError(f"{where}: states of {len(states)} children and steps of {len(steps)} seeds; "
                         f"its settings have {len(children)} and {len(nests)}")  # fmt: skip
    if gone := [place for place, state in states.items() if state not in _STANDING]:
        raise InputError(f"{where}: {gone[0]} is {states[gone[0]]}; a child that stands is {' or '.join(_STANDING)}")
    for place, child in children.items():
        child.state = states[place]
    for place, below in nests.items():
        below.history = steps[place]
    return twin


def _read_step(data: Mapping[str, Any]) -> Step:
    step = Step(**{**data, "before": SiteState(data["before"]), "after": SiteState(data["after"])})
    if not (isinstance(step.site, str) and isinstance(step.reason, str)):
        raise TypeError(f"site {step.site!r} and reason {step.reason!r} of a step: expected text")
    if not (isinstance(step.at_s, int | float) and math.isfinite(step.at_s) and isinstance(step.evidence, Mapping)):
        raise TypeError(f"time {step.at_s!r} and evidence {step.evidence!r} of a step: expected a number and a mapping")
    return step
