"""What a call asks for: one plan to train, or candidates to race; refused before anything is trained or written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import inf, isfinite
from numbers import Integral
from typing import Any

from kasmina_edge.contracts.record import SeedTelemetry
from kasmina_edge.errors import InputError
from kasmina_trainer.acceptance import Ints, check_clusters
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint_names, find_blueprint
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.evolve.arms import RETUNE, Arm, Candidate, check_candidate, fitting_arms, name_of
from kasmina_trainer.evolve.budget import Allowance
from kasmina_trainer.evolve.growing import DEFAULT_SITES, GRAFT_SETTINGS, Plan, default_settings, plan_for
from kasmina_trainer.evolve.intensities import Intensities
from kasmina_trainer.evolve.journal import digest_rows
from kasmina_trainer.evolve.recipes import RECIPES, named_recipe, norm_names, within
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import TrainingSettings

AUTO = "auto"
Choose = Callable[[Sequence[Arm], Mapping[str, SeedTelemetry], Allowance], Sequence[Arm]]


def asked_plan(
    blueprint: str | Sequence[Arm | Candidate],
    sites: Sequence[str] | None,
    settings: TrainingSettings | None,
    seeds: SeededNetwork,
    allowance: Allowance,
) -> tuple[Plan | None, list[Candidate]]:
    """One plan, or the candidates of a race.

    Raises:
        InputError: As `check_candidate`; or there is nothing that fits.
    """
    ports: dict[str, Port] = dict(seeds.ports)
    norms = norm_names(seeds.host_copy())
    if isinstance(blueprint, str):
        if blueprint == AUTO:
            return None, _every_arm(sites, ports, allowance)
        if blueprint in RECIPES and blueprint not in blueprint_names():
            settings = settings or default_settings(blueprint)
            here = {name: port for name, port in ports.items() if sites is None or name in sites}
            blueprint = [within(named_recipe(blueprint, here, norms), here, allowance)]
    if isinstance(blueprint, str):
        own = settings or default_settings(blueprint)
        places = tuple(sites) if sites is not None else ()
        plan = plan_for(blueprint, places, own)
        if not plan.host and sites is None:
            plan = plan_for(blueprint, tuple(ports)[:DEFAULT_SITES], own)
        if plan.candidate:
            check_candidate(plan.candidate, ports, allowance)
        return plan, []
    own = settings or GRAFT_SETTINGS
    candidates = _listed(blueprint)
    if not candidates or not all(candidates):
        raise InputError("no arm was named", "Name one, or pass blueprint='auto'.")
    for candidate in candidates:
        check_candidate(candidate, ports, allowance)
        for arm in candidate:
            wrong = [site for site in arm.sites if arm.blueprint == RETUNE and site not in norms]
            if wrong:
                raise InputError(
                    f"blueprint {RETUNE}: site {wrong[0]} is not behind a batch norm with scale and shift",
                    f"Norms are {', '.join(sorted(norms)) or 'none'}.",
                )
    if len(candidates) == 1:
        return Plan(name_of(candidates[0]), own, candidates[0]), []
    return None, candidates


def check_settings(settings: TrainingSettings) -> None:
    """Every number of a training is one that something can be trained with.

    Raises:
        InputError: One is not; it is named with its range.
    """
    for name, least in (("steps", 1), ("batch", 1), ("shift", 0)):
        value = getattr(settings, name)
        if not isinstance(value, Integral) or value < least:
            raise InputError(f"settings: {name} {value!r}, expected a whole number of {least} or more")
    if not (isfinite(settings.learning_rate) and settings.learning_rate > 0):
        raise InputError(f"settings: learning rate {settings.learning_rate:g}, expected above 0")
    for name, most in (("weight_decay", inf), ("label_smoothing", 1.0), ("keep", inf)):
        value = getattr(settings, name)
        if not (isfinite(value) and 0 <= value <= most):
            raise InputError(f"settings: {name} {value:g}, expected {'0 to 1' if most == 1 else '0 or more'}")


def check_run_seed(seed: int) -> None:
    """Refuse a seed that one of the generators of a run does not take.

    Raises:
        InputError: It is no whole number from 0 to 2^63 - 1.
    """
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise InputError(f"seed {seed!r}: expected a whole number from 0 to {2**63 - 1}")


def chosen(
    choose: Choose | None,
    candidates: Sequence[Candidate],
    telemetry: Callable[[], Mapping[str, SeedTelemetry]],
    ports: Mapping[str, Port],
    allowance: Allowance,
) -> list[Candidate]:
    """The candidates that race, as a policy puts them.

    Raises:
        InputError: The policy named none, or one that does not fit.
    """
    if choose is None:
        return list(candidates)
    arms = [arm for candidate in candidates if len(candidate) == 1 for arm in candidate]
    found: list[Candidate] = [(arm,) for arm in choose(arms, telemetry(), allowance)]
    if not found:
        raise InputError(f"the policy chose none of {len(arms)} arms", "Grow a blueprint by name.")
    for candidate in found:
        check_candidate(candidate, ports, allowance)
    return found


def check_groups(
    clusters: tuple[Ints | None, Ints | None], holdout_clean: Samples | None, holdout_target: Samples | None
) -> None:
    """Groups belong to rows that were named.

    Raises:
        InputError: They do not, or as `check_clusters`.
    """
    rows = []
    for name, groups, holdout in zip(("clean", "target"), clusters, (holdout_clean, holdout_target), strict=True):
        if groups is not None and holdout is None:
            raise InputError(f"groups of the {name} rows were named, and no held-out {name} rows", "Name both.")
        rows.append(len(holdout[0]) if holdout is not None else 0)
    check_clusters(clusters, (rows[0], rows[1]))


def noted(
    seeds: SeededNetwork,
    rows: Mapping[str, Samples],
    asked: Sequence[Candidate] | Plan,
    settings: TrainingSettings,
    allowance: Allowance,
    intensity: Intensities,
    **plain: Any,
) -> dict[str, Any]:
    """Everything that a run depends on, as plain data."""
    candidates = [asked.candidate] if isinstance(asked, Plan) else list(asked)
    levels: Any = intensity
    if isinstance(intensity, Mapping):
        levels = {n: [v.learning_rate, v.width, v.gain] for n, v in sorted(intensity.items())}
    arms = [
        [[a.blueprint, find_blueprint(a.blueprint).version, *a.sites, a.config.digest() if a.config else ""] for a in c]
        for c in candidates
    ]
    return {
        "format": 1,
        "host": seeds.host_hash,
        "sites": {name: list(shape) for name, shape in seeds.shapes.items()},
        "rows": {name: digest_rows(*samples) for name, samples in rows.items()},
        "asked": [asked.host, arms] if isinstance(asked, Plan) else ["race", arms],
        "settings": asdict(settings),
        "budget": asdict(allowance),
        "intensity": levels,
        **plain,
    }


def _listed(blueprint: Sequence[Arm | Candidate]) -> list[Candidate]:
    found = [(arm,) if isinstance(arm, Arm) else arm for arm in blueprint if isinstance(arm, Arm | tuple)]
    if len(found) != len(blueprint) or not all(isinstance(arm, Arm) for several in found for arm in several):
        raise InputError(f"blueprint {blueprint!r}: expected a name, or a list of arms or of tuples of arms")
    return found


def _every_arm(sites: Sequence[str] | None, ports: Mapping[str, Port], allowance: Allowance) -> list[Candidate]:
    for site in sites or ():
        check_candidate((Arm("no-op", (site,)),), ports, Allowance())
    here = {name: port for name, port in ports.items() if sites is None or name in sites}
    candidates: list[Candidate] = [(arm,) for arm in fitting_arms(here, allowance)]
    if not candidates:
        raise InputError(
            f"no blueprint fits the sites {', '.join(here) or 'none'} and the budget of {_spelled(allowance)}",
            "Raise the budget, or attach other sites.",
        )
    return candidates


def _spelled(allowance: Allowance) -> str:
    told = {"s": allowance.seconds, "MACs a frame": allowance.macs, "parameters": allowance.parameters}
    return ", ".join(f"{value:g} {unit}" for unit, value in told.items() if value is not None) or "any size"
