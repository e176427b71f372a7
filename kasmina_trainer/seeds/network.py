"""A frozen host with seed sites, and the grafts on it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kasmina_edge.contracts.manifest import Acceptance, Graft
from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.port import Port, Shape
from kasmina_trainer.blueprints.registry import GraftBlueprint, find_blueprint
from kasmina_trainer.seeds.around import Around
from kasmina_trainer.seeds.growth import Growth, check_intensity, check_seed, figures_of, row_at, settings_of
from kasmina_trainer.seeds.integrity import freeze, hash_state
from kasmina_trainer.seeds.lifecycle import LifeCycle, Plain, Record, SiteState
from kasmina_trainer.seeds.naming import host_state, host_tensors
from kasmina_trainer.seeds.placing import Placement, plain_module, strip
from kasmina_trainer.seeds.report import SeedReport
from kasmina_trainer.seeds.site import SeedSite


class SeededNetwork(Around):
    """A frozen host with seed sites; runs as the host does until something grows.

    Args:
        host: Copied; the original is never touched.
        sites: What flows through each site, by name, in order of flow: a `Port`, or a shape (C, H, W), (C, L) or (C,).
        merged: Retunes that are already inside the host.
        contexts: Name of the value that a site reads besides its own, by site.
        hooked: Sites that get a hook in place of a module around them.
        clock: Wall clock, seconds since 1970 UTC.
        record: Called with every step of a site's life before it is taken, for example `audit_steps`.

    Raises:
        InputError: A site is not in the host's flow.

    Attributes:
        host_hash: Digest of the host's whole state at birth.
        lifecycle: States of the sites, and every step that led there.
    """

    def __init__(
        self,
        host: nn.Module,
        sites: Mapping[str, Port] | Mapping[str, Shape],
        *,
        merged: tuple[Graft, ...] = (),
        contexts: Mapping[str, str] | None = None,
        hooked: Collection[str] = (),
        clock: Callable[[], float] = time.time,
        record: Record | None = None,
    ) -> None:
        super().__init__()
        self.body = freeze(host)
        self._ports = {name: _as_port(name, given) for name, given in sites.items()}
        self._contexts = dict(contexts or {})
        self._growths: dict[str, Growth] = {}
        self._watched: list[tuple[str, ...]] = []
        self._merged = merged
        self._clock, self._record = clock, record
        self._placement = Placement(self.body, self._ports, contexts=self._contexts, hooked=hooked)
        self._sites = self._placement.sites
        self.hooked = nn.ModuleList(site for site in self._sites.values() if site.kind == "hooked")
        self.host_hash = self.current_host_hash()
        self.lifecycle = LifeCycle(self.sites, clock=clock, record=record, host=self.host_hash)
        self.eval()

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the seed sites, in order of flow."""
        return tuple(self._sites)

    @property
    def states(self) -> dict[str, SiteState]:
        """State of every site."""
        return self.lifecycle.states

    @property
    def ports(self) -> dict[str, Port]:
        """What flows through every site."""
        return dict(self._ports)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of what flows through every site, without the batch."""
        return {name: port.shape for name, port in self._ports.items()}

    @property
    def contexts(self) -> dict[str, str]:
        """Name of the second value of each site that has one."""
        return dict(self._contexts)

    @property
    def growths(self) -> dict[str, Growth]:
        """What has grown, by site, in order of flow."""
        return {name: self._growths[name] for name in self._sites if name in self._growths}

    @property
    def grafts(self) -> tuple[Graft, ...]:
        """What has grown, in order of flow, as the manifest will name it; retunes of the host come first."""
        return (*self._merged, *(growth.as_graft(name, self._sites[name]) for name, growth in self.growths.items()))

    @property
    def merged(self) -> tuple[Graft, ...]:
        """Retunes that are inside the host."""
        return self._merged

    def train(self, mode: bool = True) -> SeededNetwork:
        """Training mode for the branches alone; the host's normalisation always stays in evaluation mode."""
        super().train(mode)
        self.body.eval()
        for site in self._sites.values():
            if site.branch is not None:
                site.branch.train(mode)
        return self

    @property
    def record(self) -> Record | None:
        """Where steps of the sites' lives go; for branches that have lives of their own inside."""
        return self._record

    def record_to(self, record: Record | None) -> None:
        """From here on, steps of the sites' lives are recorded with ``record``."""
        self._record = record
        self.lifecycle.record_to(record)

    @contextmanager
    def watched(self, sites: Collection[str] | None = None) -> Iterator[None]:
        """Within the block, bare sites are in the flow as well, so that hooks on them are called.

        Outside, a bare site costs nothing, because the host runs without it.

        Args:
            sites: Which; all when left out.
        """
        asked = self.sites if sites is None else tuple(sites)
        self._watched.append(asked)
        try:
            self.settle()
            yield
        finally:
            self._watched.remove(asked)
            self.settle()

    def site(self, name: str) -> SeedSite:
        """The place itself: for hooks that read it; a bare one is only passed within `watched`.

        Raises:
            InputError: No such site.
        """
        if name not in self._sites:
            raise InputError(f"no seed site is called {name!r}; sites are {', '.join(self._sites)}")
        return self._sites[name]

    def graft(
        self,
        site: str,
        blueprint: str,
        *,
        config: BlueprintConfig | Mapping[str, Any] | None = None,
        version: int | None = None,
        intensity: float = 1.0,
        seed: int = 0,
        reason: str = "",
    ) -> None:
        """Grow a blueprint at a site (state PROBING); outputs do not change until it learns.

        Args:
            site: Where.
            blueprint: Name in the library.
            config: Its settings; the defaults when left out.
            version: Of the blueprint; the newest when left out.
            intensity: The gate's value, 0 to 1.
            seed: Chooses the first weights.
            reason: For the record.

        Raises:
            InputError: No such site, the site is taken, the blueprint is unknown, not removable or does not fit, or
                the intensity or the seed is outside its range. Nothing has changed then.
        """
        place_ = self.site(site)
        if site in self._growths:
            raise InputError(f"site {site} holds {self._growths[site].blueprint.name} already", "Remove it first.")
        kind = find_blueprint(blueprint, version)
        if not isinstance(kind, GraftBlueprint):
            raise InputError(f"blueprint {blueprint} is not removable and has no site", "Pass it to evolve instead.")
        check_intensity(intensity)
        check_seed(seed)
        settings = settings_of(kind, config)
        port = self._ports[site]
        branch = kind.build(port, seed=seed, config=settings)
        price = kind.cost(port, settings)
        if branch is not None:
            branch = branch.to(self._device())
        told: dict[str, Plain] = {"blueprint": kind.name, "version": kind.version, "seed": seed, "intensity": intensity}
        self.lifecycle.move(site, SiteState.PROBING, reason=reason or f"{kind.name} grown", **told)
        if branch is not None:
            place_.fill(branch, intensity, self._device(), rank=port.rank)
            self.settle()
        self._growths[site] = Growth(kind, intensity, seed, settings, price)

    def set_intensity(self, site: str, intensity: float, *, reason: str = "") -> None:
        """Blend factor of a graft: 0 is the host's outputs, 1 the whole graft.

        An ACTIVE graft that is raised goes back to PROBING: nobody has judged it at that intensity.

        Raises:
            InputError: Nothing grows there, or the intensity is outside 0 to 1.
        """
        growth = self._growth(site)
        check_intensity(intensity)
        if intensity > growth.intensity and self.states[site] is SiteState.ACTIVE:
            self.probe(site, reason=reason or f"intensity raised from {growth.intensity:g} to {intensity:g}")
        growth.intensity = intensity
        if self._sites[site].branch is not None:
            self._sites[site].gate.fill_(intensity)

    def accept(
        self, sites: Sequence[str] | None = None, *, acceptance: Acceptance | None = None, reason: str = ""
    ) -> None:
        """PROBING becomes ACTIVE: the acceptance gate let it through.

        Args:
            sites: Which; every site that is probing when left out.
            acceptance: The measurement; its figures go into the record.
            reason: For the record.

        Raises:
            InputError: Nothing has grown, a site is not probing, or the measurement refused it.
        """
        if not self.grafts:
            raise InputError(f"nothing has grown at {', '.join(self.sites)}: nothing to accept", "Grow a graft first.")
        probing = [name for name in self._sites if self.states[name] is SiteState.PROBING]
        chosen = probing if sites is None else list(sites)
        if acceptance is not None and not acceptance.accepted:
            raise InputError(f"the acceptance gate refused {', '.join(chosen)}: {'; '.join(acceptance.reasons)}")
        for name in chosen:
            self.lifecycle.check(name, SiteState.ACTIVE)
        for name in chosen:
            self.lifecycle.move(name, SiteState.ACTIVE, reason=reason or "accepted", **figures_of(acceptance))

    def probe(self, site: str, *, reason: str) -> None:
        """ACTIVE becomes PROBING again: for more training, or a higher intensity.

        Raises:
            InputError: The site is not active.
        """
        self._growth(site)
        self.lifecycle.move(site, SiteState.PROBING, reason=reason)

    def withdraw(self, site: str, *, reason: str = "") -> None:
        """PROBING becomes DORMANT: a probe that lost its race leaves, and the site is as if nothing had grown.

        Raises:
            InputError: The site is not probing.
        """
        self._growth(site)
        self.lifecycle.move(site, SiteState.DORMANT, reason=reason or "withdrawn")
        self._clear(site)

    def remove(self, site: str, *, reason: str = "") -> None:
        """Take a graft out; the outputs are again what they were without it, bit for bit.

        Raises:
            InputError: No such site, or nothing grows there.
        """
        self.site(site)
        if site not in self._growths:
            raise InputError(f"site {site} is {self.states[site]}: nothing to remove")
        self.lifecycle.move(site, SiteState.REMOVED, reason=reason or "removed")
        self._clear(site)

    def graft_parameters(self, site: str | None = None) -> list[nn.Parameter]:
        """Parameters that may learn: of one site, or of all."""
        places = self._sites.values() if site is None else [self.site(site)]
        return [p for place_ in places if place_.branch is not None for p in place_.branch.parameters()]

    def graft_state(self) -> dict[str, torch.Tensor]:
        """Branch weights and gates by name, ``SITE.branch.…`` and ``SITE.gate``."""
        return {
            f"{name}.{key}": value.detach()
            for name, place_ in self._sites.items()
            for key, value in place_.state_dict().items()
            if not key.startswith("inner.")
        }

    def load_graft_state(self, state: Mapping[str, torch.Tensor]) -> None:
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
        return host_state(self.body)

    def host_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The host's own parameters and buffers, those that are in no state among them; for whoever guards them."""
        return host_tensors(self.body)

    def host_copy(self) -> nn.Module:
        """The bare host as a module of its own: its class, its modules, its names."""
        return strip(copy.deepcopy(self.body), {name: site.kind for name, site in self._sites.items()})

    def fresh(self, host: nn.Module | None = None, *, merged: tuple[Graft, ...] = ()) -> SeededNetwork:
        """The same sites, bare, on a copy of the host, or on another host of the same build.

        Args:
            host: Another host; this one's when left out.
            merged: Retunes that are inside it.
        """
        return SeededNetwork(
            self.host_copy() if host is None else host,
            self._ports,
            merged=merged if host is not None else (merged or self._merged),
            contexts=self._contexts,
            hooked=[name for name, site in self._sites.items() if site.kind == "hooked"],
            clock=self._clock,
            record=self._record,
        )

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

    def report(self, telemetry: Mapping[str, Mapping[str, float]] | None = None) -> SeedReport:
        """What stands at every site, what it costs, and the last step it took.

        Args:
            telemetry: Measured figures by site and name, to be shown beside.
        """
        now_s, figures = self._clock(), telemetry or {}
        return SeedReport(
            self.host_hash, tuple(row_at(self, name, figures.get(name, {}), now_s) for name in self.sites)
        )

    def module_for_export(self) -> nn.Module:
        """A plain module in evaluation mode on the CPU: the host's operations in the host's order, plus, at each grown
        site, ``x + gate * B(x)``. Bare sites leave no operation behind.

        Its ``kasmina_gates`` names the gates' buffers in order of flow.

        Raises:
            InputError: Something grew at a site that is held by a hook, which no exporter sees.
        """
        with self.watched():
            return plain_module(self.body, self._sites)

    def _growth(self, site: str) -> Growth:
        self.site(site)
        if site not in self._growths:
            raise InputError(f"site {site} is {self.states[site]}: nothing grows there")
        return self._growths[site]

    def settle(self) -> None:
        """Put what has grown into the flow and bare sites out of it; only needed after a site was filled by hand."""
        self._placement.settle([name for asked in self._watched for name in asked])

    def _clear(self, site: str) -> None:
        self._sites[site].clear()
        self.settle()
        del self._growths[site]

    def _device(self) -> torch.device:
        return next((t.device for t in self.body.parameters()), torch.device("cpu"))


def _as_port(name: str, given: Port | Shape) -> Port:
    if not isinstance(given, Port):
        return Port.of(tuple(given), name)
    return Port(name, given.shape, given.layout, given.layer, given.input_shape, given.context)
