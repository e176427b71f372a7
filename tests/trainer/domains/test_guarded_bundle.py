"""A classifier that leaves with its guard: one signed file that answers with a class and with an alarm."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kasmina_edge import Runtime
from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.cli import main
from kasmina_edge.errors import InputError
from kasmina_edge.fleet.repository import Repository
from kasmina_trainer.adversarial.detector import WithStatistics, device_statistics
from kasmina_trainer.adversarial.mnist_c import corrupt
from kasmina_trainer.datasets.digits import to_nhwc
from kasmina_trainer.export.bundle import export_bundle
from kasmina_trainer.export.guarding import GuardFrames, guard_file
from tests.trainer.domains.test_detector_and_denoiser import host, shapes

LABELS = ("down", "across", "ring", "cross")


def guarded(version: str = "1.0.0", **options: Any) -> Bundle:
    known, more = shapes(400, 1), shapes(300, 2)
    told = {"guard": GuardFrames(to_nhwc(known[0]), known[1], to_nhwc(more[0])), **options}
    return export_bundle(
        WithStatistics(host(), ("first", "second")).eval(), "shapes", version=version, profile="x86-cpu",
        calibration=to_nhwc(shapes(64, 6)[0]), held_out=(to_nhwc(shapes(100, 7)[0]), shapes(100, 7)[1]),
        labels=LABELS, output_names=("logits", "statistics"), minimum_agreement=0.9,
        **told,
    )  # fmt: skip


def test_a_guarded_classifier_keeps_its_head_and_raises_alarms_on_the_device(tmp_path: Path) -> None:
    bundle = guarded()
    manifest = bundle.manifest
    assert manifest.head == "classification" and manifest.labels == LABELS
    assert [output.labels for output in manifest.outputs] == [LABELS, ()]
    assert manifest.guard is not None and manifest.guard.file.path in bundle.files
    assert b"guard.npz" in bundle.files["papers.cdx.json"]
    parity = manifest.models[0].parity
    assert parity is not None and parity.accuracy is not None and len(parity.outputs) == 2
    file = tmp_path / "shapes.kasmina"
    file.write_bytes(pack(bundle))
    x, y = shapes(150, 8)
    with Runtime.open(file, verify=lambda _: None) as runtime:
        answers = runtime.infer_batch(to_nhwc(x))
        assert np.mean([answer.label == LABELS[truth] for answer, truth in zip(answers, y, strict=True)]) > 0.9
        assert np.mean([bool(answer.alarm) for answer in answers]) < 0.06
        noisy = runtime.infer_batch(to_nhwc(corrupt(x, "impulse-noise")))
        assert np.mean([bool(answer.alarm) for answer in noisy]) > 0.7
        guard = runtime._serving.input_guard
        assert guard is not None
        wanted = guard.check.scores(device_statistics(runtime)(x[:5]))
        found = np.array([answer.input_score for answer in answers[:5]], np.float64)
        np.testing.assert_allclose(found, wanted)


def test_infer_in_a_shell_says_what_the_guard_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, frames = tmp_path / "shapes.kasmina", tmp_path / "frames.npy"
    bundle.write_bytes(pack(Repository.desk(tmp_path / "desk", clock=time.time).sign_bundle(guarded())))
    good = shapes(1, 8)[0]
    np.save(frames, to_nhwc(np.concatenate([good, np.random.default_rng(0).random(good.shape, np.float32)])))
    call = ["infer", str(frames), "--bundle", str(bundle), "--data", str(tmp_path)]
    assert main([*call, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["results"]
    assert [each["alarm"] for each in told] == [False, True] and told[0]["input_score"] < told[1]["input_score"]
    assert main(call) == 0
    shown = capsys.readouterr().out
    assert "unusual" in shown and f"usual, {told[0]['input_score']:.2f}" in shown


def test_a_child_does_not_lose_its_parents_guard_in_silence() -> None:
    parent = guarded()
    with pytest.raises(InputError, match=r"its parent 1\.0\.0 has a guard on output 'statistics'"):
        guarded("1.1.0", parent=parent, guard=None)
    with pytest.raises(InputError, match="guard 'None'"):
        guarded("1.1.0", parent=parent, guard="None")
    assert guarded("1.1.0", parent=parent, guard="none").manifest.guard is None
    kept = guarded("1.1.0", parent=parent).manifest.guard
    assert kept is not None and kept.output == "statistics"


@pytest.mark.parametrize("output", ["logits", "features"])
def test_a_guard_needs_an_output_of_its_own(output: str) -> None:
    frames = GuardFrames(np.zeros((4, 28, 28, 1)), np.zeros(4), np.zeros((4, 28, 28, 1)), output=output)
    with pytest.raises(InputError, match=f"guard: output '{output}' is none behind the first of logits, statistics"):
        guard_file(frames, b"", (frames.frames, frames.held_out), ("logits", "statistics"))
