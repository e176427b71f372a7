"""What structured pruning costs and saves: int8 files of pruned networks against int8 files of the whole ones.

Each task's networks (benchmarks/_quantize_nets.py) lose a share of their multiplications, recover on training data
with the whole network as their teacher, and are quantized by the same recipe as the whole ones. How large the share is
decides validation data alone: the largest of `SHARES` whose mean loss there is small enough. Multiplications are
counted in the exported files. Latency is that of LiteRT with one thread, both files asked in turns, as a ratio of
medians. Points are lost by the pruned file against the whole one's, image by image; the bound is that of
benchmarks/quantize.py. Files are kept in build/bench/ until the code that makes them changes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks._quantize_nets import ECG, FOLDER, ROOT, Parts, Task, network, tasks
from benchmarks.quantize import CALIBRATION_FRAMES, RECIPES, channels_last, loss_bound, quantized, row
from kasmina_edge.hardware_simulator import read_workload
from kasmina_trainer.export import parity, tflite
from kasmina_trainer.pruning import Amount, Recovery, shrink

Array = npt.NDArray[Any]
MAC_TARGET, LOSS_TARGET, LATENCY_TARGET = 0.4, 0.6, 0.25
SHARES = (0.6, 0.5, 0.4)
ENOUGH = 0.4
"""Mean loss in points on validation data up to which a share is taken; the last one is taken anyway."""
STEP = 8
"""Widths stay multiples of it: XNNPACK computes that many channels at once."""
SEEDS, QUICK_SEEDS = 5, 2
ROUNDS, CALLS = 40, 20
RECIPE = RECIPES["ptq"]
RECOVERIES = {
    "digits": Recovery(steps=300, shift=1),
    "MNIST": Recovery(steps=800, batch=128, labels=0.3),
    "Fashion-MNIST": Recovery(steps=800, batch=128, labels=0.3),
    ECG: Recovery(steps=400, labels=0.3),
}
SOURCES = ("choosing", "coupling", "following", "groups", "recovery", "shrinking", "surgery", "taylor")


@dataclass(frozen=True)
class Pair:
    """A whole network's file and the pruned one's.

    Attributes:
        whole: The file of the whole network.
        pruned: The other one.
        lost: For each test image, 1 where only the whole one is right, -1 where only the pruned one is.
        validation_loss: Points that the pruned one loses on validation data.
        accuracy: Share of test images that the whole one answers rightly.
    """

    whole: bytes
    pruned: bytes
    lost: npt.NDArray[np.int8]
    validation_loss: float
    accuracy: float

    @property
    def macs_saved(self) -> float:
        """Share of the multiplications in the file that went."""
        return 1 - macs(self.pruned) / macs(self.whole)


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Multiplications, points and latency for each task."""
    out: list[dict[str, Any]] = []
    for task in tasks().values():
        seeds = range(QUICK_SEEDS if quick else SEEDS)
        share, pairs = by_rule(task, seeds)
        how = (
            f"python -m benchmarks.run --only growth_pruning; {len(seeds)} networks, "
            f"{min(len(p.lost) for p in pairs):,} test images each, a share of {share:.0%} chosen on validation data"
        )
        saved = min(pair.macs_saved for pair in pairs)
        out.append(
            row(
                f"structured pruning, {task.name}: multiplications saved, least of the networks", MAC_TARGET, saved, "",
                saved >= MAC_TARGET, f"{how}; counted in the int8 files",
            )
        )  # fmt: skip
        mean, bound = loss_bound([pair.lost for pair in pairs], shared=task.shared_test)
        told = f"{how}; int8 against int8; upper 95 % bound {bound:+.3f} points"
        told += f"; whole {100 * float(np.mean([p.accuracy for p in pairs])):.2f} %"
        if task.name == ECG:
            told += "; labels are a detector's, not an expert's"
        out.append(
            row(
                f"structured pruning, {task.name}: loss", LOSS_TARGET, mean, "points",
                mean <= LOSS_TARGET and saved >= MAC_TARGET, told,
            )
        )  # fmt: skip
        ratios = [latency_ratio(pair.whole, pair.pruned) for pair in pairs]
        quicker = 1 - float(np.median(ratios))
        sizes = f"files {np.mean([len(p.pruned) / len(p.whole) for p in pairs]):.0%} of the whole ones'"
        out.append(
            row(
                f"structured pruning, {task.name}: latency saved on LiteRT", LATENCY_TARGET, quicker, "",
                quicker >= LATENCY_TARGET,
                f"{how}; {ROUNDS} turns of {CALLS} calls, one thread; "
                f"{1 - max(ratios):.0%} to {1 - min(ratios):.0%} over the networks; {sizes}",
            )
        )  # fmt: skip
    return out


