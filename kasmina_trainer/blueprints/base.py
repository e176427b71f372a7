"""What a blueprint promises.

Two families. A `GraftBlueprint` builds a branch ``B`` for one port; the network becomes ``x + gate * B(x)`` there, and
``B`` is zero at birth, so the host's outputs do not change until it learns. A `HostBlueprint` retunes the host's own
parameters; its result is a new host and cannot be taken out of it.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import GATE_BYTES, Cost, count_cost, probes
from kasmina_trainer.blueprints.port import RANKS, SPELLED, Layout, Port, Shape

Reads = Literal["output", "input", "context"]


class Blueprint:
    """A kind of growth, by name and version; the version changes whenever old weights would mean something else.

    Attributes:
        name: 1 to 64 of a-z, 0-9 and -.
        version: From 1 on.
        mergeable: It changes the host's own values and makes a new host; otherwise it can be removed without a trace.
        summary: One line for lists.
        ranks: Axes, without the batch, of the values that it takes.
        layouts: Layouts that it takes; None: every one of those ranks.
        Config: Its settings.
        exports: Formats that it can be exported to.
    """

    name: str = ""
    version: int = 0
    mergeable: bool = False
    summary: str = ""
    ranks: frozenset[int] = frozenset({3})
    layouts: frozenset[Layout] | None = None
    Config: type[BlueprintConfig] = BlueprintConfig
    exports: frozenset[str] = frozenset({"tflite-int8", "onnx-qdq"})

    def refusal(self, port: Port, config: BlueprintConfig | None = None) -> str:
        """Why it does not fit a port, as one clause with both numbers; "" when it fits.

        Args:
            port: Where it would stand.
            config: Its settings, or None for their defaults.
        """
        taken = [layout for layout in Layout if self._takes(layout)]
        if port.layout not in taken:
            spelled = " or ".join(SPELLED[layout] for layout in taken) or "none: it has no site"
            kind = " tokens" if port.layout is Layout.TOKENS else ""
            return f"expected a site of shape {spelled}, got {port.shape}{kind}"
        return self._lacking(port) or self._unfit(port, self.settings(config))

    def settings(self, config: BlueprintConfig | None) -> BlueprintConfig:
        """The settings that hold: those given, or the defaults.

        Raises:
            InputError: They belong to another blueprint.
        """
        if config is not None and not isinstance(config, self.Config):
            raise InputError(
                f"blueprint {self.name}: expected settings of type {self.Config.__name__}, got {type(config).__name__}",
                f"Its settings are {', '.join(self.Config.model_fields) or 'none'}.",
            )
        return self.Config() if config is None else config

    def _takes(self, layout: Layout) -> bool:
        return RANKS[layout] in self.ranks and (self.layouts is None or layout in self.layouts)

    def _lacking(self, port: Port) -> str:
        """What the port does not offer that is read here; "" when nothing lacks."""
        return ""

    def _unfit(self, port: Port, config: BlueprintConfig) -> str:
        """What else speaks against a port; "" when nothing does."""
        return ""


class GraftBlueprint(Blueprint, ABC):
    """Grows a removable branch at a port.

    Attributes:
        reads: ``"output"``: the branch reads the value at the port. ``"input"``: it stands beside the layer that the
            port leaves, and reads what enters that. ``"context"``: it reads the value at the port and the port's second
            value. Every branch that is built carries the same word as its own attribute ``reads``.
    """

    reads: Reads = "output"
    _takes_config: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_build" in vars(cls):
            cls._takes_config = len(inspect.signature(cls._build).parameters) > 2

    def build(self, port: Port | Shape, *, seed: int, config: BlueprintConfig | None = None) -> nn.Module | None:
        """A fresh branch for a port, checked: it keeps the shape and answers zero.

        Args:
            port: Where it will stand, or the shape of what flows there.
            seed: Chooses the first weights; torch's own generator is left as it was.
            config: Settings, or None for the defaults.

        Returns:
            The branch, or None when this blueprint adds nothing.

        Raises:
            InputError: The port does not suit (blueprints that would are named), the settings are another blueprint's,
                or this blueprint breaks its promise.
        """
        place, settings = self._fitting(port, config)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            branch = self.branch(place, settings)
            if branch is None:
                return None
            given = probes(branch, place, batch=2)
            answer = branch.eval()(*given)
        wanted = (2, *place.shape)
        if tuple(answer.shape) != wanted:
            raise InputError(
                f"blueprint {self.name}: the branch turns {tuple(given[0].shape)} into {tuple(answer.shape)}; "
                f"expected the same shape as the site's, {wanted}"
            )
        largest = float(answer.abs().max())
        if largest != 0.0:
            raise InputError(f"blueprint {self.name}: expected a branch that is zero at birth, got up to {largest:.3g}")
        return branch

    def cost(self, port: Port | Shape, config: BlueprintConfig | None = None) -> Cost:
        """Price of the branch at a port, gate included; by formula, no module is built.

        Raises:
            InputError: The port does not suit, or the settings are another blueprint's.
        """
        return self.ungated_cost(port, config).with_gate()

    def ungated_cost(self, port: Port | Shape, config: BlueprintConfig | None = None) -> Cost:
        """As `cost`, without the site's gate; for blueprints that wrap another.

        Raises:
            InputError: As `cost`.
        """
        place, settings = self._fitting(port, config)
        return self._cost(place, settings)

    def merged(self, port: Port, branch: nn.Module, layer: nn.Module, gate: float) -> nn.Module | None:
        """One layer that computes ``layer`` with the gated branch.

        Args:
            port: Where the branch stands.
            branch: Built by this blueprint, trained.
            layer: The host's layer that the port leaves; not changed.
            gate: 0 to 1.

        Returns:
            A new layer of the same type, or None where a layer cannot hold it. What is merged makes a new host; only
            the parent undoes it.
        """
        return None

    def branch(self, port: Port, config: BlueprintConfig) -> nn.Module | None:
        """The branch alone, unchecked, weights from torch's own generator; for blueprints that wrap another."""
        build: Any = self._build
        made: nn.Module | None = build(port, config) if self._takes_config else build(port)
        if made is not None:
            vars(made)["reads"] = self.reads
        return made

    @abstractmethod
    def _build(self, port: Port, config: BlueprintConfig) -> nn.Module | None:
        """The branch, last layer zero; weights drawn from torch's generator, which the caller has seeded.

        A subclass that has no settings may leave the second argument out.
        """

    def _cost(self, port: Port, config: BlueprintConfig) -> Cost:
        """Price without the gate. This one builds and counts; the library's own blueprints have formulas."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            counted = count_cost(self.branch(port, config), port)
        return Cost(counted.parameters, counted.macs, counted.extra_bytes - (GATE_BYTES if counted.parameters else 0))

    def _lacking(self, port: Port) -> str:
        if self.reads == "input" and (port.layer is None or port.input_shape is None):
            return "it stands beside a convolution or linear layer, and this site leaves none"
        if self.reads == "context" and port.context is None:
            return "it attends to a second value, and this site offers none"
        return ""

    def _fitting(self, port: Port | Shape, config: BlueprintConfig | None) -> tuple[Port, BlueprintConfig]:
        try:
            place = port if isinstance(port, Port) else Port.of(port)
        except InputError as exc:
            raise InputError(f"blueprint {self.name}: {exc.message}") from exc
        settings = self.settings(config)
        if clause := self.refusal(place, settings):
            from kasmina_trainer.blueprints.registry import fitting_names  # above this module; known when called

            names = fitting_names(place)
            step = f"Blueprints that fit: {', '.join(names)}."
            if self.name in names:
                step = f"Change its settings: {self.name} fits this site with others."
            where = "" if isinstance(port, tuple) else f"site {place.name}: "
            raise InputError(f"blueprint {self.name}: {where}{clause}", step)
        return place, settings


class HostBlueprint(Blueprint, ABC):
    """Retunes a copy of the host; what it makes is a new host."""

    mergeable = True
    ranks = frozenset()

    @abstractmethod
    def tuned(self, host: nn.Module) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """Of a private copy of the host: the parameters that learn and the modules that run in training mode."""

    @abstractmethod
    def count(self, host: nn.Module) -> int:
        """How many of the host's values this blueprint may change."""

    def as_grafts(self, host: nn.Module, tuned: nn.Module) -> dict[str, nn.Module] | None:
        """The same change as removable branches.

        Args:
            host: Before.
            tuned: After.

        Returns:
            Branches by the name of the port behind which each stands, or None where the change is not of that kind.
        """
        return None
