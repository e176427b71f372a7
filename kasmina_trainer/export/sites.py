"""Where a seed site can be read in a converted file: its tensors, found by its gate or by what flows through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import KasminaError
from kasmina_trainer import quantization
from kasmina_trainer.export import flatbuffer
from kasmina_trainer.export.float_tflite import FloatNetwork
from kasmina_trainer.export.gates import site_of

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
    """Which tensors hold the input and the output of each seed site.

    Where something has grown, its gate tells: a constant of the file, multiplied and added. Elsewhere values tell:
    module and file compute the same, so a tensor that equals what flows through a site on every frame is that site's -
    as it is, or behind the rectifier that the converter has fused it with. A bare site that is in no tensor is left
    out: nothing is lost but a look into the host.

    Args:
        network: The converted module.
        module: The module itself; a site is a submodule's output, or, where that has an ``inner`` module, runs from the
            inner module's output (before the branch) to the submodule's own (behind it).
        sites: Submodule names.
        frames: At least one frame.  # (N, H, W, C)
        prepared: What quantization made of the module, when that was converted in its place.

    Raises:
        KasminaError: Something has grown at a site, and the file has no such addition.
    """
    places = _grown_sites(network, sites)
    bare = [site for site in sites if site not in places and _is_module(module, site)]
    if bare:
        frames = frames[:_SITE_FRAMES]
        flows = flow_through(module, bare, frames)
        seen = list(quantization.watch(network.data, frames, network.activations))
        for site, flow in flows.items():
            values = [_as_prepared(prepared, value, frames) for value in flow]
            found = [None if v is None else _first_equal(seen, v, network.activations) for v in values]
            if found[0] is not None and found[1] is not None:
                places[site] = (found[0], found[1])
            elif isinstance(getattr(module.get_submodule(site), "branch", None), nn.Module):
                raise KasminaError(
                    f"site {site}: its values appear in no tensor of the converted file",
                    "Put the site behind an activation or an addition, where the converter does not fuse it away.",
                )
    return {site: places[site] for site in sites if site in places}


def _grown_sites(network: FloatNetwork, sites: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Sites with a gate in the file: what is added to, and the sum."""
    model = flatbuffer.parse(network.data)
    names = flatbuffer.tensor_names(model)
    wired = {names[gate]: (names[a], names[b]) for gate, (a, b) in flatbuffer.residual_gates(model).items()}
    gates = {site_of(gate): tensor for gate, tensor in network.gates.items()}
    return {site: wired[gates[site]] for site in sites if gates.get(site) in wired}


def _is_module(module: nn.Module, site: str) -> bool:
    """Whether the module still has a part of that name; a traced copy drops what computes nothing."""
    return site in dict(module.named_modules())


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


def _first_equal(seen: Sequence[Mapping[str, Array]], values: Array, names: Sequence[str]) -> str | None:
    """The first tensor that holds these values on every frame, or what a rectifier leaves of them."""
    for wanted in (values, np.maximum(values, 0), np.clip(values, 0, 6)):
        for name in names:
            if seen[0][name].shape[1:] == wanted.shape[1:] and all(
                np.allclose(frame[name][0], value, rtol=_SITE_TOLERANCE, atol=_SITE_TOLERANCE)
                for frame, value in zip(seen, wanted, strict=True)
            ):
                return name
    return None
