"""What is worth growing together: recipes as data, and combinations of what won a race."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import Layout, Port
from kasmina_trainer.blueprints.registry import GraftBlueprint, find_blueprint
from kasmina_trainer.evolve.arms import RETUNE, SHIPPED_AS, Arm, Candidate, name_of, price_of
from kasmina_trainer.evolve.budget import Allowance
from kasmina_trainer.seeds.discovery import Example, choose_ports, find_ports
from kasmina_trainer.training.settings import TrainingSettings

INPUT = "input"
EARLY = 2
LORA = "conv-lora"
SWITCHED = "switched-adapter"
MOST_RANK = 16
WIDTHS = {LORA: ("rank", 1), SWITCHED: ("bottleneck", 0)}
"""The setting that a budget narrows, and the least it may be."""
CLEAN_PRICE = 3.0  # points of gain that one point of clean loss outweighs in a race; the gate judges for itself
_INNER = ("layer", "norm", "join")  # places for what belongs to a layer, not for a branch of its own
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Part:
    """One blueprint of a recipe, and where it stands.

    ``input``: before the host. ``early``: the first two places that are no layer's or norm's own. ``layers``: beside
    every layer of maps, series or tokens that it fits. ``norms``: behind every batch norm. ``rest``: wherever it fits
    and nothing stands yet.

    Attributes:
        blueprint: Name in the library.
        where: As above.
        settings: Other ones than its defaults.
        most: Places that it takes, the first ones.
        needed: Whether the recipe has no place on a host where this part has none.
    """

    blueprint: str
    where: Literal["input", "early", "layers", "norms", "rest"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    most: int | None = None
    needed: bool = True


RECIPES: Mapping[str, tuple[Part, ...]] = {
    "light": (Part("input-filter", "input"), Part(RETUNE, "norms")),
    "strong": (Part("input-filter", "input"), Part(LORA, "layers"), Part(RETUNE, "norms")),
    "switched": (
        Part(SWITCHED, "norms", {"taps": 3}, most=EARLY),
        Part(SWITCHED, "norms", needed=False),
    ),
    "switched-wide": (
        Part(SWITCHED, "norms", {"taps": 3, "bottleneck": 8}, most=2 * EARLY),
        Part(SWITCHED, "norms", most=1, needed=False),
    ),
    "filters": (Part("input-filter", "input"), Part("depthwise", "early")),
    "filters-and-norms": (Part("input-filter", "input"), Part("depthwise", "early"), Part(RETUNE, "norms")),
    "depthwise-and-norms": (Part("depthwise", "early"), Part(RETUNE, "norms")),
}
RECIPE_SETTINGS: Mapping[str, TrainingSettings] = {
    "light": TrainingSettings(steps=100, batch=24, learning_rate=4e-2, keep=1.0, fused=True),
    "strong": TrainingSettings(steps=150, batch=30, learning_rate=4e-2, keep=0.5, fused=True),
    "switched": TrainingSettings(steps=80, batch=30, learning_rate=1.5e-2, keep=0.5, fused=True),
    "switched-wide": TrainingSettings(steps=90, batch=30, learning_rate=1.5e-2, keep=0.5, fused=True),
}
"""How long and how boldly a recipe trains when nothing else is said, where that is not as a single blueprint does."""


def sites_for(recipe: str, host: nn.Module, example: Example) -> tuple[str, ...]:
    """Sites to attach to a host so that a recipe finds its places.

    Args:
        recipe: Name in `RECIPES`.
        host: Any module.
        example: One batch.

    Raises:
        InputError: No such recipe, or the host has no place for a part of it.
    """
    found = find_ports(host, example)
    early = tuple(getattr(host, "seed_sites", ())) or tuple(port.name for port in choose_ports(found))
    here = {p.name: p for p in found if p.name in early or p.what in ("input", *_INNER)}
    candidate = named_recipe(recipe, here, norm_names(host))
    sites = {site for arm in candidate for site in arm.sites}
    return tuple(name for name in here if name in sites)


def named_recipe(name: str, ports: Mapping[str, Port], norms: Collection[str]) -> Candidate:
    """A recipe on the sites of one host.

    Raises:
        InputError: No such recipe, or a part of it finds no place.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe is called {name!r}", f"Recipes are {', '.join(RECIPES)}.")
    candidate = written_out(RECIPES[name], ports, norms)
    if candidate is None:
        wanted = ", ".join(f"{part.blueprint} ({part.where})" for part in RECIPES[name])
        raise InputError(
            f"recipe {name}: the sites {', '.join(ports)} have no place for one of {wanted}",
            "Attach the sites that `sites_for` names.",
        )
    return candidate


def within(candidate: Candidate, ports: Mapping[str, Port], allowance: Allowance) -> Candidate:
    """A candidate made to fit a budget: branches as wide as fits, then as many early norms as fit.

    Args:
        candidate: A recipe, written out.
        ports: Sites by name.
        allowance: MACs a frame and parameters; where nothing is limited, the candidate stays as it is.

    Returns:
        The largest one that fits, or the smallest one there is.
    """
    if allowance.macs is None and allowance.parameters is None:
        return candidate
    options = [candidate]
    if any(_narrowest(arm) is not None for arm in candidate):
        options = [tuple(_as_wide(arm, width) for arm in candidate) for width in range(MOST_RANK, -1, -1)]
    options += _shorter(options[-1])
    options = [option for option in options if option]
    return next((o for o in options if not allowance.refusal(price_of(o, ports))), options[-1])


