"""What every blueprint has to keep, as a suite that runs on any of them: on the library's and on your own.

>>> from kasmina_trainer.blueprints import find_blueprint
>>> broken_promises(find_blueprint("adapter"), SAMPLE_PORTS["vector"])
{}
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from kasmina_edge.errors import InputError
from kasmina_trainer.blueprints.base import GraftBlueprint
from kasmina_trainer.blueprints.config import BlueprintConfig
from kasmina_trainer.blueprints.cost import count_cost, probes
from kasmina_trainer.blueprints.port import Layer, Layout, Port

SAMPLE_PORTS: Mapping[str, Port] = {
    "image": Port(
        "s1", (6, 7, 9), Layout.IMAGE, Layer("conv2d", 4, 6, (3, 3), (1, 1), (1, 1), (1, 1)), (4, 7, 9), (5, 3, 2)
    ),
    "strided": Port("s2", (4, 4, 5), Layout.IMAGE, Layer("conv2d", 3, 4, (5, 5), (2, 2), (2, 2), (1, 1)), (3, 8, 9)),
    "input": Port.of((2, 8, 8), "input"),
    "row": Port.of((1, 24), "input"),
    "flat": Port("s3", (4, 1, 20), Layout.IMAGE, Layer("conv2d", 2, 4, (1, 5), (1, 1), (0, 4), (1, 2)), (2, 1, 20)),
    "series": Port("s4", (4, 21), Layout.SERIES, Layer("conv1d", 2, 4, (3,), (2,), (1,), (1,)), (2, 41)),
    "tokens": Port("s5", (5, 8), Layout.TOKENS, Layer("linear", 6, 8), (5, 6), (9, 4)),
    "vector": Port("s6", (8,), Layout.VECTOR, Layer("linear", 5, 8), (5,)),
}
"""One port of every kind, small."""

Promise = Callable[[GraftBlueprint, Port, BlueprintConfig], Iterator[str]]
MERGE_TOLERANCE = 1e-5
_ROW_TOLERANCE = 1e-5


def broken_promises(kind: GraftBlueprint, port: Port, config: BlueprintConfig | None = None) -> dict[str, str]:
    """What a blueprint breaks at a port: the first fault of each promise, by the promise's name; {} when it keeps all.

    Args:
        kind: In the library or not.
        port: One that it accepts.
        config: Its settings, or None for the defaults.
    """
    settings = config or kind.Config()
    broken = {}
    for name, promise in PROMISES.items():
        try:
            fault = next(promise(kind, port, settings), "")
        except Exception as exc:  # whatever a foreign branch raises is its fault
            fault = exc.message if isinstance(exc, InputError) else f"{type(exc).__name__}: {exc}"
        if fault:
            broken[name] = fault
    return broken


def _identity(kind: GraftBlueprint, port: Port, config: BlueprintConfig) -> Iterator[str]:
    branch = kind.build(port, seed=1, config=config)
    if branch is None:
        return
    for factor in (0.0, 1.0, -1.0, 1e4):
        given = tuple(factor * value for value in _drawn(branch, port, 2))
        with torch.no_grad():
            y = torch.randn(2, *port.shape)
            if not torch.equal(y + branch(*given), y):
                yield f"outputs change at birth on inputs {factor:g} times a random one"


def _gradients(kind: GraftBlueprint, port: Port, config: BlueprintConfig) -> Iterator[str]:
    branch = kind.build(port, seed=1, config=config)
    if branch is None:
        return
    names = dict(branch.named_parameters())
    optimizer = torch.optim.SGD(names.values(), lr=0.1)
    branch.train()
    for step in (1, 2):
        given = _drawn(branch, port, 4)
        optimizer.zero_grad()
        (
            branch(*given) - torch.linspace(-1, 1, port.positions * port.channels).reshape(port.shape)
        ).square().sum().backward()
        if any(value.requires_grad or value.grad is not None for value in given):
            yield "a gradient reaches the value it reads, and with it the host"
        learning = [n for n, p in names.items() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
        if step == 1 and not learning:
            yield "no parameter has a gradient at birth: it can never learn"
        if step == 2 and len(learning) != len(names):
            yield f"{', '.join(sorted(set(names) - set(learning)))} has no gradient once the last layer has moved"
        if any(p.grad is not None and not bool(p.grad.isfinite().all()) for p in names.values()):
            yield f"a gradient of step {step} is not finite"
        optimizer.step()


def _removal(kind: GraftBlueprint, port: Port, config: BlueprintConfig) -> Iterator[str]:
    branch = kind.build(port, seed=1, config=config)
    if branch is None:
        return
    perturb(branch)
    given = _drawn(branch, port, 2)
    kept = [value.clone() for value in given]
    y = torch.randn(2, *port.shape)
    with torch.no_grad():
        grown = branch(*given)
    if not bool(grown.abs().max() > 0):
        yield "it adds nothing, whatever its weights are"
    if not torch.equal(y + torch.zeros(1) * grown, y):
        yield "a gate of 0 does not silence it"
    if not all(torch.equal(a, b) for a, b in zip(given, kept, strict=True)):
        yield "it writes into the value that it reads"


def _copies(kind: GraftBlueprint, port: Port, config: BlueprintConfig) -> Iterator[str]:
    branch = kind.build(port, seed=1, config=config)
    if branch is None:
        return
    perturb(branch)
    given = _drawn(branch, port, 2)
    with torch.no_grad():
        wanted = branch.eval()(*given)
        for name, twin in (("pickled", pickle.loads(pickle.dumps(branch))), ("copied", copy.deepcopy(branch))):  # noqa: S301 - our own bytes
            if not torch.equal(twin(*given), wanted) or getattr(twin, "reads", None) != kind.reads:
                yield f"a {name} branch answers otherwise"
        again = kind.build(port, seed=2, config=config)
        assert again is not None
        again.load_state_dict(branch.state_dict())
        if not torch.equal(again(*given), wanted):
            yield "a branch that was given the same weights answers otherwise"
        single = torch.cat([branch(*(value[i : i + 1] for value in given)) for i in range(2)])
        if not torch.allclose(single, wanted, rtol=_ROW_TOLERANCE, atol=_ROW_TOLERANCE):
            yield "a frame's answer depends on the other frames of its batch"


def _determinism(kind: GraftBlueprint, port: Port, config: BlueprintConfig) -> Iterator[str]:
    before = torch.random.get_rng_state()
    first, second = (kind.build(port, seed=3, config=config) for _ in range(2))
    if not torch.equal(before, torch.random.get_rng_state()):
        yield "building it moves torch's own generator"
    states = [{} if made is None else made.state_dict() for made in (first, second)]
    if any(not torch.equal(value, states[1][name]) for name, value in states[0].items()):
        yield "one seed gives two kinds of first weights"


def _refusals(kind: GraftBlueprint, port: Port, config: BlueprintConfig) -> Iterator[str]:
    for other in SAMPLE_PORTS.values():
        clause = kind.refusal(other, config)
        try:
            kind.build(other, seed=0, config=config)
        except InputError as exc:
            if not clause or clause not in exc.message or not exc.next_step:
                yield f"site of shape {other.shape}: refused with {exc.message!r}, where refusal() says {clause!r}"
        else:
            if clause:
                yield f"site of shape {other.shape}: built, where refusal() says {clause!r}"


def _cost(kind: GraftBlueprint, port: Port, config: BlueprintConfig) -> Iterator[str]:
    formula, counted = kind.cost(port, config), count_cost(kind.build(port, seed=0, config=config), port)
    if formula != counted:
        yield f"its formula says {formula}, counted are {counted}"


def _settings(kind: GraftBlueprint, port: Port, config: BlueprintConfig) -> Iterator[str]:
    again = kind.Config.from_bytes(config.to_bytes())
    if again != config or again.digest() != config.digest():
        yield "its settings do not survive their own bytes"
    if config.scaled(1.0) != config:
        yield "its settings change at a width of 1"
    if not config.model_config.get("frozen") or config.model_config.get("extra") != "forbid":
        yield "its settings are not frozen, or take unknown names"


def _merging(kind: GraftBlueprint, port: Port, config: BlueprintConfig) -> Iterator[str]:
    branch = kind.build(port, seed=1, config=config)
    if branch is None or port.layer is None or kind.reads == "context":
        return
    perturb(branch)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        layer, x = layer_of(port.layer), torch.randn(3, *port.source().shape)
        kept = copy.deepcopy(layer.state_dict())
        merged = kind.merged(port, branch, layer, 0.75)
        if any(not torch.equal(value, kept[name]) for name, value in layer.state_dict().items()):
            yield "merging changes the layer itself"
        if merged is None:
            return
        y = layer(x)
        wanted = y + 0.75 * branch(x if kind.reads == "input" else y)
        gap = float((merged(x) - wanted).abs().max() / wanted.abs().max())
    if type(merged) is not type(layer):
        yield f"a {type(layer).__name__} became a {type(merged).__name__} by merging"
    if gap > MERGE_TOLERANCE:
        yield f"the merged layer is off by {gap:.2g} of the largest value, {MERGE_TOLERANCE:g} is rounding"


PROMISES: Mapping[str, Promise] = {
    "identity": _identity,
    "gradients": _gradients,
    "removal": _removal,
    "copies": _copies,
    "determinism": _determinism,
    "refusals": _refusals,
    "cost": _cost,
    "settings": _settings,
    "merging": _merging,
}
"""Every promise by name."""


def perturb(branch: nn.Module, *, seed: int = 7, size: float = 0.2) -> None:
    """Give a branch weights that are not zero.

    Args:
        branch: Changed in place.
        seed: Of what is added.
        size: Standard deviation of what is added.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def layer_of(facts: Layer) -> nn.Module:
    """A layer with the given facts, weights from torch's generator."""
    if facts.kind == "linear":
        return nn.Linear(facts.inputs, facts.outputs)
    if facts.kind == "conv1d":
        axes = (facts.kernel[0], facts.stride[0], facts.padding[0], facts.dilation[0])
        return nn.Conv1d(facts.inputs, facts.outputs, *axes, facts.groups)
    kernel, stride, padding, dilation = (
        (axes[0], axes[1]) for axes in (facts.kernel, facts.stride, facts.padding, facts.dilation)
    )
    return nn.Conv2d(facts.inputs, facts.outputs, kernel, stride, padding, dilation, facts.groups)


def _drawn(branch: nn.Module, port: Port, batch: int) -> tuple[torch.Tensor, ...]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return probes(branch, port, batch=batch)
