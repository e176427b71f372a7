"""Batch normalisation folded into the convolutions before it, ahead of both converters.

They would fold it too, but only after they have traced, decomposed and lowered it: folding first takes a third off
their time, and gives both exports the same weights. Arithmetic: Jacob et al. 2018, section 3.2.
"""

from __future__ import annotations

from torch import nn

from kasmina_trainer.export.gates import MARK

_KEPT = ("fixed_batch", MARK)  # what others have written on a module, and tracing leaves behind


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
    for name in _KEPT:
        if name in vars(module):
            vars(folded)[name] = vars(module)[name]
    return folded
