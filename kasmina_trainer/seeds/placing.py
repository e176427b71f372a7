"""Seed sites into a host: around a module, behind a value of the traced flow, or on a hook.

Around a module costs one call. A value that no module leaves needs the host's flow rewritten: the traced
graph with the sites in it takes the place of ``forward`` on this one object, whose class, modules and names stay as
they are. A hook is for modules that the host does not call by their path; no exporter knows of it. A bare
site is in none of these: the host runs as if it had none. Everything here is undone by `strip`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx, nn

from kasmina_edge.errors import InputError
from kasmina_trainer.seeds.site import SeedSite
from kasmina_trainer.seeds.tracing import trace


class RewrittenFlow:
    """The ``forward`` of one host object with its node sites in it; copied and pickled along with the host.

    Args:
        host: Whose forward this is; its sites are in place.
        nodes: Names of the sites that stand behind a node.
        leaves: Modules that stay whole.
        contexts: The second value of a site, by the names of both.

    Raises:
        InputError: torch.fx cannot follow the host, or a name is not in its flow.
    """

    def __init__(
        self, host: nn.Module, nodes: Collection[str], leaves: Collection[str], contexts: Mapping[str, str]
    ) -> None:
        self._host = host
        self._nodes, self._leaves, self._contexts = tuple(nodes), tuple(leaves), dict(contexts)
        self._run: Callable[..., Any] | None = None
        self._graph: Any = None
        self._compile()

    @property
    def contexts(self) -> tuple[str, ...]:
        """Sites that are passed a second value."""
        return tuple(self._contexts)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """As the host's own ``forward``."""
        if self._run is None:
            self._compile()
        assert self._run is not None
        return self._run(self._host, *args, **named)

    def as_module(self) -> nn.Module:
        """The host with its rewritten flow as a module of torch.fx, for whoever traces it again; tensors are shared."""
        if self._graph is None:
            self._compile()
        module: nn.Module = fx.GraphModule(self._host, copy.deepcopy(self._graph), type(self._host).__name__)
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> RewrittenFlow:
        twin = object.__new__(RewrittenFlow)
        memo[id(self)] = twin
        vars(twin).update(vars(self))
        twin._host = copy.deepcopy(self._host, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "__signature__"} | {"_run": None, "_graph": None}

    def _compile(self) -> None:
        sites = {name: _detach(self._host, name) for name in self._nodes if _is_attached(self._host, name)}
        try:
            flow = trace(self._host, leaves=self._leaves)
        finally:
            for name, site in sites.items():
                _attach(self._host, name, site)
        if flow is None:
            raise InputError(
                f"torch.fx cannot follow {type(self._host).__name__}: no site at {', '.join(self._nodes)}",
                "Name modules of the host as sites.",
            )
        graph = flow.graph
        sources = {name: flow.node(source) for name, source in self._contexts.items()}
        for name in (*self._nodes, *(n for n in self._contexts if n not in self._nodes)):
            node = flow.node(name)
            source = sources.get(name)
            if node is None or (name in self._contexts and source is None):
                lacking = name if node is None else self._contexts[name]
                raise InputError(f"site {name}: no value of {type(self._host).__name__} is called {lacking}")
            second = {} if source is None else {"site_context": source}
            if name not in self._nodes:
                node.kwargs = {**node.kwargs, **second}
                continue
            with graph.inserting_after(_last_placeholder(graph) if node.op == "placeholder" else node):
                placed = graph.call_module(name, (node,), second)
            node.replace_all_uses_with(placed, delete_user_cb=lambda user, placed=placed: user is not placed)
        try:
            graph.lint()
        except RuntimeError as exc:
            raise InputError(f"a second value comes later than the site that reads it ({exc})") from exc
        self._graph = graph
        self._run = type(fx.GraphModule(self._host, graph)).forward
        parameters = list(inspect.signature(self._run).parameters.values())[1:]
        self.__signature__ = inspect.Signature(parameters)


class SiteHook:
    """Puts a site behind a module that the host does not call by its path."""

    def __init__(self, site: SeedSite) -> None:
        self.site = site

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """What leaves the module, with what has grown."""
        grown: torch.Tensor = self.site(output, site_source=inputs[0] if inputs else None)
        return grown


