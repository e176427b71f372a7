"""An ECG monitor: learn on simulated patients, grow for swapped electrodes, deploy: python 04_ecg_monitor.py FOLDER"""

import sys
import time
from pathlib import Path

import numpy as np
from rich import print

import kasmina_trainer as kt
from kasmina_edge import Runtime
from kasmina_edge.bundle import pack
from kasmina_edge.cli import main as kasmina_edge
from kasmina_edge.fleet.repository import Repository
from kasmina_trainer.datasets.medical_simulator.realtime import validate
from kasmina_trainer.datasets.medical_simulator.windows import split
from kasmina_trainer.ecg_detector.learning import train_pattern_net
from kasmina_trainer.ecg_detector.scores import auc_by_class, probabilities
from kasmina_trainer.training import TrainingSettings

PATTERNS = ("normal", "pvc", "af", "vt", "lbbb", "asystole")
LEARN = TrainingSettings(steps=600, batch=48, learning_rate=6e-3, shift=0)
GROW = TrainingSettings(steps=200, batch=48, learning_rate=1e-2, keep=0.5, shift=0)


def swapped(samples):
    """The same windows with the chest electrodes V1 and V5 in each other's place, as it happens on a ward."""
    x, y = samples
    return np.ascontiguousarray(x[:, [0, 2, 1]]), y


def frames(x):
    """The network's (N, C, 1, L) as an app holds it: (N, 1, L, C)."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def main(folder):
    """Train, grow, export, deploy, score on patients never seen, and hold the answers against the clock."""
    folder = Path(folder)
    data, desk = folder / "device", Repository.desk(folder / "desk", clock=time.time)
    train, kept, test = (part.samples for part in split(0, patients=(100, 50, 25), names=PATTERNS))
    host = train_pattern_net(train, classes=len(PATTERNS), settings=LEARN)
    seeds = kt.attach_seeds(host, sites=("input", "s1"), example=train[0][:1])
    grown = kt.evolve(
        seeds,
        train=train,
        target=swapped(train),
        holdout_clean=kept,
        holdout_target=swapped(kept),
        blueprint=[kt.Arm("adapter", ("s1",)), kt.Arm("depthwise", ("s1",))],
        settings=GROW,
        rival=False,
    )
    print(grown.report())
    seen = np.concatenate([train[0][::3], swapped(train)[0][::3]])
    told = {"profile": "x86-cpu", "labels": PATTERNS, "calibration": frames(seen)}
    bundle = None
    for network, version in ((seeds, "1.0.0"), (grown, "1.1.0")):
        bundle = kt.export(network, "ecg", version=version, parent=bundle, held_out=(frames(kept[0]), kept[1]), **told)
        (file := folder / f"ecg-{version}.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
        kasmina_edge(["deploy", str(file), "--data", str(data)])
        with Runtime.open(data, telemetry=None) as runtime:
            for name, (x, y) in (("as learned", test), ("electrodes swapped", swapped(test))):
                scores = [next(iter(runtime.infer(frame).outputs.values())).ravel() for frame in frames(x)]
                area = np.mean(list(auc_by_class(probabilities(np.array(scores)), y, PATTERNS).values()))
                print(f"{bundle.id}, {name}: macro AUC {area:.3f}")
            print("\n".join(validate(runtime.infer, frames(test[0]), count=300, period_s=0.01).lines()))


if __name__ == "__main__":
    main(*sys.argv[1:] or ["build/ecg"])
