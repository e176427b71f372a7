"""Two spirals, learned and then turned; a graft learns the turned ones: python 08_two_spirals.py FOLDER"""

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
from kasmina_trainer.datasets.toy import two_spirals
from kasmina_trainer.domain_nets import PointNet
from kasmina_trainer.training import TrainingSettings, as_tensors, train

LEARN = TrainingSettings(steps=1000, batch=128, learning_rate=1e-2, weight_decay=1e-3, shift=0)
TURN = np.array([[np.cos(1.5), -np.sin(1.5)], [np.sin(1.5), np.cos(1.5)]], np.float32)  # by 86 degrees


def main(folder):
    """Train, turn the world, grow, deploy; say how often the device is right."""
    folder, splits = Path(folder), two_spirals(0)
    data, desk = folder / "device", Repository.desk(folder / "desk", clock=time.time)
    host, source = PointNet(2, 2), as_tensors(splits.train, "cpu")
    train(host, [*host.parameters()], [source], training_modules=[host], settings=LEARN, seed=0)
    seeds = kt.attach_seeds(host.eval(), sites=host.seed_sites, example=splits.train[0][:1])
    weak, judge, tests = ((x @ TURN, y) for x, y in (splits.train, splits.validation, splits.test))
    arms = [kt.Arm("residual-mlp", host.seed_sites)]
    held = {"holdout_clean": judge, "holdout_target": judge}  # the old world is gone: nothing of it is kept
    grown = kt.evolve(seeds, train=weak, target=weak, blueprint=arms, settings=LEARN, rival=False, **held)
    print(grown.report())
    seen = np.concatenate([splits.train[0], weak[0]])
    told = {"profile": "x86-cpu", "labels": splits.labels, "calibration": seen, "minimum_agreement": 0.95}
    bundle = None
    for network, version in ((seeds, "1.0.0"), (grown, "1.1.0")):
        bundle = kt.export(network, "spirals", version=version, parent=bundle, held_out=tests, **told)
        (file := folder / f"spirals-{version}.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
        kasmina_edge(["deploy", str(file), "--data", str(data)])
        with Runtime.open(data, telemetry=None) as runtime:
            answers = np.array([splits.labels.index(runtime.infer(point).label) for point in tests[0]])
        print(f"{bundle.id} is right: {np.mean(answers == tests[1]):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["build/spirals"])
