"""Clusters that drift: flagged without labels, learned by a graft, deployed: python 06_drifting_clusters.py FOLDER"""

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
from kasmina_trainer.datasets import gaussian as g
from kasmina_trainer.domain_nets import PointNet
from kasmina_trainer.training import TrainingSettings, as_tensors, predict_labels, train

LEARN = TrainingSettings(steps=400, batch=128, learning_rate=1e-2, keep=0.2, shift=0)


def main(folder):
    """Train, watch a stream drift, grow, deploy; say how pure the clusters are by the best that is possible."""
    folder, blobs = Path(folder), g.make_blobs(1, blobs=3, overlap=0.05)
    data, desk = folder / "device", Repository.desk(folder / "desk", clock=time.time)
    splits, after = g.blob_splits(blobs, 0), g.moved(blobs, 2.0, 8)
    host = PointNet(2, 3)
    source = as_tensors(splits.train, "cpu")
    train(host, [*host.parameters()], [source], training_modules=[host], settings=LEARN, seed=0)
    x, y = splits.test
    best = blobs.bayes_purity()
    print(f"purity before the drift: {g.purity(predict_labels(host.eval(), x), y):.3f}, best possible {best}")

    warning = g.DriftWarning(splits.validation[0], predict_labels(host, splits.validation[0]))
    stream = g.DriftingBlobs(blobs, after, g.Schedule("incremental", 4000, 20_000)).whole(26_000, 0)
    alarms = warning.update(stream.x, predict_labels(host, stream.x))
    print(f"flagged {alarms[0].sample - 4000} samples after the drift began: {alarms[0]}")

    seeds = kt.attach_seeds(host, sites=host.seed_sites, example=x[:1])
    weak, judge = (
        (stream.x[rows], stream.y[rows]) for rows in (slice(-1200, -400), slice(-400, None))
    )  # labelled later
    arms = [kt.Arm("residual-mlp", host.seed_sites), kt.Arm("adapter", host.seed_sites)]
    held = {"holdout_clean": judge, "holdout_target": judge}
    grown = kt.evolve(seeds, train=weak, target=weak, blueprint=arms, settings=LEARN, rival=False, **held)
    print(grown.report())
    print(f"best possible purity after the drift: {after.bayes_purity()}")
    fresh, truth = after.draw(2000, np.random.default_rng(9))
    told = {"profile": "x86-cpu", "labels": splits.labels, "calibration": np.concatenate([splits.train[0], weak[0]])}
    told["minimum_agreement"] = 0.95  # one point in five lies where blobs overlap, and int8 may decide otherwise there
    bundle = None
    for network, version in ((seeds, "1.0.0"), (grown, "1.1.0")):
        bundle = kt.export(network, "blobs", version=version, parent=bundle, held_out=(fresh, truth), **told)
        (file := folder / f"blobs-{version}.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
        kasmina_edge(["deploy", str(file), "--data", str(data)])
        with Runtime.open(data, telemetry=None) as runtime:
            answers = np.array([splits.labels.index(runtime.infer(point).label) for point in fresh])
        print(f"{bundle.id} is right: {np.mean(answers == truth):.1%}, purity {g.purity(answers, truth):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["build/clusters"])
