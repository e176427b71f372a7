"""A PyTorch module as a form: the graph that `torch.export` writes, run node by node.

The graph knows of every operation which submodule it belongs to and which source line asked for it, which no exported
file does. Layout: channels first, as the module has it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.export.silence import quiet
from kasmina_trainer.optimize.forms import Form, Step, Weights

Array = npt.NDArray[Any]

_KINDS = {
    "linear": "fully_connected", "addmm": "fully_connected", "matmul": "batch_matmul", "bmm": "batch_matmul",
    "adaptive_avg_pool2d": "mean", "mean": "mean", "avg_pool2d": "average_pool_2d", "max_pool2d": "max_pool_2d",
    "cat": "concatenation", "stack": "pack", "split": "split", "chunk": "split", "sigmoid": "logistic",
    "silu": "silu", "hardswish": "hard_swish", "hardtanh": "relu6", "relu6": "relu6", "relu_": "relu",
    "flatten": "reshape", "view": "reshape", "reshape": "reshape", "squeeze": "reshape", "unsqueeze": "reshape",
    "permute": "transpose", "transpose": "transpose", "contiguous": "identity", "alias": "identity",
    "detach": "identity", "add_": "add", "conv_transpose2d": "transpose_conv", "slice": "slice", "clamp": "clip",
    "_to_copy": "to", "leaky_relu": "leaky_relu", "upsample_nearest2d": "resize_nearest_neighbor",
}  # fmt: skip
_WEIGHTED = ("conv_2d", "depthwise_conv_2d", "fully_connected", "transpose_conv")


class TorchForm(Form):
    """A module, or a program of `torch.export`.

    Args:
        source: The module, on the CPU; it is put into evaluation mode by the caller.
        shapes: Of the inputs, batch axis included; None for a program, which knows them.
        title: For people.

    Raises:
        InputError: The module cannot be exported (the reason is the exporter's), or its shapes are open.
    """

    def __init__(
        self, source: nn.Module | torch.export.ExportedProgram, title: str, shapes: Sequence[tuple[int, ...]] = ()
    ) -> None:
        self.title = title
        program = source if isinstance(source, torch.export.ExportedProgram) else _exported(source, shapes, title)
        with quiet():
            self._module: Any = program.module()
        nodes = list(self._module.graph.nodes)
        self._nodes = {n.name: n for n in nodes}
        self.shapes = {n.name: found for n in nodes if (found := _shape(n)) is not None}
        self.inputs = tuple(n.name for n in nodes if n.op == "placeholder")
        last = next(n for n in nodes if n.op == "output")
        self.outputs = tuple(n.name for n in last.all_input_nodes)
        self.schemes = {}
        steps = [n for n in nodes if n.op == "call_function" and n.target is not operator.getitem]
        self.steps = tuple(self._step(i, n) for i, n in enumerate(steps))

    def values(self, frames: Sequence[Array]) -> dict[str, Array]:
        """See `Form.values`."""
        keys = list(self.shapes)
        fed = dict(zip(self.inputs, (x[:, None] for x in frames), strict=True))
        return self._run(keys, fed, {})

    def answers(self, frames: Sequence[Array]) -> list[Array]:
        """See `Form.answers`."""
        fed = dict(zip(self.inputs, (x[:, None] for x in frames), strict=True))
        found = self._run(self.outputs, fed, {})
        return [found[key] for key in self.outputs]

    def replay(self, target: str, given: Mapping[str, Array], constants: Mapping[str, Array] | None = None) -> Array:
        """See `Form.replay`."""
        if target in self.inputs:
            return given[target].astype(np.float32)
        fed = {key: value for key, value in given.items() if key != target}
        return self._run([target], fed, constants or {})[target]

    def unrounded(self) -> TorchForm:
        """See `Form.unrounded`."""
        return self

    def weights(self, step: Step) -> tuple[Weights, ...]:
        """See `Form.weights`."""
        node = self._node_of(step)
        if step.kind not in _WEIGHTED or len(node.args) < 2:
            return ()
        weight = node.args[1]
        if not isinstance(weight, torch.fx.Node) or weight.op != "get_attr":
            return ()
        values = _attribute(self._module, str(weight.target)).detach().numpy()
        return (Weights(weight.name, values, None, 1 if step.kind == "transpose_conv" else 0),)

    def _node_of(self, step: Step) -> Any:
        return self._nodes[step.label.rpartition(" ")[2]]

    def _step(self, index: int, node: Any) -> Step:
        stem = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
        kind = _KINDS.get(stem, stem)
        if stem in ("conv2d", "conv1d"):
            channels = self._nodes[node.args[1].name].meta["val"].shape[1] if _has_shape(node.args[1]) else 0
            groups = node.args[6] if len(node.args) > 6 else 1
            kind = "depthwise_conv_2d" if groups > 1 and channels == 1 else "conv_2d"
        outputs = (node.name,) if node.name in self.shapes else ()
        if not outputs:
            outputs = tuple(n.name for n in node.users if n.target is operator.getitem and n.name in self.shapes)
        reads = dict.fromkeys(n.name for n in node.all_input_nodes if n.name in self.shapes)
        return Step(index, kind, f"{stem} {node.name}", tuple(reads), outputs, layer=_layer(node), source=_source(node))

    def _run(
        self, targets: Sequence[str], fed: Mapping[str, Array], constants: Mapping[str, Array]
    ) -> dict[str, Array]:
        order = self._needed(targets, fed)
        rows: dict[str, list[Array]] = {key: [] for key in targets}
        own = {key: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for key, v in constants.items()}
        with torch.no_grad():
            for n in range(len(next(iter(fed.values())))):
                env: dict[str, Any] = {
                    key: torch.from_numpy(np.ascontiguousarray(value[n], np.float32)) for key, value in fed.items()
                }
                for node in order:
                    env[node.name] = self._compute(node, env, own)
                for key in targets:
                    rows[key].append(env[key].numpy().copy())
        return {key: np.stack(found) for key, found in rows.items()}

    def _compute(self, node: Any, env: Mapping[str, Any], constants: Mapping[str, torch.Tensor]) -> Any:
        if node.op == "get_attr":
            return constants[node.name] if node.name in constants else _attribute(self._module, str(node.target))
        args = torch.fx.node.map_arg(node.args, lambda n: env[n.name])
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda n: env[n.name])
        return node.target(*args, **kwargs)

    def _needed(self, targets: Sequence[str], given: Mapping[str, Array]) -> list[Any]:
        found: set[str] = set()
        waiting = list(targets)
        while waiting:
            name = waiting.pop()
            if name in found or name in given:
                continue
            node = self._nodes[name]
            if node.op == "placeholder":
                raise InputError(f"{self.title}: {name} is computed by nothing and was not given")
            found.add(name)
            waiting.extend(n.name for n in node.all_input_nodes)
        return [n for n in self._nodes.values() if n.name in found]


def _exported(module: nn.Module, shapes: Sequence[tuple[int, ...]], title: str) -> torch.export.ExportedProgram:
    with quiet():
        try:
            return torch.export.export(module, tuple(torch.zeros(shape) for shape in shapes))
        except Exception as exc:
            reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
            raise InputError(f"{title}: torch cannot export it ({reason[:200]})") from exc


def _shape(node: Any) -> tuple[int, ...] | None:
    """Of a float activation; None for anything else."""
    value = node.meta.get("val")
    if node.op not in ("placeholder", "call_function") or not isinstance(value, torch.Tensor):
        return None
    return tuple(int(n) for n in value.shape) if value.dtype == torch.float32 else None


def _has_shape(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def _attribute(module: Any, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module


def _layer(node: Any) -> str:
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]).replace("L['self'].", "") if stack else ""


def _source(node: Any) -> str:
    """``net.py:31: x = self.head(x)``: the innermost line that is not torch's own."""
    lines = str(node.meta.get("stack_trace") or "").splitlines()
    found = ""
    for place, text in zip(lines, [*lines[1:], ""], strict=True):
        if place.strip().startswith("File ") and "/torch/" not in place:
            path, _, rest = place.strip()[6:].partition('", line ')
            found = f"{path.rpartition('/')[2]}:{rest.partition(',')[0]}: {text.strip()}"
    return found
