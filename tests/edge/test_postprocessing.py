"""From a detector's raw outputs to labelled boxes: contract, decoding, suppression, and what the runtime gives."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds.bundles import make_profile

from kasmina_edge.bundle import Bundle, pack
from kasmina_edge.cli import main
from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.contracts.manifest import BundleManifest, FileEntry, ModelFile, ModelIO, ModelTensor, SelfTest
from kasmina_edge.contracts.postprocessing import AnchorLevel, Postprocessing
from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.engines.postprocessing import BoxReader, anchors_of, decode, suppressed
from kasmina_edge.errors import BundleError, EngineError
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.runtime import Runtime
from kasmina_edge.safety.drift import FEATURES

SIZES = ((0.5, 0.25), (0.25, 0.25))


def level(number: int = 1, rows: int = 2, columns: int = 3, **changes: Any) -> AnchorLevel:
    """A small grid."""
    names = {"boxes": f"b{number}", "scores": f"s{number}"}
    return AnchorLevel.parse({**names, "rows": rows, "columns": columns, "sizes": SIZES, **changes})


def post(*levels: AnchorLevel, **changes: Any) -> Postprocessing:
    """Two classes on one grid, or on those given."""
    plain = [each.model_dump() for each in levels or (level(),)]
    return Postprocessing.parse({"labels": ["cat", "dog"], "levels": plain, **changes})


def outputs_of(wanted: Postprocessing, **quantized: tuple[float, int]) -> list[tuple[ModelIO, ModelTensor]]:
    """Flat outputs as the post-processing names them: float, or int8 with the scale and zero point given."""
    pairs = []
    for name, size in wanted.values().items():
        scheme = quantized.get(name)
        kind: dict[str, Any] = (
            {"dtype": "float32"} if scheme is None else {"dtype": "int8", "scale": scheme[0], "zero_point": scheme[1]}
        )
        pairs.append((ModelIO(name=name, shape=(1, size)), ModelTensor(name=name, shape=(1, size), **kind)))
    return pairs


def brute_force(boxes: np.ndarray, classes: np.ndarray, threshold: float, most: int) -> list[int]:
    """Suppression as a textbook has it."""

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        width = min(a[2], b[2]) - max(a[0], b[0])
        height = min(a[3], b[3]) - max(a[1], b[1])
        if width <= 0 or height <= 0:
            return 0.0
        shared = width * height
        return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))

    kept: list[int] = []
    for row in range(len(boxes)):
        if all(classes[row] != classes[k] or overlap(boxes[row], boxes[k]) <= threshold for k in kept):
            kept.append(row)
    return kept[:most]


def test_anchors_are_numbered_by_row_column_and_size() -> None:
    found = anchors_of(post())
    assert found.shape == (12, 4)
    assert found[0].tolist() == [0.25, 1 / 6, 0.5, 0.25]
    assert found[1].tolist() == [0.25, 1 / 6, 0.25, 0.25]
    assert found[2, :2].tolist() == [0.25, 0.5] and found[6, :2].tolist() == [0.75, 1 / 6]


def test_decoding_is_that_of_a_hand_worked_box() -> None:
    wanted = post(centre_variance=0.1, size_variance=0.2)
    anchor = np.array([[0.5, 0.5, 0.4, 0.2]])
    still = decode(np.zeros((1, 4)), anchor, wanted)
    assert still[0] == pytest.approx([0.4, 0.3, 0.6, 0.7])
    moved = decode(np.array([[1.0, -2.0, 5 * math.log(2), 0.0]]), anchor, wanted)
    # centre y 0.5 + 0.1 * 0.4, centre x 0.5 - 2 * 0.1 * 0.2, height 0.4 * 2, width 0.2
    assert moved[0] == pytest.approx([0.46 - 0.1, 0.54 - 0.4, 0.46 + 0.1, 0.54 + 0.4])
    assert np.isfinite(decode(np.full((1, 4), 1e6), anchor, wanted)).all()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 130), st.floats(0.05, 0.95), st.integers(1, 30))
def test_suppression_is_that_of_the_textbook(seed: int, count: int, threshold: float, most: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.02, 0.4, (count, 2))], axis=1)
    classes = rng.integers(0, 2, count)
    assert suppressed(boxes, classes, threshold, most) == brute_force(boxes, classes, threshold, most)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["sigmoid", "softmax", "none"]), st.booleans())
def test_eight_bit_outputs_give_the_boxes_of_their_real_values(seed: int, activation: str, background: bool) -> None:
    rng = np.random.default_rng(seed)
    wanted = post(level(1), level(2, 1, 1), activation=activation, background=background, score_threshold=0.4)
    scheme = {name: (float(rng.uniform(0.02, 0.08)), int(rng.integers(-60, 60))) for name in wanted.values()}
    raws = [rng.integers(-128, 128, (1, size)).astype(np.int8) for size in wanted.values().values()]
    found = BoxReader(wanted, outputs_of(wanted, **scheme))(raws)
    reals = [
        (raw.astype(np.float64) - scheme[name][1]) * scheme[name][0]
        for name, raw in zip(wanted.values(), raws, strict=True)
    ]
    again = BoxReader(wanted, outputs_of(wanted))(reals)
    assert [d.label for d in found] == [d.label for d in again]
    for one, other in zip(found, again, strict=True):
        assert one.score == pytest.approx(other.score) and one.box == pytest.approx(other.box)
        assert min(one.box) >= 0 and max(one.box) <= 1 and one.label == ("cat", "dog")[one.label_index]
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    assert found == BoxReader(wanted, outputs_of(wanted, **scheme))(raws), "the same answer twice"


def test_levels_may_lie_in_one_output_one_after_another() -> None:
    apart = post(level(1), level(2, 1, 1), score_threshold=0.2)
    together = post(level(1), level(1, 1, 1), score_threshold=0.2)
    rng = np.random.default_rng(3)
    raws = {name: rng.normal(0, 1, (1, size)) for name, size in apart.values().items()}
    joined = [np.concatenate([raws["b1"], raws["b2"]], 1), np.concatenate([raws["s1"], raws["s2"]], 1)]
    found = BoxReader(together, outputs_of(together))(joined)
    assert found and found == BoxReader(apart, outputs_of(apart))(list(raws.values()))


def test_the_order_of_equal_scores_is_that_of_the_anchors_and_limits_hold() -> None:
    wanted = post(level(sizes=[(0.1, 0.1)]), score_threshold=0.1, maximum_detections=3)
    reader = BoxReader(wanted, outputs_of(wanted))
    found = reader([np.zeros((1, 24)), np.zeros((1, 12))])
    assert [(d.label, d.score) for d in found] == [("cat", 0.5), ("dog", 0.5), ("cat", 0.5)]
    few = post(level(sizes=[(0.1, 0.1)]), score_threshold=0.1, maximum_candidates=1)
    assert len(BoxReader(few, outputs_of(few))([np.zeros((1, 24)), np.zeros((1, 12))])) == 1
    assert reader([np.zeros((1, 24)), np.full((1, 12), -9.0)]) == ()
    strict = BoxReader(wanted, outputs_of(wanted, s1=(0.001, 0)), score_threshold=0.9)
    assert strict([np.zeros((1, 24)), np.full((1, 12), 127, np.int8)]) == (), "no step of this scale reaches 0.9"


def test_offsets_that_are_no_numbers_are_an_engine_error() -> None:
    wanted = post()
    reader = BoxReader(wanted, outputs_of(wanted))
    quiet = np.full((1, 24), -9.0)
    assert reader([np.full((1, 48), np.nan), quiet]) == (), "no box counts"
    quiet[0, 5] = 9.0
    with pytest.raises(EngineError, match="not numbers"):
        reader([np.full((1, 48), np.nan), quiet])


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_no_empty_frame(activation: str, wrong: float) -> None:
    if wrong == np.inf and activation != "softmax":
        return  # as certain as can be
    wanted = post(activation=activation)
    scores = np.full((1, 24), 0.1)
    scores[0, 5] = wrong
    with pytest.raises(EngineError, match="a score is not a number"):
        BoxReader(wanted, outputs_of(wanted))([np.zeros((1, 48)), scores])


def test_a_box_of_which_nothing_lies_in_the_frame_is_none() -> None:
    wanted = post()
    reader = BoxReader(wanted, outputs_of(wanted))
    scores, offsets = np.full((1, 24), -9.0), np.zeros((1, 48))
    scores[0, 0] = scores[0, 4] = 9.0
    assert len(reader([offsets, scores])) == 2
    anchor = 0
    offsets[0, 4 * anchor + 1] = -1e6  # far to the left
    (left,) = reader([offsets, scores])
    assert left.box[2] > left.box[0] and left.box[3] > left.box[1]
    offsets[0, 4 * anchor + 1], offsets[0, 4 * anchor + 2] = 0.0, -1e6  # of no height
    assert len(reader([offsets, scores])) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surprise": 1}, "surprise: unknown field"),
        ({"score_threshold": 0.0}, "score_threshold"),
        ({"iou_threshold": 1.0}, "iou_threshold"),
        ({"maximum_detections": 100_000}, "maximum_detections"),
        ({"labels": []}, "labels"),
        ({"labels": ["cat", "cat"]}, "a label is there twice"),
        ({"levels": []}, "levels"),
        ({"kind": "yolo"}, "kind"),
        ({"size_variance": math.inf}, "size_variance"),
        ({"levels": [{"boxes": "x", "scores": "x", "rows": 1, "columns": 1, "sizes": [[0.1, 0.1]]}]}, "of their own"),
        ({"levels": [{"boxes": "b", "scores": "s", "rows": 999, "columns": 1, "sizes": [[0.1, 0.1]]}]}, "rows"),
        ({"levels": [{"boxes": "b", "scores": "s", "rows": 1, "columns": 1, "sizes": [[0.1, 9.0]]}]}, "sizes"),
        (
            {"levels": [{"boxes": "b", "scores": "s", "rows": 512, "columns": 512, "sizes": [[0.1, 0.1]]}]},
            "262144 anchors, at most 65536",
        ),
    ],
)
def test_a_postprocessing_out_of_bounds_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        post(**changes)


def test_levels_that_share_one_output_share_both() -> None:
    with pytest.raises(BundleError, match="share both"):
        post(level(1), level(2, boxes="b1"))


def graph(shape: tuple[int, ...]) -> bytes:
    """An ONNX model that hands out the channels of its input: the roots of four as offsets, the rest as scores."""
    onnx = pytest.importorskip("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    parts = {"boxes": (0, 4), "scores": (4, shape[-1])}
    nodes, constants = [], [onnx.numpy_helper.from_array(np.array([3], np.int64), "axis")]
    for name, (begin, end) in parts.items():
        constants += [
            onnx.numpy_helper.from_array(np.array([at], np.int64), f"{name}-{i}") for i, at in enumerate((begin, end))
        ]
        part = name if name == "scores" else "squares"
        nodes.append(helper.make_node("Slice", ["x", f"{name}-0", f"{name}-1", "axis"], [part]))
    nodes.append(helper.make_node("Sqrt", ["squares"], ["boxes"]))
    built = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", float32, list(shape))],
        [helper.make_tensor_value_info(n, float32, [*shape[:3], b - a]) for n, (a, b) in parts.items()],
        constants,
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


def detecting(**changes: Any) -> Bundle:
    """A bundle whose frame is its own answer: 2x2 cells of four offsets and two scores."""
    shape = (1, 2, 2, 6)
    outputs = (("boxes", (1, 2, 2, 4)), ("scores", (1, 2, 2, 2)))
    model = graph(shape)
    arrays = {"input_x": shape, **{f"output_{name}": side for name, side in outputs}}
    empty = pack_arrays({name: np.zeros((1, *side[1:]), np.float32) for name, side in arrays.items()})
    entry = ModelFile(
        file=FileEntry.of("m.onnx", model),
        engine="onnxruntime",
        inputs=(ModelTensor(name="x", shape=shape, dtype="float32"),),
        outputs=tuple(ModelTensor(name=n, shape=s, dtype="float32") for n, s in outputs),
        selftest=SelfTest(file=FileEntry.of("t.npz", empty), samples=1, tolerance=0.0),
    )
    grid = AnchorLevel(boxes="boxes", scores="scores", rows=2, columns=2, sizes=((0.5, 0.5),))
    fields = {
        "name": "finder", "version": "1.0.0", "release": 1, "profile": "x86-cpu", "head": "detection",
        "inputs": [ModelIO(name="frame", shape=shape).model_dump()],
        "outputs": [ModelIO(name=n, shape=s).model_dump() for n, s in outputs],
        "models": [entry.model_dump()],
        "postprocessing": Postprocessing(labels=("cat", "dog"), levels=(grid,)).model_dump(),
    }  # fmt: skip
    return Bundle(BundleManifest.parse({**fields, **changes}), {"m.onnx": model, "t.npz": empty})


def frame(*objects: tuple[int, int, int, float]) -> np.ndarray:
    """A frame with objects in cells: row, column, class, logit; no logit elsewhere."""
    x = np.zeros((2, 2, 6), np.float32)
    x[..., 4:] = -8.0
    for row, column, label, logit in objects:
        x[row, column, 4 + label] = logit
    return x


def opened(bundle: Bundle, folder: Path, taken: list[TelemetryRecord] | None = None) -> Runtime:
    path = folder / bundle.file_name
    path.write_bytes(pack(bundle))
    profile = make_profile(engines=("onnxruntime",))
    telemetry = taken.append if taken is not None else None
    return Runtime.open(path, profile=profile, verify=lambda _: None, telemetry=telemetry)


def test_the_runtime_gives_boxes_label_and_score(tmp_path: Path) -> None:
    with opened(detecting(), tmp_path) as runtime:
        result = runtime.infer(frame((0, 1, 1, 3.0), (1, 0, 0, 1.0)))
        share = [1 / (1 + math.exp(-v)) for v in (3.0, 1.0)]
        result.outputs["scores"][:] = 99.0  # the app's own copy
        result.raw_outputs[0][:] = 99.0
        assert result.detections is not None and result.detections is result.detections
        assert [(d.label, d.label_index) for d in result.detections] == [("dog", 1), ("cat", 0)]
        assert [d.box for d in result.detections] == [(0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0)]
        assert [d.score for d in result.detections] == pytest.approx(share)
        assert (result.label, result.label_index) == ("dog", 1) and result.score == pytest.approx(share[0])
        assert result.detections[0].pixels(640, 480) == (320.0, 0.0, 640.0, 240.0)
        assert "dog" in repr(result)
        nothing = runtime.infer(frame())
        assert (nothing.detections, nothing.label, nothing.label_index, nothing.score) == ((), None, None, None)


def test_telemetry_has_the_best_boxs_score_and_no_score_where_there_is_no_box(tmp_path: Path) -> None:
    taken: list[TelemetryRecord] = []
    with opened(detecting(), tmp_path, taken) as runtime:
        runtime.infer(frame((0, 1, 1, 3.0), (1, 0, 0, 1.0)))
        assert runtime.flush()
        runtime.infer(frame())
        assert runtime.flush()
    seen, empty = [record for record in taken if record.frames]
    assert seen.score is not None and seen.score.mean == pytest.approx(1 / (1 + math.exp(-3.0)))
    assert empty.score is None and seen.labels is None and set(seen.features or {}) == set(FEATURES)


def test_a_detector_that_answers_nan_is_an_engine_error(tmp_path: Path) -> None:
    with opened(detecting(), tmp_path) as runtime:
        x = frame((0, 0, 1, 3.0))
        assert runtime.infer(x).detections
        x[1, 1, 3] = -1.0
        with pytest.raises(EngineError, match="answered NaN"):
            runtime.infer(x)


def test_a_detector_is_deployed_and_asked_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signed = Repository.desk(tmp_path / "desk", clock=time.time).sign_bundle(detecting())
    path, data, frames = tmp_path / signed.file_name, str(tmp_path / "data"), tmp_path / "frames.npy"
    path.write_bytes(pack(signed))
    np.save(frames, np.stack([frame((0, 1, 1, 3.0)), frame()]))
    assert main(["deploy", str(path), "--profile", "x86-cpu", "--data", data, "--json"]) == 0
    capsys.readouterr()
    assert main(["infer", str(frames), "--data", data]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "dog 0.95 at 50, 0, 100, 50 %" in told and "nothing" in told
    assert main(["infer", str(frames), "--data", data, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["results"]
    assert first["detections"][0]["label"] == "dog" and first["detections"][0]["box"] == [0.5, 0.0, 1.0, 0.5]
    assert second["detections"] == [] and second["score"] is None


def test_other_heads_have_no_detections(tmp_path: Path) -> None:
    bundle = detecting(head="other", postprocessing=None)
    with opened(bundle, tmp_path) as runtime:
        result = runtime.infer(frame((0, 1, 1, 3.0)))
        assert (result.detections, result.score, result.label) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"postprocessing": None}, "detection, and nothing else, comes with postprocessing"),
        ({"head": "classification"}, "detection, and nothing else, comes with postprocessing"),
        (
            {"probes": {"file": {"path": "p.npz", "sha256": "0" * 64, "size_bytes": 1}, "samples": 1}},
            "reference probes are asked for their class",
        ),
        ({"outputs": [{"name": "boxes", "shape": [1, 2, 2, 4]}, {"name": "s", "shape": [1, 8]}]}, "no level reads"),
        ({"outputs": [{"name": "boxes", "shape": [1, 15]}, {"name": "scores", "shape": [1, 8]}]}, "has 15 values"),
        (
            {"outputs": [{"name": "boxes", "shape": [1, 16]}, {"name": "scores", "shape": [1, 8], "dtype": "int8"}]},
            "is int8 for the app",
        ),
    ],
)
def test_a_manifest_whose_outputs_do_not_fit_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        detecting(**changes)


def test_a_manifest_without_postprocessing_does_not_mention_it() -> None:
    plain = detecting(head="other", postprocessing=None).manifest
    assert b"postprocessing" not in plain.to_bytes()
    told = detecting().manifest
    assert BundleManifest.from_bytes(told.to_bytes()) == told and b"iou_threshold" not in told.to_bytes()
    assert told.labels == ("cat", "dog") and plain.labels == ()
