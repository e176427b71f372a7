"""Which tensor of a float TFLite file is which layer or rounding point of the torch graph it was converted from.

Layers are found by their weights, points by their values on a few frames: converters rename and renumber everything,
and neither weights nor values change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from torch import fx, nn

from kasmina_edge.errors import KasminaError
from kasmina_trainer.quantization.folding import Weighted, is_depthwise, weighted_layers
from kasmina_trainer.quantization.ranges import Array, Range, Ranges
from kasmina_trainer.quantization.simulation import point_values
from kasmina_trainer.quantization.watching import watch

FRAMES = 3
_TOLERANCE = 1e-4


def layer_tensors(float_model: bytes, module: nn.Module) -> dict[str, tuple[str, ...]]:
    """The tensors that each weighted layer's operators write, by module name: one, or more where it is used again.

    Args:
        float_model: Float TFLite file; tensor names are unique.
        module: The folded module it was converted from; a layer whose weights are in no operator is left out.
    """
    left = _weights(float_model)
    wanted = {name: _as_stored(layer) for name, layer in weighted_layers(module).items()}
    found: dict[str, tuple[str, ...]] = {}
    while True:  # layers of equal weights take turns
        before = len(left)
        for name, own in wanted.items():
            place = next(
                (i for i, (_, values) in enumerate(left) if values.size == own.size and _equal(values, own)), -1
            )
            if place >= 0:
                found[name] = (*found.get(name, ()), left.pop(place)[0])
        if len(left) == before:
            return found


def tensor_bits(float_model: bytes, module: nn.Module, bits: Mapping[str, int]) -> dict[str, int]:
    """Widths other than 8 by the name of the tensor that the layer's operator writes, as `quantize` takes them.

    Args:
        float_model: Float TFLite file; tensor names are unique.
        module: The folded module it was converted from.
        bits: Width of each weighted layer, by module name.

    Raises:
        KasminaError: A layer's weights are in no operator of the file; it names the layer.
    """
    wanted = {name: width for name, width in bits.items() if width != 8}
    if not wanted:
        return {}
    places = layer_tensors(float_model, module)
    missing = sorted(set(wanted) - set(places))
    if missing:
        raise KasminaError(
            f"layer {missing[0]}: {wanted[missing[0]]} bits asked, the converted file has no operator with its weights",
            "The converter merged it with a neighbour; give it 8 bits.",
        )
    return {tensor: width for name, width in wanted.items() for tensor in places[name]}


def carried_ranges(
    float_model: bytes, activations: Sequence[str], graph: fx.GraphModule, ranges: Ranges, frames: Array
) -> dict[str, Range]:
    """Ranges of rounding points under the names of the file's tensors.

    Args:
        float_model: Float TFLite file converted from ``graph``; tensor names are unique.
        activations: Names of its computed and fed tensors.
        graph: As `folded_graph` gives it.
        ranges: Of the graph's rounding points, by node name.
        frames: A few are enough.  # (N, ..., C)

    Returns:
        A range for every tensor that holds a point's values; tensors that only the file has are left out.
    """
    frames = frames[:FRAMES]
    seen = list(watch(float_model, frames, activations))
    points = [point_values(graph, frames[i : i + 1], list(ranges)) for i in range(len(frames))]
    found: dict[str, Range] = {}
    for tensor in activations:
        for point, own in ranges.items():
            pairs = ((file[tensor], values[point]) for file, values in zip(seen, points, strict=True))
            if all(_same_values(stored, computed) for stored, computed in pairs):
                found[tensor] = own
                break
    return found


def moved_values(before: fx.GraphModule, after: nn.Module, values: Array, frames: Array) -> Array | None:
    """What some values of a network became when it was prepared.

    Args:
        before: The folded network before (`Prepared.before`).
        after: The prepared one (`Prepared.module`), node by node the same.
        values: Of any node of ``before`` on these frames, channels last.  # (N, ..., C)
        frames: At most one batch.  # (N, ..., C)

    Returns:
        The values of the same node of ``after``, channels last; None where no node holds ``values``.
    """
    if not isinstance(after, fx.GraphModule):
        return None
    names = [node.name for node in before.graph.nodes]
    for name, found in point_values(before, frames, names).items():
        if _same_values(values, found):
            moved = point_values(after, frames, [name]).get(name)
            return None if moved is None else np.moveaxis(moved, 1, -1) if moved.ndim > 2 else moved
    return None


def _weights(float_model: bytes) -> list[tuple[str, Array]]:
    """Float matrices and filters of every operator, flat, with the name of the tensor that it writes."""
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(float_model, 0))
    tensors, buffers = graph.subgraphs[0].tensors, graph.buffers
    found: list[tuple[str, Array]] = []
    for op in graph.subgraphs[0].operators:
        written = tensors[int(op.outputs[0])].name.decode()
        for index in op.inputs if op.inputs is not None else ():
            tensor = tensors[int(index)]
            data = buffers[tensor.buffer].data
            weights = int(index) >= 0 and tensor.type == schema.TensorType.FLOAT32 and len(tensor.shape) > 1
            if weights and data is not None and len(data):
                found.append((written, np.asarray(data, np.uint8).view(np.float32)))
    return found


def _as_stored(layer: Weighted) -> Array:
    """A layer's weights in TFLite's order, flat: channels last, depthwise filters side by side."""
    weight = layer.weight.detach().numpy()
    if isinstance(layer, nn.Linear):
        return np.ascontiguousarray(weight).reshape(-1)
    if is_depthwise(layer):
        return np.ascontiguousarray(np.moveaxis(weight[:, 0], 0, -1)).reshape(-1)
    if isinstance(layer, nn.ConvTranspose2d):
        return np.ascontiguousarray(np.transpose(weight, (1, 2, 3, 0))).reshape(-1)
    return np.ascontiguousarray(np.moveaxis(weight, 1, -1)).reshape(-1)


def _same_values(stored: Array, computed: Array) -> bool:
    """Whether two tensors of one frame hold the same, channels first or last, axes of length one left out."""
    for layout in (computed, np.moveaxis(computed, 1, -1) if computed.ndim > 2 else computed):
        if stored.squeeze().shape == layout.squeeze().shape and _equal(stored.squeeze(), layout.squeeze()):
            return True
    return False


def _equal(a: Array, b: Array) -> bool:
    room = _TOLERANCE * max(float(np.abs(b).max(initial=0.0)), 1e-12)
    return bool(np.allclose(a, b, rtol=_TOLERANCE, atol=room))
