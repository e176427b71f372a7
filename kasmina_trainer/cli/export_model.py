"""``export MODEL``: a user's own network with a user's own frames, and how every export is told."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import BundleManifest, ModelFile
from kasmina_edge.errors import InputError

if TYPE_CHECKING:
    from kasmina_edge.bundle import Bundle
    from kasmina_trainer.export.mapping import Mapped
    from kasmina_trainer.export.report import Exported

Array = npt.NDArray[Any]
HELD_OUT_EVERY = 4
MAX_LABEL_BYTES = 1_000_000
_FRAMES_WANTED = (
    "Pass --calibration FILE.npz with x: some hundred real inputs, float32, as the app hands them over, such as "
    "np.savez('frames.npz', x=frames, y=labels); y is optional."
)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint that this program wrote (or is named like one)."""
    if path.suffix == ".checkpoint":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return "checkpoint.json" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def form_of(weights: str, profile: str) -> dict[str, Any]:
    """``--weights`` as options of `export_bundle`.

    Raises:
        InputError: Neither 8, 4 nor float, or a width that the profile's target does not compute with.
    """
    if weights == "float":
        return {"form": "float"}
    if weights == "8":
        return {}
    if weights == "4":
        from kasmina_edge.contracts.profile import load_profile
        from kasmina_trainer.quantization.config import QuantizeConfig

        return {"quantize": QuantizeConfig.for_profile(load_profile(profile), {"weight_bits": 4})}
    raise InputError(f"--weights {weights}: expected 8, 4 or float")


def export_file(
    model: Path,
    *,
    name: str | None,
    version: str,
    calibration: Path | None,
    held_out: Path | None,
    labels: str | None,
    layout: str,
    input_shape: str | None,
    options: Mapping[str, Any],
) -> tuple[Bundle, tuple[tuple[str, str], ...], Exported]:
    """A bundle from a model file, lines for the report, and what it was made of.

    Raises:
        InputError: A file is missing or not what it must be; no calibration data (the message says what to pass).
        KasminaError: As `export_bundle`.
    """
    if layout not in ("channels-last", "as-is"):
        raise InputError(f"--layout {layout}: expected channels-last or as-is")
    if not model.is_file():
        raise InputError(f"{model}: no such model file", "Name a .pt2, an .onnx or a checkpoint.")
    if calibration is None:
        raise InputError(f"{model}: int8 ranges need frames, and none were named", _FRAMES_WANTED)
    from kasmina_trainer.export.bundle import export_bundle
    from kasmina_trainer.export.documents import ModelCard
    from kasmina_trainer.export.layout import as_app
    from kasmina_trainer.export.report import Exported
    from kasmina_trainer.export.source import load_source

    source = load_source(model, input_shape=_shape(input_shape))
    moved = layout == "channels-last"
    x, y = read_frames(calibration, source.input_shape, channels_last=moved)
    wrong = np.unique(np.argwhere(~np.isfinite(x))[:, 0])
    if len(wrong):  # said before frames are set aside: the number is that of the file
        raise InputError(
            f"{calibration}: frame {wrong[0]} and {len(wrong) - 1} others hold values that are not finite",
            "Leave these frames out, or mend what recorded them.",
        )
    if held_out is not None:
        frames, truth = read_frames(held_out, source.input_shape, channels_last=moved)
        told = f"{len(x)} frames for calibration, {len(frames)} held out"
    else:
        aside = np.arange(len(x)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        frames, truth = x[aside], None if y is None else y[aside]
        x = x[~aside]
        told = f"{len(x)} frames for calibration, every fourth of the file ({len(frames)}) held out"
    shapes = as_app(source.module, (1, *x.shape[1:]), channels_last=moved).output_shapes
    width = shapes[0][1] if len(shapes) == 1 and len(shapes[0]) == 2 else 0
    classes = class_names(labels, truth, width)
    bundle = export_bundle(
        source.module,
        name or bundle_name(model),
        version=version,
        calibration=x,
        held_out=(frames, truth if classes else None),
        labels=classes,
        output_names=source.output_names,
        channels_last=moved,
        provenance={"source": source.provenance},
        card=ModelCard(training_data=(), evaluation_data=(str((held_out or calibration).name),), network=model.name),
        **options,
    )
    shape = ", ".join(map(str, bundle.manifest.inputs[0].shape))
    made = Exported(source.module, x, frames, truth if classes else None, options.get("quantize"), moved)
    return bundle, (("frames", f"{told}; the app hands over ({shape}) float32"),), made


def read_frames(path: Path, shape: Sequence[int], *, channels_last: bool) -> tuple[Array, Array | None]:
    """Frames in the app's layout, and labels where the file has them.

    Args:
        path: An ``.npz`` of plain arrays: x, and y if known. Frames in the network's own layout are turned.
        shape: The network's input, with the batch axis, channels first.  # (1, C, ...)
        channels_last: Whether the app's frames have their channels at the end.

    Raises:
        InputError: Missing, not plain arrays, other shapes or types; the message carries what was found.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "x" not in arrays:
                raise InputError(
                    f"{path}: array x is missing, it holds {', '.join(arrays) or 'nothing'}", _FRAMES_WANTED
                )
            x = np.asarray(arrays["x"])
            y = np.asarray(arrays["y"]) if "y" in arrays else None
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such file", _FRAMES_WANTED) from exc
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as exc:
        raise InputError(f"{path}: not a file of plain arrays ({exc})", _FRAMES_WANTED) from exc
    if x.dtype.kind != "f":
        raise InputError(f"{path}: x is {x.dtype}, floats are expected", "Scale it as the app does; keep it float32.")
    own = tuple(shape[1:])
    app = (*own[1:], own[0]) if channels_last and len(own) > 1 else own
    if x.shape[1:] == app:
        frames = x
    elif x.shape[1:] == own:
        frames = np.moveaxis(x, 1, -1)
    else:
        also = f" or (N, {', '.join(map(str, own))})" if own != app else ""
        raise InputError(f"{path}: x is {x.shape}, expected (N, {', '.join(map(str, app))}){also}")
    if y is not None and (y.shape != x.shape[:1] or y.dtype.kind not in "iu"):
        raise InputError(f"{path}: y is {y.shape} {y.dtype}, expected ({len(x)},) integers")
    return np.ascontiguousarray(frames, dtype=np.float32), y


def class_names(labels: str | None, truth: Array | None, width: int) -> tuple[str, ...]:
    """``--labels`` as names; numbers where only y is known; empty where neither is, or the answer is no class.

    Args:
        labels: Comma-separated, or a path.
        truth: Classes of the held-out frames, or None.
        width: Classes that the network tells apart; 0: its answer is something else.

    Raises:
        InputError: A file that cannot be read, or fewer names than y needs.
    """
    if labels is None:
        return () if truth is None else tuple(map(str, range(width)))
    path = Path(labels)
    if path.is_file():
        try:
            text = path.read_bytes()[: MAX_LABEL_BYTES + 1].decode()
        except (OSError, UnicodeDecodeError) as exc:
            raise InputError(f"{path}: cannot be read as names ({exc})") from exc
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        names = tuple(part.strip() for part in labels.split(",") if part.strip())
    if not names or (truth is not None and len(truth) and int(truth.max()) >= len(names)):
        most = int(truth.max()) if truth is not None and len(truth) else 0
        raise InputError(f"--labels: {len(names)} names, y runs to {most}", "Give a name a class, in order.")
    return names


def bundle_name(path: Path) -> str:
    """A file's name as a bundle's: lower case, dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:64]
    return name or "model"


