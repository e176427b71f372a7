"""What a growth gives: the network, its grafts, the verdict, and the rivals beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from kasmina_edge.contracts.manifest import Acceptance, Graft
from kasmina_trainer.acceptance import Predict
from kasmina_trainer.acceptance_cost import Costs
from kasmina_trainer.growth_picture import picture, save_picture
from kasmina_trainer.growth_report import GrowthReport, Row, Trial
from kasmina_trainer.pages.document import Markup
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import TrainingRun, predict_labels

MOST_NAMED = 4


@dataclass(frozen=True)
class Measured:
    """How a network is judged: what it answers, and the file that a device would run, if there is one."""

    predict: Predict
    file: bytes | None = None


Measure = Callable[[SeededNetwork], Measured]


@dataclass(frozen=True)
class GrownNetwork:
    """What `evolve` gives: a network, what grew in it, and the measurement that accepts or refuses it.

    Attributes:
        network: The host with its grafts, on the CPU; after a retune, the new host.
        grafts: As the manifest will name them, with the capture batches they learned from.
        acceptance: Verdict on held-out data.
        blueprint: What was grown.
        run: How the training went.
        rival: The scale/BN retune of the same host on the same samples, or None when it was not asked for.
        rivals: All rivals, the retune and full fine-tuning first.
        costs: What it costs on the target, where files were measured.
        trials: Every candidate of the race that chose it, in order; () where nothing raced.
        gains: What each graft adds to the accuracy on the target, in shares of 1, by site; {}: not measured.
        notes: What could not be done, as sentences.
    """

    network: SeededNetwork
    grafts: tuple[Graft, ...]
    acceptance: Acceptance
    blueprint: str
    run: TrainingRun
    rival: GrownNetwork | None = None
    rivals: tuple[GrownNetwork, ...] = ()
    costs: Costs | None = None
    trials: tuple[Trial, ...] = ()
    gains: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def report(self) -> GrowthReport:
        """What grew where, its price, and the gain with its bounds; a table in a terminal and in a notebook."""
        rows = [_row("host", self, before=True), _row(self._label(), self)]
        beside = self.rivals or ((self.rival,) if self.rival is not None else ())
        rows += [_row(f"{rival.blueprint} instead", rival) for rival in beside]
        notes = (*(self.costs.sentences() if self.costs is not None else ()), *self.notes)
        return GrowthReport(tuple(rows), self.acceptance, self.run, trials=self.trials, notes=notes)

    def picture(self) -> Markup:
        """The network with its grafts, drawn; see `growth_picture`."""
        return picture(self.network, self.acceptance, gains=self.gains)

    def save_picture(self, path: Path | str) -> None:
        """Write the drawing as ``.svg``, or as an ``.html`` page with its words and figures.

        Raises:
            InputError: Another suffix.
            StorageError: The disk refused.
        """
        save_picture(path, self.network, self.acceptance, gains=self.gains)

    @property
    def parameters(self) -> int:
        """Values that the growth added or changed."""
        return sum(graft.parameters for graft in self.grafts)

    def with_acceptance(self, acceptance: Acceptance) -> GrownNetwork:
        """The same network under another measurement, for example of the quantized file."""
        return replace(self, acceptance=acceptance)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the seed sites."""
        return self.network.sites

    def module_for_export(self) -> nn.Module:
        """As `SeededNetwork.module_for_export`."""
        return self.network.module_for_export()

    def _label(self) -> str:
        if not self.grafts:
            return f"+ {self.blueprint}"
        sites = [graft.site for graft in self.grafts]
        return f"+ {self.blueprint}@{','.join(sites) if len(sites) <= MOST_NAMED else f'{len(sites)} sites'}"


def torch_predictor(network: SeededNetwork) -> Predict:
    """Answers of the float network."""
    return lambda x: predict_labels(network, x)


def _row(name: str, grown: GrownNetwork, *, before: bool = False) -> Row:
    a = grown.acceptance
    if before:
        return Row(name, clean=a.clean_before, target=a.target_before, parameters=0, accepted=None)
    return Row(
        name=name,
        clean=a.clean_after,
        target=a.target_after,
        parameters=grown.parameters,
        accepted=a.accepted,
        gain_low=a.gain_low,
        gain_high=a.gain_high,
        seconds=grown.run.seconds,
        peak_bytes=grown.run.peak_bytes,
    )
