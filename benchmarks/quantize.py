"""What quantization costs: int8 and 4-bit weights against the float network, on test data nothing was fitted to.

Each task's networks (benchmarks/_quantize_nets.py) are quantized by recipes in a fixed order; which one counts is
decided on validation data alone: the first whose mean loss there is small enough, or the best. The loss is measured on
LiteRT's answers of the exported file, image by image against the float network's, and its bound is the upper end of the
two-sided 95 % interval of a paired bootstrap that draws networks first and their test images then (Davison and Hinkley
1997, section 3.8). Quantized files are kept in build/bench/ until the route that makes them changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from benchmarks._detector import code_of
from benchmarks._quantize_nets import ECG, FOLDER, ROOT, Parts, Task, network, tasks
from kasmina_trainer.export import parity, tflite
from kasmina_trainer.quantization import QuantizeConfig, prepare

Array = npt.NDArray[Any]
LOSS_TARGET, LOSS_TARGET_4, SIZE_TARGET_4 = 0.3, 1.0, 0.65
ENOUGH, ENOUGH_4 = 0.1, 0.4
"""Mean loss in points on validation data from which on no further recipe is tried: well below the targets."""
CALIBRATION_FRAMES = 500
DRAWS = 2000
QUICK_SEEDS = 2
ROUTE = (
    *(f"export/{name}.py" for name in ("correction", "flatbuffer", "float_tflite", "folding", "judging", "layout",
                                       "parity", "tflite")),
    *(
        f"quantization/{name}.py"
        for name in ("bias_correction", "calibration", "carrying", "choice", "equalise", "folding", "preparing", "qat",
                     "ranges", "rounding", "simulation", "tflite", "watching")
    ),
)  # fmt: skip
"""What a quantized file depends on, beside the network, the recipe and `WRITERS`."""
WRITERS = ("ai-edge-litert", "ai-edge-quantizer", "litert-torch", "torch")

RECIPES = {
    "ptq": QuantizeConfig(headroom=0),
    "ptq, equalised, all biases corrected": QuantizeConfig(headroom=0, equalize=True, bias_correction="all"),
    "qat": QuantizeConfig(headroom=0, method="qat", qat_steps=300),
}
RECIPES_4 = {
    "ptq, all biases corrected": QuantizeConfig(headroom=0, weight_bits=4, bias_correction="all"),
    "qat": QuantizeConfig(headroom=0, weight_bits=4, method="qat", qat_steps=400, qat_rate=1e-3),
}


@dataclass(frozen=True)
class Trial:
    """One network's quantized file.

    Attributes:
        lost: For each test image, 1 where only the float network is right, -1 where only the file is.
        validation_loss: Points of accuracy lost on validation data.
        float_accuracy: Share of test images that the float network answers rightly.
        size_bytes: Of the file.
    """

    lost: npt.NDArray[np.int8]
    validation_loss: float
    float_accuracy: float
    size_bytes: int


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Loss and its bound for each task at 8 and at 4 bits, and the size of 4-bit files."""
    out: list[dict[str, Any]] = []
    for task in tasks().values():
        seeds = range(QUICK_SEEDS if quick else task.seeds)
        command = f"python -m benchmarks.run --only quantize; {len(seeds)} networks, {{}} test images each"
        name, eight = by_rule(task, seeds, RECIPES, ENOUGH)
        found = [trial.lost for trial in eight]
        mean, bound = loss_bound(found, shared=task.shared_test)
        how = command.format(f"{min(map(len, found)):,}")
        if task.name == ECG:
            how += "; labels are a detector's, not an expert's"
        accuracy = 100 * float(np.mean([trial.float_accuracy for trial in eight]))
        out.append(
            row(
                f"int8 loss, {task.name}: upper 95 % bound", LOSS_TARGET, bound, "points", bound <= LOSS_TARGET,
                f"{how}; recipe {name}; mean {mean:+.3f} points of {accuracy:.2f} %",
            )
        )  # fmt: skip
        name, four = by_rule(task, seeds, RECIPES_4, ENOUGH_4)
        mean, bound = loss_bound([trial.lost for trial in four], shared=task.shared_test)
        out.append(
            row(
                f"4-bit weights, {task.name}: loss", LOSS_TARGET_4, mean, "points", mean <= LOSS_TARGET_4,
                f"{how}; recipe {name}; upper 95 % bound {bound:+.3f} points",
            )
        )  # fmt: skip
        share = float(np.mean([a.size_bytes / b.size_bytes for a, b in zip(four, eight, strict=True)]))
        sizes = f"{np.mean([t.size_bytes for t in four]):,.0f} B of {np.mean([t.size_bytes for t in eight]):,.0f} B"
        target = None if task.separable else SIZE_TARGET_4
        why = (
            "depthwise layers stay at 8 bits, so only stated" if task.separable else "INT4 tensors, computed by LiteRT"
        )
        out.append(
            row(
                f"4-bit weights, {task.name}: file, share of int8", target, share, "",
                target is None or share <= target, f"{how}; {sizes}; {why}",
            )
        )  # fmt: skip
    return out