def proof(manifest: BundleManifest, model: ModelFile) -> str:
    """Parity of one file, in words."""
    found = model.parity
    if found is None:
        return "parity not measured"
    kinds = {"classification": "top-1 agreement with torch", "detection": "boxes shared with torch"}
    kind = kinds.get(manifest.head, "least cosine similarity with torch")
    text = f"{kind} {100 * found.top1_agreement:.1f} % of {found.samples}"
    if manifest.head == "other":
        text = f"{kind} {found.top1_agreement:.4f} on {found.samples} inputs"
    if found.accuracy is not None and found.float_accuracy is not None:
        text += f", accuracy {100 * found.accuracy:.1f} % (float {100 * found.float_accuracy:.1f} %)"
    return text


def mapping_of(bundle: Bundle) -> Mapped | None:
    """How the bundle's TFLite file maps; None where its profile is no Edge TPU."""
    from kasmina_edge.contracts.profile import load_profile
    from kasmina_trainer.export import mapping

    file = bundle.model_for("litert").file
    return mapping.report(bundle.files[file.path], load_profile(bundle.manifest.profile))


def mapping_rows(bundle: Bundle) -> list[tuple[str, str]]:
    """What an Edge TPU would do with it, a line a kind of operator."""
    found = mapping_of(bundle)
    if found is None:
        return []
    return [("on edgetpu", found.sentence), *((f"  {kind}", text) for kind, text in found.summary())]


def mapping_value(bundle: Bundle) -> dict[str, Any] | None:
    """The same for machines."""
    found = mapping_of(bundle)
    if found is None:
        return None
    return {
        "operators": found.operators,
        "on_tpu": found.on_tpu,
        "whole": found.whole,
        "on_chip_bytes": found.on_chip_bytes,
        "streamed_bytes": found.streamed_bytes,
        "table": [{"operator": kind, "maps": maps, "why": why} for kind, maps, why in found.table],
    }


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as exc:
        raise InputError(f"--input-shape {text}: expected whole numbers, such as 1,3,96,96") from exc
    if not shape or min(shape) < 1:
        raise InputError(f"--input-shape {text}: expected numbers from 1 on")
    return shape
