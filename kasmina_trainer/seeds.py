"""Seed sites on a frozen host: what grows there, how strongly, and how it is taken out without a trace.

The host inside a `SeededNetwork` is really frozen: evaluation-mode normalisation, no gradients, and a hash over its
whole state that is asserted before and after growth. Then isolation and removal are exact.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.contracts.manifest import Graft
from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.registry import GraftBlueprint, Shape, find_blueprint

_AUTO_SITES = 4


class SiteState(StrEnum):
    """Life of a seed site."""

    DORMANT = "dormant"
    PROBING = "probing"
    ACTIVE = "active"
    REMOVED = "removed"


class SeedSite(nn.Module):
    """One place in the host: ``y = inner(x)``, and with a branch ``y + gate * branch(y)``.

    The gate is a buffer of its own, so that an exported file holds it apart from the branch's weights.
    """

    gate: torch.Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.branch: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What flows through the site, shape unchanged by the branch."""
        y: torch.Tensor = self.inner(x)
        if self.branch is None:
            return y
        grown: torch.Tensor = y + self.gate * self.branch(y)
        return grown

    def fill(self, branch: nn.Module, intensity: float, device: torch.device) -> None:
        """Put a branch in."""
        self.branch = branch.to(device)
        self.register_buffer("gate", torch.full((1, 1, 1, 1), intensity, device=device))

    def clear(self) -> None:
        """Take the branch out; what is left computes what the host computes."""
        self.branch = None
        self._buffers.pop("gate", None)


@dataclass
class _Growth:
    """What stands at a site."""

    blueprint: GraftBlueprint
    intensity: float
    seed: int


