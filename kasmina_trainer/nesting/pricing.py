"""What a nested seed costs, what it sets aside for its children, and why it may not stand somewhere."""

from __future__ import annotations

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.cost import GATE_BYTES, Cost
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.nesting.config import MAX_DEPTH, ChildConfig, NestedSeedConfig
from kasmina_trainer.nesting.controller import head_cost, trunk_cost


def port_of(port: Port, child: str) -> Port:
    """Where a child stands: the same value, under its own name; layers around the site are out of its reach."""
    return Port(f"{port.name}/{child}", port.shape, port.layout)


def nested_cost(port: Port, config: NestedSeedConfig) -> Cost:
    """Price of controller and children as they are, without the site's gate.

    Raises:
        InputError: A child does not fit.
    """
    total = trunk_cost(port, config.hidden)
    if not config.children:
        return Cost(total.parameters, 0, total.extra_bytes)  # nobody asks the controller
    for child in config.children:
        total += child.kind().ungated_cost(port_of(port, child.name), child.parsed()) + around(config.hidden)
    return total


def child_price(port: Port, child: ChildConfig, hidden: int) -> Cost:
    """What a child takes from its parent's budget: its price, and of a nested one the whole budget handed to it.

    Raises:
        InputError: It does not fit.
    """
    settings = child.parsed()
    cost = child.kind().ungated_cost(port_of(port, child.name), settings)
    if isinstance(settings, NestedSeedConfig):
        cost = settings.budget.reserved(cost)
    return cost + around(hidden)


def held_cost(port: Port, config: NestedSeedConfig) -> Cost:
    """What controller and children take from the budget: never less than `nested_cost`.

    Raises:
        InputError: A child does not fit.
    """
    return sum(
        (child_price(port, child, config.hidden) for child in config.children), start=trunk_cost(port, config.hidden)
    )


def around(hidden: int) -> Cost:
    """What stands around each child: its gate and its output of the controller."""
    return head_cost(hidden) + Cost(extra_bytes=GATE_BYTES)


def misfit(port: Port, config: NestedSeedConfig, *, depth: int = 0) -> str:
    """Why a nested seed cannot stand at a port, as one clause; "" when it can.

    Args:
        port: Where.
        config: What stands in it.
        depth: Levels above it, 0 at a seed site.
    """
    try:
        if depth + config.height() > MAX_DEPTH:
            return f"it would reach level {depth + config.height()} of children, at most {MAX_DEPTH}"
        for child in config.children:
            settings = child.parsed()
            clause = child.kind().refusal(port_of(port, child.name), settings)
            if not clause and isinstance(settings, NestedSeedConfig):
                clause = config.budget.bounds(settings.budget)
            if clause:
                return f"child {child.name}: {clause}"
        return config.budget.allows(held_cost(port, config))
    except InputError as exc:
        return exc.message
