"""A child before it is there: named, parsed and checked against the place where it would stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.blueprints.registry import find_blueprint
from kasmina_trainer.nesting.budget import Budget
from kasmina_trainer.nesting.config import MAX_CHILDREN, MAX_DEPTH, ChildConfig, NestedSeedConfig
from kasmina_trainer.nesting.pricing import child_price, misfit, port_of

Settings = BlueprintConfig | Mapping[str, Any] | None


class ChildOptions(TypedDict, total=False):
    """What may be said of a child beside its name and blueprint.

    Attributes:
        config: Its settings; None, as when left out: the defaults.
        version: Of the blueprint; None: the newest.
        budget: Of a nested child, what is handed on to it; of another, what it may cost at most.
        priority: Higher is more important; for the policy ``priority``. 0 when left out.
        intensity: Its own gate, 0 to 1; 1 when left out.
    """

    config: Settings
    version: int | None
    budget: Budget | None
    priority: int
    intensity: float


def planned(name: str, blueprint: str, *, where: str, **options: Unpack[ChildOptions]) -> ChildConfig:
    """A child as its parent's settings will name it.

    Args:
        name: What it is called.
        blueprint: Name in the library.
        where: For messages.
        options: See `ChildOptions`.

    Raises:
        InputError: The name or a setting is malformed, the blueprint is unknown or cannot stand inside a seed.
    """
    config, version, budget = options.get("config"), options.get("version"), options.get("budget")
    plain = dict(config) if isinstance(config, Mapping) else {}
    if isinstance(config, BlueprintConfig):
        find_blueprint(blueprint, version).settings(config)  # another blueprint's settings are refused here
        plain = config.model_dump(mode="json")
    if budget is not None and blueprint == "nested-seed":
        plain["budget"] = vars(budget)
    told = {"name": name, "blueprint": blueprint, "version": version, "settings": plain}
    levels = {"priority": options.get("priority", 0), "intensity": options.get("intensity", 1.0)}
    plan = ChildConfig.parse({**told, **levels}, where=where)
    plan.parsed()
    return plan


def refusal(
    plan: ChildConfig,
    port: Port,
    *,
    hidden: int,
    own: Budget,
    most: Budget | None,
    depth: int,
    present: int,
) -> str:
    """Why a child may not come, whatever is left of the budget; "" when it may.

    Args:
        plan: The child.
        port: Where its parent stands.
        hidden: Width of the parent's controller.
        own: The parent's budget.
        most: What the child may cost at most; None: no limit of its own.
        depth: Levels above the parent, 0 at a seed site.
        present: Children that the parent has.
    """
    if present >= MAX_CHILDREN:
        return f"{present} children stand here, at most {MAX_CHILDREN}"
    if depth >= MAX_DEPTH:
        return f"it would be at level {depth + 1}, at most {MAX_DEPTH}"
    settings, place = plan.parsed(), port_of(port, plan.name)
    if clause := plan.kind().refusal(place, settings):
        return clause
    if isinstance(settings, NestedSeedConfig):
        return misfit(place, settings, depth=depth + 1) or own.bounds(settings.budget)
    return "" if most is None else most.allows(child_price(port, plan, hidden))
