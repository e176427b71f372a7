"""A user's own network on the command line: a .pt2 or .onnx grows from the user's own rows, and is exported grown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError
from kasmina_trainer.cli.export_model import class_names, is_checkpoint, read_frames
from kasmina_trainer.datasets.digits import Samples
from kasmina_trainer.datasets.scenes import divide

if TYPE_CHECKING:
    from kasmina_edge.bundle import Bundle
    from kasmina_trainer.checkpoints import Checkpoint
    from kasmina_trainer.export.report import Exported
    from kasmina_trainer.export.source import Source

Array = npt.NDArray[Any]
LAYOUTS = ("channels-last", "as-is")
_ROWS = (
    "Write one with numpy.savez('rows.npz', x=frames, y=classes): float32 frames as the app has them, whole numbers."
)


@dataclass(frozen=True)
class OwnNetwork:
    """A network that was read from a file, and how its app lays frames out.

    Attributes:
        path: The file.
        source: What was read; no part of the file was run.
        moved: Whether the app's frames have their channels last and the network's first.
    """

    path: Path
    source: Source
    moved: bool

    def rows(self, path: Path, what: str) -> Samples:
        """Labelled rows as the network takes them.  # (N, C, ...), (N,)

        Raises:
            InputError: As `read_frames`, or no labels.
        """
        x, y = self.frames(path, what)
        return self.turned(x), y

    def frames(self, path: Path, what: str) -> tuple[Array, Array]:
        """The same as the app hands them over.  # (N, ..., C), (N,)"""
        x, y = read_frames(path, self.source.input_shape, channels_last=self.moved)
        if y is None:
            raise InputError(f"{what} {path}: array y is missing, a network learns from rows with classes", _ROWS)
        return x, y.astype(np.int64)

    def turned(self, x: Array) -> Array:
        """Frames of the app as the network takes them."""
        return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if self.moved and x.ndim > 2 else x

    def note(self) -> dict[str, Any]:
        """For the checkpoint: which file it was grown on, and how rows lie."""
        return {
            "host_file": self.path.name,
            "host_sha256": self.source.digest,
            "layout": LAYOUTS[0] if self.moved else LAYOUTS[1],
        }


def is_own(host: Path | None) -> bool:
    """Whether ``--host`` names a network of the user's, and no checkpoint of this program."""
    if host is None or is_checkpoint(host):
        return False
    return host.exists() or host.suffix in (".pt2", ".onnx")  # a name that is nothing was meant for a checkpoint


def read_own(host: Path, layout: str = LAYOUTS[0]) -> OwnNetwork:
    """Read a network that is to grow.

    Args:
        host: A .pt2 or .onnx; nothing in it is run, and pickles are refused.
        layout: ``channels-last`` (the app's frames), or ``as-is``.

    Raises:
        InputError: As `load_source`; another layout; a network that takes one row at a time.
    """
    from kasmina_trainer.export.source import load_source

    if layout not in LAYOUTS:
        raise InputError(f"--layout {layout}: expected {' or '.join(LAYOUTS)}")
    source = load_source(host)
    if getattr(source.module, "fixed_batch", False):
        raise InputError(
            f"{host}: the network has a batch of one built in, and growing takes batches",
            "Export it with flatten(1) and the like in place of fixed shapes.",
        )
    return OwnNetwork(host, source, layout == LAYOUTS[0])


def load_grown(path: Path, host: Path) -> tuple[Checkpoint, OwnNetwork]:
    """A checkpoint with the network that it was grown on.

    Raises:
        InputError: It was grown on another network, or on a host of this program.
    """
    from kasmina_trainer.checkpoints import load_checkpoint

    own = read_own(host)
    saved = load_checkpoint(path, host=own.source.module)
    if "layout" not in saved.metadata:
        raise InputError(f"{path}: not grown on {host.name} by `kasmina-trainer evolve --host`", "Leave --host out.")
    return saved, OwnNetwork(host, own.source, saved.metadata["layout"] == LAYOUTS[0])


def both_worlds(host: Path, calibration: Path | None, captured: Path | None) -> tuple[Path, Path]:
    """The files that a growth on a user's network is calibrated with.

    Raises:
        InputError: One of them was not named.
    """
    if calibration is None or captured is None:
        named = (("--calibration", calibration), ("--captured", captured))
        raise InputError(
            f"{' and '.join(flag for flag, file in named if file is None)} is missing: the ranges of what has grown on "
            f"{host.name} need rows of both worlds",
            "Pass --calibration ROWS.npz and --captured WEAK.npz, the files it was grown from.",
        )
    return calibration, captured


def export_grown(
    saved: Checkpoint,
    own: OwnNetwork,
    name: str,
    *,
    version: str,
    parent: Bundle,
    calibration: Path,
    held_out: Path | None,
    captured: Path,
    labels: str | None,
    options: Mapping[str, Any],
) -> tuple[Bundle, Exported]:
    """A bundle of what has grown on a user's network, calibrated and proven on rows of both worlds.

    The rows that judged the growth are set aside again: they are told by the growth's seed.

    Raises:
        InputError: A file is missing, or not what it must be.
        KasminaError: As `export_bundle`.
    """
    from kasmina_trainer.export.bundle import export_bundle
    from kasmina_trainer.export.documents import ModelCard
    from kasmina_trainer.export.report import Exported

    seed = int(saved.metadata.get("growth_seed", 0))
    learned: list[Array] = []
    judged: list[tuple[Array, Array]] = []
    for what, file, aside in (("--calibration", calibration, held_out), ("--captured", captured, None)):
        x, y = own.frames(file, what)
        if aside is not None:
            learned.append(x)
            judged.append(own.frames(aside, "--held-out"))
            continue
        parts = divide(own.turned(x), seed=seed)
        learned.append(x[parts.learn])
        judged.append((x[parts.judge], y[parts.judge]))
    frames, truth = (np.concatenate(both) for both in zip(*judged, strict=True))
    classes = class_names(labels, truth, 0) if labels is not None else tuple(parent.manifest.labels)
    bundle = export_bundle(
        saved.network,
        name,
        version=version,
        calibration=np.concatenate(learned),
        held_out=(frames, truth if classes else None),
        labels=classes,
        domains={"clean": learned[0], "captured": learned[1]},
        parent=parent,
        grafts=saved.grafts,
        acceptance=saved.acceptance,
        output_names=own.source.output_names,
        channels_last=own.moved,
        provenance={"source": own.source.provenance},
        card=ModelCard(
            training_data=(captured.name,),
            evaluation_data=_names(calibration, held_out, captured),
            network=own.path.name,
        ),
        **options,
    )
    module = saved.network.module_for_export()
    made = Exported(
        module, np.concatenate(learned), frames, truth if classes else None, options.get("quantize"), own.moved
    )
    return bundle, made


def _names(*files: Path | None) -> tuple[str, ...]:
    return tuple(f"{file.name}, rows set aside" for file in files if file is not None)
