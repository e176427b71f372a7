"""A host that does not change: frozen, told by the digest of its whole state, and watched while something learns.

What is removable leaves the host as it was. What is merged makes a new host, and the parent is kept to undo it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from kasmina_edge.errors import InputError
from kasmina_trainer.seeds.traced_host import as_ordinary


class Watched(Protocol):
    """What a guard needs to know of a seeded network."""

    def host_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The host's own parameters and buffers by the host's own names."""

    def check_host(self) -> None:
        """Raise when the host's digest is not what it was."""


def freeze(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that will not learn: evaluation mode, no gradients; see `as_ordinary`."""
    return as_ordinary(copy.deepcopy(model)).requires_grad_(False).eval()


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def outputs_equal(a: nn.Module, b: nn.Module, x: torch.Tensor | tuple[torch.Tensor, ...]) -> bool:
    """Whether two networks in evaluation mode answer bit for bit alike; their modes are left as they were."""
    return same_values(answers_of(a, x), answers_of(b, x))


def same_values(a: Any, b: Any) -> bool:
    """Whether two answers are bit for bit alike, NaN equal to NaN: tensors, or tuples, lists and mappings of them."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num())))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same_values(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same_values(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class GradientGuard:
    """Watches the host while something learns: no gradient reaches it and no step moves it.

    Within its ``with`` block it looks after every ``every``-th optimiser step of this process, by the tensors' own
    version counters, which costs microseconds; the whole digest is compared once, at the end. It can be called as well,
    for loops without an optimiser.

    Args:
        network: A seeded network.
        every: Steps from one look to the next; 1 looks after each.

    Raises:
        InputError: A host tensor has a gradient, may get one, or was changed: the tensor and the step are named.
    """

    def __init__(self, network: Watched, *, every: int = 1) -> None:
        if every < 1:
            raise InputError(f"guard: expected to look every 1 or more steps, got {every}")
        self._network = network
        self._every = every
        self._steps = 0
        self._seen: dict[str, tuple[torch.Tensor, int]] = {}
        self._hook: Any = None

    @property
    def steps(self) -> int:
        """Steps that were seen."""
        return self._steps

    def __enter__(self) -> Self:
        self._network.check_host()
        self._seen = {name: (tensor, tensor._version) for name, tensor in self._network.host_tensors()}
        self._hook = register_optimizer_step_post_hook(self._after_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()
        if error is None:
            self.look()
            self._network.check_host()

    def __call__(self, *_: object, **__: object) -> None:
        """Count a step, and look when it is time; takes and ignores whatever a training loop passes."""
        self._steps += 1
        if self._steps % self._every == 0:
            self.look()

    def look(self) -> None:
        """Look now; raises as the class says."""
        for name, tensor in self._network.host_tensors():
            known, version = self._seen.get(name, (None, -1))
            if tensor is not known:  # moved to another device or memory order: the same values in a new tensor
                if known is None or not torch.equal(known.cpu(), tensor.detach().cpu()):
                    raise self._changed(name, "was replaced")
                self._seen[name] = (tensor, tensor._version)
            elif tensor._version != version:
                raise self._changed(name, "was written to")
            if tensor.requires_grad or tensor.grad is not None:
                raise self._changed(name, "takes gradients" if tensor.grad is None else "has a gradient")

    def _after_step(self, *_: object) -> None:
        self()

    def _changed(self, name: str, what: str) -> InputError:
        return InputError(
            f"the host changed under its grafts: {name} {what} by step {self._steps}",
            "Train `graft_parameters()` alone; the host stays frozen.",
        )


class MergedHost:
    """A host with something merged into it, and the parent that undoes it.

    Args:
        parent: The host without it; copied and frozen.
        merged: The new host.
        probe: A batch whose answers are kept, so that `undo` can prove itself.
    """

    def __init__(self, parent: nn.Module, merged: nn.Module, probe: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        self._parent = freeze(parent)
        self.merged = merged
        self._probe = tuple(x.clone() for x in (probe if isinstance(probe, tuple) else (probe,)))
        self._expected = answers_of(self._parent, self._probe)
        self.parent_hash = hash_state(self._parent.state_dict())
        self.merged_hash = hash_state(merged.state_dict())

    @property
    def parent(self) -> nn.Module:
        """A copy of the host before the merge."""
        return copy.deepcopy(self._parent)

    def undo(self) -> nn.Module:
        """The parent again, proven: its digest and its answers to the probe are what they were, bit for bit.

        Raises:
            InputError: The kept parent was changed since.
        """
        now = hash_state(self._parent.state_dict())
        if now != self.parent_hash:
            raise InputError(f"the kept parent changed: state {self.parent_hash[:12]} at the merge, {now[:12]} now")
        parent = self.parent
        if not same_values(answers_of(parent, self._probe), self._expected):
            raise InputError("the parent answers the probe otherwise than at the merge, though its state is the same")
        return parent


def answers_of(model: nn.Module, x: torch.Tensor | tuple[torch.Tensor, ...]) -> Any:
    """What a network answers in evaluation mode, without gradients; its modes are left as they were."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return model(*(x if isinstance(x, tuple) else (x,)))
    finally:
        for module, mode in modes:
            module.training = mode
