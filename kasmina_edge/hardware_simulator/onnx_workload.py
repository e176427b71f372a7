"""What was read of an ``.onnx`` file as a workload: images channels last, constants counted once, lives of tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from kasmina_edge.hardware_simulator.onnx_values import Draft, Value
from kasmina_edge.hardware_simulator.workload import OpWork, TensorWork, Workload


def workload_of(
    name: str, drafts: Sequence[Draft], fed: Sequence[Value], given: Sequence[Value], notes: Iterable[str]
) -> Workload:
    """The workload.

    Args:
        name: For people.
        drafts: Every operation, in order of execution.
        fed: The network's inputs.
        given: Its outputs.
        notes: What was not read or not counted.

    Raises:
        BundleError: An operation's operands and attributes do not fit together.
    """
    ops, used = [], set()
    _find_images(drafts)
    for draft in drafts:
        told = draft.description
        moving = [v for v in draft.inputs if not v.constant]
        constants = 0
        for v in draft.inputs:
            if v.constant and v.name and v.name not in used:
                used.add(v.name)
                constants += told.constant_bytes.get(v.name, v.size_bytes)
        first = next(iter(moving), None) or draft.outputs[0] if draft.outputs else None
        ops.append(
            OpWork(
                kind=told.kind,
                inputs=tuple(v.channels_last for v in moving),
                outputs=tuple(v.channels_last for v in draft.outputs),
                dtype=first.dtype if first is not None else "float32",
                weights=told.weights,
                weights_dtype=told.weights_dtype,
                constant_bytes=constants,
                macs=told.macs,
                stride=told.stride,
                dilation=told.dilation,
                groups=told.groups,
                activation=draft.activation,
                place=draft.place,
            )
        )
    return Workload(name, tuple(ops), _lives(drafts, fed, given), "onnx", tuple(notes))


def _find_images(drafts: Sequence[Draft]) -> None:
    """What convolutions and pools read and write, and what element by element comes of it or goes into it."""
    for direction in (drafts, reversed(drafts)):
        for draft in direction:
            image = draft.description.image
            values = [v for v in (*draft.inputs, *draft.outputs) if not v.constant and len(v.shape) >= 3]
            if image is None:
                image = any(v.image for v in values)
            if image:
                for v in values:
                    v.image = True


def _lives(drafts: Sequence[Draft], fed: Sequence[Value], given: Sequence[Value]) -> tuple[TensorWork, ...]:
    values: dict[int, tuple[Value, int]] = {id(v): (v, -1) for v in fed}
    readers: dict[int, list[int]] = {}
    for i, draft in enumerate(drafts):
        for v in draft.inputs:
            if not v.constant and i not in readers.setdefault(id(v), []):
                readers[id(v)].append(i)
        for v in draft.outputs:
            values.setdefault(id(v), (v, i))
    last = {id(v) for v in given}
    found, seen = [], Counter[str]()
    for key, (v, first) in values.items():
        read = tuple(readers.get(key, ()))
        seen[v.name] += 1
        name = v.name if seen[v.name] == 1 else f"{v.name}#{seen[v.name]}"
        end = len(drafts) if key in last else max((*read, first))
        found.append(TensorWork(name, v.channels_last, v.dtype, first, end, read))
    return tuple(found)
