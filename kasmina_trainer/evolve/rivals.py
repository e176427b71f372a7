"""What every growth has to be compared with, trained on the same rows for no more steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.registry import GraftBlueprint, HostBlueprint, blueprint_names, find_blueprint
from kasmina_trainer.evolve.arms import RETUNE, Arm
from kasmina_trainer.evolve.growing import FULL, FULL_SETTINGS, GRAFT_SETTINGS, RETUNE_SETTINGS, Plan, ports_of
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import TrainingSettings

EVERYWHERE = {"lora-only": "conv-lora", "adapters-everywhere": "adapter"}
ALWAYS = (RETUNE, FULL)
RIVALS = (*ALWAYS, *EVERYWHERE)


def rival_plans(
    seeds: SeededNetwork, asked: bool | Sequence[str], own: TrainingSettings
) -> tuple[list[Plan], list[str]]:
    """Plans of the rivals, and why one of them cannot be trained on this host.

    Args:
        seeds: The bare host.
        asked: True for `ALWAYS`; names of `RIVALS`; False for none.
        own: Settings of the growth; no rival has more steps.

    Raises:
        InputError: No such rival.
    """
    names = ALWAYS if asked is True else () if asked is False else tuple(asked)
    plans, missing = [], []
    for name in names:
        if name not in RIVALS:
            raise InputError(f"no rival is called {name!r}", f"Rivals are {', '.join(RIVALS)}.")
        plan, clause = _plan(seeds, name)
        if plan is None:
            missing.append(f"{name}: {clause}")
        else:
            plans.append(replace(plan, settings=replace(plan.settings, steps=min(plan.settings.steps, own.steps))))
    return plans, missing


def _plan(seeds: SeededNetwork, name: str) -> tuple[Plan | None, str]:
    if name == FULL:
        return Plan(FULL, FULL_SETTINGS, host=FULL), ""
    if name == RETUNE:
        kind = find_blueprint(RETUNE)
        assert isinstance(kind, HostBlueprint)
        try:
            kind.count(seeds.body)
        except InputError as exc:
            return None, exc.message
        return Plan(RETUNE, RETUNE_SETTINGS, host=RETUNE), ""
    if EVERYWHERE[name] not in blueprint_names():
        return None, f"no blueprint is called {EVERYWHERE[name]!r}"
    kind = find_blueprint(EVERYWHERE[name])
    assert isinstance(kind, GraftBlueprint)
    sites = tuple(site for site, port in ports_of(seeds).items() if not kind.refusal(port))
    if not sites:
        return None, f"{kind.name} fits none of the sites {', '.join(seeds.sites)}"
    return Plan(name, GRAFT_SETTINGS, (Arm(kind.name, sites),), label=name), ""