def by_rule(task: Task, seeds: Sequence[int]) -> tuple[float, list[Pair]]:
    """The share that validation data chooses for a task, and what it does."""
    for share in SHARES:
        found = [pair_of(task, seed, share) for seed in seeds]
        if share == SHARES[-1] or np.mean([pair.validation_loss for pair in found]) <= ENOUGH:
            break
    return share, found


def pair_of(task: Task, seed: int, share: float) -> Pair:
    """One network, whole and pruned, as files, and what both answer."""
    parts = task.load(seed)
    module = network(task, seed, parts)
    whole = quantized(task, seed, module, parts, RECIPE)
    less = pruned_file(task, seed, module, parts, share)
    right = {}
    for name, data in (("whole", whole), ("pruned", less)):
        for part, (x, y) in (("validation", parts.validation), ("test", parts.test)):
            right[name, part] = parity.litert_logits(data, channels_last(x)).argmax(1) == y
    return Pair(
        whole,
        less,
        right["whole", "test"].astype(np.int8) - right["pruned", "test"].astype(np.int8),
        100 * float(right["whole", "validation"].mean() - right["pruned", "validation"].mean()),
        float(right["whole", "test"].mean()),
    )


def pruned_file(task: Task, seed: int, module: nn.Module, parts: Parts, share: float) -> bytes:
    """The int8 file of a network that lost a share; it sees training and validation data alone."""
    amount, recovery = Amount(share, step=STEP), RECOVERIES[task.name]
    digest = hashlib.sha256(f"{amount} {recovery} {torch.__version__} {CALIBRATION_FRAMES}".encode())
    digest.update(RECIPE.to_bytes())
    for value in module.state_dict().values():
        digest.update(value.numpy().tobytes())
    for source in SOURCES:
        digest.update((ROOT / f"kasmina_trainer/pruning/{source}.py").read_bytes())
    name = f"pruned-{task.name.lower().replace(' ', '-')}-{seed}-{digest.hexdigest()[:16]}.tflite"
    path = FOLDER / name
    if path.is_file():
        return path.read_bytes()
    x, y = (torch.from_numpy(np.array(part)) for part in parts.train)
    smaller = shrink(module, amount, x.float(), y.long(), recovery=recovery, seed=seed).network
    train = channels_last(parts.train[0])
    data = tflite.export_tflite(
        smaller,
        calibration=train[:CALIBRATION_FRAMES],
        held_out=channels_last(parts.validation[0]),
        labels=parts.validation[1],
        config=RECIPE,
    ).data
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_bytes(data)
    path.with_suffix(".part").rename(path)
    return data


def macs(data: bytes) -> int:
    """Multiply-accumulates of a file, one frame."""
    return read_workload(data).macs


def latency_ratio(whole: bytes, pruned: bytes) -> float:
    """Median time of the pruned file over that of the whole one, asked in turns."""
    from ai_edge_litert.interpreter import Interpreter

    asked, times = [], ([], [])  # type: ignore[var-annotated]
    for data in (whole, pruned):
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        asked.append(interpreter)
    for _ in range(ROUNDS):
        for interpreter, found in zip(asked, times, strict=True):
            began = time.perf_counter_ns()
            for _ in range(CALLS):
                interpreter.invoke()
            found.append(time.perf_counter_ns() - began)
    return float(np.median(times[1]) / np.median(times[0]))


if __name__ == "__main__":
    for each in rows():
        print(each)
