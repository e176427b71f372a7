"""What each published version of a blueprint is: its settings, its weights' names and shapes, and what it computes.

``python -m worlds.blueprint_versions`` (in tests/) adds versions that are new to the table. It changes no entry: a
version that computes something else needs a new number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kasmina_edge.contracts.canonical import canonical_bytes, sha256_hex
from kasmina_trainer.blueprints import Blueprint, GraftBlueprint, Layer, Layout, Port, blueprints
from kasmina_trainer.blueprints.cost import probes

TABLE = Path(__file__).parents[1] / "trainer" / "blueprint_versions.json"
PORTS = {  # fixed for ever: the table rests on them
    "image": Port(
        "s1", (4, 6, 6), Layout.IMAGE, Layer("conv2d", 3, 4, (3, 3), (1, 1), (1, 1), (1, 1)), (3, 6, 6), (2, 2, 2)
    ),
    "wide": Port.of((2, 12, 13), "input"),
    "flat": Port("s2", (3, 1, 16), Layout.IMAGE, Layer("conv2d", 2, 3, (1, 3), (1, 1), (0, 1), (1, 1)), (2, 1, 16)),
    "series": Port("s3", (3, 16), Layout.SERIES, Layer("conv1d", 2, 3, (3,), (1,), (1,), (1,)), (2, 16)),
    "tokens": Port("s4", (4, 5), Layout.TOKENS, Layer("linear", 3, 5), (4, 3), (3, 2)),
    "vector": Port("s5", (6,), Layout.VECTOR, Layer("linear", 3, 6), (3,)),
}
_KEPT = ("type", "default", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "const")


def fingerprint(kind: Blueprint) -> dict[str, Any]:
    """Of one version: ``settings`` and ``state`` as digests, ``outputs`` as three numbers a port."""
    properties = kind.Config.model_json_schema().get("properties", {})
    settings = {name: {k: v for k, v in facts.items() if k in _KEPT} for name, facts in properties.items()}
    state: dict[str, Any] = {}
    outputs: dict[str, list[float]] = {}
    for place, port in PORTS.items():
        if not isinstance(kind, GraftBlueprint) or kind.refusal(port):
            continue
        branch = kind.build(port, seed=0)
        if branch is None:
            continue
        state[place] = {name: list(value.shape) for name, value in branch.state_dict().items()}
        outputs[place] = _answer(branch, port)
    return {"settings": _digest(settings), "state": _digest(state), "outputs": outputs}


def read() -> dict[str, Any]:
    """The table."""
    return dict(json.loads(TABLE.read_text())) if TABLE.exists() else {}


def key(kind: Blueprint) -> str:
    """``NAME@VERSION``."""
    return f"{kind.name}@{kind.version}"


def _answer(branch: nn.Module, port: Port) -> list[float]:
    """Mean, root of the mean square and last value of what fixed weights make of a fixed input."""
    with torch.no_grad():
        for i, parameter in enumerate(branch.parameters()):
            parameter.copy_(_waves(parameter.shape, 0.3 + 0.1 * i) * 0.4)
        given = [_waves(value.shape, 0.7 + i) for i, value in enumerate(probes(branch, port, batch=1))]
        answer = branch(*given).double()
    return [round(float(v), 6) for v in (answer.mean(), answer.square().mean().sqrt(), answer.flatten()[-1])]


def _waves(shape: torch.Size, pace: float) -> torch.Tensor:
    return torch.sin(pace * (1 + torch.arange(shape.numel(), dtype=torch.float64))).float().reshape(shape)


def _digest(value: Any) -> str:
    return sha256_hex(canonical_bytes(value))[:16]


def _add_new() -> None:
    table = read()
    for kind in blueprints():
        table.setdefault(key(kind), fingerprint(kind))
    lines = [f"{json.dumps(name)}: {json.dumps(table[name], sort_keys=True)}" for name in sorted(table)]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    _add_new()