def norm_names(host: nn.Module) -> frozenset[str]:
    """Batch norms of a host that can be retuned, by the name of the port behind each."""
    return frozenset(
        name
        for name, module in host.named_modules()
        if isinstance(module, _NORMS) and module.affine and module.track_running_stats
    )


def written_out(recipe: Sequence[Part], ports: Mapping[str, Port], norms: Collection[str] = ()) -> Candidate | None:
    """A recipe on the sites of one host; None where a part of it finds no place.

    Args:
        recipe: Its parts.
        ports: Sites by name, in order of flow.
        norms: Those behind batch norms.
    """
    free = dict(ports)
    arms = []
    for part in recipe:
        sites = tuple(name for name in free if _fits(part, name, free[name], norms))
        sites = sites[: EARLY if part.where == "early" else part.most]
        if not sites and part.needed:
            return None
        for site in sites:
            del free[site]
        config = find_blueprint(part.blueprint).Config.parse(dict(part.settings)) if part.settings else None
        if sites:
            arms.append(Arm(part.blueprint, sites, config))
    return tuple(arms)


def combinations(
    ranked: Sequence[Candidate], ports: Mapping[str, Port], allowance: Allowance, norms: Collection[str] = ()
) -> tuple[Candidate, ...]:
    """What to try after a race: its winner, its winners together, the winner at more sites, and the recipes.

    Args:
        ranked: Candidates of one arm at one site each, best first.
        ports: Sites by name, in order of flow.
        allowance: What is over it is left out.
        norms: Sites behind batch norms.

    Returns:
        Different candidates within the budget, the winner first.
    """
    if not ranked:
        return ()
    first = ranked[0]
    tried: list[Candidate | None] = [first, *(_joined(ranked, count, list(ports)) for count in (2, 3))]
    kind = first[0].blueprint
    alike = [site for site, port in ports.items() if _fits(Part(kind, "rest"), site, port, norms)]
    own = [site for arm in first for site in arm.sites]
    more = tuple(site for site in ports if site in {*own, *alike[:EARLY]})
    tried.append((Arm(kind, more, first[0].config),))
    written = (written_out(recipe, ports, norms) for recipe in RECIPES.values())
    tried += [within(candidate, ports, allowance) for candidate in written if candidate is not None]
    found: dict[str, Candidate] = {}
    for candidate in tried:
        if candidate is not None and not allowance.refusal(price_of(candidate, ports)):
            found.setdefault(name_of(candidate), candidate)
    return tuple(found.values())


def _narrowest(arm: Arm) -> int | None:
    """Least width of an arm that a budget may narrow; None: it has none, or none was asked for."""
    if arm.blueprint not in WIDTHS:
        return None
    name, least = WIDTHS[arm.blueprint]
    return least if getattr(arm.config or find_blueprint(arm.blueprint).Config(), name) else None


def _as_wide(arm: Arm, width: int) -> Arm:
    least = _narrowest(arm)
    if least is None:
        return arm
    kind = find_blueprint(arm.blueprint)
    told = (arm.config or kind.Config()).model_dump(mode="json") | {WIDTHS[arm.blueprint][0]: max(width, least)}
    return replace(arm, config=kind.Config.parse(told, where=arm.name))


def _shorter(candidate: Candidate) -> list[Candidate]:
    """The same behind fewer and fewer norms, the last ones left out first."""
    found = []
    arms = list(candidate)
    for at in range(len(arms) - 1, -1, -1):
        for count in range(len(arms[at].sites) - 1, -1, -1) if arms[at].blueprint in (RETUNE, SWITCHED) else ():
            arms[at] = replace(arms[at], sites=arms[at].sites[:count])
            found.append(tuple(arm for arm in arms if arm.sites))
    return found


def _joined(ranked: Sequence[Candidate], count: int, order: Sequence[str]) -> Candidate | None:
    """The best arms of so many different sites, arms of one blueprint made one."""
    taken: dict[str, Arm] = {}
    for candidate in ranked:
        for arm in candidate:
            if len(taken) < count and not set(arm.sites) & set(taken):
                taken |= dict.fromkeys(arm.sites, arm)
    if len(taken) < count:
        return None
    merged: dict[str, Arm] = {}
    for site, arm in sorted(taken.items(), key=lambda pair: order.index(pair[0])):
        key = Arm(arm.blueprint, (), arm.config).name
        sites = (*(merged[key].sites if key in merged else ()), site)
        merged[key] = Arm(arm.blueprint, sites, arm.config)
    return tuple(merged.values())


def _fits(part: Part, name: str, port: Port, norms: Collection[str]) -> bool:
    what = getattr(port, "what", "")
    place = {
        "input": name == INPUT,
        "early": name != INPUT and what not in _INNER and name not in norms,
        "layers": port.layer is not None and port.layout is not Layout.VECTOR,
        "norms": name in norms,
        "rest": name != INPUT,
    }
    if not place[part.where]:
        return False
    try:
        kind = find_blueprint(SHIPPED_AS.get(part.blueprint, part.blueprint))
    except InputError:
        return False
    return isinstance(kind, GraftBlueprint) and not kind.refusal(port)
