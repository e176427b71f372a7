"""A graft's gate in the exported files: one constant of its own, found from its site, closed by one byte."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from worlds.exports import Tiny
from worlds.hosts import STOCK, make_host

from kasmina_edge.engines.tflite_graph import TfliteGraph
from kasmina_edge.errors import KasminaError
from kasmina_trainer.blueprints.conformance import perturb
from kasmina_trainer.export import flatbuffer, gates, parity, tflite
from kasmina_trainer.export import onnx as onnx_export
from kasmina_trainer.export.float_tflite import FloatNetwork, convert
from kasmina_trainer.export.folding import fold_norms
from kasmina_trainer.export.judging import TOP_ANSWERS, Judge, classification
from kasmina_trainer.export.sites import find_sites
from kasmina_trainer.seeds import SeededNetwork, SeedSite, attach_seeds

Array = npt.NDArray[Any]
SHAPE = (1, 16, 16, 1)
FRAMES = np.random.default_rng(0).uniform(0, 1, (64, 16, 16, 1)).astype(np.float32)
GROWN = ("stem", "depthwise")


def network(*intensities: float) -> SeededNetwork:
    """Grafts with weights at the first sites of a small host, gates as given."""
    made = attach_seeds(Tiny().eval(), [*GROWN, "head"], example=torch.zeros(1, 1, 16, 16))
    for site, intensity in zip(GROWN, intensities, strict=False):
        made.graft(site, "adapter", intensity=intensity)
        branch = made.site(site).branch
        assert branch is not None
        perturb(branch)
    return made


@pytest.fixture(scope="module")
def grown() -> SeededNetwork:
    """Two gates of equal intensity."""
    return network(0.7, 0.7)


@pytest.fixture(scope="module")
def converted(grown: SeededNetwork) -> FloatNetwork:
    """Its float file."""
    return convert(fold_norms(grown.module_for_export()), SHAPE)


@pytest.fixture(scope="module")
def bare() -> FloatNetwork:
    """The float file of the same host with nothing grown."""
    return convert(fold_norms(network().module_for_export()), SHAPE)


@pytest.fixture(scope="module")
def exported(grown: SeededNetwork) -> tflite.TfliteExport:
    """Its int8 file."""
    return export(grown)


def export(made: SeededNetwork) -> tflite.TfliteExport:
    """An int8 file by the product's own route."""
    return tflite.export_tflite(
        made.module_for_export(), calibration=FRAMES[:48], held_out=FRAMES[48:], sites=made.sites
    )


def gate_values(model: Any) -> list[float]:
    """What the gates of a file hold, in real units."""
    values = []
    for index in flatbuffer.residual_gates(model):
        data, scheme = flatbuffer.constant(model, index), flatbuffer.scale_and_zero(model, index)
        assert data is not None
        if scheme is None:
            values.append(float(data.view(np.float32)[0]))
        else:
            values.append((int(data.view(np.int8)[0]) - scheme[1]) * scheme[0])
    return values


def buffers_apart(model: Any) -> bool:
    """Whether no other tensor holds a gate's buffer."""
    tensors = model.subgraphs[0].tensors
    own = [tensors[i].buffer for i in flatbuffer.residual_gates(model)]
    return all(sum(t.buffer == buffer for t in tensors) == 1 for buffer in own)


def test_gates_are_found_whatever_became_of_the_module(grown: SeededNetwork) -> None:
    module = grown.module_for_export()
    names = ("stem.gate", "depthwise.gate")
    assert gates.gate_names(module) == gates.gate_names(fold_norms(module)) == names
    unmarked = copy.deepcopy(fold_norms(module))
    vars(unmarked).pop(gates.MARK, None)
    assert set(gates.gate_names(unmarked)) == set(names)
    assert gates.gate_names(Tiny()) == gates.gate_names(SeedSite(nn.Identity())) == ()
    wide = SeedSite(nn.Identity())
    wide.fill(nn.Identity(), 0.5, torch.device("cpu"))
    wide.gate = torch.ones(1, 4, 1, 1)  # a scale a channel is no gate
    assert gates.gate_names(wide) == ()
    assert [gates.site_of(n) for n in names] == ["stem", "depthwise"]


def test_both_files_hold_two_equal_gates_apart(converted: FloatNetwork, exported: tflite.TfliteExport) -> None:
    plain = flatbuffer.parse(converted.data)
    flatbuffer.canonical(plain)
    for model in (flatbuffer.parse(converted.data), plain, flatbuffer.parse(exported.data)):
        assert gate_values(model) == pytest.approx([0.7, 0.7], abs=1e-6)
        assert buffers_apart(model) and len(model.subgraphs[0].inputs) == 1
    again = flatbuffer.parse(exported.data)
    flatbuffer.canonical(again)
    assert flatbuffer.serialize(again) == exported.data  # writing it again merges nothing
    assert set(converted.gates) == {"stem.gate", "depthwise.gate"}


