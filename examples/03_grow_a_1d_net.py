"""Grow a 1-D network that is not ours, by a race, and take the winner out again: python 03_grow_a_1d_net.py FOLDER"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich import print
from torch import nn

import kasmina_trainer as kt
from kasmina_edge import Runtime
from kasmina_edge.bundle import pack
from kasmina_edge.cli import main as kasmina_edge
from kasmina_edge.fleet.repository import Repository
from kasmina_trainer.training import TrainingSettings, as_tensors, train

LABELS = ("sine", "square", "saw")
LEARN = TrainingSettings(steps=300, learning_rate=1e-2, keep=0.5, shift=0)


class Net(nn.Module):
    """Two convolutions over 64 samples; its activations are functions, so no module stands where something can grow."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(1, 8, 7, 2, 3), nn.Conv1d(8, 16, 5, 2, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        """(N, 1, 64) to (N, 3)."""
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(x.mean(2))


def signals(count, seed, hum=0.0):
    """What a sensor hears in 64 samples; ``hum`` is the size of a mains hum that the network has never heard."""
    rng, y = np.random.default_rng(seed), np.arange(count) % 3
    phase = rng.uniform(0, 1, (count, 1)) + rng.uniform(2, 4, (count, 1)) * np.linspace(0, 1, 64)
    waves = np.stack([np.sin(2 * np.pi * phase), np.sign(np.sin(2 * np.pi * phase)), 2 * (phase % 1) - 1])
    mains = hum * np.sin(2 * np.pi * (16 * np.linspace(0, 1, 64) + rng.uniform(0, 1, (count, 1))))
    x = 0.5 + 0.2 * waves[y, np.arange(count)] + mains + rng.normal(0, 0.02, (count, 64))
    return x[:, None].astype(np.float32), y


def main(folder):
    """Train, grow where it is weak, deploy, and go back; say what that does to the answers."""
    torch.manual_seed(0)
    folder, host, clean, weak = Path(folder), Net(), signals(600, 0), signals(300, 1, hum=0.3)
    data, desk = folder / "device", Repository.desk(folder / "desk", clock=time.time)
    train(host, [*host.parameters()], [as_tensors(clean, "cpu")], training_modules=[host], settings=LEARN, seed=0)
    seeds = kt.attach_seeds(host.eval(), sites=("input", "relu"), example=clean[0][:1])
    arms = [kt.Arm("input-filter", ("input",)), kt.Arm("depthwise", ("relu",)), kt.Arm("sliding-conv", ("relu",))]
    grown = kt.evolve(seeds, train=clean, target=weak, blueprint=arms, settings=LEARN, rival=False)
    print(grown.report())
    x, truth = (np.concatenate(pair) for pair in zip(signals(200, 2), signals(200, 3, hum=0.3), strict=True))
    frames, seen, bundle, answers = x.swapaxes(1, 2), np.concatenate([clean[0], weak[0]]).swapaxes(1, 2), None, []
    told = {"profile": "x86-cpu", "labels": LABELS, "calibration": seen, "held_out": (frames, truth)}
    for network, version in ((seeds, "1.0.0"), (grown, "1.1.0")):
        bundle = kt.export(network, "waves", version=version, parent=bundle, **told)
        (file := folder / f"waves-{version}.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
        kasmina_edge(["deploy", str(file), "--data", str(data)])
        with Runtime.open(data, telemetry=None) as runtime:
            answers.append([LABELS.index(runtime.infer(frame).label) for frame in frames])
        print(f"{bundle.id} is right: {np.mean(answers[-1] == truth):.1%}")
    kasmina_edge(["rollback", "--data", str(data)])
    with Runtime.open(data, telemetry=None) as runtime:
        back = [LABELS.index(runtime.infer(frame).label) for frame in frames]
    print("taken back on the device, every answer as before:", back == answers[0])
    for site in grown.network.growths:
        grown.network.remove(site)
    same = torch.equal(grown.network(torch.tensor(x)), host(torch.tensor(x)))
    print("removed on the desk, every bit as the host's:", same)


if __name__ == "__main__":
    main(*sys.argv[1:] or ["build/waves"])
