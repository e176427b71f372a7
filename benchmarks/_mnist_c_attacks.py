"""The attacks and the detector of benchmarks/domain_mnist_c.py, on one host that learned clean MNIST.

FGSM, PGD and the Square attack on the float network; the Square attack again on its int8 file, asked through the
runtime. The detector is fitted to the device's statistics of clean rows and scored on what the device gives; attackers
who know it weigh what is above its threshold against the network's loss, and what slips by both is what counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._mnist_c_cells import Ground, gone_wrong
from benchmarks._quantize_nets import FOLDER
from benchmarks.quantize import row
from kasmina_edge import Runtime
from kasmina_edge.bundle import pack
from kasmina_edge.safety.input_check import InputCheck
from kasmina_trainer.adversarial.attacks import Attacked, fgsm, pgd
from kasmina_trainer.adversarial.curves import Curve, curve, save_curves
from kasmina_trainer.adversarial.detector import (
    WithStatistics,
    alarm_of,
    auroc,
    device_statistics,
    fit_check,
    statistics_of,
)
from kasmina_trainer.adversarial.mnist_c import KINDS, corrupt
from kasmina_trainer.adversarial.pictures import Images
from kasmina_trainer.adversarial.square_attack import CountedScores, Scores, square_attack
from kasmina_trainer.adversarial.targets import device_scores, network_scores
from kasmina_trainer.datasets.digits import to_nhwc
from kasmina_trainer.export.bundle import export_bundle

SITES = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
EPSILONS = (0.01, 0.02, 0.05, 0.1, 0.15)
GUARDED_AT = 0.1
WEIGHTS = (1.0, 5.0, 25.0)
SQUARE_WEIGHT = 5.0
KNOWN, JUDGED = 8000, 1000
Row = dict[str, Any]
Statistics = Callable[[Images], npt.NDArray[np.float32]]


def attack_rows(ground: Ground, *, quick: bool = False) -> list[Row]:
    """Success by epsilon, and what the detector makes of all that.

    Args:
        ground: The host and its clean rows.
        quick: Few rows and steps, and no device.
    """
    attacked, steps, queries = (30, 3, 10) if quick else (100, 40, 300)
    x, y = ground.clean.test[0][:attacked], ground.clean.test[1][:attacked]
    watched = WithStatistics(ground.host, SITES).eval()
    desk = network_scores(ground.host)
    epsilons = EPSILONS[-2:] if quick else EPSILONS
    curves = [
        curve("FGSM", lambda e: fgsm(ground.host, x, y, e), epsilons),
        curve(f"PGD, {steps} steps", lambda e: pgd(ground.host, x, y, e, steps=steps), epsilons),
        curve(f"Square, {queries} queries", lambda e: square_attack(desk, x, y, e, queries=queries), epsilons),
    ]  # fmt: skip
    if quick:
        return _curve_rows(curves) + _detector_rows(
            ground, watched, lambda z: statistics_of(watched, z), desk, (attacked, steps, queries)
        )
    with tempfile.TemporaryDirectory() as folder:
        file = _exported(ground, watched, Path(folder))
        with Runtime.open(file, verify=lambda bundle: None) as runtime:
            scores = CountedScores(device_scores(runtime, "logits"))

            def asked(epsilon: float) -> Attacked:
                return square_attack(scores, x, y, epsilon, queries=queries)

            curves.append(curve(f"Square, {queries} queries, int8 file", asked, epsilons))
            out = _curve_rows(curves)
            statistics = device_statistics(runtime)
            out += _detector_rows(ground, watched, statistics, scores, (attacked, steps, queries))
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_curves(curves, FOLDER / "mnist-c-attacks.html")
    return out


def _curve_rows(curves: Sequence[Curve]) -> list[Row]:
    return [
        row(f"attack: {each.name}, epsilon {point.epsilon:g}", None, 100 * point.success_rate, "% fooled", True,
            f"still right {100 * point.accuracy:.1f} %, {point.median_queries:.0f} queries in the median")
        for each in curves
        for point in each.points
    ]  # fmt: skip


def _detector_rows(
    ground: Ground, watched: WithStatistics, asked: Statistics, scores: Scores, much: tuple[int, int, int]
) -> list[Row]:
    train, validation, test = ground.clean.train, ground.clean.validation, ground.clean.test
    check = fit_check(asked(train[0][:KNOWN]), train[1][:KNOWN], asked(validation[0]))
    good = check.scores(asked(test[0]))
    alarmed = 100 * float((good > check.threshold).mean())
    told = "threshold set for 1 % on validation rows"
    out = [row("detector: false alarms on clean test rows", None, alarmed, "%", True, told)]
    areas: dict[str, float] = {}
    kinds = []
    for kind in KINDS:
        wrong = check.scores(asked(corrupt(test[0][:JUDGED], kind, seed=11)))
        areas[kind] = auroc(good, wrong)
        told = f"alarms on {100 * float((wrong > check.threshold).mean()):.1f} %"
        kinds.append(row(f"detector: AUROC, {kind}", None, areas[kind], "", True, told))
    low = min(areas, key=lambda kind: areas[kind])
    told = f"no wrong row was seen in fitting; lowest {areas[low]:.3f} ({low})"
    out.append(row("detector: mean AUROC of the 15 kinds", None, float(np.mean(list(areas.values()))), "", True, told))
    return out + kinds + _slipping(ground, watched, check, asked, scores, much)


def _slipping(
    ground: Ground, watched: WithStatistics, check: InputCheck, asked: Statistics, scores: Scores,
    much: tuple[int, int, int],
) -> list[Row]:  # fmt: skip
    """Share of pictures that fool the network without an alarm, by attackers who know more and more."""
    attacked, steps, queries = much
    train, (x, y) = ground.clean.train, ground.clean.test
    x, y = x[:attacked], y[:attacked]
    desk = fit_check(
        statistics_of(watched, train[0][:KNOWN]), train[1][:KNOWN], statistics_of(watched, ground.clean.validation[0])
    )
    alarm = alarm_of(desk, watched)
    made = [("PGD", pgd(ground.host, x, y, GUARDED_AT, steps=steps))]
    for weight in WEIGHTS:
        found = pgd(ground.host, x, y, GUARDED_AT, steps=steps, restarts=0, penalty=alarm, weight=weight)
        made.append((f"PGD that knows the detector, weight {weight:g}", found))
    few = slice(0, max(1, attacked // 3))

    def price(moved: Images) -> npt.NDArray[Any]:
        return np.maximum(check.scores(asked(moved)) - check.threshold, 0)

    made.append(("Square", square_attack(scores, x[few], y[few], GUARDED_AT, queries=queries)))
    found = square_attack(scores, x[few], y[few], GUARDED_AT, queries=queries, price=price, weight=SQUARE_WEIGHT)
    made.append(("Square that asks the detector too", found))
    return [
        _slipped(name, each, np.argmax(scores(each.x), 1) != y[: len(each.x)], price(each.x) > 0) for name, each in made
    ]


def _slipped(name: str, found: Attacked, wrong: npt.NDArray[np.bool_], seen: npt.NDArray[np.bool_]) -> Row:
    """Both of the deployed file: what it answers wrongly, and where its check gives an alarm."""
    share = 100 * float((wrong & ~seen).mean())
    alarmed = f"{100 * float(seen[wrong].mean()):.1f} %" if wrong.any() else "none"
    told = (
        f"epsilon {GUARDED_AT:g}, {len(found.x)} rows: the int8 file wrong on {100 * float(wrong.mean()):.1f} %,"
        f" of which alarmed {alarmed}; the network attacked was fooled on {100 * found.success_rate:.1f} %"
    )
    return row(f"detector: slips by it and the network, {name}", None, share, "%", True, told)


def _exported(ground: Ground, watched: WithStatistics, folder: Path) -> Path:
    clean = ground.clean.validation[0][:400]
    calibration = np.concatenate([clean[:200], gone_wrong((clean[200:], np.zeros(200, np.int64)), 5)[0]])
    bundle = export_bundle(
        watched, "mnist-c", version="1.0.0", profile="x86-cpu", calibration=to_nhwc(calibration),
        held_out=(to_nhwc(ground.clean.test[0][:500]), None), output_names=("logits", "statistics"),
    )  # fmt: skip
    file = folder / "mnist-c.kasmina"
    file.write_bytes(pack(bundle))
    return file
