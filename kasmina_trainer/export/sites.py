"""Where a seed site can be read in a converted file: its tensors, found by what flows through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.engines.tflite_graph import TfliteGraph
from kasmina_edge.errors import KasminaError
from kasmina_trainer import quantization
from kasmina_trainer.export import flatbuffer
from kasmina_trainer.export.float_tflite import FloatNetwork

Array = npt.NDArray[Any]

_SITE_FRAMES = 3
_SITE_TOLERANCE = 1e-4


def find_sites(
    network: FloatNetwork,
    module: nn.Module,
    sites: Sequence[str],
    frames: Array,
    prepared: quantization.Prepared | None = None,
) -> dict[str, tuple[str, str]]:
    """Which tensors hold the input and the output of each seed site, found by their values.

    Module and file compute the same values, so a tensor that equals what flows through a site on every frame, is that
    site's; names and numbering play no part. A branch that adds nothing yet leaves input and output equal: then the
    output is the sum that reads the input.

    Args:
        network: The converted module.
        module: The module itself; a site is a submodule's output, or, where that has an ``inner`` module, runs from the
            inner module's output (before the branch) to the submodule's own (behind it).
        sites: Submodule names.
        frames: At least one frame.  # (N, H, W, C)
        prepared: What quantization made of the module, when that was converted in its place.

    Raises:
        KasminaError: A site's values appear in no tensor.
    """
    places: dict[str, tuple[str, str]] = {}
    if not sites:
        return places
    frames = frames[:_SITE_FRAMES]
    flows = flow_through(module, sites, frames)
    seen = list(quantization.watch(network.data, frames, network.activations))
    for site, flow in flows.items():
        values = [_as_prepared(prepared, value, frames) for value in flow]
        found = tuple(None if v is None else _first_equal(seen, v, network.activations) for v in values)
        if found[0] is None or found[1] is None:
            raise KasminaError(
                f"site {site}: its values appear in no tensor of the converted file",
                "Put the site behind an activation or an addition, where the converter does not fuse it away.",
            )
        silent = found[0] == found[1] and isinstance(getattr(module.get_submodule(site), "inner", None), nn.Module)
        places[site] = (found[0], _sum_behind(network, found[0]) if silent else found[1])
    return places


def _as_prepared(prepared: quantization.Prepared | None, value: Array, frames: Array) -> Array | None:
    """What a site's values became when the network was prepared; None where they are not to be found again."""
    if prepared is None or prepared.before is None:
        return value
    return quantization.moved_values(prepared.before, prepared.module, value, frames)


def flow_through(module: nn.Module, sites: Sequence[str], frames: Array) -> dict[str, tuple[Array, Array]]:
    """Values before and behind each site, channels last.  # (N, H, W, C)"""
    caught: dict[tuple[str, int], Array] = {}
    hooks = []
    for site in sites:
        outer = module.get_submodule(site)
        inner = getattr(outer, "inner", None)
        for side, part in enumerate((inner if isinstance(inner, nn.Module) else outer, outer)):

            def note(_module: nn.Module, _args: Any, value: torch.Tensor, key: tuple[str, int] = (site, side)) -> None:
                caught[key] = np.moveaxis(value.detach().numpy(), 1, -1).copy()

            hooks.append(part.register_forward_hook(note))
    try:
        with torch.no_grad():
            module(torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 1), dtype=np.float32)))
    finally:
        for hook in hooks:
            hook.remove()
    return {site: (caught[site, 0], caught[site, 1]) for site in sites}


def _sum_behind(network: FloatNetwork, name: str) -> str:
    """The tensor that a silent residual branch leaves into: ``name`` plus what was computed from ``name``."""
    graph = TfliteGraph(network.data)
    names = flatbuffer.tensor_names(flatbuffer.parse(network.data))
    entry = names.index(name)
    for operator in graph.operators:
        branch = graph.branch(entry, operator.outputs[0])
        if branch is not None and any(entry in part.inputs for part in branch):
            return names[operator.outputs[0]]
    return name


def _first_equal(seen: Sequence[Mapping[str, Array]], values: Array, names: Sequence[str]) -> str | None:
    for name in names:
        if seen[0][name].shape[1:] == values.shape[1:] and all(
            np.allclose(frame[name][0], value, rtol=_SITE_TOLERANCE, atol=_SITE_TOLERANCE)
            for frame, value in zip(seen, values, strict=True)
        ):
            return name
    return None
