"""One value, one sequence of bytes: canonical JSON, digests, and the model base classes of every contract.

Canonical form: UTF-8, keys sorted by code point, no white space, floats in Python's shortest round-trip form, no NaN or
infinity. ``from_bytes`` of a signed contract refuses any other spelling of the same value.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from kasmina_edge.errors import BundleError, KasminaError

MAX_CONTRACT_BYTES = 4 * 1024 * 1024
MAX_TEXT_CHARACTERS = 65_536  # having a limit also makes pydantic refuse text that is not UTF-8 (lone surrogates)


def canonical_bytes(value: Any) -> bytes:
    """Canonical JSON of plain data (dict, list, str, int, float, bool, None).

    >>> canonical_bytes({"b": 1, "a": [0.1]})
    b'{"a":[0.1],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def short_digest(digest: str) -> str:
    """The 12 characters that people see."""
    return digest[:12]


class Contract(BaseModel):
    """Base of everything both sides must agree on: immutable, validated, with canonical bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, str_max_length=MAX_TEXT_CHARACTERS)

    def to_bytes(self) -> bytes:
        """Canonical bytes of this value."""
        return canonical_bytes(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "") -> Self:
        """Parse and validate.

        Args:
            data: UTF-8 JSON, at most 4 MiB.
            where: Path or topic, for the error message.

        Raises:
            KasminaError: (as `error_type` says) too long, not JSON, or not this contract; the message names the field.
        """
        where = where or cls.__name__
        if len(data) > MAX_CONTRACT_BYTES:
            raise cls.error_type()(f"{where}: {len(data)} bytes, at most {MAX_CONTRACT_BYTES} are read")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise cls.error_type()(f"{where}: not valid JSON ({exc})") from exc
        return cls.parse(value, where=where)

    @classmethod
    def parse(cls, value: object, *, where: str = "") -> Self:
        """Validate plain data; raises as `from_bytes` does."""
        try:
            return cls.model_validate(value)
        except ValidationError as exc:
            raise cls.error_type()(_first_fault(where or cls.__name__, exc)) from exc

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """Which error a malformed value raises."""
        return BundleError


class SignedContract(Contract):
    """A contract under a signature: unknown fields and non-canonical spellings are refused.

    Fields that have their default value are not written (``format`` always is), so that a field which is added later,
    with a default, leaves the bytes and digests of everything signed before as they are. A default never changes.
    """

    model_config = ConfigDict(extra="forbid")  # the rest is inherited

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str = "") -> Self:
        """As `Contract.from_bytes`, and the bytes must be the canonical ones."""
        value = super().from_bytes(data, where=where)
        if value.to_bytes() != data:
            raise cls.error_type()(f"{where or cls.__name__}: the bytes are not in canonical form")
        return value

    def to_bytes(self) -> bytes:
        """Canonical bytes of this value, without the fields that have their default value."""
        value = self.model_dump(mode="json", exclude_defaults=True)
        if "format" in type(self).model_fields:
            value["format"] = self.model_dump(mode="json", include={"format"})["format"]
        return canonical_bytes(value)

    def digest(self) -> str:
        """SHA-256 of the canonical bytes."""
        return sha256_hex(self.to_bytes())


def _first_fault(where: str, exc: ValidationError) -> str:
    fault = exc.errors(include_url=False)[0]
    path = where + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in fault["loc"])
    more = f" (and {exc.error_count() - 1} more)" if exc.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"{path}: unknown field{more}"
    got = repr(fault.get("input"))
    return f"{path}: {fault['msg'].lower()}, got {got if len(got) < 60 else got[:57] + '...'}{more}"
