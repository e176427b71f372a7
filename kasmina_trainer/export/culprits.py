"""Which operation of a network a converter stumbled over, the source line it stands in, and what to use instead.

Converters name operators of their own (``STABLEHLO_SORT``) or ATen's; people know their network's lines. The lines are
kept by torch.export in every node's ``stack_trace``; this file looks them up, only after something went wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import fx

from kasmina_edge.errors import KasminaError
from kasmina_trainer.export.layout import AppModule
from kasmina_trainer.export.source.program import line_of

REPLACEMENTS: dict[tuple[str, ...], str] = {
    ("topk", "sort", "argsort", "msort", "median", "kthvalue"): (
        "A threshold or an iterated maximum replaces sorting; or leave it to the app, behind the network."
    ),
    ("nonzero", "masked_select", "unique", "unique2", "argwhere", "item", "local_scalar_dense"): (
        "Multiply by a mask of zeros and ones: a device's network has fixed shapes and no branches on values."
    ),
    ("cumsum", "cumprod", "logcumsumexp"): "A matrix product with a triangle of ones replaces a running sum.",
    ("fft", "fft_r2c", "fft_c2c", "fft_c2r", "stft", "istft"): (
        "A convolution with fixed cosine and sine weights replaces a Fourier transform; or leave it to the app."
    ),
    ("lstm", "gru", "rnn_tanh", "rnn_relu"): "One-dimensional convolutions replace recurrence over a window.",
    ("grid_sampler", "grid_sampler_2d", "affine_grid_generator"): "Resize by fixed factors replaces warping.",
    ("rand", "randn", "rand_like", "randn_like", "bernoulli", "multinomial", "native_dropout"): (
        "Call model.eval(): an exported network draws no random numbers."
    ),
    ("scatter", "scatter_add", "index_put", "index_add"): "Concatenate parts, or multiply by a constant mask.",
    ("linalg_inv", "inverse", "linalg_qr", "linalg_svd", "cholesky"): "Leave matrix factorisations to the app.",
}
"""What helps, by the ATen operators (without leading underscores) that no device runs."""

_ADVICE = "Build the network from operations that LiteRT has; a threshold or an iterated maximum replaces sorting."
_ATEN = re.compile(r"aten(?:\.|::)_?([a-z0-9_]+)")
_STABLEHLO = {"SORT": 0, "RNG_BIT_GENERATOR": 6, "RNG": 6, "FFT": 3, "SCATTER": 7, "CHOLESKY": 8}


def refusal(reason: BaseException, app: AppModule) -> KasminaError:
    """What to tell of a conversion that failed; names the operation and its source line where they can be found."""
    text = str(reason)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(reason).__name__)
    place, step = _located(_ATEN.findall(text), app)
    if not place:
        place = line_of(text)
    return KasminaError(f"the network cannot be converted to TFLite: {first[:300]}{place}", step)


def explain(missing: Sequence[str], app: AppModule | None) -> tuple[str, str]:
    """Where a network asks for operators that the runtime lacks, and what to use instead.

    Args:
        missing: TFLite names, such as ``STABLEHLO_SORT``.
        app: The network; None: only advice.

    Returns:
        `` (net.py, line 8: ...)`` or "", and the next step.
    """
    groups = list(REPLACEMENTS)
    wanted: list[str] = []
    for name in missing:
        group = _STABLEHLO.get(name.removeprefix("STABLEHLO_"))
        wanted += groups[group] if group is not None else [name.removeprefix("STABLEHLO_").lower()]
    return _located(wanted, app)


def _located(wanted: Iterable[str], app: AppModule | None) -> tuple[str, str]:
    names = {w.strip("_") for w in wanted}
    steps = [text for group, text in REPLACEMENTS.items() if names & set(group)]
    if app is None:
        return "", steps[0] if steps else _ADVICE
    known = {name for group in REPLACEMENTS for name in group}
    found = operations(app)
    for suspects in (names, known):
        for name, origin in found:
            if name in suspects:
                own = [text for group, text in REPLACEMENTS.items() if name in group]
                return f": {name}{line_of(origin)}", (own or steps or [_ADVICE])[0]
    return "", steps[0] if steps else _ADVICE


def operations(app: AppModule) -> list[tuple[str, str]]:
    """ATen names and origins (stack traces, or what the source file calls the node) of a network, in order.

    Empty where the network cannot be traced.
    """
    inner = app.module
    if isinstance(inner, fx.GraphModule) and any(n.meta.get("stack_trace") for n in inner.graph.nodes):
        return [
            (_name(n, inner), n.meta.get("stack_trace") or "") for n in inner.graph.nodes if n.op.startswith("call_")
        ]
    try:
        program = torch.export.export(app, (torch.zeros(app.app_shape),))
    except Exception:
        return []
    return [
        (_name(n, program.graph_module), n.meta.get("stack_trace") or "")
        for n in program.graph.nodes
        if n.op == "call_function"
    ]


def _name(node: fx.Node, module: torch.nn.Module) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__.lower()
    schema = getattr(node.target, "_schema", None)
    name = schema.name.partition("::")[2] if schema is not None else getattr(node.target, "__name__", str(node.target))
    return str(name).strip("_")
