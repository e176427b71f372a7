"""``keys.json`` of the vault as a value with canonical bytes: data keys, each wrapped, and a MAC over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.errors import KasminaError, TrustError
from kasmina_edge.safety.sealing import authenticator

Purpose = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]


class WrappedKey(SignedContract):
    """One data key: ``wrapped`` is it, sealed under the key-encryption key, in hexadecimal."""

    number: Annotated[int, Field(ge=1, lt=2**32)]
    purpose: Purpose
    made_s: float
    replaced_s: float | None = None
    wrapped: Annotated[str, Field(pattern=r"^[0-9a-f]{176}$")]

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A ring that is not one was changed by somebody."""
        return TrustError


class KeyRing(SignedContract):
    """``keys.json``: every data key that may still be needed.

    Attributes:
        kek: Names the key-encryption key: 8 bytes derived from it, in hexadecimal.
        following: Number of the next key that is made; numbers are never used twice.
        mac: HMAC-SHA256 of the canonical bytes with ``mac`` empty, under a key derived from the key-encryption key.
    """

    format: Literal[1] = 1
    kek: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    following: Annotated[int, Field(ge=1, lt=2**32)] = 1
    keys: tuple[WrappedKey, ...] = ()
    mac: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A ring that is not one was changed by somebody."""
        return TrustError

    def authenticator(self, kek: bytes) -> str:
        """What ``mac`` has to be under this key-encryption key."""
        return authenticator(kek, self.model_copy(update={"mac": ""}).to_bytes())


@dataclass(frozen=True)
class KeyInfo:
    """What may be told about a data key: never the key.

    Attributes:
        replaced_s: When a newer one took its place, seconds since 1970 UTC; None: it is in use for new data.
    """

    number: int
    purpose: str
    made_s: float
    replaced_s: float | None
