"""A module around another one that costs next to nothing while nobody looks at it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)


class Around(nn.Module):
    """Answers as its ``body`` does.

    A call of `nn.Module` looks for hooks of eight kinds in three functions before it answers, which is some 2 % of the
    time of a small network. Here they are looked for in one, and without any the body is called at once.
    """

    body: nn.Module

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """As `nn.Module`: hooks, a compiled call and a ``forward`` of one's own see the pass."""
        own = self.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
            or "_compiled_call_impl" in own
            or _global_forward_hooks
            or _global_forward_pre_hooks
            or _global_backward_hooks
            or _global_backward_pre_hooks
        ):
            return super().__call__(*inputs, **named)
        return own["_modules"]["body"](*inputs, **named)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the body answers."""
        return self._modules["body"](*inputs, **named)  # type: ignore[misc]  # `self.body` takes a microsecond longer
