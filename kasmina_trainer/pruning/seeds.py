"""Takes out grafts that are idle, by utilization, with hysteresis.

The removal is safe in three steps: a graft that was idle for several readings is silenced by its gate, the network
without it is judged, and only then it leaves its site. Until then its life cycle says nothing has happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_edge.telemetry.site_measures import contribution, utilization, weights_in_use
from kasmina_trainer.pruning.choosing import Amount
from kasmina_trainer.pruning.frames import runs_on
from kasmina_trainer.pruning.strategy import Cut, Scores, Strategy
from kasmina_trainer.quantization.simulation import outputs_of
from kasmina_trainer.seeds import SeededNetwork

Array = npt.NDArray[np.float32]
MOST_ROWS = 64


@dataclass(frozen=True)
class Idleness:
    """When a graft counts as idle.

    Attributes:
        low: Utilization at or below which a reading counts against it, 0 to 1.
        high: Utilization from which its earlier readings are forgotten; between the two nothing changes.
        patience: Readings that must count against it.
    """

    low: float = 0.1
    high: float = 0.2
    patience: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1 or self.patience < 1:
            raise InputError(
                f"low {self.low:g}, high {self.high:g}, patience {self.patience}: expected 0 <= low < high <= 1 and "
                "a patience of 1 or more"
            )


class UtilizationSeeds(Strategy):
    """Removes grafts that do little; one object follows one network over many readings.

    Args:
        idleness: When a graft counts as idle.
    """

    name = "utilization"
    shrinks = True

    def __init__(self, idleness: Idleness | None = None) -> None:
        self.idleness = idleness or Idleness()
        self._against: dict[str, int] = {}

    def observe(self, readings: Mapping[str, float | None]) -> tuple[str, ...]:
        """Take one reading of each site in, from telemetry or `scores`.

        Args:
            readings: Utilization by site, 0 to 1; None: not measured, which counts neither way.

        Returns:
            Sites that are idle now, in order of name.

        Raises:
            InputError: A reading is outside 0 to 1; none of them counts then.
        """
        for site, value in readings.items():
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"utilization {value:g} of site {site}: expected 0 to 1, or None for not measured")
        for site, value in readings.items():
            if value is None:
                continue
            if value >= self.idleness.high:
                self._against[site] = 0
            elif value <= self.idleness.low:
                self._against[site] = self._against.get(site, 0) + 1
        return tuple(sorted(site for site, count in self._against.items() if count >= self.idleness.patience))

    def scores(self, network: nn.Module, frames: torch.Tensor, labels: torch.Tensor | None = None) -> Scores:
        """Utilization of every grown site on the frames, by the formula of the device's telemetry.

        Raises:
            InputError: Not a seeded network, or it does not run on the frames.
        """
        seeded = _seeded(network)
        frames = frames[:MOST_ROWS]
        found: dict[str, torch.Tensor] = {}
        with torch.no_grad(), runs_on(seeded, frames):
            whole = outputs_of(seeded(frames))[0].cpu().numpy()
            for site in seeded.growths:
                if seeded.site(site).branch is None:
                    continue
                used = _utilization(seeded, site, frames, whole)
                found[site] = torch.tensor([0.0 if used is None else used])
        return found

    def take(self, network: nn.Module, scores: Scores, amount: Amount | float, frames: torch.Tensor) -> Cut:
        """Silence the least used of the sites that are idle; the reading in ``scores`` counts.

        Raises:
            InputError: Not a seeded network, or an amount of channels.
        """
        seeded = _seeded(network)
        if isinstance(amount, Amount):
            raise InputError(f"utilization takes a share of the grafts, not of the {amount.of}", "Pass a number.")
        idle = [s for s in self.observe({name: float(v) for name, v in scores.items()}) if s in scores]
        most = max(1, int(amount * len(scores)))
        picked = sorted(idle, key=lambda site: (float(scores[site]), site))[:most]
        for site in picked:
            seeded.site(site).gate.zero_()
        told = ", ".join(f"{site} at {float(scores[site]):.2f}" for site in picked) or "none is idle"
        return Cut(dict.fromkeys(picked, (0,)), len(scores), bool(picked), f"silenced: {told}")

    def settle(self, network: nn.Module, cut: Cut) -> None:
        """Take the silenced grafts out of their sites; a step that cannot be recorded leaves its graft as it was."""
        seeded = _seeded(network)
        for place, site in enumerate(cut.taken):
            try:
                seeded.remove(site, reason=f"idle for {self._against.get(site, 0)} readings")
            except BaseException:
                for left in list(cut.taken)[place:]:
                    seeded.site(left).gate.fill_(seeded.growths[left].intensity)
                raise
            self._against.pop(site, None)


def _utilization(seeded: SeededNetwork, site: str, frames: torch.Tensor, whole: Array) -> float | None:
    branch, gate = seeded.site(site).branch, seeded.site(site).gate
    assert branch is not None
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = branch.register_forward_hook(lambda m, given, out: seen.append((given[0], out)))
    size = gate.clone()
    try:
        seeded(frames)
        gate.zero_()
        silent = outputs_of(seeded(frames))[0].cpu().numpy()
    finally:
        gate.copy_(size)
        hook.remove()
    entry, added = (float(t.abs().mean()) for t in (seen[0][0], seen[0][1] * size))
    activity = added / (entry + added) if entry + added > 0 else 0.0
    classifies = silent.ndim == 2 and silent.shape[1] > 1
    shares = [contribution(a, b, classifies=classifies) for a, b in zip(whole, silent, strict=True)]
    known = [share for share in shares if share is not None]
    weights = [p.detach().cpu().numpy() for p in seeded.graft_parameters(site) if p.ndim > 1]
    return utilization(weights_in_use(weights), activity, sum(known) / len(known) if known else None)


def _seeded(network: nn.Module) -> SeededNetwork:
    if not isinstance(network, SeededNetwork):
        raise InputError(
            f"utilization is of grafts, and {type(network).__name__} has no seed sites",
            "Prune its channels with Taylor or GroupNorm.",
        )
    return network
