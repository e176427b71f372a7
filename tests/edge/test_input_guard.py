"""A bundle's guard: in the signed manifest, on the device, in the answers; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kasmina_edge.bundle import Bundle, check_files, files_of, pack, read
from kasmina_edge.contracts.manifest import BundleManifest, FileEntry
from kasmina_edge.errors import BundleError, KasminaError
from kasmina_edge.runtime.guarding import guard_of
from kasmina_edge.runtime.result import Result
from kasmina_edge.safety.input_check import InputCheck

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CHECK = (GOLDEN / "input_check_v1.npz").read_bytes()
MANIFEST = BundleManifest.from_bytes((GOLDEN / "contracts-4/BundleManifest.json").read_bytes())
FILES = {"model.tflite": b"guarded", "selftest.litert.npz": b"s5", "guard.npz": CHECK}
BUNDLE = Bundle(MANIFEST, FILES)


def test_old_check_files_are_read_and_spelled_the_same() -> None:
    check = InputCheck.from_bytes(CHECK, where="guard.npz")
    assert check.to_bytes() == CHECK and check.threshold == 2.5
    statistics = np.array([[0.5, 0.25, 0.125], [1.5, 0.25, 2.125]])
    # by hand: (0, 0) is 1 from (0, 1); (1 + 1, 0.5) is 0.25 from (2, 0); each over two directions
    np.testing.assert_allclose(check.scores(statistics), [0.5, 0.125])


def test_the_signature_covers_the_guard_and_every_device_gets_it() -> None:
    assert read(pack(BUNDLE), where="here").files["guard.npz"] == CHECK
    assert "guard.npz" in {entry.path for entry in files_of(MANIFEST, "litert")}
    with pytest.raises(BundleError, match=r"guard\.npz is missing"):
        check_files(
            replace(BUNDLE, files={k: v for k, v in FILES.items() if k != "guard.npz"}), where="x", partial=True
        )
    with pytest.raises(BundleError, match=r"guard\.npz: the manifest says"):
        check_files(replace(BUNDLE, files=FILES | {"guard.npz": CHECK[:-1] + b"?"}), where="x")
    without = MANIFEST.model_copy(update={"guard": None})
    assert b"guard" not in without.to_bytes() and without.digest() != MANIFEST.digest()


@pytest.mark.parametrize("output", ["logits", "nothing"])
def test_a_guard_reads_an_output_of_statistics_and_no_other(output: str) -> None:
    value = json.loads(MANIFEST.to_bytes())
    value["guard"]["output"] = output
    with pytest.raises(KasminaError, match=f"guard reads output {output}; of statistics are: statistics"):
        BundleManifest.parse(value)


def answer(statistics: list[int]) -> Result:
    """Of statistics in the model's own numbers: (q + 128) / 16."""
    serving: Any = SimpleNamespace(input_guard=guard_of(BUNDLE, MANIFEST.models[0]))
    raws = [np.array([[1, 2]], np.int8), np.array([statistics], np.int8)]
    return Result(raws, 1, 1, serving, False)


def test_an_answer_tells_how_far_its_frame_is_from_good_ones() -> None:
    usual, strange = answer([-120, -124, -126]), answer([-120, -124, 127])
    assert usual.input_score == pytest.approx(0.5) and usual.alarm is False
    check = InputCheck.from_bytes(CHECK, where="")
    assert strange.input_score == pytest.approx(check.scores(np.array([[0.5, 0.25, 255 / 16]]))[0])
    assert strange.alarm is True
    usual.serving = SimpleNamespace(input_guard=None)  # type: ignore[assignment]
    assert usual.input_score is None and usual.alarm is None


def with_file(data: bytes) -> Bundle:
    """The bundle with another guard, named as it should be."""
    assert MANIFEST.guard is not None
    guard = MANIFEST.guard.model_copy(update={"file": FileEntry.of("guard.npz", data)})
    return Bundle(MANIFEST.model_copy(update={"guard": guard}), FILES | {"guard.npz": data})


def test_a_guard_that_does_not_fit_is_refused_when_the_bundle_is_loaded() -> None:
    wide = InputCheck(np.zeros(4), np.eye(4), np.zeros((1, 4)), 1.0).to_bytes()
    with pytest.raises(BundleError, match="is for 4 statistics, output statistics gives 3"):
        guard_of(with_file(wide), MANIFEST.models[0])
    with pytest.raises(BundleError, match=r"guard\.npz"):
        guard_of(with_file(CHECK[:-9]), MANIFEST.models[0])
    assert guard_of(Bundle(MANIFEST.model_copy(update={"guard": None}), FILES), MANIFEST.models[0]) is None
