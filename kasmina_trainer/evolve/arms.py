"""What could grow where: one blueprint at some sites is an arm, and arms that grow together are a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import GraftBlueprint, blueprint_names, find_blueprint, fitting_names
from kasmina_trainer.evolve.budget import Allowance

SKIPPED = ("no-op",)
RETUNE = "scale-bn-retune"
SHIPPED_AS = {RETUNE: "channel-affine"}
"""What learns in one form and is shipped in another, removable one: norms that learn in training mode."""


@dataclass(frozen=True)
class Arm:
    """A blueprint at one or several sites.

    Attributes:
        blueprint: Name in the library; the newest version grows. `RETUNE` at sites behind batch norms lets these norms
            learn, statistics and all, and ships what they learned as removable channel affines.
        sites: Where; each gets a branch of its own.
        config: Its settings; None: the defaults.

    >>> Arm("depthwise", ("s1", "s2")).name
    'depthwise@s1,s2'
    """

    blueprint: str
    sites: tuple[str, ...]
    config: BlueprintConfig | None = None

    @property
    def name(self) -> str:
        """``BLUEPRINT@SITE,SITE``, and the settings' digest where they are not the defaults."""
        mark = "" if self.config is None or self.config == type(self.config)() else f"#{self.config.digest()[:6]}"
        return f"{self.blueprint}{mark}@{','.join(self.sites)}"


Candidate = tuple[Arm, ...]


def name_of(candidate: Candidate) -> str:
    """Arms that grow together, as one name."""
    return " + ".join(arm.name for arm in candidate)


def price_of(candidate: Candidate, ports: Mapping[str, Port]) -> Cost:
    """Parameters and MACs that a candidate adds to one frame.

    Raises:
        InputError: An unknown site or blueprint, or one that does not fit.
    """
    total = Cost()
    for arm in candidate:
        for site in arm.sites:
            total += _graft(arm.blueprint).cost(_port(site, ports), arm.config)
    return total


def check_candidate(candidate: Candidate, ports: Mapping[str, Port], allowance: Allowance) -> Cost:
    """The price of a candidate that may grow; nothing is priced where nothing is limited.

    Raises:
        InputError: An unknown site or blueprint, one that does not fit, two at one site, or a price over the budget;
            both numbers are in the message.
    """
    taken: dict[str, str] = {}
    for arm in candidate:
        if not arm.sites:
            raise InputError(f"blueprint {arm.blueprint}: no site was named")
        for site in arm.sites:
            if site in taken:
                raise InputError(f"site {site} is asked for twice, by {taken[site]} and by {arm.blueprint}")
            taken[site] = arm.blueprint
            kind, port = _graft(arm.blueprint), _port(site, ports)
            if clause := kind.refusal(port, arm.config):
                fitting = ", ".join(fitting_names(port))
                raise InputError(f"blueprint {kind.name}: site {site}: {clause}", f"Blueprints that fit: {fitting}.")
    if allowance.macs is None and allowance.parameters is None:
        return Cost()
    price = price_of(candidate, ports)
    if clause := allowance.refusal(price):
        raise InputError(
            f"{name_of(candidate)}: {clause}", "Raise the budget, name fewer sites, or choose a smaller blueprint."
        )
    return price


def fitting_arms(
    ports: Mapping[str, Port], allowance: Allowance, *, names: Sequence[str] | None = None
) -> tuple[Arm, ...]:
    """Every blueprint that fits a site and the budget, one arm a pair, in order of flow and name.

    Args:
        ports: Sites by name, in order of flow.
        allowance: What does not fit into it is left out.
        names: Blueprints to look at; the whole library when left out.
    """
    arms = []
    for site, port in ports.items():
        for name in blueprint_names() if names is None else names:
            kind = find_blueprint(name)
            if name in SKIPPED or not isinstance(kind, GraftBlueprint) or kind.refusal(port):
                continue
            if not allowance.refusal(kind.cost(port)):
                arms.append(Arm(name, (site,)))
    return tuple(arms)


def _graft(name: str) -> GraftBlueprint:
    kind = find_blueprint(SHIPPED_AS.get(name, name))
    if not isinstance(kind, GraftBlueprint):
        raise InputError(f"blueprint {name} is not removable and has no site", "Pass its name to evolve.")
    return kind


def _port(site: str, ports: Mapping[str, Port]) -> Port:
    if site not in ports:
        nearest = get_close_matches(site, ports, n=3, cutoff=0.0)
        raise InputError(
            f"no seed site is called {site!r}; sites are {', '.join(ports)}", f"Did you mean {', '.join(nearest)}?"
        )
    return ports[site]
