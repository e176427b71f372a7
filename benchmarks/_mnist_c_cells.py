"""What benchmarks/domain_mnist_c.py trains: hosts on clean MNIST, and each form on all fifteen kinds at once.

Training rows go wrong in three of the fifteen ways each, drawn evenly, and validation rows in one; validation and
test rows are MNIST's own parts, and the test's corruptions have a seed of their own. A line a form and seed is kept in
build/bench/mnist-c.jsonl under a digest of the form, the sizes and the code of the corruptions, so that a run goes on
where the last one stopped.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks._detector import code_of
from benchmarks._mnist_c_fit import Form, fit, removed_exactly
from benchmarks._quantize_nets import FOLDER, Parts, Task, network
from kasmina_edge import Runtime
from kasmina_edge.bundle import pack
from kasmina_trainer.adversarial import mnist_c
from kasmina_trainer.adversarial.mnist_c import KINDS, corrupt
from kasmina_trainer.adversarial.pictures import Images
from kasmina_trainer.adversarial.targets import device_scores
from kasmina_trainer.datasets.digits import Samples, to_nhwc
from kasmina_trainer.datasets.fashion import load_fashion
from kasmina_trainer.datasets.mnist import LABELS, load_mnist
from kasmina_trainer.domain_nets.pictures import PictureNet
from kasmina_trainer.export.bundle import export_bundle
from kasmina_trainer.seeds import SeededNetwork
from kasmina_trainer.training import TrainingSettings, accuracy, predict_labels

TEST_SEED, VALIDATION_SEED = 7_000, 8_000
TURNS = (0, 5, 10)
"""Where in the row of kinds each set of wrong training rows begins."""
_ROOM = Path(mnist_c.__file__).parent
CODE = (
    *(_ROOM / f"{name}.py" for name in ("blur", "edges", "mnist_c", "noise", "pictures", "published", "strokes", "warp",
                                        "weather")),
    Path(__file__).with_name("_mnist_c_fit.py"),
    Path(__file__),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is trained and tested.

    Attributes:
        data: ``MNIST`` or ``Fashion-MNIST``.
        host_steps: Of the host.
        train_rows: Clean rows, and three times as many wrong ones.
        validation_rows: Rows that choose among forms.
        test_rows: Of each kind.
        device_rows: Of each kind, for the int8 file of a grown network; 0: it is not made.
    """

    data: str = "MNIST"
    host_steps: int = 2000
    train_rows: int = 55_000
    validation_rows: int = 5_000
    test_rows: int = 10_000
    device_rows: int = 1_000


@dataclass(frozen=True)
class Ground:
    """One host and its rows.

    Attributes:
        seed: Of the host, the split and the corruptions.
        host: Trained on clean rows, in evaluation mode.
        clean: Rows as the host knows them.
    """

    seed: int
    host: nn.Module
    clean: Parts


@dataclass(frozen=True)
class Wrong:
    """The rows of one seed gone wrong.

    Attributes:
        train: Sets of one wrong form of each training row.
        validation: One wrong form of each validation row.
        host_kinds: The host's accuracy on each kind of test rows, 0 to 1.
    """

    train: tuple[Samples, ...]
    validation: Samples
    host_kinds: dict[str, float]


@dataclass(frozen=True)
class Line:
    """What one form did on one host; accuracies from 0 to 1.

    Attributes:
        form: Its name.
        seed: Of host, rows and training.
        parameters: Added or changed values.
        share: The same as a share of the host's.
        validation: Accuracy on validation rows gone wrong, each in one drawn way.
        validation_clean: Points of accuracy lost on clean validation rows.
        host_clean: The host's accuracy on clean test rows.
        clean: The form's.
        host_kinds: The host's on each kind.
        kinds: The form's.
        removed: Whether taking it out gave the host's bits back; None where the host itself was trained.
        seconds: Of the training, by the clock.
        device: Mean accuracy of the int8 file through the runtime, on ``device_rows`` of each kind.
        device_agrees: Share of these that it answers as the float network does.
    """

    form: str
    seed: int
    parameters: int
    share: float
    validation: float
    validation_clean: float
    host_clean: float
    clean: float
    host_kinds: dict[str, float]
    kinds: dict[str, float]
    removed: bool | None
    seconds: float
    device: float | None = None
    device_agrees: float | None = None

    @property
    def mean(self) -> float:
        """Mean accuracy over the fifteen kinds."""
        return float(np.mean(list(self.kinds.values())))

    @property
    def host_mean(self) -> float:
        """The host's."""
        return float(np.mean(list(self.host_kinds.values())))


def task_of(size: Size) -> Task:
    """The host's network and training."""
    settings = TrainingSettings(steps=size.host_steps, batch=128, learning_rate=1e-2, shift=2)
    return Task(f"{size.data}-C", PictureNet, lambda seed: _parts(seed, size), settings, 3, True)


@lru_cache(maxsize=1)
def place(seed: int, size: Size) -> Ground:
    """Host and rows of one seed."""
    task = task_of(size)
    parts = task.load(seed)
    return Ground(seed, network(task, seed, parts), parts)


@lru_cache(maxsize=1)
def wrong_rows(seed: int, size: Size) -> Wrong:
    """Wrong rows of one seed, and what its host makes of the test's."""
    ground = place(seed, size)
    parts, host = ground.clean, ground.host
    train = tuple(gone_wrong(parts.train, 1 + seed, turn) for turn in TURNS)
    host_kinds = {kind: accuracy(host, x, parts.test[1]) for kind, x in wrong_tests(size).items()}
    return Wrong(train, gone_wrong(parts.validation, VALIDATION_SEED + seed), host_kinds)


