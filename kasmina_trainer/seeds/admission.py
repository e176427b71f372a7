"""Which modules can be hosts: what cannot be copied, told by a digest or run is refused in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from kasmina_edge.errors import InputError
from kasmina_trainer.seeds.integrity import freeze


def check_host(host: nn.Module) -> None:
    """Whether seeds can be put into a module.

    Raises:
        InputError: It is none, is compiled, has weights that are not there yet or that are no tensors, or is not
            float32.
    """
    if not isinstance(host, nn.Module):
        raise InputError(
            f"the host is {_what(host)}, expected a torch.nn.Module", "Wrap a function in a module of your own."
        )
    name = type(host).__name__
    if isinstance(host, torch.jit.ScriptModule):
        raise InputError(
            f"{name} is TorchScript: no seed can be put into compiled code", "Pass the module it was compiled from."
        )
    if isinstance(getattr(host, "_orig_mod", None), nn.Module):
        raise InputError(
            f"{name} is compiled: no seed can be put into compiled code", "Pass the module it was compiled from."
        )
    for path, tensor in (*host.named_parameters(), *host.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise InputError(f"{path} of {name} has no values yet", "Run it once, or load its weights.")
    packed = [path for path, value in host.state_dict().items() if not isinstance(value, torch.Tensor)]
    if any(not path.endswith("_extra_state") for path in packed):
        raise InputError(
            f"{packed[0]} of {name} is no tensor: packed or quantized weights cannot be told by a digest",
            "Pass the float module, and quantize on export.",
        )
    for path, parameter in host.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            got = str(parameter.dtype).removeprefix("torch.")
            raise InputError(
                f"{path} of {name} is {got}: expected float32, which branches are trained and exported in",
                "Pass host.float(), and put the precision down on export.",
            )


def frozen_copy(host: nn.Module) -> nn.Module:
    """As `freeze`.

    Raises:
        InputError: The module cannot be copied.
    """
    try:
        return freeze(host)
    except (RuntimeError, TypeError, ValueError, AttributeError) as exc:
        raise InputError(
            f"{type(host).__name__} cannot be copied ({_line(exc)})",
            "Keep what cannot be copied (locks, open files, results of a graph) out of the module.",
        ) from exc


def check_runs(host: nn.Module, args: Sequence[torch.Tensor]) -> None:
    """Whether a module takes an example.

    Raises:
        InputError: It does not; what it said is given, and what the example was.
    """
    try:
        with torch.no_grad():
            host(*(x.clone() for x in args))
    except Exception as exc:  # whatever a foreign forward raises
        told = ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in args)
        raise InputError(
            f"{type(host).__name__} cannot take the example {told} ({_line(exc)})",
            "Pass example=x, one batch as forward takes it, or a tuple of one for each argument.",
        ) from exc


def _what(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def _line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]
