"""One place in the host where a branch may be added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

Kind = Literal["module", "node", "hooked"]
Tap = Callable[[torch.Tensor, "torch.Tensor | None", torch.Tensor], torch.Tensor]
"""Takes what enters the site, what the branch adds (None where nothing grows), and their sum."""
_OWN = frozenset({"inner", "branch", "gate"})


class SeedSite(nn.Module):
    """One place in the host: ``y = inner(x)``, and with a branch ``y + gate * branch(y)``.

    A branch that says ``reads = "input"`` stands beside the inner module and reads ``x``; one that says ``"context"``
    reads ``y`` and a second value. One that has ``grown(y, gate)`` may give the sum itself while it learns, or None.
    The gate is a buffer of its own, so that an exported file holds it apart from the branch's weights. Attributes of
    the inner module can be read through the site, since hosts look at their layers.

    Args:
        inner: What stands here without seeds; `nn.Identity` behind a value that no module leaves.
        kind: How the site is held in the host: around a ``module``, at a ``node`` of its traced flow, or ``hooked``.

    Attributes:
        tap: Sees what flows here, and gives what flows on; None: nobody looks. It must copy and pickle as None. One
            that has ``looks`` need not be asked while that is False.
    """

    gate: torch.Tensor
    tap: Tap | None = None

    def __init__(self, inner: nn.Module, kind: Kind = "module") -> None:
        super().__init__()
        self.inner = inner
        self.kind: Kind = kind
        self.branch: nn.Module | None = None

    def forward(self, *args: Any, site_context: Any = None, site_source: Any = None, **named: Any) -> torch.Tensor:
        """What flows through the site, shape unchanged by the branch.

        Args:
            args: What the inner module is called with.
            site_context: The site's second value, where it has one.
            site_source: What a branch beside a layer reads, where that is not the first argument.
            named: What else the inner module is called with.
        """
        y: torch.Tensor = self.inner(*args, **named)
        if self.branch is None:
            return y if self.tap is None else self.tap(y, None, y)
        reads = getattr(self.branch, "reads", "output")
        if reads == "context":
            added = self.branch(y, site_context)
        elif reads == "input":
            added = self.branch(args[0] if site_source is None else site_source)
        else:
            whole: torch.Tensor | None = self._at_once(y)
            if whole is not None:
                return whole
            added = self.branch(y)
        blended: torch.Tensor = self.gate * added
        grown = y + blended
        return grown if self.tap is None else self.tap(y, blended, grown)

    def _at_once(self, y: torch.Tensor) -> torch.Tensor | None:
        """The sum, where nobody looks at this pass and the branch has a quicker way to it (``grown``)."""
        looked = self.tap is not None and getattr(self.tap, "looks", True)
        grown = None if looked else getattr(self.branch, "grown", None)
        return None if grown is None else grown(y, self.gate)

    def fill(self, branch: nn.Module, intensity: float, device: torch.device, *, rank: int = 3) -> None:
        """Put a branch in.

        Args:
            branch: What a blueprint built.
            intensity: The gate's value, 0 to 1.
            device: Where the host is.
            rank: Axes of the value here, without the batch.
        """
        moved = branch.to(device)
        gate = torch.full((1,) * (1 + rank), intensity, device=device)
        self.branch = moved
        self.register_buffer("gate", gate)

    def clear(self) -> None:
        """Take the branch out; what is left computes what the host computes."""
        self.branch = None
        self._buffers.pop("gate", None)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("inner")
            if inner is None or name in _OWN or name.startswith("__"):
                raise
            return getattr(inner, name)
