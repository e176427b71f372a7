"""Retrieval on the device: the int8 picture tower with a privately learned turn, and an int8 index of texts.

``python -m benchmarks._clip_index`` prints these rows alone.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from benchmarks._clip_device import answers, app_pictures
from benchmarks._clip_host import GALLERIES, host
from benchmarks._clip_private import DELTA, EPSILONS, PAIRS, PRIVATE_SEED, swapped
from benchmarks.quantize import row
from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.embedding_index import EmbeddingIndex
from kasmina_edge.runtime import Runtime
from kasmina_trainer.export import export_bundle
from kasmina_trainer.multimodal import ranks
from kasmina_trainer.multimodal.growing import seeded_tower
from kasmina_trainer.multimodal.privacy_accountant import Budget
from kasmina_trainer.multimodal.private_align import align_privately
from kasmina_trainer.multimodal.private_sums import seeded

MOST_LOST = 1.0
ROWS, WIDTH, CALLS = 10_000, 64, 200
MOST_MS = 5.0


def rows() -> list[dict[str, Any]]:
    """R@1 of pictures that ask the index, and the time of a question to ten thousand names."""
    return [_found(0), _speed()]


def _found(seed: int) -> dict[str, Any]:
    shapes, clip = host(seed)
    pairs = shapes.draw("train", PAIRS, seed=PRIVATE_SEED)
    budget = Budget(max(EPSILONS), DELTA)
    turn = align_privately(clip.see(swapped(pairs.pictures)), clip.read(pairs.captions), budget, entropy=seeded(seed))
    seeds = seeded_tower(clip)
    turn.graft_on(seeds)
    public = shapes.draw("train", 800, seed=5)
    straight, other = app_pictures(public.pictures), app_pictures(swapped(public.pictures))
    parent = _bundle(clip.images, "1.0.0", straight)
    grown = _bundle(seeds, "1.1.0", np.concatenate([straight, other])[::2], parent)
    exact, device = [], []
    with (
        tempfile.TemporaryDirectory(prefix="kasmina-clip-") as folder,
        Runtime.open(_written(grown, Path(folder)), verify=lambda _: None, telemetry=None) as runtime,
    ):
        for i in range(GALLERIES):
            gallery = shapes.gallery("test", seed=i)
            texts = clip.read(gallery.captions)
            path = Path(folder) / f"gallery-{i}.index"
            names = [str(place) for place in range(len(texts))]
            digest = EmbeddingIndex.build(texts, names, int8=True, space="tiny-clip 1.0.0").write(path)
            index = EmbeddingIndex.open(path, digest=digest, space="tiny-clip 1.0.0")
            asked = answers(runtime, app_pictures(swapped(gallery.pictures)))
            device.append(100 * np.mean([index.top(each)[0].name == names[k] for k, each in enumerate(asked)]))
            turned = turn(clip.see(swapped(gallery.pictures)))
            exact.append(100 * float((ranks(turned @ texts.T) == 1).mean()))
    lost = statistics.fmean(exact) - statistics.fmean(device)
    how = (
        f"points of R@1, pictures ask: float {statistics.fmean(exact):.1f} %, int8 tower with the graft and int8 index "
        f"{statistics.fmean(device):.1f} %; seed {seed}, swapped camera, {GALLERIES} galleries of 100"
    )
    return row(
        f"Tiny-CLIP, private turn, epsilon {budget.epsilon:g}, on the device: lost by int8", MOST_LOST, round(lost, 2),
        "points", lost <= MOST_LOST, how,
    )  # fmt: skip


def _bundle(tower: nn.Module, version: str, frames: npt.NDArray[np.float32], parent: Bundle | None = None) -> Bundle:
    return export_bundle(
        tower, "tiny-clip-pictures", version=version, profile="x86-cpu", calibration=frames[::2],
        held_out=(frames[1::2], None), minimum_agreement=0.9, parent=parent,
    )  # fmt: skip


def _written(bundle: Bundle, folder: Path) -> Path:
    path = folder / "pictures.kasmina"
    path.write_bytes(pack(bundle))
    return path


def _speed() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    index = EmbeddingIndex.build(rng.normal(size=(ROWS, WIDTH)), [f"name {i}" for i in range(ROWS)], int8=True)
    asked = rng.normal(size=(CALLS, WIDTH)).astype(np.float32)
    spent = []
    for each in asked:
        started = time.perf_counter_ns()
        index.top(each, 5)
        spent.append((time.perf_counter_ns() - started) / 1e6)
    median = statistics.median(spent)
    how = (
        f"median of {CALLS} questions for the 5 nearest of {ROWS:,} int8 rows of {WIDTH}; worst {max(spent):.2f} ms; "
        f"file {len(index.to_bytes()) / 1000:.0f} kB"
    )
    return row("Embedding index: a question", MOST_MS, round(median, 3), "ms", median <= MOST_MS, how)


if __name__ == "__main__":
    for each in rows():
        print(each, flush=True)
