"""What is worth growing together: recipes as data, and combinations of what won a race."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import Layout, Port
from kasmina_trainer.blueprints.registry import GraftBlueprint, find_blueprint
from kasmina_trainer.evolve.arms import RETUNE, SHIPPED_AS, Arm, Candidate, name_of, price_of
from kasmina_trainer.evolve.budget import Allowance
from kasmina_trainer.seeds.discovery import Example, choose_ports, find_ports

INPUT = "input"
EARLY = 2
LORA = "conv-lora"
MOST_RANK = 16
CLEAN_PRICE = 3.0  # points of gain that one point of clean loss outweighs in a race; the gate judges for itself
_INNER = ("layer", "norm", "join")  # places for what belongs to a layer, not for a branch of its own
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Part:
    """One blueprint of a recipe, and where it stands.

    ``input``: before the host. ``early``: the first two places that are no layer's or norm's own. ``layers``: beside
    every layer of maps, series or tokens that it fits. ``norms``: behind every batch norm. ``rest``: wherever it fits
    and nothing stands yet.
    """

    blueprint: str
    where: Literal["input", "early", "layers", "norms", "rest"]


RECIPES: Mapping[str, tuple[Part, ...]] = {
    "light": (Part("input-filter", "input"), Part(RETUNE, "norms")),
    "strong": (Part("input-filter", "input"), Part(LORA, "layers"), Part(RETUNE, "norms")),
    "filters": (Part("input-filter", "input"), Part("depthwise", "early")),
    "filters-and-norms": (Part("input-filter", "input"), Part("depthwise", "early"), Part(RETUNE, "norms")),
    "depthwise-and-norms": (Part("depthwise", "early"), Part(RETUNE, "norms")),
}


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
    """A candidate made to fit a budget: branches with the largest rank that fits, then as many early norms as fit.

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
    if any(arm.blueprint == LORA for arm in candidate):
        options = [tuple(_ranked(arm, rank) for arm in candidate) for rank in range(MOST_RANK, 0, -1)]
    last = options[-1]
    behind = max((len(arm.sites) for arm in last if arm.blueprint == RETUNE), default=0)
    for count in range(behind - 1, -1, -1):
        kept = (replace(arm, sites=arm.sites[:count]) if arm.blueprint == RETUNE else arm for arm in last)
        options.append(tuple(arm for arm in kept if arm.sites))
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
        if part.where == "early":
            sites = sites[:EARLY]
        if not sites:
            return None
        for site in sites:
            del free[site]
        arms.append(Arm(part.blueprint, sites))
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


def _ranked(arm: Arm, rank: int) -> Arm:
    if arm.blueprint != LORA:
        return arm
    return replace(arm, config=find_blueprint(LORA).Config.parse({"rank": rank}, where=arm.name))


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
