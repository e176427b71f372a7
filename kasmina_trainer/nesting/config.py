"""Settings of a nested seed; they describe the whole tree that stands in it, at birth and later."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator
from torch import nn

from kasmina_edge.contracts.canonical import canonical_bytes
from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig, Width
from kasmina_trainer.blueprints.registry import find_blueprint
from kasmina_trainer.nesting.budget import Budget

MAX_DEPTH = 3
"""Levels of children below a seed site."""
MAX_CHILDREN = 8


class ChildConfig(BlueprintConfig):
    """One child of a nested seed.

    Attributes:
        name: 1 to 24 of a-z, 0-9 and _, a letter first.
        blueprint: What grows.
        version: Of the blueprint; None: the newest.
        settings: Its settings, by name; those left out keep their defaults.
        priority: For the policy ``priority``; -100 to 100, higher is more important.
        intensity: The child's own gate, 0 to 1.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,23}$")]
    blueprint: Annotated[str, Field(max_length=64)]
    version: Annotated[int, Field(ge=1)] | None = None
    settings: dict[str, Any] = {}
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    intensity: Annotated[float, Field(ge=0, le=1)] = 1.0

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if hasattr(nn.ModuleDict(), name):
            raise ValueError(f"{name} is a word of torch's modules; choose another name")
        return name

    @field_validator("settings")
    @classmethod
    def _plain(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """A copy of its own, as JSON would bring it back."""
        try:
            return dict(json.loads(canonical_bytes(settings)))
        except (TypeError, RecursionError) as exc:
            raise ValueError(f"expected plain values ({exc})") from exc

    def kind(self) -> GraftBlueprint:
        """The blueprint.

        Raises:
            InputError: There is none, or it is none that can stand inside a seed.
        """
        kind = find_blueprint(self.blueprint, self.version)
        if not isinstance(kind, GraftBlueprint) or kind.name == "no-op":
            raise InputError(f"child {self.name}: {kind.name} has no branch that could stand inside a seed")
        if kind.reads != "output":
            raise InputError(f"child {self.name}: {kind.name} reads the {kind.reads}; inside a seed there is its value")
        return kind

    def parsed(self) -> BlueprintConfig:
        """Its settings, checked.

        Raises:
            InputError: As `kind`, or a setting is unknown or outside its range.
        """
        return self.kind().Config.parse(self.settings, where=f"child {self.name}: settings of {self.blueprint}")

    def scaled(self, width: float) -> Self:
        """With settings of another width."""
        now = self.parsed()
        wanted = now.scaled(width)
        return self if wanted == now else self.model_copy(update={"settings": wanted.model_dump(mode="json")})

    def __hash__(self) -> int:
        return hash(self.to_bytes())


class NestedSeedConfig(BlueprintConfig):
    """Settings of `nested-seed`.

    Attributes:
        children: What stands in it at birth, at most 8.
        hidden: Width of the controller's hidden layer, 1 to 64.
        budget: What controller and children may cost together, in all levels; no limit where it says none.
        policy: Who is served first when several ask: ``fair`` or ``priority``.
    """

    children: Annotated[tuple[ChildConfig, ...], Field(max_length=MAX_CHILDREN)] = (
        ChildConfig(name="adapter", blueprint="adapter"),
        ChildConfig(name="low_rank", blueprint="low-rank-residual"),
    )
    hidden: Annotated[int, Width(), Field(ge=1, le=64)] = 4
    budget: Budget = Budget()
    policy: Literal["fair", "priority"] = "fair"

    @field_validator("children")
    @classmethod
    def _named_once(cls, children: tuple[ChildConfig, ...]) -> tuple[ChildConfig, ...]:
        names = [child.name for child in children]
        if len(set(names)) != len(names):
            raise ValueError(f"{len(names)} children have {len(set(names))} names: {', '.join(names)}")
        return children

    def scaled(self, width: float) -> Self:
        """Controller and children of another width; the budget stays."""
        children = tuple(child.scaled(width) for child in self.children)
        return super().scaled(width).model_copy(update={"children": children})

    def height(self) -> int:
        """Levels of children below this seed: 1 where none of them is nested itself, and at least 1.

        Raises:
            InputError: A child's settings are wrong.
        """
        below = [child.parsed() for child in self.children]
        return 1 + max((config.height() for config in below if isinstance(config, NestedSeedConfig)), default=0)

    def __hash__(self) -> int:
        return hash(self.to_bytes())
