"""Coverage stands still while other people's packages are imported and convert networks.

On Python 3.11 a traced thread is slow in every line, also in those of packages that coverage does not count: half of
what it costs falls there. Lines of ours that run inside such a call are not counted, so the figure can only be lower.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

LONG_CALLS: Mapping[str, tuple[str, ...]] = {
    "torch.export": ("export",),
    "torch.onnx": ("export",),
    "litert_torch": ("convert",),
    "ai_edge_quantizer.quantizer": ("Quantizer.calibrate", "Quantizer.quantize"),
}
"""By module, what works for seconds and calls nothing of ours but a network's ``forward``."""
THEIRS = ("site-packages", sysconfig.get_path("stdlib"))


@contextmanager
def untraced() -> Iterator[None]:
    """Nothing of this thread is counted inside; after it counting goes on where it was. A debugger is left alone."""
    tracer = sys.gettrace()
    if not type(tracer).__module__.startswith("coverage"):
        yield
        return
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
        _wake()


def _wake() -> None:
    """Coverage's tracer takes up its work again at the next call in its thread."""


def _without_tracing(work: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(work)
    def call(*args: Any, **options: Any) -> Any:
        with untraced():
            return work(*args, **options)

    return call


def look_away() -> None:
    """From now on in this process: imports of other people's modules, and `LONG_CALLS` of those that come."""
    real = SourceFileLoader.exec_module

    def exec_module(self: SourceFileLoader, module: ModuleType) -> None:
        if not any(where in self.path for where in THEIRS):
            real(self, module)
            return
        with untraced():
            real(self, module)
            for name in LONG_CALLS.get(module.__name__, ()):
                *owner, last = name.split(".")
                at: Any = getattr(module, owner[0]) if owner else module
                setattr(at, last, _without_tracing(getattr(at, last)))

    SourceFileLoader.exec_module = exec_module  # type: ignore[method-assign]
