"""Keeps converters quiet: they print progress, advice and C++ log lines that tell a user of Kasmina nothing.

Errors are never hidden: exceptions pass through, and what was printed on the way is attached to them as a note.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

_TAIL_BYTES = 4000


@contextmanager
def quiet() -> Iterator[None]:
    """Swallow warnings, log records up to WARNING, and whatever is written to descriptors 1 and 2 by native code.

    Text that Python code writes to ``sys.stdout`` and ``sys.stderr`` meanwhile (a progress bar in another thread) still
    arrives.
    """
    disabled = logging.root.manager.disable
    progress = os.environ.get("LITERT_TORCH_SHOW_PROGRESS")
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            warnings.simplefilter("ignore")
            logging.disable(max(disabled, logging.WARNING))
            printed = stack.enter_context(tempfile.TemporaryFile())
            for name, descriptor in (("stdout", 1), ("stderr", 2)):
                stack.enter_context(_diverted(name, descriptor, printed))
            try:
                yield
            except Exception as exc:
                if note := _tail(printed):
                    exc.add_note(f"The converter printed: {note}")
                raise
    finally:
        logging.disable(disabled)
        if progress is None:
            os.environ.pop("LITERT_TORCH_SHOW_PROGRESS", None)
        else:
            os.environ["LITERT_TORCH_SHOW_PROGRESS"] = progress


@contextmanager
def _diverted(name: str, descriptor: int, target: IO[bytes]) -> Iterator[None]:
    """Point a descriptor at ``target``; the Python stream on it keeps writing to where it pointed before."""
    stream = getattr(sys, name)
    try:
        saved = os.dup(descriptor)
    except OSError:  # the descriptor is closed: nothing can be printed there
        yield
        return
    if stream is not None:
        stream.flush()
    own: io.TextIOWrapper | None = None
    if _writes_to(stream, descriptor):
        raw = os.fdopen(os.dup(saved), "wb")
        own = io.TextIOWrapper(raw, encoding=stream.encoding, errors=stream.errors, line_buffering=True)
        setattr(sys, name, own)
    os.dup2(target.fileno(), descriptor)
    try:
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)
        if own is not None:
            if getattr(sys, name) is own:
                setattr(sys, name, stream)
            own.close()


def _writes_to(stream: object, descriptor: int) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def _tail(printed: IO[bytes]) -> str:
    printed.flush()
    size = printed.seek(0, os.SEEK_END)
    printed.seek(max(0, size - _TAIL_BYTES))
    return printed.read().decode(errors="replace").strip()
