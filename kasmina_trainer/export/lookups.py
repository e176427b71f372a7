"""Keeps converters from looking up again and again what stays as it is while they run; the files are the same bytes.

Every decomposition asks the dispatcher for all composite operators, once for each of some thirty namespaces. And for
the name of a domain that nobody reads, onnxscript finds and parses the source of five hundred functions before each
export. Both are private parts of libraries that are held at one version; where one is missing, nothing is changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

_COMPOSITES = ("torch._export.utils", "_materialize_cpp_cia_ops")
_TORCHLIB = ("onnxscript._framework_apis.torch_2_11", "get_torchlib_ops")

_lock = threading.Lock()
_inside = 0
_before: list[tuple[Any, str, Any]] = []


@contextmanager
def looked_up_once() -> Iterator[None]:
    """Look operators up once meanwhile; afterwards as before. Blocks may lie in each other, and in several threads."""
    global _inside
    with _lock:
        if not _inside:
            _replace(_COMPOSITES, _once)
            _replace(_TORCHLIB, _without_sources)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            while not _inside and _before:
                setattr(*_before.pop())


def _replace(place: tuple[str, str], better: Callable[[Any], Any]) -> None:
    home, name = place
    try:
        module = import_module(home)
        found = getattr(module, name)
        replacement = better(found)
    except (ImportError, AttributeError):
        return
    _before.append((module, name, found))
    setattr(module, name, replacement)


def _once(look: Callable[[], None]) -> Callable[[], None]:
    """The first call does it. What it fills in stays; operators of Python are found without it."""
    done: list[bool] = []

    def looked() -> None:
        if not done:
            look()
            done.append(True)

    return looked


def _without_sources(_: Any) -> Callable[[], list[Any]]:
    """The same functions in the same order, without what takes their sources to say."""
    from onnxscript.function_libs.torch_lib import registration

    def functions() -> list[Any]:
        import_module("onnxscript.function_libs.torch_lib.ops")  # registers them
        return [
            SimpleNamespace(qualified_name=name, function=function, is_complex=is_complex)
            for name, found in registration.default_registry.items()
            if not name.startswith("internal::")
            for is_complex, overloads in ((False, found.overloads), (True, found.complex))
            for function in overloads
        ]

    return functions
