"""Where seed sites go on a host: by name, by the host's own list, or by what its flow offers."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.port import SPELLED, Port
from kasmina_trainer.seeds.admission import check_host, check_runs, frozen_copy
from kasmina_trainer.seeds.discovery import (
    Value,
    as_arguments,
    choose_ports,
    find_ports,
    fused_owner,
    other_batch,
    port_of_module,
    read_modules,
)
from kasmina_trainer.seeds.integrity import outputs_equal
from kasmina_trainer.seeds.lifecycle import Record
from kasmina_trainer.seeds.network import SeededNetwork


def attach_seeds(
    host: nn.Module,
    sites: Sequence[str] | Literal["auto"] = "auto",
    *,
    example: torch.Tensor | npt.NDArray[np.float32] | tuple[torch.Tensor, ...] | None = None,
    contexts: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
    record: Record | None = None,
) -> SeededNetwork:
    """Put seed sites on a host, whose source is not touched.

    A site is a module of the host, or a value that no module leaves, by the names of `find_ports`: ``layer1.0.add``.
    The seeded copy must answer as the host does, bit for bit, on the example and on a batch of another size.

    Args:
        host: Any module; copied and frozen.
        sites: Names, or one name. ``"auto"`` takes the host's own ``seed_sites``, or else `choose_ports`.
        example: One input batch as ``forward`` takes it, or a tuple of one for each argument; may be left out where the
            host has an ``input_shape``.
        contexts: For blueprints that attend to a second value: name of that value by site.
        clock: As in `SeededNetwork`.
        record: As in `SeededNetwork`.

    Raises:
        InputError: A name is not in the host (the nearest are given), runs more than once, or carries nothing that a
            branch could be added to, or is inside a layer that may run fused; no example, or one that is no tensor;
            the host is TorchScript or not float32, or does not answer alike with sites in it.
    """
    check_host(host)
    given = _example(host, example)
    frozen = frozen_copy(host)
    args = as_arguments(given, frozen)
    check_runs(frozen, args)
    named = (sites,) if isinstance(sites, str) and sites != "auto" else sites
    declared = getattr(host, "seed_sites", None)
    found = {port.name: port for port in find_ports(frozen, args)}
    if named != "auto" or declared:
        ports = _named(frozen, tuple(declared if named == "auto" and declared else named), found, args)
    else:
        ports = {port.name: _plain(port) for port in choose_ports(tuple(found.values()))}
    if not ports:
        raise InputError(f"no seed site found in {type(host).__name__}: no activation", _offer(found))
    for site, source in (contexts or {}).items():
        ports[site] = replace(ports[site], context=_context(site, source, ports, found))
    return _placed(frozen, ports, args, dict(contexts or {}), clock, record)


def _example(
    host: nn.Module, example: torch.Tensor | npt.NDArray[np.float32] | tuple[torch.Tensor, ...] | None
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    if example is None:
        shape = getattr(host, "input_shape", None)
        if not isinstance(shape, tuple):
            raise InputError(f"{type(host).__name__} has no input_shape", "Pass example=x, one input batch.")
        return torch.zeros(1, *shape)
    return torch.as_tensor(np.array(example)) if isinstance(example, np.ndarray) else example


def _named(
    host: nn.Module, names: Sequence[str], found: Mapping[str, Port], args: Sequence[torch.Tensor]
) -> dict[str, Port]:
    """Ports of these names, in order of flow."""
    modules = dict(host.named_modules())
    values = read_modules(host, args)
    ports: dict[str, Port] = {}
    for name in names:
        if name in found:
            ports[name] = _plain(found[name])
        elif not name or name not in modules:
            raise InputError(
                f"site {name!r} is not a module of {type(host).__name__}, nor a value in its flow", _offer(found, name)
            )
        elif (owner := fused_owner(modules, name)) is not None:
            raise InputError(
                f"site {name} is inside {owner or 'the host'}, a {type(modules[owner]).__name__} that runs fused and "
                "would pass it by",
                f"Take the layer as a whole: {owner}." if owner else "Put the layer into a module of its own.",
            )
        else:
            ports[name] = _module_port(name, modules[name], values.get(name, []))
    order = {name: at for at, name in enumerate(found)}
    last = -1
    for name in values:  # a group of modules stands where its own last value does
        last = max(last, order.get(name, -1))
        order.setdefault(name, last)
    return {name: ports[name] for name in sorted(ports, key=lambda name: order[name])}


def _module_port(name: str, module: nn.Module, seen: Sequence[Value]) -> Port:
    spelled = ", ".join(SPELLED.values())
    if len(seen) != 1:
        raise InputError(f"site {name}: expected one value a pass, got {len(seen) or 'none'}", "It must run once.")
    if seen[0].shape is None:
        raise InputError(f"site {name}: expected one of {spelled} in float32, got {seen[0].reason}")
    port = port_of_module(name, module, seen[0])
    if port is None:
        raise InputError(f"site {name}: expected one of {spelled}, got {seen[0].shape} with the channels last")
    return _plain(port)


def _plain(port: Port) -> Port:
    return Port(port.name, port.shape, port.layout, port.layer, port.input_shape, port.context)


def _context(site: str, source: str, ports: Mapping[str, Port], found: Mapping[str, Port]) -> tuple[int, ...]:
    if site not in ports:
        raise InputError(f"contexts: {site!r} is none of the sites {', '.join(ports)}")
    if source not in found:
        raise InputError(f"contexts: no value is called {source!r}", _offer(found, source))
    return found[source].shape


def _placed(
    host: nn.Module,
    ports: Mapping[str, Port],
    args: Sequence[torch.Tensor],
    contexts: Mapping[str, str],
    clock: Callable[[], float],
    record: Record | None,
) -> SeededNetwork:
    """The seeded network; modules that are not run by their path get a hook."""
    hooked: list[str] = []
    for _ in range(2):
        network = SeededNetwork(host, ports, contexts=contexts, hooked=hooked, clock=clock, record=record)
        if _answers_alike(network, host, tuple(args)) and not _idle(network, args):
            return network
        hooked = [name for name in ports if isinstance(_submodule(host, name), nn.Module)]
    if _idle(network, args):
        raise InputError(f"sites {', '.join(_idle(network, args))} of {type(host).__name__} never run")
    raise InputError(
        f"{type(host).__name__} answers otherwise with sites at {', '.join(ports)}",
        "Name modules of the host as sites, or fewer of them.",
    )


def _answers_alike(network: SeededNetwork, host: nn.Module, args: tuple[torch.Tensor, ...]) -> bool:
    try:
        with network.watched():
            if not outputs_equal(network, host, tuple(x.clone() for x in args)):
                return False
    except Exception:  # a host that looks at its layers may stumble over a site in any way
        return False
    other = other_batch(args)
    try:
        host(*(x.clone() for x in other))
    except (RuntimeError, ValueError):
        return True  # it knows one size of batch alone
    with network.watched():
        return outputs_equal(network, host, other)


def _idle(network: SeededNetwork, args: Sequence[torch.Tensor]) -> list[str]:
    """Sites that one pass does not run through."""
    ran: set[str] = set()
    hooks = [network.site(name).register_forward_hook(lambda *_, name=name: ran.add(name)) for name in network.sites]
    try:
        with torch.no_grad(), network.watched():
            network(*args)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in network.sites if name not in ran]


def _submodule(host: nn.Module, name: str) -> nn.Module | None:
    return dict(host.named_modules()).get(name)


def _offer(found: Mapping[str, Port], name: str = "") -> str:
    nearest = difflib.get_close_matches(name, found, n=3, cutoff=0.0) if name else list(found)[:3]
    return f"Places are, among others, {', '.join(nearest)}; find_ports lists them." if nearest else ""
