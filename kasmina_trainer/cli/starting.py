"""What a growth on the command line starts from: the digits host, or a user's own network with the user's own rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.cli import captured as captures
from kasmina_trainer.cli import measuring
from kasmina_trainer.cli.own_network import read_own
from kasmina_trainer.datasets import digits
from kasmina_trainer.datasets.digits import Samples

if TYPE_CHECKING:
    from torch import nn

    from kasmina_trainer.evolve.grown import Measure
    from kasmina_trainer.seeds import SeededNetwork

_NO_ROWS = (
    "Pass --data ROWS.npz with x (frames as the app has them, float32) and y (whole numbers), and --captured WEAK.npz "
    "with the same of where the network is weak."
)


@dataclass(frozen=True)
class Start:
    """A network that is to grow, and its rows.

    Attributes:
        seeds: The network with its sites.
        host: Gives it bare.
        train: Clean rows.
        target: Rows of where it is weak.
        clean: Clean rows that nothing has trained on; None: a quarter of ``train`` is set aside.
        metadata: For the checkpoint.
        foreign: Whether whoever loads the checkpoint has to name the network again.
        measure: Gives what its int8 file costs.
    """

    seeds: SeededNetwork
    host: Callable[[], nn.Module]
    train: Samples
    target: Samples
    clean: Samples | None
    metadata: Mapping[str, Any]
    foreign: bool
    measure: Callable[[], Measure]

    @property
    def parameters(self) -> int:
        """Of the host."""
        return sum(p.numel() for p in self.seeds.body.parameters())

    def seeded_for(self, blueprint: str) -> SeededNetwork:
        """The network with the sites that a recipe brings; as it is for anything else, and once something has grown."""
        import torch

        from kasmina_trainer.evolve import RECIPES, sites_for
        from kasmina_trainer.seeds import attach_seeds

        if blueprint not in RECIPES or self.seeds.grafts:
            return self.seeds
        example = torch.from_numpy(np.array(self.train[0][:1]))
        return attach_seeds(self.host(), sites_for(blueprint, self.host(), example), example=example)


def from_digits(host: Path, captured: Path | None, simulated: str | None, seed: int) -> Start:
    """The digits host of a checkpoint, on rows that its training left.

    Raises:
        InputError: No such checkpoint, or as `captured.target`.
    """
    from kasmina_trainer.checkpoints import load_checkpoint

    saved = load_checkpoint(host)
    parts = digits.split_digits(int(saved.metadata.get("seed", seed)))
    return Start(
        saved.network,
        saved.host,
        parts.host.samples,
        captures.target(captured, simulated, parts.camera, seed),
        parts.probes.samples,
        saved.metadata,
        foreign=False,
        measure=lambda: measuring.int8_files(parts.host.nhwc(), parts.probes.nhwc()),
    )


def from_own(
    host: Path,
    data: Path | None,
    held_out: Path | None,
    captured: Path | None,
    simulated: str | None,
    layout: str,
    sites: tuple[str, ...] | None,
) -> Start:
    """A user's own network.

    Args:
        host: A .pt2 or .onnx.
        data: Clean rows.
        held_out: Clean rows that nothing has trained on.
        captured: Rows of where it is weak.
        simulated: Refused: only digits can be filmed.
        layout: As `read_own`.
        sites: Where it may grow; chosen from its flow when left out.

    Raises:
        InputError: A file is missing or not what it must be, or the network has no place to grow at.
    """
    import torch

    from kasmina_trainer.seeds import attach_seeds

    if simulated is not None:
        raise InputError(f"--simulated {simulated}: digits are filmed, and {host.name} is no digits host", _NO_ROWS)
    if data is None or captured is None:
        lacking = " and ".join(f for f, p in (("--data", data), ("--captured", captured)) if p is None)
        raise InputError(f"{host}: {lacking} is missing, a network of your own grows from your rows", _NO_ROWS)
    own = read_own(host, layout)
    train, target = own.rows(data, "--data"), own.rows(captured, "--captured")
    clean = None if held_out is None else own.rows(held_out, "--held-out")
    if not len(train[0]):
        raise InputError(f"--data {data}: 0 rows", _NO_ROWS)
    example = torch.from_numpy(np.array(train[0][:1]))
    seeds = attach_seeds(own.source.module, sites or "auto", example=example)

    def measure() -> Measure:
        frames = _as_app(train[0], moved=own.moved)
        return measuring.int8_files(frames, frames, channels_last=own.moved)

    return Start(seeds, seeds.host_copy, train, target, clean, own.note(), foreign=True, measure=measure)


def _as_app(x: npt.NDArray[np.float32], *, moved: bool) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if moved and x.ndim > 2 else x
