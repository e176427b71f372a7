"""Pictures and texts in one space, a new camera, a graft for it: python 09_tiny_clip.py FOLDER [STEPS] [GRAFT_STEPS]"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich import print

import kasmina_trainer as kt
from kasmina_edge import Runtime
from kasmina_edge.bundle import pack
from kasmina_edge.cli import main as kasmina_edge
from kasmina_edge.embedding_index import EmbeddingIndex
from kasmina_edge.fleet.repository import Repository
from kasmina_trainer.acceptance import AcceptanceLimits, judge
from kasmina_trainer.datasets.captioned import Camera, CaptionedShapes, joined
from kasmina_trainer.multimodal import embed, found_first, grow, train_tiny_clip
from kasmina_trainer.multimodal.contrastive import LEARN
from kasmina_trainer.multimodal.growing import LEARN_GRAFT, seeded_tower


def main(folder, steps=LEARN.steps, graft_steps=LEARN_GRAFT.steps):
    """Train both towers, change the camera, grow, deploy; say how often the device finds the right caption of 100."""
    folder, shapes, camera = Path(folder), CaptionedShapes(0), Camera()
    data, desk = folder / "device", Repository.desk(folder / "desk", clock=time.time)
    print("learning from 6,000 pictures with captions")
    clip = train_tiny_clip(shapes.draw("train", 6000, seed=0), settings=replace(LEARN, steps=int(steps)))
    old, new = shapes.draw("train", 1000, seed=1), shapes.draw("train", 2000, seed=2)
    pairs = joined([old, new.seen(camera.see(new.pictures, seed=0))])
    seeds = seeded_tower(clip)
    bare = seeds.fresh()
    grow(seeds, clip, pairs, settings=replace(LEARN_GRAFT, steps=int(graft_steps)))
    held = [shapes.gallery("validation", seed=i) for i in range(4)]  # combinations that nothing has learned from
    right = {}
    for name, tower in (("before", bare), ("after", seeds)):
        seen = [(each, camera.see(each.pictures, seed=i)) for i, each in enumerate(held)]
        right[name] = np.concatenate([found_first(embed(tower, x), clip.read(each.captions)) for each, x in seen])
    limits = AcceptanceLimits(minimum_gain=0.05)  # the old camera is gone: nothing of it is kept
    verdict = judge(right["before"], right["after"], right["before"], right["after"], limits=limits)
    print(f"gain {100 * (verdict.target_after - verdict.target_before):.1f} points, lower bound {verdict.gain_low:.3f}")
    seeds.accept(acceptance=verdict)
    gallery = shapes.gallery("test", seed=0)
    frames = camera.see(gallery.pictures, seed=9).transpose(0, 2, 3, 1)
    (index_file := folder / "captions.index").parent.mkdir(parents=True, exist_ok=True)
    told = EmbeddingIndex.build(clip.read(gallery.captions), gallery.captions, int8=True).write(index_file)
    order, bundle = np.random.default_rng(0).permutation(len(pairs)), None
    calibration, probe = pairs.pictures[order[:300]], pairs.pictures[order[300:500]]
    for network, version in ((bare, "1.0.0"), (seeds, "1.1.0")):
        bundle = kt.export(
            network, "finder", version=version, profile="x86-cpu", parent=bundle, minimum_agreement=0.95,
            acceptance=verdict if bundle else None, calibration=calibration.transpose(0, 2, 3, 1),
            held_out=(probe.transpose(0, 2, 3, 1), None),
        )  # fmt: skip
        (file := folder / f"finder-{version}.kasmina").write_bytes(pack(desk.sign_bundle(bundle)))
        kasmina_edge(["deploy", str(file), "--data", str(data)])
        index = EmbeddingIndex.open(index_file, digest=told)
        with Runtime.open(data, telemetry=None) as runtime:
            hits = [index.top(runtime.infer(np.ascontiguousarray(x)).outputs["output"], 1)[0] for x in frames]
        share = np.mean([hit.row == i for i, hit in enumerate(hits)])
        print(f"{bundle.id} is right: {share:.1%}; the first picture is {hits[0].name!r}")
    print("accepted" if verdict.accepted else "refused", seeds.report())


if __name__ == "__main__":
    main(*sys.argv[1:] or ["build/finder"])
