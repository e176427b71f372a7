"""Gates of removable grafts: each becomes a constant of its own in the exported files.

A TFLite converter that sees a gate's value folds it into the branch's last layer: then no byte of the file is the gate,
and a branch behind a gate at zero is thrown away. So a gate enters the conversion as one more input, and its value is
put in behind the converter, ahead of calibration and quantizer. ONNX's exporter keeps gates, but merges equal ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from kasmina_edge.errors import KasminaError
from kasmina_trainer.export import flatbuffer

MARK = "kasmina_gates"
"""Attribute in which a module names its gates, in order of flow."""

_GATE, _BRANCH = "gate", "branch"
_PLACE = re.compile(r"args_(\d+)")


def gate_names(module: nn.Module) -> tuple[str, ...]:
    """Buffers that close a branch: those that the module names, and ``gate`` beside every ``branch``.

    Args:
        module: Any; tracing keeps buffers and their names and drops attributes, so that both ways are looked at.
    """
    known = dict(module.named_buffers())
    found: dict[str, None] = {}
    for prefix, part in module.named_modules():
        for name in getattr(part, MARK, ()):
            found[_joined(prefix, name)] = None
    for prefix, part in module.named_modules():
        if _GATE in part._buffers and isinstance(part._modules.get(_BRANCH), nn.Module):
            found.setdefault(_joined(prefix, _GATE))
    return tuple(name for name in found if name in known and known[name].numel() == 1)


def gate_values(module: nn.Module) -> dict[str, torch.Tensor]:
    """The gates of a module by name."""
    known = dict(module.named_buffers())
    return {name: known[name] for name in gate_names(module)}


def site_of(gate: str) -> str:
    """The submodule that a gate belongs to.

    >>> site_of("body.s1.gate")
    'body.s1'
    """
    return gate.rpartition(".")[0]


class Ported(nn.Module):
    """A module whose gates are further inputs.

    Args:
        module: Takes one tensor.
        names: Buffers of it, as `gate_names` gives them.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, x: torch.Tensor, *gates: torch.Tensor) -> Any:
        """The module's answer with these gates in the place of its own."""
        return torch.func.functional_call(self.module, dict(zip(self.names, gates, strict=True)), (x,))


def settle(model: Any, values: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Turn the gates among the graph's inputs into constants, in place.

    Args:
        model: What the converter made of a `Ported` module.
        values: Value of each gate, in the order in which they were ported.

    Returns:
        Tensor index by gate.

    Raises:
        KasminaError: The graph's inputs are not the frame and the gates.
    """
    graph = model.subgraphs[0]
    names = flatbuffer.tensor_names(model)
    inputs = [int(i) for i in graph.inputs]
    places = {int(match[1]): i for i in inputs if (match := _PLACE.search(names[i])) is not None}
    given = dict(enumerate(values.items(), start=1))
    if sorted(places) != list(range(1 + len(values))) or len(inputs) != len(places):
        raise KasminaError(
            f"the converter made {len(inputs)} inputs of one frame and {len(values)} gates: "
            f"{', '.join(names[i] for i in inputs)}",
            "Remove the grafts that are not needed, and report this with the version of litert-torch.",
        )
    found: dict[str, int] = {}
    for place, (name, value) in given.items():
        index = places[place]
        if int(np.prod(flatbuffer.shape(model, index))) != 1 or flatbuffer.type_name(model, index) != "FLOAT32":
            raise KasminaError(
                f"gate {name} became {flatbuffer.type_name(model, index)} of shape {flatbuffer.shape(model, index)}; "
                "one FLOAT32 was expected"
            )
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(value.detach().numpy().astype(np.float32).tobytes(), np.uint8)
        model.buffers.append(buffer)
        graph.tensors[index].buffer = len(model.buffers) - 1
        found[name] = index
    graph.inputs = [places[0]]
    model.signatureDefs = []
    return found


def part(model: onnx.ModelProto, values: Mapping[str, torch.Tensor]) -> None:
    """Give every gate of an ONNX model an initializer that nothing else reads, in place.

    Args:
        model: What the exporter made of a module.
        values: Value of each of its gates.
    """
    wanted = {(tuple(v.shape), float(v.reshape(()))) for v in values.values()}
    known = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer if np.prod(c.dims) == 1}
    alike = {n for n, a in known.items() if (a.shape, float(a.reshape(()))) in wanted}
    added = {name for node in model.graph.node if node.op_type == "Add" for name in node.input}
    uses = Counter(name for node in model.graph.node for name in node.input if name in alike)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if uses[name] > 1 and node.op_type == "Mul" and node.output[0] in added:
                uses[name] -= 1
                own = f"{name}:{uses[name]}"
                model.graph.initializer.append(onnx.numpy_helper.from_array(known[name], own))
                node.input[i] = own


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
