"""``blueprints``: the library, with what each kind of growth costs at a site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kasmina_edge.cli.output import emit, grid
from kasmina_trainer.cli.options import Json

if TYPE_CHECKING:
    from kasmina_trainer.blueprints.port import Port
    from kasmina_trainer.blueprints.registry import Blueprint


def blueprints(
    shape: Annotated[
        str, typer.Option("--shape", help="What flows through the site: C,H,W or C,L or C; L,D with --tokens.")
    ] = "16,16,16",
    tokens: Annotated[bool, typer.Option("--tokens", help="The shape is a row of L tokens of width D.")] = False,
    as_json: Json = False,
) -> None:
    """List the blueprints: whether they can be removed, where they fit, and their price at a site."""
    from kasmina_trainer.blueprints.registry import blueprints as library

    port = _port(shape, tokens)
    rows = [_row(kind, port) for kind in library()]
    table = grid(
        f"Blueprints, and their price at a site of shape ({', '.join(map(str, port.shape))})",
        ("blueprint", "version", "kind", "axes", "parameters", "MACs a frame", "int8 bytes", "what it is"),
        [
            (
                r["name"], f"v{r['version']}", "mergeable" if r["mergeable"] else "removable",
                ", ".join(map(str, r["ranks"])) or "host",
                *([_figure(r[k]) for k in ("parameters", "macs", "extra_bytes")] if not r["refusal"] else ["-"] * 3),
                r["summary"] if not r["refusal"] else f"does not fit: {r['refusal']}",
            )
            for r in rows
        ],
    )  # fmt: skip
    emit({"shape": list(port.shape), "layout": port.layout.value, "blueprints": rows}, as_json=as_json, table=table)


def _row(kind: Blueprint, port: Port) -> dict[str, Any]:
    from kasmina_trainer.blueprints.registry import GraftBlueprint

    refusal = "" if isinstance(kind, GraftBlueprint) else "it retunes the whole host"
    refusal = refusal or kind.refusal(port)
    cost = kind.cost(port) if isinstance(kind, GraftBlueprint) and not refusal else None
    return {
        "name": kind.name,
        "version": kind.version,
        "mergeable": kind.mergeable,
        "ranks": sorted(kind.ranks),
        "exports": sorted(kind.exports),
        "summary": kind.summary,
        "refusal": refusal,
        "parameters": cost.parameters if cost else None,
        "macs": cost.macs if cost else None,
        "extra_bytes": cost.extra_bytes if cost else None,
    }


def _port(text: str, tokens: bool) -> Port:
    """A site by its shape, as if it left a convolution or linear layer that keeps it."""
    from kasmina_edge.errors import InputError
    from kasmina_trainer.blueprints.port import Layer, Layout, Port

    try:
        shape = tuple(int(side) for side in text.split(","))
    except ValueError as exc:
        raise InputError(f"--shape {text}: expected numbers such as 16,8,8", "") from exc
    plain = Port("site", shape, Layout.TOKENS) if tokens else Port.of(shape)
    width, rank = plain.channels, plain.rank
    if plain.layout in (Layout.TOKENS, Layout.VECTOR):
        layer = Layer("linear", width, width)
    else:
        taps, ones = (3,) * (rank - 1), (1,) * (rank - 1)
        layer = Layer("conv2d" if rank == 3 else "conv1d", width, width, taps, ones, ones, ones)
    return Port("site", shape, plain.layout, layer=layer, input_shape=shape, context=shape)


def _figure(value: int) -> str:
    return f"{value:,}"
