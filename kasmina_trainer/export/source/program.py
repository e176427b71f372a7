"""An exported PyTorch program (``.pt2``) as a module: its graph is data here, and only ATen operators are taken."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import fx, nn

from kasmina_edge.errors import InputError
from kasmina_trainer.export.source import builder
from kasmina_trainer.export.source.archive import SCALAR_TYPES, Archive
from kasmina_trainer.export.source.builder import GraphBuilder

TEXT_ARGUMENTS = ("approximate", "rounding_mode", "padding", "mode", "reduce")
"""Operator arguments that may be text; ``aten::from_file`` has another one."""

_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_VIEWS = {
    "view", "reshape", "slice", "select", "transpose", "permute", "expand", "squeeze", "unsqueeze", "split",
    "chunk", "flatten", "unflatten", "alias", "t", "narrow", "unbind", "detach", "split_with_sizes", "expand_as",
    "view_as",
}  # fmt: skip
_FIXED = "Export it with fixed shapes: torch.export.export(model, (example,)) without dynamic_shapes."
_EVALUATE = "Call model.eval() before torch.export.export."
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "silu": nn.SiLU, "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid, "relu6": nn.ReLU6,
}  # fmt: skip


def read_program(data: bytes, *, where: str) -> tuple[fx.GraphModule, tuple[int, ...], tuple[str, ...]]:
    """The module, its input shape, and the names of its outputs ("" where the program returns no dictionary).

    Args:
        data: The ``.pt2`` file.
        where: Path, for messages.

    Raises:
        InputError: Not such a file, pickled parts, several inputs, open shapes, training mode, or an operator that is
            not one of ATen's pure ones; the message names the operator and the source line it came from.
    """
    try:
        return _Reader(Archive(data, where=where), where).read()
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as exc:
        raise InputError(f"{where}: not a program that torch.export wrote ({type(exc).__name__}: {exc})") from exc


class _Reader:
    def __init__(self, archive: Archive, where: str) -> None:
        self.where = where
        self.archive = archive
        self.module = archive.program["graph_module"]
        self.graph = self.module["graph"]
        self.build = GraphBuilder()
        self.fixed: dict[str, torch.Tensor] = {}
        self.nodes: dict[str, fx.Node] = {}
        self.shared: set[str] = set()  # tensors whose memory another tensor may show as well

    def read(self) -> tuple[fx.GraphModule, tuple[int, ...], tuple[str, ...]]:
        shape = self._inputs()
        for node in self.graph["nodes"]:
            self._node(node)
        outputs = []
        for spec in self.module["signature"]["output_specs"]:
            if "user_output" not in spec:
                raise InputError(f"{self.where}: it changes its own {next(iter(spec)).split('_')[0]}s", _EVALUATE)
            argument = spec["user_output"]["arg"]
            if "as_tensor" not in argument:
                raise InputError(f"{self.where}: an output is {next(iter(argument))}, tensors are expected")
            outputs.append(self._value(argument["as_tensor"]["name"]))
        made = self.build.finish(outputs)
        return made, shape, self._output_names(len(outputs))

    def _inputs(self) -> tuple[int, ...]:
        found = []
        for spec in self.module["signature"]["input_specs"]:
            kind, entry = next(iter(spec.items()))
            if kind == "user_input":
                found.append(entry["arg"]["as_tensor"]["name"])
            elif kind == "parameter":
                self.fixed[entry["arg"]["name"]] = self.archive.weights[entry["parameter_name"]]
            elif kind == "buffer":
                store = self.archive.weights if entry.get("persistent", True) else self.archive.constants
                self.fixed[entry["arg"]["name"]] = store[entry["buffer_name"]]
            elif kind == "tensor_constant":
                self.fixed[entry["arg"]["name"]] = self.archive.constants[entry["tensor_constant_name"]]
            else:
                raise InputError(f"{self.where}: an input is a {kind}, tensors are expected")
        if len(found) != 1:
            raise InputError(
                f"{self.where}: {len(found)} inputs, one is exported", "Join them into one tensor, or wrap the network."
            )
        meta = self.graph["tensor_values"][found[0]]
        shape = tuple(self._fixed_size(size, found[0], i) for i, size in enumerate(meta["sizes"]))
        if meta["dtype"] != 7:
            raise InputError(f"{self.where}: the input is {SCALAR_TYPES.get(meta['dtype'])}, float32 is expected")
        self.nodes[found[0]] = self.build.input()
        return shape

    def _fixed_size(self, size: Mapping[str, Any], name: str, axis: int) -> int:
        if "as_int" not in size:
            raise InputError(f"{self.where}: axis {axis} of {name} has an open length (dynamic shape)", _FIXED)
        return int(size["as_int"])

    def _output_names(self, count: int) -> tuple[str, ...]:
        for entry in self.module["module_call_graph"]:
            if entry["fqn"] == "" and entry.get("signature"):
                spec = json.loads(entry["signature"]["out_spec"])[1]
                if spec.get("type") == "builtins.dict":
                    names = json.loads(spec["context"])
                    if len(names) == count and all(isinstance(n, str) for n in names):
                        return tuple(names)
        return ("",) * count

    def _node(self, node: Mapping[str, Any]) -> None:
        metadata = node.get("metadata", {})
        origin = str(metadata.get("stack_trace", ""))
        names = self._output_tensors(node, origin)
        raw = {str(i["name"]): i["arg"] for i in node["inputs"]}
        op = self._operator(str(node["target"]), origin)
        replaced = ""
        if op._schema.is_mutable:
            op, replaced = self._without_mutation(op, raw, origin)
        kind = op._schema.name.removeprefix("aten::")
        if kind in _VIEWS:
            self.shared |= {a["as_tensor"]["name"] for a in raw.values() if "as_tensor" in a}
            self.shared |= {names} if isinstance(names, str) else set(names)
        for name, argument in raw.items():
            if "as_string" in argument and name not in TEXT_ARGUMENTS:
                self._refuse(f"{node['target']} with text for {name}", origin)
        made = self._as_layer(op, raw, _layer_name(metadata), origin)
        if made is None:
            positional, options = [], {}
            for entry in node["inputs"]:
                value = self._argument(entry["arg"], origin)
                if kind in ("view", "reshape") and entry["name"] in ("size", "shape"):
                    value = self._open_batch(raw["self"], value)
                if entry.get("kind") == 2:
                    options[str(entry["name"])] = value
                else:
                    positional.append(value)
            made = self.build.call(op, *positional, origin=origin, **options)
        if isinstance(names, str):
            self.nodes[names] = made
            if replaced:
                self.nodes[replaced] = made
            return
        for place, name in enumerate(names):
            self.nodes[name] = self.build.call(operator.getitem, made, place, origin=origin)

    def _operator(self, target: str, origin: str) -> Any:
        parts = target.split(".")
        if len(parts) != 5 or parts[:3] != ["torch", "ops", "aten"] or not all(p.isidentifier() for p in parts):
            self._refuse(target, origin)
        try:
            op = getattr(getattr(torch.ops.aten, parts[3]), parts[4])
        except (AttributeError, RuntimeError):
            self._refuse(target, origin)
        if not isinstance(op, torch._ops.OpOverload):
            self._refuse(target, origin)
        return op

    def _without_mutation(self, op: Any, raw: Mapping[str, Any], origin: str) -> tuple[Any, str]:
        """The pure operator for an in-place one (``relu_``), and the tensor that it replaces from now on."""
        name, overload = op._schema.name.removeprefix("aten::"), op._overloadname
        changed = raw.get("self", {}).get("as_tensor", {}).get("name", "")
        if changed in self.fixed:
            raise InputError(f"{self.where}: {name} changes a buffer{line_of(origin)}: training mode", _EVALUATE)
        pure = getattr(getattr(torch.ops.aten, name[:-1], None), overload, None) if name.endswith("_") else None
        if pure is None or pure._schema.is_mutable or not changed or changed in self.shared:
            self._refuse(f"{name}, which changes a tensor in place,", origin)
        return pure, changed

    def _output_tensors(self, node: Mapping[str, Any], origin: str) -> str | list[str]:
        outputs = node["outputs"]
        if len(outputs) == 1 and "as_tensor" in outputs[0]:
            name: str = outputs[0]["as_tensor"]["name"]
            return name
        if len(outputs) == 1 and "as_tensors" in outputs[0]:
            return [t["name"] for t in outputs[0]["as_tensors"]]
        if not all("as_tensor" in o for o in outputs):
            self._refuse(f"{node['target']}, whose answer is no tensor,", origin)
        return [o["as_tensor"]["name"] for o in outputs]

    def _open_batch(self, argument: Mapping[str, Any], size: Any) -> Any:
        """The same shape for any batch, where a batch of one was written into it."""
        meta = self.graph["tensor_values"].get(argument.get("as_tensor", {}).get("name", ""), {})
        sizes = meta.get("sizes") or [{}]
        return [-1, *size[1:]] if size and size[0] == 1 and sizes[0].get("as_int") == 1 and -1 not in size else size

    def _as_layer(self, op: Any, raw: Mapping[str, Any], name: str, origin: str) -> fx.Node | None:
        """A PyTorch layer in place of the operator, where its weights are constant."""
        kind = op._schema.name.removeprefix("aten::")

        def plain(key: str, default: Any = None) -> Any:
            return self._plain(raw[key]) if key in raw else default

        def fixed(key: str) -> torch.Tensor | None:
            return self.fixed.get(raw.get(key, {}).get("as_tensor", {}).get("name", ""))

        def at(key: str) -> fx.Node:
            return self._value(raw[key]["as_tensor"]["name"])

        def constant(key: str) -> bool:
            return key not in raw or "as_none" in raw[key] or fixed(key) is not None

        if kind == "dropout" or kind.endswith("_dropout"):
            if plain("train", True):
                raise InputError(f"{self.where}: dropout is on{line_of(origin)}", _EVALUATE)
            return at("input")
        if torch.Tag.nondeterministic_seeded in op.tags:
            self._refuse(f"{kind}, which draws random numbers,", origin)
        if kind in _ACTIVATIONS:
            return self.build.layer(_ACTIVATIONS[kind](), at("self"), name=name, origin=origin)
        if kind == "hardtanh" and (plain("min_val", -1.0), plain("max_val", 1.0)) == (0, 6):
            return self.build.layer(nn.ReLU6(), at("self"), name=name, origin=origin)
        weight = fixed("weight")
        if kind in ("conv1d", "conv2d") and weight is not None and constant("bias"):
            return self.build.layer(
                builder.convolution(
                    weight,
                    fixed("bias"),
                    stride=plain("stride", [1]),
                    padding=plain("padding", [0]),
                    dilation=plain("dilation", [1]),
                    groups=plain("groups", 1),
                ),
                at("input"),
                name=name,
                origin=origin,
            )
        if kind == "linear" and weight is not None and weight.ndim == 2 and constant("bias"):
            return self.build.layer(builder.linear(weight, fixed("bias")), at("input"), name=name, origin=origin)
        if kind == "batch_norm":
            if plain("training", True):
                raise InputError(f"{self.where}: batch normalisation is in training mode{line_of(origin)}", _EVALUATE)
            mean, variance = fixed("running_mean"), fixed("running_var")
            if mean is not None and variance is not None and constant("weight") and constant("bias"):
                rank = len(self.graph["tensor_values"][raw["input"]["as_tensor"]["name"]]["sizes"])
                layer = builder.normalization(rank, mean, variance, weight, fixed("bias"), plain("eps", 1e-5))
                return self.build.layer(layer, at("input"), name=name, origin=origin)
        return None

    def _argument(self, argument: Mapping[str, Any], origin: str) -> Any:
        kind, value = next(iter(argument.items()))
        if kind == "as_tensor":
            return self._value(value["name"])
        if kind == "as_tensors":
            return [self._value(t["name"]) for t in value]
        if kind == "as_optional_tensors":
            return [self._argument(t, origin) for t in value]
        if kind == "as_optional_tensor":
            return self._argument(value, origin)
        if kind.startswith("as_sym"):
            if kind == "as_sym_int" and "as_int" in value:
                return value["as_int"]
            if kind == "as_sym_ints" and all("as_int" in v for v in value):
                return [v["as_int"] for v in value]
            raise InputError(f"{self.where}: a shape is computed from the input{line_of(origin)}", _FIXED)
        return self._plain(argument)

    def _plain(self, argument: Mapping[str, Any]) -> Any:
        kind, value = next(iter(argument.items()))
        if kind == "as_none":
            return None
        if kind in ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools"):
            return value
        if kind == "as_scalar_type":
            return SCALAR_TYPES[value]
        if kind == "as_memory_format":
            return _MEMORY_FORMATS[value]
        if kind == "as_layout":
            return torch.strided
        if kind == "as_device":
            return torch.device("cpu")
        raise InputError(f"{self.where}: an operator takes {kind}, which a network needs not")

    def _value(self, name: str) -> fx.Node:
        if name in self.nodes:
            return self.nodes[name]
        return self.build.constant(self.fixed[name])

    def _refuse(self, what: str, origin: str) -> NoReturn:
        raise InputError(
            f"{self.where}: {what} cannot be taken from a file{line_of(origin)}",
            "Only ATen operators that compute tensors from tensors are; replace it in the network.",
        )


def line_of(origin: str) -> str:
    """The last line of a stack trace that lies outside of PyTorch, as `` (file.py, line 8: x = ...)``; "" without one.

    >>> line_of('File "net.py", line 8, in forward\\n    x = torch.sort(x)')
    ' (net.py, line 8: x = torch.sort(x))'
    """
    found = ""
    lines = origin.splitlines()
    for here, after in zip(lines, [*lines[1:], ""], strict=True):
        head = here.strip()
        if head.startswith('File "') and "/site-packages/" not in head and "/torch/" not in head:
            file, _, rest = head.removeprefix('File "').partition('", line ')
            code = after.strip()
            number = rest.partition(",")[0]
            found = f" ({file.rpartition('/')[2]}, line {number}" + (f": {code})" if code else ")")
    if not found and origin and "File" not in origin:
        found = f" ({origin.strip()})"
    return found


def _layer_name(metadata: Mapping[str, Any]) -> str:
    """``features.0.conv`` of the innermost module in a node's module stack."""
    innermost = str(metadata.get("nn_module_stack", "")).split(";")[-1]
    parts = innermost.split(",")
    return parts[1] if len(parts) > 1 else ""
