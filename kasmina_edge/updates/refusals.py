"""The one place where exceptions of python-tuf and of fetchers become errors of `kasmina_edge.errors`."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tuf.api import exceptions

from kasmina_edge.errors import KasminaError, LinkError, StorageError, TrustError

_SIGNED_BY = re.compile(r"^(?P<role>\S+) was signed by (?P<have>\d+)/(?P<need>\d+) keys$")
_FILE = re.compile(r"\b(root|timestamp|snapshot)\.json is expired")
_EXPIRED_NEXT_STEP = (
    "If this device's clock is right, the controller has not signed anew: ask its operator. "
    "The active bundle keeps running."
)


@contextmanager
def refusals(where: str, *, trusted: Any = None, offline: bool = False) -> Iterator[None]:
    """Let only errors of this project out of the block.

    Args:
        where: What is being read: a repository, a bundle; starts every message.
        trusted: The updater's trusted metadata set, for dates in messages about expiry.
        offline: There is no link: a file that is missing is missing from the bundle (TrustError, not LinkError).

    Raises:
        TrustError: A signature, version, date, length or digest does not hold, or the metadata is malformed.
        LinkError: The other side could not be reached, or does not have what was asked for.
        StorageError: The metadata cache cannot be written.
    """
    try:
        yield
    except exceptions.RepositoryError as exc:
        raise _trust_error(where, exc, trusted) from exc
    except exceptions.DownloadLengthMismatchError as exc:
        raise TrustError(f"{where}: more bytes came than were signed ({exc})", breach="tamper") from exc
    except exceptions.DownloadError as exc:
        raise _link_error(where, exc, offline) from exc
    except OSError as exc:
        raise StorageError(f"{where}: the trust folder cannot be used ({exc.strerror or exc})") from exc
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise TrustError(f"{where}: malformed metadata ({type(exc).__name__}: {exc})", breach="malformed") from exc


def _trust_error(where: str, exc: exceptions.RepositoryError, trusted: Any) -> TrustError:
    text = str(exc)
    if isinstance(exc, exceptions.ExpiredMetadataError):
        return TrustError(f"{where}: {text}{_dates(text, trusted)}", _EXPIRED_NEXT_STEP, breach="expired")
    signed = _SIGNED_BY.match(text)
    if signed:
        have = f"{signed['have']} of {signed['need']} valid signatures of role {signed['role']}"
        return TrustError(f"{where}: {have}", breach="signature")
    if isinstance(exc, exceptions.BadVersionNumberError):
        told = f"metadata of another version than the signed one, or a rollback ({text})"
        return TrustError(f"{where}: {told}", breach="replay")
    if isinstance(exc, exceptions.LengthOrHashMismatchError):
        return TrustError(f"{where}: the bytes are not those that were signed ({text})", breach="tamper")
    return TrustError(f"{where}: metadata refused ({text or type(exc).__name__})", breach="malformed")


def _dates(text: str, trusted: Any) -> str:
    """When it ran out and what time it is here, as far as the set knows."""
    found = _FILE.search(text)
    if trusted is None or found is None or found[1] not in trusted:
        return ""
    ran_out, now = trusted[found[1]].expires, trusted.reference_time
    return f": it ran out {_minute(ran_out)}, and it is {_minute(now)}"


def _minute(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _link_error(where: str, exc: exceptions.DownloadError, offline: bool) -> KasminaError:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, KasminaError):
            return cause
        cause = cause.__cause__
    if offline:
        return TrustError(f"{where}: signed metadata is incomplete ({exc})", breach="malformed")
    if isinstance(exc, exceptions.DownloadHTTPError):
        return LinkError(f"{where}: the repository answered {exc.status_code} ({exc})")
    return LinkError(f"{where}: not reached ({exc})")
