"""What the domains refuse: input that would have become a wrong figure, a raw error of numpy, or half a record."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.safety.drift import features
from kasmina_edge.safety.input_check import InputCheck
from kasmina_edge.storage import write_durable
from kasmina_trainer.adversarial.attacks import pgd
from kasmina_trainer.adversarial.curves import Curve, Point, save_curves
from kasmina_trainer.adversarial.detector import auroc, fit_check
from kasmina_trainer.adversarial.square_attack import square_attack
from kasmina_trainer.datasets import fetching
from kasmina_trainer.datasets.archives import read_members
from kasmina_trainer.datasets.medical_simulator.course import Mark
from kasmina_trainer.datasets.medical_simulator.noise import Converter, Mix
from kasmina_trainer.datasets.medical_simulator.patients import patient
from kasmina_trainer.datasets.medical_simulator.recording import record
from kasmina_trainer.datasets.medical_simulator.wfdb_files import header, packed, write_record
from kasmina_trainer.datasets.medical_simulator.windows import windows
from kasmina_trainer.datasets.toy.ngram import NGram
from kasmina_trainer.datasets.toy.points import concentric_spheres, sphere_accuracy
from kasmina_trainer.ecg_detector.beats import find_beats
from kasmina_trainer.ecg_detector.scores import agreement, auc_by_class
from kasmina_trainer.multimodal.membership import attack, judged
from kasmina_trainer.multimodal.privacy_accountant import Budget, composed, most_area, most_hits
from kasmina_trainer.multimodal.private_align import release
from kasmina_trainer.multimodal.retrieval import ranks, recall

NAN, INF = math.nan, math.inf
UNIT = np.eye(4, dtype=np.float32)
GOOD = np.random.default_rng(0).normal(size=(40, 3))
CLASSES = np.arange(40) % 2
X = np.random.default_rng(1).random((4, 1, 3, 3), np.float32)
Y = np.array([0, 1, 0, 1])


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 2))


def _scores(x: Any) -> Any:
    with torch.no_grad():
        return _net()(torch.from_numpy(x)).numpy()


REFUSED: dict[str, Callable[[], object]] = {
    "recall of no numbers": lambda: recall(UNIT * NAN, UNIT),
    "recall at 0": lambda: recall(UNIT, UNIT, at=(0,)),
    "recall of nobody asking": lambda: recall(UNIT, UNIT, asking=0),
    "membership of no numbers": lambda: judged(np.full((8, 8), NAN), np.eye(8) > 0, mu=None, seed=0),
    "membership of members alone": lambda: judged(np.zeros((8, 8)), np.ones((8, 8), bool), mu=None, seed=0),
    "membership of unequal pairs": lambda: attack(np.ones((9, 2)), np.ones((8, 2)), lambda *_: pytest.fail("fitted")),
    "no noise left": lambda: Budget(100.0).noise(5e-324),
    "noise without end": lambda: Budget(0.001).noise(1e308),
    "composition": lambda: composed([1.0, -1.0]),
    "area": lambda: most_area(NAN),
    "hits": lambda: most_hits(NAN, 0.1),
    "weight of a sum": lambda: release(UNIT, UNIT, Budget(1.0), square=1e-320),
    "epsilon": lambda: pgd(_net(), X, Y, INF),
    "step": lambda: pgd(_net(), X, Y, 0.1, step=NAN),
    "label of no class": lambda: square_attack(_scores, X, Y + 1, 0.1),
    "label below 0": lambda: pgd(_net(), X, Y - 1, 0.1),
    "answers of no numbers": lambda: square_attack(lambda x: _scores(x) * NAN, X, Y, 0.1),
    "labels as shares": lambda: pgd(_net(), X, Y + 0.5, 0.1),
    "AUROC": lambda: auroc(np.array([0.0, NAN]), np.array([1.0])),
    "statistics of no numbers": lambda: fit_check(GOOD * NAN, CLASSES, GOOD),
    "held out of no numbers": lambda: fit_check(GOOD, CLASSES, GOOD * NAN),
    "statistics in a row": lambda: fit_check(GOOD[0], CLASSES, GOOD),
    "statistics that never vary": lambda: fit_check(GOOD * 0, CLASSES, GOOD),
    "curve without points": lambda: save_curves([Curve("none", ())], "never.svg"),
    "beats at no rate": lambda: agreement(np.array([1]), np.array([900]), NAN),
    "beats out of order": lambda: agreement(np.array([9, 1]), np.array([1]), 360.0),
    "beats of no numbers": lambda: find_beats(np.full(720, NAN), 360.0, lambda x: np.zeros((len(x), 2))),
    "beats by no answer": lambda: find_beats(np.zeros(720), 360.0, lambda x: np.full((len(x), 2), NAN)),
    "AUC of a label of no class": lambda: auc_by_class(GOOD[:4, :2], np.array([0, 1, 0, 5]), ("a", "b")),
    "noise shares": lambda: Mix(NAN),
    "steps a mV": lambda: Converter(12, INF),
    "seed of patients": lambda: patient(-1, 0),
    "noise of a recording": lambda: record(patient(0, 0), snr_db=NAN, seconds=5.0),
    "power of a recording": lambda: record(patient(0, 0), snr_db=-INF, seconds=5.0),
    "a pattern twice": lambda: windows(0, [0], names=("normal", "normal")),
    "noise that falls": lambda: windows(0, [0], names=("normal",), snr_db=(24.0, 6.0)),
    "a mark at no moment": lambda: packed([Mark(NAN, "N")], 360.0),
    "a mark in another age": lambda: packed([Mark(1e9, "N")], 360.0),
    "a note beyond ASCII": lambda: packed([Mark(1.0, "N", "\u00e9")], 360.0),
    "shells without end": lambda: concentric_spheres(rows=(2, 2, 2), radii=(1.0, INF)),
    "accuracy at no noise": lambda: sphere_accuracy(noise=NAN),
    "n-gram of nothing": lambda: NGram(np.zeros(0, np.uint8), letters=2),
    "n-gram asked of other letters": lambda: NGram(np.zeros(9, np.uint8), letters=2).bits(np.full(9, 7, np.uint8)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_be_a_wrong_figure_is_refused(what: str) -> None:
    with pytest.raises(InputError):
        REFUSED[what]()


def test_a_right_answer_that_is_no_number_is_never_found() -> None:
    assert ranks(np.array([[NAN, 0.1], [0.2, 0.9]], np.float32)).tolist() == [2, 1]


def test_a_price_that_is_no_number_does_not_hide_the_picture_that_fools() -> None:
    found = pgd(_net(), X, Y, 1.0, steps=4, penalty=lambda x: torch.full((len(x),), NAN))
    wrong = _scores(found.x).argmax(1) != Y
    assert found.fooled.any()
    assert wrong[found.fooled].all()


@pytest.mark.parametrize("wrong", [{"format": np.array([NAN])}, {"mean": np.zeros(3, bool)}], ids=["format", "mean"])
def test_a_check_of_other_numbers_is_refused(wrong: dict[str, Any]) -> None:
    check = fit_check(GOOD, CLASSES, GOOD)
    whole = {"mean": check.mean, "whitening": check.whitening, "centres": check.centres,
             "threshold": np.array([check.threshold]), "format": np.array([1])}  # fmt: skip
    assert InputCheck.from_bytes(pack_arrays(whole), where="here").threshold == check.threshold
    with pytest.raises(InputError):
        InputCheck.from_bytes(pack_arrays(whole | wrong), where="here")


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e25, 1e38])
def test_a_broken_sensor_has_features_however_large_its_values(size: float) -> None:
    frame = np.array([[0.0, size], [size, 0.0]], np.float32)
    assert features(frame) == pytest.approx({"input_mean": size / 2, "input_std": size / 2, "roughness": size})


def test_wfdb_is_told_every_digit() -> None:
    recording = record(patient(0, 0), seconds=5.0, rate_hz=128.123456789, converter=Converter(16, 1234567.0))
    lines = header(recording, "a").decode().splitlines()
    assert float(lines[0].split()[2]) == recording.rate_hz
    assert float(lines[1].split()[2].partition("(")[0]) == 1234567.0


def test_a_record_that_could_not_be_written_has_no_header(tmp_path: Path) -> None:
    recording = record(patient(0, 0), seconds=5.0)
    (tmp_path / "a.atr").mkdir()
    with pytest.raises(StorageError):
        write_record(recording, tmp_path, "a")
    assert not (tmp_path / "a.hea").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        write_record(recording, tmp_path / "file" / "below", "a")


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    curves = [Curve("one", (Point(0.1, 0.5, 0.5, 3.0),))]
    save_curves(curves, tmp_path / "a.svg")
    for refused in (lambda: save_curves(curves, tmp_path / "no" / "a.svg"), lambda: write_durable(Path("."), b"")):
        with pytest.raises(StorageError):
            refused()


def test_members_of_a_zip_share_one_bound() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in "abc":
            file.writestr(name, b"0" * 900)
    assert len(read_members(out.getvalue(), "abc", where="w", max_bytes=2700)) == 3
    with pytest.raises(InputError):
        read_members(out.getvalue(), "abc", where="w", max_bytes=2699)


def test_the_cache_in_the_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetching.CACHE_VARIABLE, "~nobody-of-this-name/x")
    with pytest.raises(InputError, match="nobody-of-this-name"):
        fetching.cache_folder()
