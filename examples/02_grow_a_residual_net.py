"""Grow a network that is not ours, deploy it, and take the grafts out again: python 02_grow_a_residual_net.py FOLDER"""

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
from kasmina_trainer.datasets.corruptions import blur
from kasmina_trainer.datasets.digits import LABELS, split_digits, to_nhwc
from kasmina_trainer.evolve import Arm
from kasmina_trainer.training import TrainingSettings, as_tensors, train


class BasicBlock(nn.Module):
    """As in torchvision."""

    def __init__(self, inplanes, planes, stride=2):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        """(N, C, H, W) to (N, C', H/2, W/2)."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.downsample(x))


def main(folder):
    """Train, grow where it is weak, deploy, and go back; say what that does to the answers."""
    torch.manual_seed(0)
    parts, folder = split_digits(0), Path(folder)
    data, desk = folder / "device", Repository.desk(folder / "desk", clock=time.time)
    stem, head = (nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU()), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    host = nn.Sequential(*stem, BasicBlock(8, 16), BasicBlock(16, 32), *head)
    clean, learn = parts.host.samples, TrainingSettings(steps=150, learning_rate=1e-2, keep=0.5)
    train(host, [*host.parameters()], [as_tensors(clean, "cpu")], training_modules=[host], settings=learn, seed=0)
    seeds = kt.attach_seeds(host.eval(), sites=("input", "1", "2.relu_2"), example=parts.host.x[:1])
    arms = (Arm("input-filter", ("input",)), Arm("depthwise", ("1", "2.relu_2")))
    weak = blur(parts.camera.x, width=5), parts.camera.y  # what a device captured: a lens out of focus
    grown = kt.evolve(seeds, train=clean, target=weak, blueprint=[arms], settings=learn, rival=False)
    print(grown.report())
    frames, bundle, answers = to_nhwc(np.concatenate([parts.test.x, blur(parts.test.x, width=5)])), None, []
    truth, seen = np.tile(parts.test.y, 2), to_nhwc(np.concatenate([parts.host.x, weak[0]]))
    told = {"profile": "x86-cpu", "labels": LABELS, "calibration": seen, "held_out": (frames, truth)}
    for network, version in ((seeds, "1.0.0"), (grown, "1.1.0")):
        bundle = kt.export(network, "digits", version=version, parent=bundle, **told)
        (file := folder / f"digits-{version}.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
        kasmina_edge(["deploy", str(file), "--data", str(data)])
        answers.append(labels_of(data, frames))
        print(f"{bundle.id} is right: {np.mean(answers[-1] == truth):.1%}")
    kasmina_edge(["rollback", "--data", str(data)])
    print("taken back on the device, every answer as before:", np.array_equal(labels_of(data, frames), answers[0]))
    x, grown = torch.tensor(parts.test.x), grown.network
    for site in grown.growths:
        grown.remove(site)
    print("removed on the desk, every bit as the host's:", torch.equal(grown(x), host(x)))


def labels_of(data, frames):
    """The device's answers."""
    with Runtime.open(data, telemetry=None) as runtime:
        return np.array([int(runtime.infer(frame).label) for frame in frames])


if __name__ == "__main__":
    main(*sys.argv[1:] or ["build/residual"])
