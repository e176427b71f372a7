"""The blueprint `nested-seed`: a seed whose branch is a tree of seeds under one budget."""

from __future__ import annotations

from torch import nn

from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import blueprint
from kasmina_trainer.nesting.config import NestedSeedConfig
from kasmina_trainer.nesting.pricing import misfit, nested_cost
from kasmina_trainer.nesting.seed import NestedBranch


@blueprint("nested-seed", version=1)
class NestedSeed(GraftBlueprint):
    """Removable as a whole by the site's gate, and child by child."""

    summary = "several blueprints at one site, weighed for every frame by a small controller, under one budget"
    ranks = frozenset({1, 2, 3})
    Config = NestedSeedConfig

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        return misfit(port, NestedSeedConfig.own(config))

    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module:
        settings = NestedSeedConfig.own(config)
        branch = NestedBranch(port, settings)
        branch.plant(settings)
        return branch

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        return nested_cost(port, NestedSeedConfig.own(config))
