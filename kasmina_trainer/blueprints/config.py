"""Settings of a blueprint: one frozen value with ranges, a digest for the manifest, and marks for what width means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import ConfigDict

from kasmina_edge.contracts.canonical import Contract, sha256_hex
from kasmina_edge.errors import InputError, KasminaError

DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class Width:
    """Marks a setting that says how wide a branch is: ``Annotated[int, Width(), Field(ge=1, le=256)]``."""


class BlueprintConfig(Contract):
    """Base of every blueprint's settings: frozen, unknown names refused, a default and a range for each.

    >>> BlueprintConfig().digest() == BlueprintConfig().digest()
    True
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed setting is an `InputError`."""
        return InputError

    def digest(self) -> str:
        """SHA-256 of the canonical bytes, the first 16 hex digits."""
        return sha256_hex(self.to_bytes())[:DIGEST_CHARACTERS]

    def scaled(self, width: float) -> Self:
        """The same settings with another width.

        Args:
            width: Factor, above 0; settings marked `Width` are multiplied, rounded, and kept inside their range.

        Raises:
            InputError: The factor is not above 0.
        """
        if not width > 0:
            raise InputError(f"width {width}: expected a factor above 0")
        changes = {}
        for name, field in type(self).model_fields.items():
            if any(isinstance(mark, Width) for mark in field.metadata):
                wanted = max(1, round(getattr(self, name) * width))
                lows = [int(mark.ge) for mark in field.metadata if getattr(mark, "ge", None) is not None]
                highs = [int(mark.le) for mark in field.metadata if getattr(mark, "le", None) is not None]
                changes[name] = min([max([wanted, *lows]), *highs])
        return self.parse({**self.model_dump(mode="json"), **changes}, where=type(self).__name__)

    @classmethod
    def own(cls, config: BlueprintConfig) -> Self:
        """The same value, known to be of this class.

        Raises:
            InputError: It belongs to another blueprint.
        """
        if not isinstance(config, cls):
            raise InputError(f"expected settings of type {cls.__name__}, got {type(config).__name__}")
        return config
