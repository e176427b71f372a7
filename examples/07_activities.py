"""Activities from a phone worn otherwise than it was learned, and a graft for it: python 07_activities.py FOLDER

Real users (UCI HAPT) where `kasmina-trainer data fetch hapt` was run, simulated ones elsewhere.
"""

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
from kasmina_trainer.datasets.catalogue import data_set
from kasmina_trainer.datasets.imu import load_hapt, load_simulated
from kasmina_trainer.domain_nets import SeriesNet
from kasmina_trainer.training import TrainingSettings, as_tensors, train

LEARN = TrainingSettings(steps=300, batch=64, learning_rate=6e-3, weight_decay=3e-2, keep=0.5, shift=0)
UPSIDE_DOWN = np.array([-1, -1, 1, -1, -1, 1], np.float32)[:, None]  # both sensors turned by half about z


def main(folder, steps=300):
    """Train on some users, turn the phone on others, grow, deploy; say how often the device is right."""
    folder, real = Path(folder), data_set("hapt").here
    print("users:", "real (UCI HAPT)" if real else "simulated; for real ones: kasmina-trainer data fetch hapt")
    splits = load_hapt(0) if real else load_simulated(0, users=12)
    data, desk = folder / "device", Repository.desk(folder / "desk", clock=time.time)
    host, learn = SeriesNet(6, 6), TrainingSettings(**{**vars(LEARN), "steps": int(steps)})
    source = as_tensors(splits.train, "cpu")
    train(host, [*host.parameters()], [source], training_modules=[host], settings=learn, seed=0)
    seeds = kt.attach_seeds(host.eval(), sites=("input", *host.seed_sites[:2]), example=splits.train[0][:1])
    (x, y), every = splits.train, max(1, len(splits.train[1]) // 1500)
    clean, weak = (x[::every], y[::every]), (x[1::every] * UPSIDE_DOWN, y[1::every])  # some turned, and labelled
    judge, truth = splits.validation
    held = {"holdout_clean": (judge, truth), "holdout_target": (judge * UPSIDE_DOWN, truth)}  # users never learned from
    arms = [kt.Arm("input-filter", ("input",)), kt.Arm("adapter", host.seed_sites[:2])]
    grown = kt.evolve(seeds, train=clean, target=weak, blueprint=arms, settings=learn, rival=False, **held)
    print(grown.report())
    tests = (splits.test[0], splits.test[0] * UPSIDE_DOWN)
    frames, truth = np.concatenate(tests).swapaxes(1, 2), np.tile(splits.test[1], 2)
    seen = np.concatenate([clean[0], weak[0]]).swapaxes(1, 2)
    told = {"profile": "x86-cpu", "labels": splits.labels, "calibration": seen, "minimum_agreement": 0.95}
    bundle = None
    for network, version in ((seeds, "1.0.0"), (grown, "1.1.0")):
        bundle = kt.export(network, "activities", version=version, parent=bundle, held_out=(frames, truth), **told)
        (file := folder / f"activities-{version}.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
        kasmina_edge(["deploy", str(file), "--data", str(data)])
        with Runtime.open(data, telemetry=None) as runtime:
            answers = np.array([splits.labels.index(runtime.infer(frame).label) for frame in frames])
        upright, turned = (np.mean(part) for part in np.split(answers == truth, 2))
        print(f"{bundle.id} is right: {(upright + turned) / 2:.1%}; upright {upright:.1%}, upside down {turned:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["build/activities"])
