"""``infer``: inputs from a file through a bundle."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kasmina_edge.cli.output import emit, grid
from kasmina_edge.cli.status import DEFAULT_DATA, DataOption, JsonOption
from kasmina_edge.errors import InputError
from kasmina_edge.settings import Settings

if TYPE_CHECKING:
    from kasmina_edge.engines.postprocessing import Detection


def infer(
    source: Annotated[Path, typer.Argument(help="A .npy file: one input, or a batch of them.")],
    data: DataOption = DEFAULT_DATA,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="A bundle file instead of the data folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run inputs from a file through the active bundle, on the engine that the settings name."""
    import numpy as np

    from kasmina_edge.runtime import Runtime

    try:
        frames = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
        raise InputError(f"{source}: not an .npy file ({exc})") from exc
    if not isinstance(frames, np.ndarray):
        frames.close()
        raise InputError(
            f"{source}: an .npz of several arrays, expected an .npy file", "Save one array with numpy.save."
        )
    if frames.ndim == 0:
        raise InputError(f"{source}: one number without a shape, expected one input or a batch of them")
    chosen = Settings.read(data).sources()
    profile = chosen["device.profile"]  # a bare bundle goes by its own where nobody set one
    with Runtime.open(
        bundle or data,
        profile=None if profile.source == "default" else profile.value,
        engine=chosen["device.engine"].value,
        telemetry=None,
    ) as runtime:
        shape, runs_on = runtime.manifest.inputs[0].shape, runtime.runs_on
        single = frames.shape in (shape, shape[1:])
        results = [runtime.infer(f) for f in ([frames] if single else frames)]
    guarded = any(r.alarm is not None for r in results)
    rows = [
        (
            str(i),
            _boxes(r.detections)
            if r.detections is not None
            else r.label
            or "; ".join(f"{name} {np.array2string(a, precision=4, threshold=8)}" for name, a in r.outputs.items()),
            f"{r.score:.3f}" if r.score is not None else "-",
            f"{r.latency_us:.0f}",
            *((f"{'unusual' if r.alarm else 'usual'}, {r.input_score:.2f}",) if guarded else ()),
        )
        for i, r in enumerate(results)
    ]
    value = {
        "engine": runs_on,
        "results": [
            {
                "label": r.label,
                "score": r.score,
                "latency_us": r.latency_us,
                "outputs": {name: array.tolist() for name, array in r.outputs.items()},
            }
            | ({} if r.alarm is None else {"alarm": r.alarm, "input_score": r.input_score})
            | ({} if r.detections is None else {"detections": [asdict(found) for found in r.detections]})
            for r in results
        ],
    }
    columns = ("#", "label", "score", "us") if any(r.label for r in results) else ("#", "output", "-", "us")
    emit(value, as_json=as_json, table=grid(f"on {runs_on}", (*columns, "input") if guarded else columns, rows))


def _boxes(found: Sequence[Detection]) -> str:
    """Objects of a frame for people: class, score, and left, top, right, bottom in per cent of the frame."""
    said = (f"{d.label} {d.score:.2f} at {', '.join(f'{100 * side:.0f}' for side in d.box)} %" for d in found)
    return "; ".join(said) or "nothing"
