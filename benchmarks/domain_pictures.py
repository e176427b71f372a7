"""Small hosts for MNIST and Fashion-MNIST: int8 files, answered by the runtime on the official test sets.

One plain network and one loop for both. Rows move by whole pixels while it learns, and clothes are also seen mirrored
(a shoe points either way, a digit does not). Steps and rate were chosen on validation rows of a seed that is not
measured; the test rows chose nothing. Trained networks are kept in build/bench/.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._quantize_nets import ConvNet, Parts, Task, network
from kasmina_edge import Runtime
from kasmina_edge.bundle import pack
from kasmina_edge.errors import KasminaError
from kasmina_trainer.adversarial.targets import device_scores
from kasmina_trainer.datasets.digits import Samples, to_nhwc
from kasmina_trainer.datasets.fashion import load_fashion
from kasmina_trainer.datasets.idx import Splits
from kasmina_trainer.datasets.mnist import load_mnist
from kasmina_trainer.export import export_bundle
from kasmina_trainer.training import TrainingSettings, accuracy

SEEDS = (0, 1, 2)
CALIBRATION = 400


@dataclass(frozen=True)
class Pictures:
    """A data set, its target and how a host learns it.

    Attributes:
        name: For tables.
        target: Percent of the official test set, int8, mean over seeds.
        load: Its parts by seed.
        settings: How long and how boldly.
        mirrored: Whether rows are learned mirrored as well.
    """

    name: str
    target: float
    load: Callable[[int], Splits]
    settings: TrainingSettings
    mirrored: bool


@dataclass(frozen=True)
class Host:
    """What one seed came to; percent.

    Attributes:
        int8: Of the deployed file, on the test rows.
        float_: Of the float network, on the same.
        validation: Of the float network, on validation rows.
        size_bytes: Of the model file.
    """

    int8: float
    float_: float
    validation: float
    size_bytes: int


SETS = (
    Pictures("MNIST", 99.0, load_mnist, TrainingSettings(steps=5000, batch=128, learning_rate=1e-2, shift=2), False),
    Pictures(
        "Fashion-MNIST", 90.0, load_fashion, TrainingSettings(steps=6000, batch=128, learning_rate=1e-2, shift=1), True
    ),
)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Both sets; ``quick``: one seed, few steps, stated only."""
    return [_row(pictures, quick) for pictures in SETS]


def host(pictures: Pictures, seed: int, *, test_rows: int = 10_000) -> Host:
    """Train (or take what is kept), export to int8, and answer the test rows through the runtime."""
    splits = pictures.load(seed)
    task = Task(f"{pictures.name} host", ConvNet, lambda _: _parts(pictures, splits), pictures.settings, 3, True)
    trained = network(task, seed, task.load(seed))
    x, y = splits.test[0][:test_rows], splits.test[1][:test_rows]
    told = {"calibration": to_nhwc(splits.train[0][:CALIBRATION]), "labels": splits.labels, "profile": "x86-cpu"}
    held_out = (to_nhwc(splits.validation[0][:1000]), splits.validation[1][:1000])
    bundle = export_bundle(trained, "pictures", version="1.0.0", held_out=held_out, minimum_agreement=0.9, **told)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pictures.kasmina"
        file.write_bytes(pack(bundle))
        with Runtime.open(file, verify=lambda bundle: None) as runtime:
            answers = device_scores(runtime)(x).argmax(1)
    return Host(
        int8=100 * float((answers == y).mean()),
        float_=100 * accuracy(trained, x, y),
        validation=100 * accuracy(trained, *splits.validation),
        size_bytes=len(bundle.files["model.tflite"]),
    )


def _parts(pictures: Pictures, splits: Splits) -> Parts:
    return Parts(mirrored(splits.train) if pictures.mirrored else splits.train, splits.validation, splits.test)


def mirrored(samples: Samples) -> Samples:
    """The rows, and the same rows left to right.  # x (N, 1, 28, 28) to (2 N, 1, 28, 28)"""
    x, y = samples
    return np.concatenate([x, x[..., ::-1]]), np.concatenate([y, y])


def _row(pictures: Pictures, quick: bool) -> dict[str, Any]:
    target = None if quick else pictures.target
    row = {"name": f"{pictures.name}, int8 small host", "target": target, "measured": None, "unit": "%"}
    seeds, rows = (SEEDS[:1], 500) if quick else (SEEDS, 10_000)
    if quick:
        pictures = replace(pictures, settings=replace(pictures.settings, steps=30))
    try:
        found = [host(pictures, seed, test_rows=rows) for seed in seeds]
    except KasminaError as exc:
        return row | {"ok": quick, "how": f"not measured: {exc}"}
    mean = statistics.fmean(each.int8 for each in found)
    parameters = sum(p.numel() for p in ConvNet().parameters())
    how = (
        f"official test set through the runtime, mean of {len(found)} seeds, worst {min(e.int8 for e in found):.2f};"
        f" float {statistics.fmean(e.float_ for e in found):.2f}, validation"
        f" {statistics.fmean(e.validation for e in found):.2f} %; {parameters:,} parameters,"
        f" {max(e.size_bytes for e in found) / 1000:.0f} kB; {pictures.settings.steps} steps of"
        f" {pictures.settings.batch} rows"
    )
    return row | {"measured": round(mean, 2), "ok": target is None or mean >= target, "how": how}
