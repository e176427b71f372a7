"""A user's own network, from a ``.pt2`` or ``.onnx`` file, as a PyTorch module that can be exported.

Nothing in such a file is executed: of a ``.pt2`` only JSON, raw numbers and names of PyTorch operators are read
(`program`), of an ``.onnx`` only its graph (`onnx_graph`). Pickles are refused, whoever wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kasmina_edge.contracts.canonical import sha256_hex
from kasmina_edge.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

MAX_MODEL_BYTES = 2 * 1024**3
_HOW_TO_SAVE = (
    "Write a .pt2 with torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2'), or an .onnx."
)


@dataclass(frozen=True)
class Source:
    """A network that was read from a file.

    Attributes:
        module: In evaluation mode, on the CPU, in float32, for a batch of one; torch's own layout (channels first).
        input_shape: Shape of its one input, with the batch axis.
        output_names: One a network output, in order; "" where the file names none.
        kind: ``pt2`` or ``onnx``.
        digest: SHA-256 of the file.
        name: The file's.
        beside: SHA-256 of files that hold its weights, by name.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    output_names: tuple[str, ...]
    kind: str
    digest: str
    name: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def provenance(self) -> str:
        """What it was made of, with the digest of every file."""
        files = "".join(f", {name} sha256 {digest}" for name, digest in self.beside.items())
        return f"{self.kind} sha256 {self.digest}{files}"


def load_source(path: Path, *, input_shape: Sequence[int] | None = None) -> Source:
    """Read a user's network.

    Args:
        path: A ``.pt2`` that ``torch.export.save`` of torch 2.9 or later wrote, or an ``.onnx``, with its side file of
            weights beside it where it has one; the content decides, not the name.
        input_shape: For an ``.onnx`` whose input has open axes: what to fix them to, batch axis included.

    Raises:
        InputError: Missing or too long; something else; pickled parts; open shapes; several inputs; weights that are
            not finite; an operator that cannot be taken (named, with its layer or source line).
    """
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise InputError(f"{path}: {size} bytes, at most {MAX_MODEL_BYTES} are read")
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such model file", _HOW_TO_SAVE) from exc
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})", _HOW_TO_SAVE) from exc
    from kasmina_trainer.export.refusals import refuse_bad_weights

    if data[:2] == b"PK":
        from kasmina_trainer.export.source.program import read_program

        module, shape, names = read_program(data, where=str(path))
        kind, beside = "pt2", dict[str, str]()
    elif path.suffix in (".pt", ".pth", ".pkl", ".pickle") or data[:1] == b"\x80":
        raise InputError(f"{path}: a pickle can run any code while it is read, so none is read", _HOW_TO_SAVE)
    elif data[4:8] == b"TFL3":
        raise InputError(
            f"{path}: a TFLite file is what export makes",
            "Deploy it as it is with `kasmina-edge bundle create`, or export the network that it came from.",
        )
    else:
        from kasmina_trainer.export.source.onnx_graph import read_onnx

        module, shape, names, beside = read_onnx(data, where=str(path), input_shape=input_shape, folder=path.parent)
        kind = "onnx"
    if kind == "pt2" and input_shape is not None and tuple(input_shape) != shape:
        raise InputError(f"{path}: exported for inputs {shape}, {tuple(input_shape)} was asked", "Export it anew.")
    refuse_bad_weights(module, where=str(path))
    vars(module)["fixed_batch"] = not _opens(module, shape)
    return Source(module.eval(), shape, names, kind, sha256_hex(data), path.name, beside)


def _opens(module: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a module that was written down for a batch of one computes two rows as it computes each alone."""
    import torch

    from kasmina_trainer.export.layout import tensors_of

    two = torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            both = tensors_of(module(two))
            single = [tensors_of(module(two[i : i + 1])) for i in range(2)]
    except (RuntimeError, IndexError, ValueError):
        return False
    return all(
        pair.shape[0] == 2 and torch.allclose(pair, torch.cat(rows), rtol=1e-3, atol=1e-4)
        for pair, rows in zip(both, (list(parts) for parts in zip(*single, strict=True)), strict=True)
    )


def load_model(path: Path) -> nn.Module:
    """The module alone; see `load_source`."""
    return load_source(path).module