def by_rule(
    task: Task, seeds: Sequence[int], recipes: dict[str, QuantizeConfig], enough: float
) -> tuple[str, list[Trial]]:
    """The recipe that validation data chooses for a task, and what its files do."""
    tried: dict[str, list[Trial]] = {}
    for name, config in recipes.items():
        tried[name] = [trial(task, seed, config) for seed in seeds]
        if np.mean([t.validation_loss for t in tried[name]]) <= enough:
            return name, tried[name]
    best = min(tried, key=lambda name: float(np.mean([t.validation_loss for t in tried[name]])))
    return best, tried[best]


def trial(task: Task, seed: int, config: QuantizeConfig) -> Trial:
    """Quantize one network, or take the file from build/bench/, and run it."""
    parts = task.load(seed)
    module = network(task, seed, parts)
    data = quantized(task, seed, module, parts, config)
    floats, ours = [], []
    for x, y in (parts.validation, parts.test):
        frames = channels_last(x)
        floats.append(parity.float_logits(module, frames).argmax(1) == y)
        ours.append(parity.litert_logits(data, frames).argmax(1) == y)
    return Trial(
        floats[1].astype(np.int8) - ours[1].astype(np.int8),
        100 * float(floats[0].mean() - ours[0].mean()),
        float(floats[1].mean()),
        len(data),
    )


def file_path(task: Task, seed: int, module: nn.Module, config: QuantizeConfig) -> Path:
    """Where one network's file is kept: named by all that it depends on."""
    digest = hashlib.sha256(config.to_bytes() + f"{[version(w) for w in WRITERS]} {CALIBRATION_FRAMES}".encode())
    for value in module.state_dict().values():
        digest.update(value.numpy().tobytes())
    for source in ROUTE:
        digest.update(code_of(ROOT / "kasmina_trainer" / source).encode())
    return FOLDER / f"quantize-{task.name.lower().replace(' ', '-')}-{seed}-{digest.hexdigest()[:16]}.tflite"


def quantized(task: Task, seed: int, module: nn.Module, parts: Parts, config: QuantizeConfig) -> bytes:
    """The file of one network; it sees training and validation data alone."""
    path = file_path(task, seed, module, config)
    if path.is_file():
        return path.read_bytes()
    train = channels_last(parts.train[0])
    calibration = train[:CALIBRATION_FRAMES]
    prepared = prepare(module, config, calibration, (train, parts.train[1]))
    held_out = channels_last(parts.validation[0])
    data = tflite.export_tflite(
        module, calibration=calibration, held_out=held_out, labels=parts.validation[1], config=config, prepared=prepared
    ).data
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_bytes(data)
    path.with_suffix(".part").rename(path)
    return data


def loss_bound(lost: Sequence[npt.NDArray[np.int8]], *, shared: bool, draws: int = DRAWS) -> tuple[float, float]:
    """Mean loss and the upper end of its two-sided 95 % interval, in points.

    Args:
        lost: Of each network, image by image, as `Trial.lost`.
        shared: Whether the images are the same for all networks: then a draw takes the same ones for all.
        draws: Of the bootstrap.

    >>> loss_bound([np.zeros(9, np.int8)] * 5, shared=True)
    (0.0, 0.0)
    """
    rng = np.random.default_rng(0)
    count = len(lost)
    means = np.empty(draws)
    for draw in range(draws):
        picked = rng.integers(0, count, count)
        if shared:
            weights = np.bincount(rng.integers(0, len(lost[0]), len(lost[0])), minlength=len(lost[0]))
            means[draw] = np.mean([weights @ lost[i] / len(weights) for i in picked])
        else:
            means[draw] = np.mean([lost[i][rng.integers(0, len(lost[i]), len(lost[i]))].mean() for i in picked])
    pooled = float(np.mean([each.mean() for each in lost]))
    return 100 * pooled, 100 * float(np.quantile(means, 0.975))


def channels_last(x: Array) -> npt.NDArray[np.float32]:
    """(N, C, H, W) to (N, H, W, C)."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1), dtype=np.float32)


def row(name: str, target: float | None, measured: float, unit: str, ok: bool, how: str) -> dict[str, Any]:
    """One row of the table."""
    return {"name": name, "target": target, "measured": measured, "unit": unit, "ok": bool(ok), "how": how}


if __name__ == "__main__":
    for each in rows():
        print(each)