def test_a_gate_does_not_share_bytes_with_the_host(exported: tflite.TfliteExport) -> None:
    """The control: the same constant under a second tensor is merged as soon as nobody multiplies by it."""
    model = flatbuffer.parse(exported.data)
    tensors, gate = model.subgraphs[0].tensors, next(iter(flatbuffer.residual_gates(model)))
    twin = copy.deepcopy(tensors[gate])
    tensors.append(twin)
    head = model.subgraphs[0].operators[-1]
    head.inputs = [*head.inputs, len(tensors) - 1]  # nonsense to a runtime, enough for the layout
    flatbuffer.canonical(model)
    tensors = model.subgraphs[0].tensors
    same = [i for i, t in enumerate(tensors) if t.shape is not None and list(t.shape) == list(twin.shape)]
    assert len({tensors[i].buffer for i in same}) == len(same) == 3


def test_closing_a_gate_is_one_byte_and_leaves_the_host_s_value(
    exported: tflite.TfliteExport, grown: SeededNetwork
) -> None:
    graph, tree = TfliteGraph(exported.data), flatbuffer.parse(exported.data)
    places = [exported.sites[site] for site in GROWN]
    branches = [graph.branch(p.input_index, p.output_index) for p in places]
    zeros = {i: s[1] for i in range(len(graph.buffers)) if (s := flatbuffer.scale_and_zero(tree, i)) is not None}
    shut = graph.silenced([b for b in branches if b is not None], zeros)
    assert shut is not None
    moved = [i for i, (a, b) in enumerate(zip(exported.data, shut, strict=True)) if a != b]
    assert [(exported.data[i], shut[i]) for i in moved] == [(0x7F, 0x80)] * 2  # zero is -128 in an int8 gate
    host = parity.float_logits(Tiny().eval(), FRAMES[48:])
    step = exported.outputs[0].scale
    assert step is not None
    assert np.abs(parity.litert_logits(shut, FRAMES[48:]) - host).max() < 3 * step
    assert np.abs(parity.litert_logits(exported.data, FRAMES[48:]) - host).max() > 6 * step
    wrong = graph.silenced([b for b in branches if b is not None])  # 0 is no zero here
    assert wrong is not None and np.abs(parity.litert_logits(wrong, FRAMES[48:]) - host).max() > 4 * step


def test_what_is_removed_leaves_the_parent_s_bytes(bare: FloatNetwork, converted: FloatNetwork) -> None:
    made = network(0.7, 0.7)
    for site in GROWN:
        made.remove(site)
    assert convert(fold_norms(made.module_for_export()), SHAPE).data == bare.data != converted.data


@pytest.mark.slow
def test_what_is_removed_leaves_the_parent_s_int8_bytes(exported: tflite.TfliteExport) -> None:
    made = network(0.7, 0.7)
    for site in GROWN:
        made.remove(site)
    assert export(made).data == export(network()).data != exported.data


def test_another_intensity_changes_its_gate_alone(converted: FloatNetwork) -> None:
    other = convert(fold_norms(network(0.7, 0.0).module_for_export()), SHAPE)
    moved = [i for i, (a, b) in enumerate(zip(converted.data, other.data, strict=True)) if a != b]
    assert 0 < len(moved) <= 4 and moved[-1] - moved[0] < 4
    assert gate_values(flatbuffer.parse(other.data)) == pytest.approx([0.7, 0.0])


def test_bare_hosts_are_converted_as_ever(bare: FloatNetwork) -> None:
    assert gates.gate_names(network().module_for_export()) == ()
    assert not bare.gates and not flatbuffer.residual_gates(flatbuffer.parse(bare.data))


def test_sites_are_found_by_gate_and_behind_a_fused_rectifier(
    converted: FloatNetwork, bare: FloatNetwork, grown: SeededNetwork
) -> None:
    places = find_sites(converted, grown.module_for_export(), grown.sites, FRAMES)
    assert set(places) == {*GROWN, "head"} and all(places[s][0] != places[s][1] for s in GROWN)
    module = network().module_for_export()
    found = find_sites(bare, module, grown.sites, FRAMES)  # both sites stand before a ReLU that convolutions take in
    assert set(found) == {*GROWN, "head"} and all(a == b for a, b in found.values())
    missing = copy.deepcopy(module)
    missing.stem = nn.Sequential(missing.stem, nn.Tanh())  # type: ignore[arg-type]
    assert "stem" not in find_sites(bare, missing, ["stem"], FRAMES)  # nothing in the file is this; no error


