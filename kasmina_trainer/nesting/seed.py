"""A seed that holds seeds: ``sum_i w_i(x) * gate_i * child_i(x)``, the weights from a small controller.

It is zero at birth because its children are. A child that comes is zero too, and what the others add stays the same
when one goes: every child has a gate and a controller output of its own. Children draw from the budget of the seed they
stand in, down to three levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Unpack, cast

import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.cost import Cost
from kasmina_trainer.blueprints.port import Port
from kasmina_trainer.nesting.budget import Budget
from kasmina_trainer.nesting.child import ChildSeed
from kasmina_trainer.nesting.config import ChildConfig, NestedSeedConfig
from kasmina_trainer.nesting.controller import Controller
from kasmina_trainer.nesting.planning import ChildOptions, planned, refusal
from kasmina_trainer.nesting.pricing import child_price, held_cost, nested_cost, port_of
from kasmina_trainer.nesting.structure import rebuilt, structure_of
from kasmina_trainer.seeds.lifecycle import STEPS, Plain, Record, SiteState, Step

_ADVICE = "Retire a child, or raise the budget."


class NestedBranch(nn.Module):
    """The branch of `nested-seed`.

    Args:
        port: Where it stands; its name begins the names of the children: ``s1/edge/left``.
        config: Controller, budget and policy; its children come by `plant`.

    Attributes:
        depth: Levels above it, 0 at a seed site.
        budget: What controller and children may take.
        history: Steps of its own children, oldest first; those of their children are theirs.
    """

    def __init__(self, port: Port, config: NestedSeedConfig) -> None:
        super().__init__()
        self.port = port
        self.depth = 0
        self.policy: Literal["fair", "priority"] = config.policy
        self.budget = config.budget
        self.controller = Controller(port, config.hidden)
        self.nested = nn.ModuleDict()
        self.history: list[Step] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What all children add.  # (N, *port.shape) to the same shape"""
        weights = self.controller(x)
        added: torch.Tensor | None = None
        for name, child in self.nested.items():
            part: torch.Tensor = weights[name] * child(x)
            added = part if added is None else added + part
        return torch.zeros_like(x) if added is None else added

    @property
    def names(self) -> tuple[str, ...]:
        """Its own children, oldest first."""
        return tuple(self.nested)

    @property
    def config(self) -> NestedSeedConfig:
        """The settings that would build what stands here now, weights apart."""
        children = tuple(self._own(name).now() for name in self.nested)
        return NestedSeedConfig(
            children=children, hidden=self.controller.hidden, budget=self.budget, policy=self.policy
        )

    def child(self, path: str) -> ChildSeed:
        """A child by name, or one further down by path: ``edge/left``.

        Raises:
            InputError: There is none.
        """
        first, _, rest = path.partition("/")
        if first not in self.nested:
            have = ", ".join(self.nested) or "none"
            raise InputError(f"seed {self.port.name}: no child is called {first!r}; children are {have}")
        return self.nest(first).child(rest) if rest else self._own(first)

    def nest(self, path: str) -> NestedBranch:
        """The nested seed at a path; the empty path is this one.

        Raises:
            InputError: There is no such child, or it is not nested.
        """
        if not path:
            return self
        child = self.child(path)
        if not isinstance(child.branch, NestedBranch):
            raise InputError(f"seed {self.port.name}/{path} is a {child.plan.blueprint}: it has no children")
        return child.branch

    def walk(self) -> Iterator[tuple[str, ChildSeed]]:
        """Every child of every level, with the name of its place (``s1/edge/left``), parents first."""
        for name in self.nested:
            child = self._own(name)
            yield f"{self.port.name}/{name}", child
            if isinstance(child.branch, NestedBranch):
                yield from child.branch.walk()

    def nests(self) -> Iterator[tuple[str, NestedBranch]]:
        """This seed and every nested one below, with the names of their places."""
        yield self.port.name, self
        for place, child in self.walk():
            if isinstance(child.branch, NestedBranch):
                yield place, child.branch

    def cost(self) -> Cost:
        """What stands here costs this, without the site's gate."""
        return nested_cost(self.port, self.config)

    def left(self) -> Budget:
        """What is left for more children: the budget without the controller and what the children hold."""
        return self.budget.minus(held_cost(self.port, self.config))

    def price(self, plan: ChildConfig) -> Cost:
        """What a child takes from the budget, its gate and its output of the controller included.

        Raises:
            InputError: It does not fit here.
        """
        return child_price(self.port, plan, self.controller.hidden)

    def plan(self, name: str, blueprint: str, **options: Unpack[ChildOptions]) -> ChildConfig:
        """A child as it would be, checked in all but what is left of the budget; arguments and errors as `spawn`."""
        where = f"seed {self.port.name}"
        if name in self.nested:
            raise InputError(f"{where}: {name} is a {self._own(name).plan.blueprint} already", "Retire it first.")
        plan = planned(name, blueprint, where=where, **options)
        clause = refusal(
            plan,
            self.port,
            hidden=self.controller.hidden,
            own=self.budget,
            most=options.get("budget"),
            depth=self.depth,
            present=len(self.nested),
        )
        if clause:
            raise InputError(f"{where}: child {name}: {clause}")
        return plan

    def spawn(
        self,
        name: str,
        blueprint: str,
        *,
        seed: int = 0,
        reason: str = "",
        record: Record | None = None,
        at_s: float = 0.0,
        **options: Unpack[ChildOptions],
    ) -> ChildSeed:
        """Grow one more child (state PROBING); outputs do not change until it learns.

        Args:
            name: What it is called here.
            blueprint: Name in the library; `nested-seed` for a child that has children.
            seed: Chooses its first weights.
            reason: For the record.
            record: Called with the step before anything changes; a refusal is recorded as well.
            at_s: Wall clock, seconds since 1970 UTC, for the record.
            options: See `ChildOptions`.

        Raises:
            InputError: The name is taken or malformed, the blueprint is unknown or does not fit, it would stand too
                deep, or it costs more than is left. Nothing has changed then.
        """
        plan = self.plan(name, blueprint, **options)
        price, before = self.price(plan), self._before(name)
        told: dict[str, Plain] = {"blueprint": plan.blueprint, "seed": seed, "level": self.depth + 1, **_figures(price)}
        if clause := self.left().allows(price):
            self._tell(name, before, before, f"refused: {clause}", told, record, at_s)
            raise InputError(f"seed {self.port.name}: child {name}: {clause}", _ADVICE)
        child = self._made(plan, seed)
        self._tell(name, before, SiteState.PROBING, reason or f"{plan.blueprint} grown", told, record, at_s)
        self._place(name, child, seed)
        return child

    def retire(self, name: str, reason: str, *, record: Record | None = None, at_s: float = 0.0) -> None:
        """Take a child out, with all below it; what the others add stays the same, bit for bit.

        It is one step, whose evidence names what leaves with the child: all of it happens or nothing.

        Raises:
            InputError: There is no such child here; one further down is retired by its own parent (`nest`).
        """
        child = self.child(name)
        if "/" in name:
            parent = name.rpartition("/")[0]
            raise InputError(
                f"seed {self.port.name}: {name} is a child of {self.port.name}/{parent}",
                f"Call nest({parent!r}).retire.",
            )
        below = [place for place, _ in child.branch.walk()] if isinstance(child.branch, NestedBranch) else []
        told: dict[str, Plain] = {"below": ", ".join(below)} if below else {}
        self._tell(name, child.state, SiteState.REMOVED, reason, told, record, at_s)
        del self.nested[name]
        self.controller.drop(name)

    def accept(self, name: str, reason: str = "accepted", *, record: Record | None = None, at_s: float = 0.0) -> None:
        """PROBING becomes ACTIVE.

        Raises:
            InputError: There is no such child, or it is not probing.
        """
        child = self.child(name)
        self._tell(name, child.state, SiteState.ACTIVE, reason, {}, record, at_s)
        child.state = SiteState.ACTIVE

    def hand_on(self, name: str, more: Budget, *, record: Record | None = None, at_s: float = 0.0) -> None:
        """Raise the budget of a nested child out of what is left here.

        Raises:
            InputError: It is not nested, or there is not as much left.
        """
        nest, child, price = self.nest(name), self.child(name), more.reserved(Cost())
        if clause := self.left().allows(price):
            self._tell(name, child.state, child.state, f"refused: {clause}", {}, record, at_s)
            raise InputError(f"seed {self.port.name}: child {name}: {clause}", _ADVICE)
        self._tell(name, child.state, child.state, "budget raised", _figures(price), record, at_s)
        nest.budget = nest.budget.plus(more)

    def weights(self, x: torch.Tensor) -> dict[str, float]:
        """What the controller says of each child, mean over frames, 0 to 1."""
        with torch.no_grad():
            return {name: float(weight.mean()) for name, weight in self.controller(x).items()}

    def shares(self, x: torch.Tensor) -> dict[str, float]:
        """Each child's share of all that is added, in mean absolute value; all 0 where nothing is added."""
        with torch.no_grad():
            weights = self.controller(x)
            sizes = {name: float((weights[name] * child(x)).abs().mean()) for name, child in self.nested.items()}
        total = sum(sizes.values())
        return {name: size / total if total else 0.0 for name, size in sizes.items()}

    def structure(self, *, times: bool = False) -> dict[str, Any]:
        """Everything but the weights, as plain data.

        Args:
            times: With the times of steps; without them the same growth gives the same bytes.
        """
        return structure_of(self, times=times)

    def rebuild(self, structure: Mapping[str, Any]) -> None:
        """Put back what `structure` told; weights are loaded afterwards. Nothing changes when it fails.

        Raises:
            InputError: It is malformed, of another format, or does not fit here.
        """
        twin = rebuilt(self, structure).to(self._device()).train(self.training)
        self.policy, self.budget, self.history = twin.policy, twin.budget, twin.history
        self.controller, self.nested = twin.controller, twin.nested

    def plant(self, config: NestedSeedConfig) -> None:
        """The children that settings name, with first weights from torch's generator; for an empty seed."""
        for plan in config.children:
            seed = int(torch.randint(2**31 - 1, ()))
            self._place(plan.name, self._made(plan, seed), seed)

    def sink(self, depth: int) -> None:
        """Tell this seed, and all below, how many levels are above it."""
        self.depth = depth
        for name in self.nested:
            branch = self._own(name).branch
            if isinstance(branch, NestedBranch):
                branch.sink(depth + 1)

    def _made(self, plan: ChildConfig, seed: int) -> ChildSeed:
        branch = plan.kind().build(port_of(self.port, plan.name), seed=seed, config=plan.parsed())
        assert branch is not None
        if isinstance(branch, NestedBranch):
            branch.sink(self.depth + 1)
        return ChildSeed(plan, branch, self.port.rank).to(self._device()).train(self.training)

    def _place(self, name: str, child: ChildSeed, seed: int) -> None:
        self.nested[name] = child
        self.controller.add(name, seed=seed)

    def _own(self, name: str) -> ChildSeed:
        return cast(ChildSeed, self.nested[name])

    def _before(self, name: str) -> SiteState:
        """State of a place where no child is now."""
        place = f"{self.port.name}/{name}"
        return next((step.after for step in reversed(self.history) if step.site == place), SiteState.DORMANT)

    def _tell(
        self,
        name: str,
        before: SiteState,
        after: SiteState,
        reason: str,
        evidence: Mapping[str, Plain],
        record: Record | None,
        at_s: float,
    ) -> None:
        """Record a step, or that nothing changed; what cannot be recorded does not happen."""
        if after is not before and after not in STEPS[before]:
            allowed = ", ".join(sorted(STEPS[before]))
            raise InputError(f"child {name} of {self.port.name} is {before}: it can become {allowed}, not {after}")
        step = Step(f"{self.port.name}/{name}", before, after, reason, dict(evidence), at_s)
        if record is not None:
            record(step)
        self.history.append(step)

    def _device(self) -> torch.device:
        return next(self.controller.parameters()).device


def _figures(price: Cost) -> dict[str, Plain]:
    return {"parameters": price.parameters, "macs": price.macs, "bytes": price.extra_bytes}
