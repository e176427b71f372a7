"""The gate at the end of a growth: answers on held-out rows, and costs where a file was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kasmina_edge.contracts.manifest import Acceptance
from kasmina_edge.errors import InputError
from kasmina_trainer.acceptance import AcceptanceLimits, Ints, Predict, Samples, measure_acceptance
from kasmina_trainer.acceptance_cost import Costs, estimate_costs
from kasmina_trainer.evolve.grown import Measure, Measured, torch_predictor
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import accuracy

MOST_SILENCED = 16


@dataclass(frozen=True)
class Judge:
    """Judges every growth of one run on the same rows.

    Attributes:
        seeds: The bare host.
        clean: Held-out rows of what the host was made for.
        target: Held-out rows of what was grown for.
        limits: What is asked for.
        seed: Of the bootstrap.
        clusters: Groups of both.
        predictor: Gives the function that answers for a network; torch's own when None.
        measure: Instead of it: with the model file.
        profile: Target that files are estimated for; None: they are not.
    """

    seeds: SeededNetwork
    clean: Samples
    target: Samples
    limits: AcceptanceLimits
    seed: int
    clusters: tuple[Ints | None, Ints | None] = (None, None)
    predictor: Callable[[SeededNetwork], Predict] | None = None
    measure: Measure | None = None
    profile: str | None = None
    _host: list[Measured] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, network: SeededNetwork) -> tuple[Acceptance, Costs | None]:
        """The verdict, and the price where both files are known."""
        before, after = self._before(), self._measured(network)
        costs = None
        if self.profile is not None and before.file is not None and after.file is not None:
            costs = estimate_costs(before.file, after.file, self.profile)
        acceptance = measure_acceptance(
            before.predict,
            after.predict,
            self.clean,
            self.target,
            limits=self.limits,
            seed=self.seed,
            clusters=self.clusters,
            costs=costs,
        )
        return acceptance, costs

    def gains(self, network: SeededNetwork) -> dict[str, float]:
        """What each graft adds: target accuracy that is lost when it alone is silenced, in shares of 1, by site.

        Float answers; up to `MOST_SILENCED` grafts, none of more.
        """
        places = {name: network.site(name) for name in network.sites}
        grown = {name: place for name, place in places.items() if place.branch is not None}
        if not grown or len(grown) > MOST_SILENCED:
            return {}
        whole = accuracy(network, *self.target)
        found = {}
        for name, place in grown.items():
            gate = place.gate.clone()
            place.gate.zero_()
            found[name] = whole - accuracy(network, *self.target)
            place.gate.copy_(gate)
        return found

    def check(self) -> None:
        """Say now what would only be known after training: the bare host answers every row.

        Raises:
            InputError: A limit on costs without a profile or without files to estimate from; or answers that are not
                one a row.
        """
        limits = self.limits
        asked = {
            "maximum_latency_ms": limits.maximum_latency_ms,
            "maximum_peak_bytes": limits.maximum_peak_bytes,
            "maximum_energy_uj": limits.maximum_energy_uj,
        }
        named = [name for name, value in asked.items() if value is not None]
        if named and (self.profile is None or self.measure is None):
            missing = "profile" if self.profile is None else "measure"
            raise InputError(
                f"{', '.join(named)} asked for, and no {missing} to judge it by",
                "Pass profile= and measure=, which gives the model file of a network.",
            )
        for name, (x, y) in (("clean", self.clean), ("target", self.target)):
            found = np.shape(self._before().predict(x))
            if found != y.shape:
                raise InputError(f"{name}: the host gave answers of shape {found}, expected {y.shape}, one a row")

    def _before(self) -> Measured:
        """The bare host, measured once for all growths of a run."""
        if not self._host:
            self._host.append(self._measured(self.seeds))
        return self._host[0]

    def _measured(self, network: SeededNetwork) -> Measured:
        if self.measure is not None:
            return self.measure(network)
        return Measured((self.predictor or torch_predictor)(network))
