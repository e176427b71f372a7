"""What stands at a seed site: which blueprint, how it was set, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from torch import nn

from kasmina_edge.contracts.manifest import Acceptance, Graft
from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.blueprints.registry import GraftBlueprint
from kasmina_trainer.seeds.lifecycle import Plain
from kasmina_trainer.seeds.report import SeedRow, row_of
from kasmina_trainer.seeds.site import SeedSite

if TYPE_CHECKING:
    from kasmina_trainer.seeds.network import SeededNetwork


@dataclass
class Growth:
    """What stands at a site.

    Attributes:
        blueprint: Its kind.
        intensity: The gate's value, 0 to 1.
        seed: What its first weights were drawn from.
        config: Its settings.
        price: What it cost at birth.
    """

    blueprint: GraftBlueprint
    intensity: float
    seed: int
    config: BlueprintConfig
    price: Cost

    def cost(self, site: SeedSite) -> Cost:
        """What it costs now: a branch that holds others says so itself."""
        told = getattr(site.branch, "cost", None)
        now = told() if callable(told) else None
        return now.with_gate() if isinstance(now, Cost) else self.price

    def settings(self, site: SeedSite) -> BlueprintConfig:
        """Its settings as they stand now: a branch that holds others says so itself."""
        now = getattr(site.branch, "config", None)
        return now if isinstance(now, self.blueprint.Config) else self.config

    def as_graft(self, name: str, site: SeedSite) -> Graft:
        """As the manifest will name it."""
        settings = self.settings(site)
        defaults = settings == self.blueprint.Config()
        return Graft(
            blueprint=self.blueprint.name,
            blueprint_version=self.blueprint.version,
            site=name,
            intensity=self.intensity,
            parameters=count_parameters(site.branch),
            config_digest="" if defaults else settings.digest(),
            macs=self.cost(site).macs,
        )

    def told(self, row: SeedRow, site: SeedSite, age_s: float | None) -> SeedRow:
        """A site's row with what stands there."""
        return row.grown(
            blueprint=f"{self.blueprint.name} v{self.blueprint.version}",
            config=self.settings(site).digest(),
            parameters=count_parameters(site.branch),
            macs=self.cost(site).macs,
            intensity=self.intensity,
            age_s=age_s,
        )


def row_at(network: SeededNetwork, name: str, telemetry: Mapping[str, float], now_s: float) -> SeedRow:
    """A site as a line of the report, at a time in seconds since 1970 UTC."""
    life = network.lifecycle
    row = row_of(network.ports[name], life.states[name], life.last(name), telemetry)
    growth, born_s = network.growths.get(name), life.born_s(name)
    if growth is None:
        return row
    return growth.told(row, network.site(name), None if born_s is None else max(0.0, now_s - born_s))


def settings_of(kind: GraftBlueprint, config: BlueprintConfig | Mapping[str, Any] | None) -> BlueprintConfig:
    """The settings that hold for a blueprint.

    Raises:
        InputError: They are another blueprint's, or a value is outside its range.
    """
    if isinstance(config, Mapping):
        return kind.Config.parse(dict(config), where=f"blueprint {kind.name}")
    return kind.settings(config)


def check_intensity(intensity: float) -> None:
    """Refuse a blend factor outside 0 to 1.

    Raises:
        InputError: It is.
    """
    if not isinstance(intensity, Real) or not 0.0 <= intensity <= 1.0:
        raise InputError(f"intensity {intensity!r}: expected 0 to 1")


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        InputError: It is no whole number, or has more than 64 bits.
    """
    if not isinstance(seed, Integral) or not -(2**63) <= seed < 2**64:
        raise InputError(f"seed {seed!r}: expected a whole number of at most 64 bits")


def figures_of(acceptance: Acceptance | None) -> dict[str, Plain]:
    """What of a measurement goes into the record of a step."""
    if acceptance is None:
        return {}
    told = ("gain_low", "clean_loss_high", "samples")
    return {name: getattr(acceptance, name) for name in told}


def count_parameters(branch: nn.Module | None) -> int:
    """Values that learn."""
    return 0 if branch is None else sum(p.numel() for p in branch.parameters())
