"""The Edge TPU's delegate: loading it, naming what went wrong, and telling a compiled file from a plain one.

Google's ``libedgetpu`` is reached through LiteRT's ``load_delegate``; the package called ``pycoral`` in the Python
index is something else and is never used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from kasmina_edge.errors import EngineError

DEFAULT_DELEGATE = "libedgetpu.so.1"
EDGETPU_OP = b"edgetpu-custom-op"
INSTALL_DELEGATE = (
    "Install it with `apt-get install libedgetpu1-std` from Coral's package repository "
    "(https://coral.ai/software/#debian-packages), and plug the accelerator in."
)
_CREATE = "tflite_plugin_create_delegate"


def load_delegate(library: str, load: Callable[..., Any], *, device: str = "", look: bool = True) -> Any:
    """LiteRT's ``load_delegate`` with one kind of error.

    Args:
        library: Shared library, e.g. ``libedgetpu.so.1``.
        load: The ``load_delegate`` of an interpreter module.
        device: Which accelerator, as in `HardwareProfile.accelerator_device`; "" takes the first.
        look: Look at the library first, because a failure inside LiteRT leaves a half-made object that complains on
            standard error when it is collected.

    Raises:
        EngineError: The library is missing, is not a delegate, or found no accelerator; the next step installs it.
    """
    if look:
        look_at_delegate(library)
    try:
        return load(library, {"device": device}) if device else load(library)
    except OSError as exc:
        raise _not_loaded(library, exc) from exc
    except AttributeError as exc:
        raise EngineError(f"{library} is not a LiteRT delegate (it has no {_CREATE})", INSTALL_DELEGATE) from exc
    except (ValueError, RuntimeError) as exc:
        which = f"no Edge TPU answered at {device!r}" if device else "no Edge TPU answered"
        raise EngineError(f"{library} present, {which} ({last_line(exc)})", INSTALL_DELEGATE) from exc


def look_at_delegate(library: str) -> None:
    """Whether the shared library is there and is a delegate; the accelerator is not touched, so it cannot hang this.

    Raises:
        EngineError: Missing, not loadable, or something else; the next step installs it.
    """
    try:
        getattr(ctypes.CDLL(library), _CREATE)
    except OSError as exc:
        raise _not_loaded(library, exc) from exc
    except AttributeError as exc:
        raise EngineError(f"{library} is not a LiteRT delegate (it has no {_CREATE})", INSTALL_DELEGATE) from exc


def _not_loaded(library: str, exc: OSError) -> EngineError:
    missing = "no such file" in str(exc).lower()
    return EngineError(
        f"{library} " + ("not found" if missing else f"cannot be loaded ({last_line(exc)})"), INSTALL_DELEGATE
    )


def open_delegate(library: str, load: Callable[..., Any] | None = None, *, device: str = "") -> tuple[Any, str]:
    """`load_delegate` as a value: (delegate, "") or (None, why not).

    Args:
        library: Shared library.
        load: Used in place of LiteRT's ``load_delegate`` and of the look before it.
        device: As for `load_delegate`.
    """
    try:
        if load is not None:
            return load_delegate(library, load, device=device, look=False), ""
        from kasmina_edge.engines.litert import any_interpreter

        return load_delegate(library, any_interpreter().load_delegate, device=device), ""
    except EngineError as exc:
        return None, exc.message


def is_compiled(module: Any, data: bytes) -> bool:
    """Whether the file needs an Edge TPU: it names the operation, and the CPU cannot run it."""
    if EDGETPU_OP not in data:
        return False
    try:
        module.Interpreter(model_content=data).allocate_tensors()
    except (RuntimeError, ValueError) as exc:
        return EDGETPU_OP.decode() in str(exc)
    return False


def last_line(exc: Exception) -> str:
    """The line that says what went wrong: TFLite's own comes after the wrapper's."""
    text = [line for line in str(exc).strip().splitlines() if line]
    return (text[-1] if text else type(exc).__name__)[:160]
