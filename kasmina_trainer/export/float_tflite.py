"""PyTorch to float TFLite by litert-torch, with the refusals that need the network to be explained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from kasmina_edge.errors import KasminaError
from kasmina_trainer import quantization
from kasmina_trainer.export import culprits, differences, flatbuffer, gates
from kasmina_trainer.export.collector import without_collector
from kasmina_trainer.export.layout import AppModule, as_app, float_outputs
from kasmina_trainer.export.lookups import looked_up_once
from kasmina_trainer.export.silence import quiet

_APP = "module."  # where the app's wrapper holds the network
TOLERANCE = 1e-2
"""Largest difference of the converted file from the network on noise, as a share of the largest answer."""


@dataclass(frozen=True)
class FloatNetwork:
    """A float TFLite file whose tensors are called ``t0``, ``t1``, ...

    Attributes:
        activations: Names of all tensors that are computed or fed, in order of use.
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs, in the network's order.
        app_shape: Shape of the input in the app's layout.  # (1, ..., C)
        output_names: What the app calls the outputs.
        origins: The converter's own name of a tensor, which tells the layer, by name.
        gates: Tensor of each gate, a constant, by the gate's name in the module.
    """

    data: bytes
    activations: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    app_shape: tuple[int, ...] = ()
    output_names: tuple[str, ...] = ("output",)
    origins: Mapping[str, str] = field(default_factory=dict)
    gates: Mapping[str, str] = field(default_factory=dict)


def convert(
    module: nn.Module,
    shape: Sequence[int],
    *,
    channels_last: bool = True,
    output_names: Sequence[str] | None = None,
) -> FloatNetwork:
    """Convert a channels-first module to float TFLite with channels-last input.

    Args:
        module: In evaluation mode, on the CPU; takes (1, C, ...). Or an `AppModule`.
        shape: The app's input shape.  # (1, ..., C)
        channels_last: As `layout.as_app`.
        output_names: As `layout.as_app`.

    Raises:
        InputError: The network does not run on such an input.
        KasminaError: The converter refuses, the result needs an operator that LiteRT's runtime does not have (both name
            the operation, the source line it stands in, and a replacement where there is one), or it answers otherwise.
    """
    app = as_app(module, shape, channels_last=channels_last, output_names=output_names)
    values = gates.gate_values(app)
    ported = gates.Ported(app, tuple(values)).eval() if values else app
    with quiet(), without_collector(), looked_up_once():
        import litert_torch

        differences.teach()
        try:
            edge = litert_torch.convert(ported, (torch.zeros(tuple(shape)), *values.values()))
            data = bytes(edge.model_content())
        except Exception as exc:
            raise culprits.refusal(exc, app) from exc
    model = flatbuffer.parse(data)
    refuse_unsupported(model, app)
    settled = gates.settle(model, values) if values else {}
    origins = {f"t{i}": name for i, name in enumerate(flatbuffer.tensor_names(model))}
    flatbuffer.number_tensors(model)
    graph = model.subgraphs[0]
    graph.outputs = _in_order(model, app)
    names = flatbuffer.tensor_names(model)
    activations = dict.fromkeys(int(i) for i in graph.inputs)
    for op in flatbuffer.operators(model):
        activations.update(dict.fromkeys(op.outputs))
    return FloatNetwork(
        flatbuffer.serialize(model),
        tuple(names[i] for i in activations),
        tuple(names[int(i)] for i in graph.inputs),
        tuple(names[int(i)] for i in graph.outputs),
        app.app_shape,
        app.output_names,
        origins,
        {name.removeprefix(_APP): names[index] for name, index in settled.items()},
    )


def refuse_unsupported(model: Any, app: AppModule | None = None) -> None:
    """Stop at operators that would convert and then not run.

    Raises:
        KasminaError: The message names them, and where the network asks for them.
    """
    missing = flatbuffer.unsupported_operators(model)
    if missing:
        place, step = culprits.explain(missing, app)
        raise KasminaError(f"the network needs {', '.join(missing)}, which LiteRT's runtime does not have{place}", step)
    if len(model.subgraphs) != 1:
        raise KasminaError(
            f"the network became {len(model.subgraphs)} subgraphs, one can be quantized",
            "Write loops and branches out; a network for a device has a fixed order of operations.",
        )


def refuse_float(model: Any, network: FloatNetwork | None = None) -> None:
    """Stop at operators that did not become int8.

    Raises:
        KasminaError: The message names them with their types, and the layers where they are known.
    """
    left = flatbuffer.float_operators(model)
    if not left:
        return
    names = flatbuffer.tensor_names(model)
    places = []
    for op in flatbuffer.operators(model):
        if any(i >= 0 and flatbuffer.type_name(model, i).startswith("FLOAT") for i in (*op.inputs, *op.outputs)):
            origin = (network.origins if network else {}).get(names[op.outputs[0]], "")
            if layer := layer_of(origin):
                places.append(layer)
    where = f"; in {', '.join(dict.fromkeys(places[:3]))}" if places else ""
    raise KasminaError(
        f"{len(left)} operators stayed in floating point: {', '.join(left[:5])}{where}",
        "Replace these operations by ones that ai-edge-quantizer knows, or export with --weights float; an Edge TPU "
        "runs no float operator.",
    )


def layer_of(origin: str) -> str:
    """The layer in a converter's tensor name, kind first; "" where it names none.

    >>> layer_of("pkg.layout.AppModule/net.Net_module/torch.nn.modules.conv.Conv2d_stem;1")
    'Conv2d_stem'
    """
    for part in re.findall(r"([^/;]+);", origin):
        name = str(part).rpartition(".")[2]
        if name and not name.startswith(("AppModule", "Ported")) and not name.endswith("_module"):
            return name
    return ""


def _in_order(model: Any, app: AppModule) -> list[int]:
    """The graph's outputs in the network's order, found by their values on one input of noise.

    Raises:
        KasminaError: The file answers otherwise than the network.
    """
    outputs = [int(i) for i in model.subgraphs[0].outputs]
    noise = np.random.default_rng(0).uniform(-1, 1, app.app_shape).astype(np.float32)
    wanted = float_outputs(app, noise)
    names = flatbuffer.tensor_names(model)
    seen = next(iter(quantization.watch(flatbuffer.serialize(model), noise, [names[i] for i in outputs])))
    if len(wanted) != len(outputs):
        raise KasminaError(f"the converted file has {len(outputs)} outputs, the network {len(wanted)}")
    left, order = list(outputs), []
    for place, answer in enumerate(wanted):
        gaps = {i: _gap(seen[names[i]], answer) for i in left}
        best = min(gaps, key=lambda i: gaps[i])
        if not gaps[best] <= TOLERANCE:
            raise KasminaError(
                f"output {app.output_names[place]}: the converted float file differs from the network by "
                f"{gaps[best]:.2g} of the largest answer, at most {TOLERANCE:g} is rounding",
                "Run `kasmina-trainer compare` on both; look for operations that depend on the batch or on chance.",
            )
        left.remove(best)
        order.append(best)
    return order


def _gap(given: Any, wanted: Any) -> float:
    if given.shape != wanted.shape:
        return float("inf")
    size = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
    return float(np.abs(given - wanted).max(initial=0.0)) / size
