"""Kasmina on the device: open a signed bundle, infer, report, and take updates that can be taken back.

The package never imports torch. ``Runtime`` is loaded on first use, so that reading a manifest costs no engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kasmina_edge.runtime import Runtime

__version__ = "0.1.0"
__all__ = ["Runtime", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Runtime":
        from kasmina_edge.runtime import Runtime

        return Runtime
    raise AttributeError(f"module 'kasmina_edge' has no attribute {name!r}")