@lru_cache(maxsize=1)
def wrong_tests(size: Size) -> dict[str, Images]:
    """Test pictures gone wrong in each way: the same for every seed, since its test rows are the same."""
    x, _ = _parts(0, size).test
    return {kind: corrupt(x, kind, seed=TEST_SEED) for kind in KINDS}


def gone_wrong(samples: Samples, seed: int, turn: int = 0) -> Samples:
    """Each row gone wrong in one way: as many of each kind, drawn, so that a kind tells nothing about a row's class.

    Sets of one seed with other turns give a row other kinds.
    """
    x, y = samples
    out: Images = np.empty_like(x)
    drawn = np.random.default_rng(seed).permutation(len(x))
    for at in range(len(KINDS)):
        rows, kind = drawn[at :: len(KINDS)], KINDS[(at + turn) % len(KINDS)]
        out[rows] = corrupt(x[rows], kind, seed=1000 * (seed + 100 * turn) + at)
    return out, y


def line(seed: int, form: Form, size: Size, *, only_kept: bool = False, keep: bool = True) -> Line | None:
    """A line from its file, or trained now.

    Args:
        seed: Of the host and everything else.
        form: What is trained.
        size: How much.
        only_kept: Do not train; None where the file does not hold it.
        keep: Look into the file and write to it.
    """
    if not keep:
        return _judged(place(seed, size), form, size)
    made_of = f"{seed} {form} {size}"
    found = kept(made_of, None if only_kept else lambda: asdict(_judged(place(seed, size), form, size)))
    return None if found is None else Line(**found)


def kept(made_of: str, make: Callable[[], dict[str, Any]] | None, code: Sequence[Path] = ()) -> dict[str, Any] | None:
    """A value from the file, or made now and written there; None where it is not there and must not be made.

    Args:
        made_of: What it stands for, besides the code of the corruptions and of this file.
        make: Makes it.
        code: Further sources that it depends on.
    """
    path = FOLDER / "mnist-c.jsonl"
    text = "".join(code_of(each) for each in (*CODE, *code))
    key = hashlib.sha256(f"{made_of} {torch.__version__} {text}".encode()).hexdigest()[:16]
    for each in path.read_text().splitlines() if path.is_file() else ():
        if (found := json.loads(each))["key"] == key:
            return dict(found["value"])
    if make is None:
        return None
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"key": key, "value": value}) + "\n")
    return value


def _judged(ground: Ground, form: Form, size: Size) -> Line:
    wrong = wrong_rows(ground.seed, size)
    fitted = fit(form, ground.host, ground.clean.train, wrong.train, seed=ground.seed)
    host, x, y = ground.host, *ground.clean.test
    tests = wrong_tests(size)
    kinds = {kind: accuracy(fitted.network, each, y) for kind, each in tests.items()}
    lost = accuracy(host, *ground.clean.validation) - accuracy(fitted.network, *ground.clean.validation)
    removed = device = agrees = None
    if isinstance(fitted.network, SeededNetwork):
        if size.device_rows:
            device, agrees = on_device(ground, fitted.network, size.device_rows)
        removed = removed_exactly(fitted.network, host, (tests["fog"][:256], y[:256]))
    return Line(
        form=form.name,
        seed=ground.seed,
        parameters=fitted.parameters,
        share=fitted.parameters / sum(p.numel() for p in host.parameters()),
        validation=accuracy(fitted.network, *wrong.validation),
        validation_clean=100 * lost,
        host_clean=accuracy(host, x, y),
        clean=accuracy(fitted.network, x, y),
        host_kinds=wrong.host_kinds,
        kinds=kinds,
        removed=removed,
        seconds=fitted.run.seconds,
        device=device,
        device_agrees=agrees,
    )


def on_device(ground: Ground, network: SeededNetwork, rows: int) -> tuple[float, float]:
    """Mean accuracy of a grown network's int8 file over all kinds, and how often it answers as the float network.

    The host's bundle is made first, and the grown one with it as its parent, as a fleet would.
    """
    seen = ground.clean.validation[0][:400]
    calibration = np.concatenate([seen[:200], gone_wrong((seen[200:], np.zeros(200, np.int64)), 5)[0]])
    x, y = ground.clean.test[0][:rows], ground.clean.test[1][:rows]
    told = {"profile": "x86-cpu", "calibration": to_nhwc(calibration), "held_out": (to_nhwc(x), y), "labels": LABELS,
            "minimum_agreement": 0.9}  # fmt: skip
    parent = export_bundle(network.fresh(), "mnist-c", version="1.0.0", **told)  # type: ignore[arg-type]
    grown = export_bundle(network, "mnist-c", version="1.1.0", parent=parent, **told)  # type: ignore[arg-type]
    right, alike = [], []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mnist-c.kasmina"
        file.write_bytes(pack(grown))
        with Runtime.open(file, verify=lambda bundle: None) as runtime:
            scores = device_scores(runtime)
            for kind in KINDS:
                wrong = corrupt(x, kind, seed=TEST_SEED)
                answers = scores(wrong).argmax(1)
                right.append(float((answers == y).mean()))
                alike.append(float((answers == predict_labels(network, wrong)).mean()))
    return float(np.mean(right)), float(np.mean(alike))


def _parts(seed: int, size: Size) -> Parts:
    load = {"MNIST": load_mnist, "Fashion-MNIST": load_fashion}[size.data]
    found = load(seed, validation=size.validation_rows, train_rows=size.train_rows)
    return Parts(found.train, found.validation, (found.test[0][: size.test_rows], found.test[1][: size.test_rows]))
