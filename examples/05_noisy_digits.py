"""Noise, attacks and a guard: python 05_noisy_digits.py FOLDER (downloads MNIST once, takes some minutes)"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich import print

import kasmina_trainer as kt
from kasmina_edge import Runtime
from kasmina_edge.bundle import pack
from kasmina_edge.cli import main as kasmina_edge
from kasmina_edge.fleet.repository import Repository
from kasmina_trainer.adversarial.denoiser import NOISE_FAMILY, DenoiserSettings, evaluate_denoiser, train_denoiser
from kasmina_trainer.adversarial.detector import WithStatistics
from kasmina_trainer.adversarial.mnist_c import corrupt
from kasmina_trainer.adversarial.square_attack import CountedScores, square_attack
from kasmina_trainer.adversarial.targets import device_scores
from kasmina_trainer.datasets.digits import to_nhwc
from kasmina_trainer.datasets.mnist import LABELS, load_mnist
from kasmina_trainer.domain_nets.pictures import PictureNet
from kasmina_trainer.export.guarding import GuardFrames
from kasmina_trainer.training import TrainingSettings, as_tensors, train


def main(folder, steps=500):
    """Train a host, put a denoiser in front of it, deploy both, attack the device, and guard it."""
    torch.manual_seed(0)
    parts, folder, host = load_mnist(0, train_rows=20_000), Path(folder), PictureNet()
    data, desk = folder / "device", Repository.desk(folder / "desk", clock=time.time)
    learn = TrainingSettings(steps=steps, learning_rate=1e-2)
    train(host, [*host.parameters()], [as_tensors(parts.train, "cpu")], training_modules=[host], settings=learn, seed=0)
    seeds = kt.attach_seeds(host.eval())
    bare = seeds.fresh()
    seeds.graft("input", "input-filter", config={"hidden": 16})
    train_denoiser(seeds, parts.train, settings=DenoiserSettings(steps=max(2, steps // 2), batch=64))
    for found in evaluate_denoiser(seeds, (parts.test[0][:1000], parts.test[1][:1000])):
        print(f"{found.kind}: right {found.before:.1%} -> {found.after:.1%}, SSIM {found.ssim_after:.3f}")
    x, y = parts.test[0][:1000], parts.test[1][:1000]
    noisy, bundle = corrupt(x, NOISE_FAMILY[1]), None
    seen = np.concatenate([parts.validation[0][:300], corrupt(parts.validation[0][:100], NOISE_FAMILY[1])])
    told = {"profile": "x86-cpu", "labels": LABELS, "calibration": to_nhwc(seen)}
    for network, version, held_out in ((bare, "1.0.0", x), (seeds, "1.1.0", np.concatenate([x, noisy]))):
        truth = np.tile(y, len(held_out) // len(y))
        bundle = kt.export(
            network, "digits", version=version, parent=bundle, held_out=(to_nhwc(held_out), truth), **told
        )
        (file := folder / f"digits-{version}.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
        kasmina_edge(["deploy", str(file), "--data", str(data)])
        with Runtime.open(data, telemetry=None) as runtime:
            answers = [result.label_index for result in runtime.infer_batch(to_nhwc(noisy))]
            print(f"{bundle.id} on the device is right about noisy digits: {np.mean(answers == y):.1%}")
            asked = CountedScores(device_scores(runtime))
            made = square_attack(asked, x[:100], y[:100], 0.05, queries=200)
            print(f"asked {asked.asked:,} times, an attacker fools it about {made.success_rate:.0%} of the digits")
    guarded = WithStatistics(host, [f"blocks.{at}" for at in range(4)]).eval()
    told |= {"output_names": ("logits", "statistics"), "held_out": (to_nhwc(x), y)}
    known, truth = to_nhwc(parts.validation[0]), parts.validation[1]
    watch = GuardFrames(known[:3000], truth[:3000], known[3000:])
    bundle = kt.export(guarded, "guarded-digits", version="1.0.0", guard=watch, **told)
    (file := folder / "guarded.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
    with Runtime.open(file, profile="x86-cpu") as runtime:
        for name, frames in (("clean", x), ("noisy", noisy), ("attacked", made.x[made.fooled])):
            alarms = [result.alarm for result in runtime.infer_batch(to_nhwc(frames))]
            print(f"alarms on {name} digits: {np.mean(alarms):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["build/noisy"])
