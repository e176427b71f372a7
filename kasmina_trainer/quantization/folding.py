"""The network as a graph of plain layers: batch normalisation folded, finite weights, names kept.

Arithmetic of the folding: Jacob et al. 2018, section 3.2. torch.fx keeps every module's name, so that a layer is called
by the same name before and after.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import fx, nn

from kasmina_edge.errors import InputError

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
Weighted = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def folded_graph(module: nn.Module) -> fx.GraphModule:
    """A traced copy with batch normalisation folded; it computes what the module computes.

    Args:
        module: Switched to evaluation mode in the copy; it is not changed itself.

    Raises:
        InputError: The module cannot be traced (its control flow depends on the data), or a weight is not finite.
    """
    from torch.fx.experimental.optimization import fuse

    require_finite_weights(module)
    try:
        graph: fx.GraphModule = fuse(copy.deepcopy(module).eval(), inplace=True)
    except Exception as exc:
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise InputError(
            f"{type(module).__name__} cannot be traced: {reason[:200]}",
            "Use post-training quantization without equalisation, or write the network without branches on data.",
        ) from exc
    return graph.eval()


def require_finite_weights(module: nn.Module) -> None:
    """Stop at a parameter or buffer that holds NaN or infinity.

    Raises:
        InputError: Names the layer, and how many of its numbers are not finite.
    """
    for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, value in named:
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                count = int((~torch.isfinite(value)).sum())
                layer = name.rpartition(".")[0] or type(module).__name__
                raise InputError(
                    f"layer {layer}: {count} of {value.numel()} numbers of {kind} {name} are not finite",
                    "Look for a diverged training run; train again with a lower learning rate.",
                )


def weighted_layers(module: nn.Module) -> dict[str, Weighted]:
    """Convolutions and linear layers by name, in order of computation where the module is a graph."""
    return dict(_weighted(module))


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer filters each channel alone; one that reads a single channel does, and is stored so."""
    return isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups == layer.in_channels


def only_int8(layer: nn.Module) -> bool:
    """Whether LiteRT has a layer's kind with 8-bit weights and not with 4-bit ones."""
    return is_depthwise(layer) or isinstance(layer, nn.ConvTranspose2d)


def channel_axis(layer: nn.Module) -> int:
    """Axis of a layer's weight that runs over its output channels."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def _weighted(module: nn.Module) -> Iterator[tuple[str, Weighted]]:
    if not isinstance(module, fx.GraphModule):
        yield from ((n, m) for n, m in module.named_modules() if isinstance(m, WEIGHTED))
        return
    seen: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "call_module" and str(node.target) not in seen:
            seen.add(str(node.target))
            layer = module.get_submodule(str(node.target))
            if isinstance(layer, WEIGHTED):
                yield str(node.target), layer
