"""The promises that every engine keeps, as functions: for our own tests, and for whoever writes an engine.

    python -m kasmina_edge.engines.conformance my-engine my-model.kasmina

runs them all on an engine that is registered by entry point (group ``kasmina_edge.engines``) and on a bundle with a
file that it takes (``kasmina-edge bundle create`` makes one). In a test of one's own::

    from kasmina_edge.engines.conformance import PROMISES, Subject, hold

    @pytest.mark.parametrize("promise", PROMISES)
    def test_my_engine(promise):
        hold(promise, Subject(MyEngine, bundle, profile))

Each promise raises `BrokenPromiseError` with what was promised and what came, or `NotAskedError` where the bundle gives
no occasion (a model without state cannot be reset). No pytest is needed.
"""

from __future__ import annotations

from collections.abc import Iterator

from kasmina_edge.engines.conformance.promises import PROMISES
from kasmina_edge.engines.conformance.subject import BrokenPromiseError, NotAskedError, Promise, Subject

__all__ = ["PROMISES", "BrokenPromiseError", "NotAskedError", "Promise", "Subject", "hold", "verdicts"]


def hold(promise: Promise, subject: Subject) -> None:
    """Hold an engine to one promise.

    Raises:
        BrokenPromiseError: It is not kept; also where the engine lets another error out than the interface's.
        NotAskedError: The bundle gives no occasion.
    """
    try:
        promise(subject)
    except (BrokenPromiseError, NotAskedError):
        raise
    except Exception as exc:
        name = subject.kind.name
        raise BrokenPromiseError(f"{name}: {promise.__name__}: {type(exc).__name__}: {exc}") from exc


def verdicts(subject: Subject) -> Iterator[tuple[str, str, str]]:
    """(promise, "kept" | "broken" | "not asked", detail) for each promise."""
    for promise in PROMISES:
        try:
            hold(promise, subject)
        except BrokenPromiseError as exc:
            yield promise.__name__, "broken", str(exc)
        except NotAskedError as exc:
            yield promise.__name__, "not asked", str(exc)
        else:
            yield promise.__name__, "kept", ""
