"""Telemetry of seed sites while grafts learn: the records that a device sends, one JSON line each.

A record is taken every `RECORD_EVERY` steps and at the end of every training. Its ``source`` is what was trained, its
``boot`` counts the trainings of a run, its ``bundle`` is the host's digest. What learns stays the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from kasmina_edge.contracts.manifest import DomainStatistics
from kasmina_edge.contracts.record import BudgetLeft, TelemetryRecord
from kasmina_edge.errors import KasminaError
from kasmina_edge.safety.drift import domain_statistics
from kasmina_edge.storage import as_storage_error
from kasmina_edge.telemetry.hardware import HardwareReader
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.evolve.budget import Allowance
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.telemetry import SeedCollector
from kasmina_trainer.training import Watch, one_core

RECORD_EVERY = 48  # steps: three looks of eight rows
DOMAIN = "training-mix"
_WINDOW = 24  # rows that a record usually looked at
_MOST_ROWS = 256
_MOST_SOURCE = 120

Hear = Callable[[TelemetryRecord], None]


class Teller:
    """Collects while grafts learn and hands on what it finds.

    Args:
        hear: Gets every record.
        sources: Rows that are learned from; they say what inputs are expected.
        allowance: What is left of its parameters stands in the record.
        seed: Of the drift's threshold.
        clock: Wall clock, seconds since 1970 UTC.
        hardware: Reads the machine; None: not measured.
    """

    def __init__(
        self,
        hear: Hear,
        sources: Sequence[Samples],
        allowance: Allowance,
        seed: int,
        *,
        clock: Callable[[], float] = time.time,
        hardware: HardwareReader | None = None,
    ) -> None:
        self._hear, self._allowance, self._clock = hear, allowance, clock
        self._hardware = hardware
        self._probe = _mixed(sources)
        self._domains = _expected(self._probe, seed)
        self._trainings = 0

    @contextmanager
    def over(self, network: SeededNetwork, name: str, watch: Watch | None) -> Iterator[Watch]:
        """Look at a network for the length of a training.

        Args:
            network: Holds grafts that are about to learn.
            name: What is trained.
            watch: Called after every step as well.

        Yields:
            What the training calls after every step.
        """
        number = self._trainings
        self._trainings += 1
        collector = SeedCollector(network, domains=self._domains, hardware=self._hardware, clock=self._clock)

        def told(step: int, loss: float) -> None:
            if watch is not None:
                watch(step, loss)
            if step % RECORD_EVERY == 0:
                self._tell(collector, network, name, number)

        with collector:
            yield told
            with one_core():
                collector.contribution(self._probe[:8].to(_device(network)))
            self._tell(collector, network, name, number)

    def _tell(self, collector: SeedCollector, network: SeededNetwork, name: str, number: int) -> None:
        record = collector.record()
        rows = list(record.seeds or ())
        if rows and self._allowance.parameters is not None:
            left = self._allowance.parameters - sum(graft.parameters for graft in network.grafts)
            rows[0] = rows[0].model_copy(update={"budget": BudgetLeft(parameters=left)})
        news = {"source": name[:_MOST_SOURCE], "boot": number, "seeds": tuple(rows) or None}
        self._hear(record.model_copy(update=news))


@contextmanager
def written(path: Path) -> Iterator[Hear]:
    """A listener that adds every record to a file, one JSON line each, flushed at once.

    Args:
        path: Made when missing, with its folder; a line that was cut off there is ended first.

    Raises:
        StorageError: The disk refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as exc:
        raise as_storage_error(exc, path) from exc

    def hear(record: TelemetryRecord) -> None:
        try:
            file.write(record.to_bytes() + b"\n")
            file.flush()
        except OSError as exc:
            raise as_storage_error(exc, path) from exc

    try:
        try:
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        except OSError as exc:
            raise as_storage_error(exc, path) from exc
        yield hear
    finally:
        try:
            file.close()  # what a full disk did not take is still in the buffer, and refused again
        except OSError as exc:
            raise as_storage_error(exc, path) from exc


def _mixed(sources: Sequence[Samples]) -> torch.Tensor:
    """Rows in the shares in which a training draws them.  # (N, ...)"""
    each = min(_MOST_ROWS // len(sources), *(len(x) for x, _ in sources), _MOST_ROWS)
    picked = [x[np.linspace(0, len(x) - 1, each).astype(np.int64)] for x, _ in sources]
    return torch.from_numpy(np.stack(picked, axis=1).reshape(-1, *picked[0].shape[1:]).astype(np.float32))


def _expected(rows: torch.Tensor, seed: int) -> tuple[DomainStatistics, ...]:
    """What inputs are expected; () where no threshold can be found: drift is not measured then."""
    try:
        return (domain_statistics(DOMAIN, rows.numpy(), None, _WINDOW, seed),)
    except (KasminaError, ValueError):
        return ()


def _device(network: SeededNetwork) -> torch.device:
    return next((p.device for p in network.graft_parameters()), torch.device("cpu"))