class SeededNetwork(nn.Module):
    """A frozen host with seed sites; runs as the host does until something grows.

    Args:
        host: Copied; the original is never touched.
        sites: Name of each site (a module inside the host) and the shape that leaves it, in order of flow.
        merged: Retunes that are already inside the host.

    Attributes:
        host_hash: Digest of the host's whole state at birth.
    """

    def __init__(self, host: nn.Module, sites: dict[str, Shape], *, merged: tuple[Graft, ...] = ()) -> None:
        super().__init__()
        self.body = freeze(host)
        self._shapes = dict(sites)
        self._states = dict.fromkeys(sites, SiteState.DORMANT)
        self._growths: dict[str, _Growth] = {}
        self._merged = merged
        self._sites: dict[str, SeedSite] = {}
        for name in sites:
            site = SeedSite(self.body.get_submodule(name))
            _replace(self.body, name, site)
            self._sites[name] = site
        self.host_hash = self.current_host_hash()
        self.eval()

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the seed sites, in order of flow."""
        return tuple(self._sites)

    @property
    def states(self) -> dict[str, SiteState]:
        """State of every site."""
        return dict(self._states)

    @property
    def shapes(self) -> dict[str, Shape]:
        """What flows through every site, without the batch.  # (C, H, W)"""
        return dict(self._shapes)

    @property
    def grafts(self) -> tuple[Graft, ...]:
        """What has grown, in order of flow, as the manifest will name it; retunes of the host come first."""
        grown = [
            Graft(
                blueprint=growth.blueprint.name,
                blueprint_version=growth.blueprint.version,
                site=name,
                intensity=growth.intensity,
                parameters=sum(p.numel() for p in self.graft_parameters(name)),
            )
            for name in self._sites
            if (growth := self._growths.get(name)) is not None
        ]
        return (*self._merged, *grown)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the host with everything that has grown."""
        logits: torch.Tensor = self.body(x)
        return logits

    def train(self, mode: bool = True) -> SeededNetwork:
        """Training mode for the branches alone; the host's normalisation always stays in evaluation mode."""
        super().train(mode)
        self.body.eval()
        for site in self._sites.values():
            if site.branch is not None:
                site.branch.train(mode)
        return self

    def graft(self, site: str, blueprint: str, *, intensity: float = 1.0, seed: int = 0) -> None:
        """Grow a blueprint at a site (state PROBING); outputs do not change until it learns.

        Raises:
            InputError: No such site, the site is taken, the blueprint is unknown or not removable, or the intensity is
                outside 0 to 1.
        """
        place = self._site(site)
        if site in self._growths:
            raise InputError(f"site {site} holds {self._growths[site].blueprint.name} already", "Remove it first.")
        kind = find_blueprint(blueprint)
        if not isinstance(kind, GraftBlueprint):
            raise InputError(f"blueprint {blueprint} is not removable and has no site", "Pass it to evolve instead.")
        _check_intensity(intensity)
        branch = kind.build(self._shapes[site], seed=seed)
        if branch is not None:
            place.fill(branch, intensity, self._device())
        self._growths[site] = _Growth(kind, intensity, seed)
        self._states[site] = SiteState.PROBING

    def set_intensity(self, site: str, intensity: float) -> None:
        """Blend factor of a graft: 0 is the host's outputs, 1 the whole graft.

        Raises:
            InputError: Nothing grows there, or the intensity is outside 0 to 1.
        """
        place = self._site(site)
        if site not in self._growths:
            raise InputError(f"site {site} is {self._states[site]}: nothing grows there")
        _check_intensity(intensity)
        self._growths[site].intensity = intensity
        if place.branch is not None:
            place.gate.fill_(intensity)

    def accept(self) -> None:
        """PROBING becomes ACTIVE: the acceptance gate let it through."""
        for name in self._growths:
            self._states[name] = SiteState.ACTIVE

    def remove(self, site: str) -> None:
        """Take a graft out; the outputs are again what they were without it, bit for bit.

        Raises:
            InputError: No such site, or nothing grows there.
        """
        place = self._site(site)
        if site not in self._growths:
            raise InputError(f"site {site} is {self._states[site]}: nothing to remove")
        place.clear()
        del self._growths[site]
        self._states[site] = SiteState.REMOVED

    def graft_parameters(self, site: str | None = None) -> list[nn.Parameter]:
        """Parameters that may learn: of one site, or of all."""
        places = self._sites.values() if site is None else [self._site(site)]
        return [p for place in places if place.branch is not None for p in place.branch.parameters()]

    def graft_state(self) -> dict[str, torch.Tensor]:
        """Branch weights and gates by name, ``SITE.branch.…`` and ``SITE.gate``."""
        return {
            f"{name}.{key}": value.detach()
            for name, place in self._sites.items()
            for key, value in place.state_dict().items()
            if not key.startswith("inner.")
        }

    def load_graft_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put weights of `graft_state` back into grafts that were grown already.

        Raises:
            InputError: Names or shapes differ.
        """
        own = self.graft_state()
        if set(own) != set(state) or any(own[k].shape != state[k].shape for k in own):
            wrong = sorted(set(own) ^ set(state)) or [k for k in own if own[k].shape != state[k].shape]
            raise InputError(f"graft weights do not fit these sites: {', '.join(wrong[:3])}")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])

    def host_state(self) -> dict[str, torch.Tensor]:
        """The host's whole state under the host's own names, whatever has grown."""
        return dict(self._host_items())

    def host_copy(self) -> nn.Module:
        """The bare host as a module of its own."""
        body = copy.deepcopy(self.body)
        for name in self._sites:
            site = body.get_submodule(name)
            assert isinstance(site, SeedSite)
            _replace(body, name, site.inner)
        return body

    def current_host_hash(self) -> str:
        """Digest of the host's state as it is now."""
        return hash_state(self.host_state())

    def check_host(self) -> None:
        """Assert that the host is what it was at birth.

        Raises:
            InputError: It was edited or trained; both digests are given.
        """
        now = self.current_host_hash()
        if now != self.host_hash:
            raise InputError(
                f"the host changed under its grafts: state {self.host_hash[:12]} at birth, {now[:12]} now",
                "Load the host again; a frozen host must not be trained or edited.",
            )

    def module_for_export(self) -> nn.Module:
        """A plain module in evaluation mode on the CPU: the host's operations in the host's order, plus, at each grown
        site, ``x + gate * B(x)``. Bare sites leave no operation behind.
        """
        body = copy.deepcopy(self.body).cpu()
        for name, site in self._sites.items():
            if site.branch is None:
                place = body.get_submodule(name)
                assert isinstance(place, SeedSite)
                _replace(body, name, place.inner)
        return body.requires_grad_(False).eval()

    def _site(self, name: str) -> SeedSite:
        if name not in self._sites:
            raise InputError(f"no seed site is called {name!r}; sites are {', '.join(self._sites)}")
        return self._sites[name]

    def _device(self) -> torch.device:
        return next((t.device for t in self.body.parameters()), torch.device("cpu"))

    def _host_items(self) -> Iterator[tuple[str, torch.Tensor]]:
        for key, value in self.body.state_dict().items():
            for name in self._sites:
                if key.startswith(f"{name}."):
                    rest = key[len(name) + 1 :]
                    if rest.startswith("inner."):
                        yield f"{name}.{rest[len('inner.') :]}", value
                    break
            else:
                yield key, value


