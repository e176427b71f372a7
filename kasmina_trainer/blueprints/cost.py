"""What a branch costs: parameters, multiply-adds of one frame, bytes in an int8 file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kasmina_trainer.blueprints.port import Port, Shape

BIAS_BYTES = 4  # int32; every other constant is int8
GATE_BYTES = 1


@dataclass(frozen=True)
class Cost:
    """Price of a branch.

    Attributes:
        parameters: Values that learn.
        macs: Multiply-adds of convolutions and matrix products, one frame; work element by element is not counted.
        extra_bytes: int8 weights and constants (1 byte), int32 biases (4 bytes), and the gate. Scales and the file's
            own structure are not in it.

    >>> Cost(10, 100, 13) + Cost(1, 2, 3)
    Cost(parameters=11, macs=102, extra_bytes=16)
    """

    parameters: int = 0
    macs: int = 0
    extra_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs, self.extra_bytes + other.extra_bytes)

    def with_gate(self) -> Cost:
        """The price at a site: a branch that costs anything ends in a multiply by a gate of its own."""
        return self + Cost(extra_bytes=GATE_BYTES) if self.parameters else self


def linear_cost(inputs: int, outputs: int, positions: int = 1, *, taps: int = 1, bias: bool = True) -> Cost:
    """Price of a convolution or linear layer.

    Args:
        inputs: Channels that each output reads (of a grouped convolution: those of its group).
        outputs: Channels that leave.
        positions: Places at which it is computed.
        taps: Of the kernel.
        bias: Whether it has one.
    """
    weights, biases = inputs * outputs * taps, outputs if bias else 0
    return Cost(weights + biases, weights * positions, weights + BIAS_BYTES * biases)


def constant_cost(values: int, *, learned: bool = True) -> Cost:
    """Price of constants that are used element by element: scales, shifts, thresholds; or of measured ones."""
    return Cost(values if learned else 0, 0, values)


def count_cost(branch: nn.Module | None, port: Port) -> Cost:
    """Price of a branch as it stands, by running it once and watching its operations.

    Args:
        branch: What a blueprint built for ``port``; None costs nothing.
        port: Where it would stand.
    """
    if branch is None:
        return Cost()
    biases = sum(p.numel() for n, p in branch.named_parameters() if _is_bias(branch, n))
    values = sum(p.numel() for p in branch.parameters())
    mode, counter = branch.training, FlopCounterMode(display=False)
    branch.eval()
    try:
        with torch.no_grad(), counter:
            branch(*probes(branch, port, batch=1))
    finally:
        branch.train(mode)
    macs = int(counter.get_total_flops()) // 2
    constants = sum(b.numel() for b in branch.buffers())
    return Cost(values, macs, values - biases + BIAS_BYTES * biases + constants).with_gate()


def probes(branch: nn.Module, port: Port, *, batch: int) -> tuple[torch.Tensor, ...]:
    """What a branch reads at a port, drawn from torch's generator: one value, or two where it attends to a second.

    Args:
        branch: Its ``reads`` says what it takes: ``"output"`` (also where it says nothing), ``"input"``, ``"context"``.
        port: Where it stands.
        batch: Rows.
    """
    reads = getattr(branch, "reads", "output")
    first: Shape = port.source().shape if reads == "input" else port.shape
    second = (torch.randn(batch, *port.other().shape),) if reads == "context" else ()
    return (torch.randn(batch, *first), *second)


def _is_bias(branch: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "bias" and isinstance(branch.get_submodule(owner), nn.Conv1d | nn.Conv2d | nn.Linear)