class Placement:
    """Where the sites of one host are held. A bare site is out of the flow and costs nothing, unless it is watched.

    Args:
        host: A private copy; changed in place.
        names: Modules, or values of its flow by the names of `find_ports`.
        contexts: Which value a site reads besides its own.
        hooked: Modules among ``names`` that get a hook.

    Raises:
        InputError: As `RewrittenFlow`.

    Attributes:
        sites: By name, in the order of ``names``.
    """

    def __init__(
        self,
        host: nn.Module,
        names: Collection[str],
        *,
        contexts: Mapping[str, str] | None = None,
        hooked: Collection[str] = (),
    ) -> None:
        modules = {path for path, _ in host.named_modules() if path}
        self._host = host
        self._in: set[str] = set()
        self._contexts = dict(contexts or {})
        self.sites: dict[str, SeedSite] = {}
        for name in names:
            if name in hooked:
                self.sites[name] = SeedSite(nn.Identity(), "hooked")
            elif name in modules:
                self.sites[name] = SeedSite(host.get_submodule(name))
            else:
                self.sites[name] = SeedSite(nn.Identity(), "node")
                _attach(host, name, self.sites[name])
        nodes = [name for name, site in self.sites.items() if site.kind == "node"]
        wrapped = [name for name, site in self.sites.items() if site.kind == "module"]
        needed = bool(nodes or self._contexts)
        self._flow = RewrittenFlow(host, nodes, wrapped, self._contexts) if needed else None

    def settle(self, watched: Collection[str] = ()) -> None:
        """Put the sites that have grown, or are watched, into the flow, and take the others out of it."""
        wanted = {name for name, site in self.sites.items() if site.branch is not None or name in watched}
        rewritten = any(self.sites[name].kind == "node" or name in self._contexts for name in wanted)
        if rewritten:
            wanted |= set(self._contexts)  # the rewritten flow calls them with two values, which a bare module refuses
        for name, site in self.sites.items():
            if (name in wanted) == (name in self._in):
                continue
            if site.kind == "module":
                _attach(self._host, name, site if name in wanted else site.inner)
            elif site.kind == "hooked":
                _hook(self._host.get_submodule(name), site if name in wanted else None)
        self._in = wanted
        if self._flow is not None and rewritten:
            self._host.forward = self._flow
        else:
            vars(self._host).pop("forward", None)


def strip(host: nn.Module, sites: Mapping[str, str], *, keep_flow: bool = False) -> nn.Module:
    """Take sites out of a host again, branches and all; it is changed in place and is then what it was before.

    Args:
        host: What a `Placement` changed, or a deep copy of it.
        sites: Kind of each site by name.
        keep_flow: Other sites need the rewritten ``forward``.
    """
    for name in sorted(sites, key=lambda name: name.count(".")):
        if sites[name] == "hooked":
            _hook(host.get_submodule(name), None)
        elif sites[name] == "node":
            _detach(host, name)
        elif isinstance(place := host.get_submodule(name), SeedSite):
            _attach(host, name, place.inner)
    if not keep_flow:
        vars(host).pop("forward", None)
    return host


def plain_module(body: nn.Module, sites: Mapping[str, SeedSite]) -> nn.Module:
    """What an exporter gets: a copy on the CPU without bare sites, its ``kasmina_gates`` naming the gates' buffers.

    Every site can still be found as a submodule by its name, and what flows through it passes there.

    Args:
        body: A host with all its sites in the flow.
        sites: Those sites, in order of flow.

    Raises:
        InputError: Something grew at a site that is held by a hook, which no exporter sees.
    """
    grown = [name for name, site in sites.items() if site.branch is not None]
    hidden = [name for name in grown if sites[name].kind == "hooked"]
    if hidden:
        raise InputError(
            f"site {', '.join(hidden)} is held by a hook, which no exported file would know",
            "Name another module of the host as the site: one that its forward calls by its path.",
        )
    plain = copy.deepcopy(body).cpu()
    flow = vars(plain).get("forward")
    seconds = flow.contexts if isinstance(flow, RewrittenFlow) else ()  # their calls pass two values
    bare = {name: site.kind for name, site in sites.items() if name not in grown and name not in seconds}
    strip(plain, {name: kind for name, kind in bare.items() if kind != "node"}, keep_flow=True)
    for name in (name for name, kind in bare.items() if kind == "node"):
        _attach(plain, name, nn.Identity())
    flow = vars(plain).get("forward")
    if isinstance(flow, RewrittenFlow):
        plain = flow.as_module()
    gates = tuple(f"{name}.gate" for name in grown)
    vars(plain)["kasmina_gates"] = gates
    return plain.requires_grad_(False).eval()


def _attach(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(_real(root.get_submodule(parent)), leaf, module)


def _hook(module: nn.Module, site: SeedSite | None) -> None:
    """Put a site behind a module by a hook, or take such a hook away."""
    hooks = module._forward_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, SiteHook)]:
        del hooks[key]
    if site is not None:
        module.register_forward_hook(SiteHook(site))


def _detach(root: nn.Module, name: str) -> SeedSite:
    parent, _, leaf = name.rpartition(".")
    owner = _real(root.get_submodule(parent))
    site = getattr(owner, leaf)
    assert isinstance(site, SeedSite)
    delattr(owner, leaf)
    return site


def _is_attached(root: nn.Module, name: str) -> bool:
    parent, _, leaf = name.rpartition(".")
    return leaf in _real(root.get_submodule(parent))._modules


def _real(module: nn.Module) -> nn.Module:
    """The host's own module where a site stands around it."""
    while isinstance(module, SeedSite):
        module = module.inner
    return module


def _last_placeholder(graph: Any) -> Any:
    return [node for node in graph.nodes if node.op == "placeholder"][-1]
