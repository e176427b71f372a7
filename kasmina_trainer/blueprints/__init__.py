"""The blueprint library: kinds of modules that may grow at a seed site, one family a file."""

from kasmina_trainer.blueprints.base import Blueprint, GraftBlueprint, HostBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.cost import Cost, count_cost
from kasmina_trainer.blueprints.port import Layer, Layout, Port, Shape
from kasmina_trainer.blueprints.registry import blueprint, blueprint_names, blueprints, find_blueprint, register

__all__ = [
    "Blueprint",
    "BlueprintConfig",
    "Cost",
    "GraftBlueprint",
    "HostBlueprint",
    "Layer",
    "Layout",
    "Port",
    "Shape",
    "Width",
    "blueprint",
    "blueprint_names",
    "blueprints",
    "count_cost",
    "find_blueprint",
    "register",
]