def test_a_grown_site_that_the_file_lacks_is_an_error(bare: FloatNetwork, grown: SeededNetwork) -> None:
    with pytest.raises(KasminaError, match="site stem: its values appear in no tensor"):
        find_sites(bare, grown.module_for_export(), ["stem"], FRAMES)


def test_other_inputs_than_frame_and_gates_are_refused(converted: FloatNetwork) -> None:
    model = flatbuffer.parse(converted.data)
    with pytest.raises(KasminaError, match="1 inputs of one frame and 1 gates: t0"):
        gates.settle(model, {"stem.gate": torch.ones(1)})


def test_a_branch_beside_a_layer_is_the_branch_alone() -> None:
    """It reads what the layer reads: walking back from what it adds would take in the whole network."""
    made = attach_seeds(Tiny().eval(), ["pointwise"], example=torch.zeros(1, 1, 16, 16))
    made.graft("pointwise", "conv-lora", intensity=0.5)
    perturb(made.site("pointwise").branch or nn.Identity())
    module = made.module_for_export()
    found = convert(fold_norms(module), SHAPE)
    before, after = find_sites(found, module, ["pointwise"], FRAMES)["pointwise"]
    graph, names = TfliteGraph(found.data), flatbuffer.tensor_names(flatbuffer.parse(found.data))
    branch = graph.branch(names.index(before), names.index(after))
    kinds = [op.name for op in flatbuffer.operators(flatbuffer.parse(found.data))]
    assert branch is not None
    assert [kinds[graph.operators.index(op)] for op in branch] == ["CONV_2D", "CONV_2D", "MUL"]


@pytest.mark.parametrize(
    "name",
    [
        "plain-cnn",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("residual", "flat-ecg", "mlp", "ecg", "small-vit")),
    ],
)
def test_a_graft_in_a_host_that_is_not_ours_is_in_its_file(name: str) -> None:
    """Around a module, behind a value that no module leaves, on a series, a vector, tokens."""
    shape = STOCK[name].shape
    made = attach_seeds(make_host(name), example=torch.randn(2, *shape))
    site = made.sites[0]
    made.graft(site, "adapter", intensity=0.75)
    perturb(made.site(site).branch or nn.Identity())
    module = made.module_for_export()
    frames = np.random.default_rng(0).normal(size=(64, *shape[1:], shape[0])).astype(np.float32)
    found = tflite.export_tflite(module, calibration=frames[:48], held_out=frames[48:], sites=made.sites)
    assert gate_values(flatbuffer.parse(found.data)) == pytest.approx([0.75], rel=1e-3)
    graph, place = TfliteGraph(found.data), found.sites[site]
    assert graph.branch(place.input_index, place.output_index) is not None
    reference = parity.float_logits(module, frames[48:])
    error = parity.litert_logits(found.data, frames[48:]) - reference
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(reference)
    made.remove(site)
    bare = parity.float_logits(made.module_for_export(), frames[48:])
    assert np.linalg.norm(bare - reference) > 2 * np.linalg.norm(error)  # the graft is what the file has more


def test_the_onnx_file_holds_every_gate_apart(grown: SeededNetwork) -> None:
    module = grown.module_for_export()
    judge_answers = (parity.float_logits(module, FRAMES[48:]),)
    judge = Judge(judge_answers, ("output",), classification(judge_answers, None), TOP_ANSWERS)
    data = onnx_export.export_onnx(module, calibration=FRAMES[:48], held_out=FRAMES[48:], judge=judge).data
    assert onnx_gates(data) == pytest.approx([0.7, 0.7], rel=1e-3)


def onnx_gates(data: bytes) -> list[float]:
    """The single numbers that a Mul reads, in real units; each an initializer of its own."""
    model = onnx.load_from_string(data)
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, float] = {}
    for node in model.graph.node:
        for name in node.input if node.op_type == "Mul" else ():
            maker = makers.get(name)
            if name in constants and constants[name].size == 1:
                assert name not in found
                found[name] = float(constants[name].reshape(()))
            elif maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in constants:
                stored, scale, zero = (constants[n].astype(np.float64).reshape(()) for n in maker.input)
                assert maker.input[0] not in found
                found[maker.input[0]] = float((stored - zero) * scale)
    return list(found.values())