def freeze(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that will not learn: evaluation mode, no gradients."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def attach_seeds(
    host: nn.Module,
    sites: Sequence[str] | Literal["auto"] = "auto",
    *,
    example: torch.Tensor | npt.NDArray[np.float32] | None = None,
) -> SeededNetwork:
    """Put seed sites on a host.

    Args:
        host: Any module that takes one tensor; copied and frozen.
        sites: Names of modules inside the host whose outputs (N, C, H, W) may be added to. ``"auto"`` takes the host's
            own ``seed_sites``, or else the first activation of each shape.
        example: One input batch; may be left out where the host has an ``input_shape``.

    Raises:
        InputError: A name is not in the host, runs more than once, or does not carry (N, C, H, W); or no example.
    """
    if example is None:
        shape = getattr(host, "input_shape", None)
        if not isinstance(shape, tuple):
            raise InputError(f"{type(host).__name__} has no input_shape", "Pass example=x, one input batch.")
        example = torch.zeros(1, *shape)
    example = torch.as_tensor(np.array(example)) if isinstance(example, np.ndarray) else example
    declared = getattr(host, "seed_sites", None)
    names: list[str] | None = list(declared) if sites == "auto" and declared else None
    if sites != "auto":
        names = list(sites)
    modules = dict(host.named_modules())
    for name in names or ():
        if name not in modules or not name:
            raise InputError(f"site {name!r} is not a module of {type(host).__name__}")
    watched = names if names is not None else [n for n, m in modules.items() if _is_activation(m)]
    flow = _trace_shapes(freeze(host), watched, example)
    if names is None:
        names = _first_of_each_shape(flow)
    found: dict[str, Shape] = {}
    for name, shapes in flow.items():
        if name in names:
            if len(shapes) != 1 or len(shapes[0]) != 3:
                raise InputError(f"site {name}: expected one (C, H, W) a pass, got {shapes or 'none'}")
            found[name] = (shapes[0][0], shapes[0][1], shapes[0][2])
    missing = [name for name in names if name not in found]
    if missing or not found:
        raise InputError(f"no seed site found in {type(host).__name__}: {', '.join(missing) or 'no activation'}")
    return SeededNetwork(host, found)


def hash_state(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _trace_shapes(host: nn.Module, names: Sequence[str], example: torch.Tensor) -> dict[str, list[tuple[int, ...]]]:
    """Shapes (without the batch) that leave each module in one pass, in order of flow."""
    flow: dict[str, list[tuple[int, ...]]] = {}
    hooks = []
    for name in names:

        def note(module: nn.Module, inputs: object, output: object, name: str = name) -> None:
            shape = tuple(output.shape[1:]) if isinstance(output, torch.Tensor) else ()
            flow.setdefault(name, []).append(shape)

        hooks.append(host.get_submodule(name).register_forward_hook(note))
    parameter = next(host.parameters(), None)
    with torch.no_grad():
        host(example.to(parameter.device if parameter is not None else "cpu"))
    for hook in hooks:
        hook.remove()
    return flow


def _first_of_each_shape(flow: dict[str, list[tuple[int, ...]]]) -> list[str]:
    names: dict[tuple[int, ...], str] = {}
    for name, shapes in flow.items():
        if len(shapes) == 1 and len(shapes[0]) == 3:
            names.setdefault(shapes[0], name)
    return list(names.values())[:_AUTO_SITES]


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation"


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _check_intensity(intensity: float) -> None:
    if not 0.0 <= intensity <= 1.0:
        raise InputError(f"intensity {intensity}: expected 0 to 1")
