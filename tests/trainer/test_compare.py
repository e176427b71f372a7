"""``compare`` names the step that was broken, whichever it is and however, and nothing in a sound file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import faults
from worlds.faults import Specimen

from kasmina_edge.errors import InputError
from kasmina_trainer.cli import main
from kasmina_trainer.export import flatbuffer
from kasmina_trainer.optimize.comparison import Comparison, compare
from kasmina_trainer.optimize.forms import Form
from kasmina_trainer.optimize.onnx_form import OnnxForm
from kasmina_trainer.optimize.tflite_form import TfliteForm
from kasmina_trainer.optimize.torch_form import TorchForm

WEIGHTED = {
    "op 1 DEPTHWISE_CONV_2D": "stem",
    "op 2 DEPTHWISE_CONV_2D": "depthwise",
    "op 4 CONV_2D": "left",
    "op 5 CONV_2D": "right",
    "op 8 CONV_2D": "wide",
    "op 10 FULLY_CONNECTED": "head",
}
RANGED = ("op 1 DEPTHWISE_CONV_2D", "op 2 DEPTHWISE_CONV_2D", "op 3 ADD", "op 8 CONV_2D", "op 9 MEAN",
          "op 10 FULLY_CONNECTED")  # fmt: skip


def some_quick(places: Iterable[str]) -> list[object]:
    """The first and the last at once, those between in the long run."""
    every = list(places)
    return [every[0], *(pytest.param(p, marks=pytest.mark.slow) for p in every[1:-1]), every[-1]]


@pytest.fixture(scope="module")
def made() -> Specimen:
    return faults.specimen()


@pytest.fixture(scope="module")
def right(made: Specimen) -> TfliteForm:
    return TfliteForm(made.network.data, "float")


@pytest.fixture(scope="module")
def sound(made: Specimen) -> bytes:
    return made.int8()


@pytest.fixture(scope="module")
def in_torch(made: Specimen) -> TorchForm:
    return TorchForm(made.module, "torch", [(1, 1, 16, 16)])


@pytest.fixture(scope="module")
def onnx_files(made: Specimen) -> tuple[bytes, bytes]:
    return faults.onnx_pair(made.module)


def ask(ours: Form, theirs: Form | bytes, made: Specimen) -> Comparison:
    doubted = TfliteForm(theirs, "int8") if isinstance(theirs, bytes) else theirs
    return compare(ours, doubted, [made.frames], most_frames=12)


def first(found: Comparison) -> tuple[str, str]:
    assert found.culprits, found.verdict()
    return found.culprits[0].place, found.culprits[0].cause.word


def index(place: str) -> int:
    return int(place.split()[1])


def test_a_sound_file_has_no_culprit(right: TfliteForm, sound: bytes, made: Specimen) -> None:
    found = ask(right, sound, made)
    assert found.culprits == ()
    assert found.verdict().startswith("No step parts by more than rounding explains.")
    assert not found.identical
    assert found.answers.sqnr_db < 60


def test_rounding_is_foreseen_step_by_step(right: TfliteForm, sound: bytes, made: Specimen) -> None:
    erring = [x for x in ask(right, sound, made).looks if x.own_error > 0]
    assert len(erring) >= 8
    assert max(abs(x.excess_db) for x in erring) < 6, "own error is what one well-chosen step explains"


def test_a_file_is_identical_to_itself(right: TfliteForm, sound: bytes, made: Specimen) -> None:
    for form in (right, TfliteForm(sound, "int8")):
        found = ask(form, form, made)
        assert (found.identical, found.culprits, found.answers.largest) == (True, (), 0.0)
        assert found.verdict() == "No difference: every value is the same."


def test_engines_differ_by_rounding_alone(sound: bytes, made: Specimen) -> None:
    found = ask(TfliteForm(sound, "fast"), TfliteForm(sound, "plain", engine="litert-reference"), made)
    assert found.culprits == ()
    assert all(x.excess_db < 0 for x in found.looks), "at most a step, compared number by number"


@pytest.mark.parametrize("place", RANGED)
def test_a_cut_range_is_named(place: str, right: TfliteForm, made: Specimen) -> None:
    name = made.written(index(place))
    low, high = made.ranges[name]
    found = ask(right, made.int8({name: (low / 5, high / 5)}), made)
    assert first(found) == (place, "range clipped")
    assert len(found.culprits) == 1, "what follows from it is not blamed"
    assert "%" in found.culprits[0].cause.sentence


@pytest.mark.parametrize("place", some_quick(RANGED))
def test_a_range_far_too_wide_is_named(place: str, right: TfliteForm, made: Specimen) -> None:
    name = made.written(index(place))
    low, high = made.ranges[name]
    assert first(ask(right, made.int8({name: (low * 12, high * 12)}), made)) == (place, "wide range")


@pytest.mark.parametrize("place", RANGED)
def test_a_wrong_zero_point_is_named(place: str, right: TfliteForm, sound: bytes, made: Specimen) -> None:
    low, high = made.ranges[made.written(index(place))]
    by = 140 if high > -3 * low else -100
    assert first(ask(right, faults.moved_zero_point(sound, index(place), by), made)) == (place, "zero point")


@pytest.mark.parametrize("place", WEIGHTED)
def test_other_weights_are_named(place: str, right: TfliteForm, sound: bytes, made: Specimen) -> None:
    assert first(ask(right, faults.shuffled_weights(sound, index(place)), made)) == (place, "weights differ")
    assert first(ask(right, faults.moved_bias(sound, index(place)), made)) == (place, "weights differ")


@pytest.mark.parametrize("place", [p for p in WEIGHTED if "DEPTHWISE" not in p])
def test_coarse_weights_are_named(place: str, right: TfliteForm, made: Specimen) -> None:
    data = made.int8(bits={made.written(index(place)): 4})
    found = ask(right, data, made)
    assert first(found) == (place, "4-bit weights")
    assert "8-bit" in found.culprits[0].cause.advice


@pytest.mark.parametrize("place", some_quick(WEIGHTED))
def test_against_torch_the_layer_and_its_source_line_are_named(
    place: str, in_torch: TorchForm, sound: bytes, made: Specimen
) -> None:
    culprit = ask(in_torch, faults.shuffled_weights(sound, index(place)), made).culprits[0]
    assert (culprit.place, culprit.layer, culprit.cause.word) == (place, WEIGHTED[place], "weights differ")
    assert culprit.source.startswith("faults.py:")


def test_torch_agrees_with_what_was_made_of_it(
    in_torch: TorchForm, right: TfliteForm, sound: bytes, onnx_files: tuple[bytes, bytes], made: Specimen
) -> None:
    for theirs in (right, OnnxForm(onnx_files[0], "onnx")):
        found = ask(in_torch, theirs, made)
        assert found.verdict() == "No difference beyond floating-point rounding."
        assert found.unmatched == ()
    for theirs in (TfliteForm(sound, "int8"), OnnxForm(onnx_files[1], "qdq")):
        assert ask(in_torch, theirs, made).culprits == ()


def test_outputs_that_share_a_scale_are_named(made: Specimen) -> None:
    alike, unlike = faults.joined_outputs(made, 1.0), faults.joined_outputs(made, 60.0)
    assert ask(TfliteForm(alike.network.data, "float"), alike.int8(), alike).culprits == ()
    found = ask(TfliteForm(unlike.network.data, "float"), unlike.int8(), unlike)
    assert first(found) == ("op 4 CONV_2D", "shared scale")
    assert "op 6 CONCATENATION" in found.culprits[0].cause.sentence
    assert "separately" in found.culprits[0].cause.advice


def test_onnx_finds_a_reader_that_disagrees_with_the_writer(onnx_files: tuple[bytes, bytes], made: Specimen) -> None:
    plain, quantized = OnnxForm(onnx_files[0], "float"), OnnxForm(onnx_files[1], "qdq")
    assert ask(plain, quantized, made).culprits == ()
    broken = [s for s in quantized.steps if s.kind in ("conv_2d", "depthwise_conv_2d", "fully_connected")]
    assert len(broken) == 6
    for step in broken:
        data = faults.disagreeing_zero_point(onnx_files[1], step.index, 30)
        assert first(ask(plain, OnnxForm(data, "broken"), made)) == (step.label, "zero point")


def test_onnx_finds_other_weights(onnx_files: tuple[bytes, bytes], made: Specimen) -> None:
    plain = OnnxForm(onnx_files[0], "float")
    for step in plain.steps:
        for weights in plain.weights(step):
            data = faults.shuffled_onnx_weights(onnx_files[0], weights.key)
            assert first(ask(plain, OnnxForm(data, "broken"), made)) == (step.label, "weights differ")


def test_two_engines_formats_are_matched(sound: bytes, onnx_files: tuple[bytes, bytes], made: Specimen) -> None:
    found = ask(OnnxForm(onnx_files[1], "qdq"), TfliteForm(sound, "int8"), made)
    assert found.culprits == ()
    assert {x.pair.step.label for x in found.looks if x.pair.step} >= set(WEIGHTED)


@pytest.mark.slow
def test_other_operations_and_several_answers_are_matched_too() -> None:
    odd = faults.specimen(faults.Assorted())
    ours, right = TorchForm(odd.module, "torch", [(1, 1, 16, 16)]), TfliteForm(odd.network.data, "float")
    onnx_float = OnnxForm(faults.onnx_pair(odd.module)[0], "onnx")
    for theirs in (right, onnx_float):
        found = compare(ours, theirs, [odd.frames])
        assert found.verdict() == "No difference beyond floating-point rounding."
        assert found.unmatched == () and found.answers.sqnr_db > 100, "images lie otherwise in a file than in torch"
    for theirs in (right, ours):
        found = compare(theirs, TfliteForm(odd.int8(), "int8"), [odd.frames])
        assert found.culprits == () and found.answers.sqnr_db > 30
        assert {"query", "key", "value", "scores", "boxes"} <= {
            x.pair.origin.layer for x in found.looks if x.pair.origin
        } or theirs is right
    for place, index_ in odd.operators("FULLY_CONNECTED").items():
        if flatbuffer.constant(flatbuffer.parse(odd.int8()), _weights_of(odd, index_)) is None:
            continue
        assert (
            first(compare(ours, TfliteForm(faults.shuffled_weights(odd.int8(), index_), "x"), [odd.frames]))[0] == place
        )


def _weights_of(made: Specimen, place: int) -> int:
    return flatbuffer.operators(flatbuffer.parse(made.int8()))[place].inputs[1]


def test_the_float_form_is_the_right_one_whichever_comes_first(right: TfliteForm, sound: bytes, made: Specimen) -> None:
    found = compare(TfliteForm(sound, "int8"), right, [made.frames])
    assert (found.ours, found.theirs) == ("float", "int8")
    assert "held to be right" in found.notes[0]


def test_labels_give_accuracies(right: TfliteForm, sound: bytes, made: Specimen) -> None:
    answers = right.answers(right.fit([made.frames]))[0].reshape(len(made.frames), -1)
    found = compare(right, TfliteForm(sound, "int8"), [made.frames], answers.argmax(1))
    assert found.answers.accuracy is not None
    assert found.answers.accuracy[0] == 1.0
    assert found.answers.accuracy[1] == found.answers.agreement


def test_bad_input_is_told(right: TfliteForm, made: Specimen) -> None:
    with pytest.raises(InputError, match=r"frames have shape \(8, 8, 1\), the model takes \(16, 16, 1\)"):
        compare(right, right, [np.zeros((4, 8, 8, 1), np.float32)])
    with pytest.raises(InputError, match="3 values are not finite"):
        bad = made.frames.copy()
        bad[0, :3, 0, 0] = np.nan
        compare(right, right, [bad])
    with pytest.raises(InputError, match="48 frames and 3 labels"):
        compare(right, right, [made.frames], np.zeros(3, np.int64))
    with pytest.raises(InputError, match="0 frames"):
        compare(right, right, [])
    with pytest.raises(InputError, match="not an ONNX file"):
        OnnxForm(b"\x00\x01nonsense", "x")
    with pytest.raises(InputError, match="x: not a TFLite file"):
        TfliteForm(b"rubbish, and not short", "x")
    with pytest.raises(InputError, match="x: not a whole TFLite file"):
        TfliteForm(made.network.data[:200], "x")
    with pytest.raises(InputError, match="torch cannot export it"):
        TorchForm(torch.nn.Linear(3, 2).eval(), "x", [(1, 4)])


def test_on_the_command_line(made: Specimen, sound: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"float.tflite": made.network.data, "int8.tflite": sound, "bad.tflite": faults.shuffled_weights(sound, 8)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    np.savez(tmp_path / "x.npz", x=made.frames)
    at = [str(tmp_path / name) for name in ("float.tflite", "bad.tflite")]
    asked = ["--data", str(tmp_path / "x.npz")]
    assert main(["compare", *at, *asked, "--check", "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert [c["step"] for c in value["culprits"]] == ["op 8 CONV_2D"]
    assert value["culprits"][0]["cause"] == "weights differ"
    assert len(value["steps"]) == 12
    assert main(["compare", *at, *asked]) == 0
    text = capsys.readouterr().out
    assert "They part at op 8 CONV_2D" in text
    assert "Export again from the same checkpoint" in text
    sound_at = str(tmp_path / "int8.tflite")
    assert main(["compare", at[0], f"litert-reference:{sound_at}", *asked, "--check"]) == 0
    assert "int8.tflite on litert-reference" in capsys.readouterr().out
    for call, told in (
        ([at[0], sound_at], "no data to run them on"),
        ([at[0], str(tmp_path / "gone.onnx"), *asked], "gone.onnx: no such file"),
        ([at[0], str(tmp_path / "x.npz"), *asked], "expected one of .tflite"),
        ([at[0], f"onnxruntime:{sound_at}", *asked], "a TFLite file runs on litert"),
    ):
        assert main(["compare", *call]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_values_that_are_no_numbers_are_the_difference(made: Specimen, right: TfliteForm) -> None:
    model = flatbuffer.parse(made.network.data)
    graph = model.subgraphs[0]
    head = model.buffers[graph.tensors[int(graph.operators[10].inputs[1])].buffer]
    weights = np.array(head.data, np.uint8).view(np.float32)
    weights[0] = np.nan
    head.data = weights.view(np.uint8)
    found = ask(right, TfliteForm(flatbuffer.serialize(model), "broken"), made)
    assert first(found) == ("op 10 FULLY_CONNECTED", "not finite")
    assert "12 of 60 values are not finite" in found.verdict() and not found.identical
    assert found.answers.sqnr_db == -199 and any("answers are not finite" in note for note in found.notes)
    json.dumps(found.as_dict(), allow_nan=False)
