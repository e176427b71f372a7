"""Hosts that are modules of torch.fx, as modules like any other: a copy keeps all that stands in them.

A copy of a `torch.fx.GraphModule` is made anew from its graph: seed sites that stand behind a value are no part of that
graph, and neither is a rewritten ``forward``, so both would be lost without a word, and what has grown there with them.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn

from torch import fx, nn

_KEPT = ("fixed_batch",)
"""Marks that others have written on such a module."""


class TracedHost(nn.Module):
    """Parts of a traced module; its ``forward`` is that of the graph, in a class of this one host."""

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedHost:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refused: its class exists in this process alone."""
        raise TypeError("a host that torch.fx made cannot be pickled: save it with save_network, or pass its .pt2 on")


def as_ordinary(host: nn.Module) -> nn.Module:
    """A module of torch.fx as an ordinary one that shares its parts; any other module as it is."""
    if not isinstance(host, fx.GraphModule):
        return host
    own = type(type(host).__name__.removesuffix("Impl"), (TracedHost,), {"forward": type(host).forward})()
    for name in (*vars(own), *_KEPT):
        if name in vars(host):
            vars(own)[name] = vars(host)[name]
    made: nn.Module = own
    return made
