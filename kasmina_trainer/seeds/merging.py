"""A trained graft into the layer it stands beside: a new host without a branch, and the parent that undoes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kasmina_edge.contracts.manifest import Graft
from kasmina_edge.errors import InputError
from kasmina_trainer.seeds.integrity import MergedHost, answers_of
from kasmina_trainer.seeds.network import SeededNetwork
from kasmina_trainer.seeds.site import SeedSite

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Merge:
    """What `merge_graft` made.

    Attributes:
        host: The new host, and the parent behind it.
        graft: For the new host's record: it is inside and can only be undone.
        largest_difference: Between the merged host's answers to the probe and those of host and branch, at most.
    """

    host: MergedHost
    graft: Graft
    largest_difference: float


def merge_graft(network: SeededNetwork, site: str, probe: torch.Tensor | tuple[torch.Tensor, ...]) -> Merge:
    """Compute a graft inside the layer it stands beside; the network that is passed stays as it is.

    Only blueprints that are linear in what enters the layer can be merged: `GraftBlueprint.merged`.

    Args:
        network: With something grown at the site.
        site: A convolution or linear layer.
        probe: Inputs that the merge is checked on, and undone by.

    Raises:
        InputError: Nothing grows there, it cannot be merged, or the merged host answers otherwise than host and branch
            do (by more than 1e-4 of the largest answer).
    """
    place = network.site(site)
    growth = network.growths.get(site)
    if growth is None or place.branch is None:
        raise InputError(f"site {site} is {network.states[site]}: nothing to merge")
    parent = network.host_copy()
    layer = parent.get_submodule(site) if place.kind == "module" else nn.Identity()
    merged = growth.blueprint.merged(network.ports[site], place.branch, layer, growth.intensity)
    if merged is None:
        raise InputError(
            f"site {site}: {growth.blueprint.name} cannot be computed inside {type(layer).__name__}",
            "Keep it as a graft: it stays removable.",
        )
    child = network.host_copy()
    owner, _, leaf = site.rpartition(".")
    setattr(child.get_submodule(owner), leaf, merged.requires_grad_(False).eval())
    alone = network.fresh()
    _transplant(place, alone, site, growth.intensity)
    wanted, found = answers_of(alone, probe), answers_of(child, probe)
    difference, largest = _difference(wanted, found)
    if not difference <= TOLERANCE * max(largest, 1e-12):
        raise InputError(
            f"site {site}: the merged host differs by {difference:.3g} on answers up to {largest:.3g}; "
            f"expected at most {TOLERANCE:g} of that",
            "Keep it as a graft.",
        )
    record = growth.as_graft(site, place).model_copy(update={"mergeable": True})
    return Merge(MergedHost(parent, child, probe), record, difference)


def _transplant(place: SeedSite, network: SeededNetwork, site: str, intensity: float) -> None:
    """The same branch at the same site of a bare network, for one comparison."""
    assert place.branch is not None
    device = next((t.device for t in place.branch.parameters()), torch.device("cpu"))
    network.site(site).fill(place.branch, intensity, device, rank=network.ports[site].rank)
    network.settle()


def _difference(wanted: Any, found: Any) -> tuple[float, float]:
    if not isinstance(wanted, torch.Tensor) or not isinstance(found, torch.Tensor) or wanted.shape != found.shape:
        return float("inf"), 0.0
    return float((wanted - found).abs().max()), float(wanted.abs().max())
