"""How both programs speak: tables for people, one JSON object for machines, one sentence for errors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from kasmina_edge.cli.loglines import hush_native_libraries
from kasmina_edge.contracts.record import printable
from kasmina_edge.errors import KasminaError

EXIT_CODES = (
    "Exit codes: 0 done, 1 the thing asked for failed, 2 wrong call, 3 refused by trust or change plan, "
    "4 this machine cannot, 5 unreachable, 6 rolled back."
)

PIPE_WIDTH = 160
_ESCAPED = {c: f"\\u{c:04x}" for c in range(0x7F, 0xA0)}  # control characters that JSON would leave bare


def console(*, stderr: bool = False) -> Console:
    """A console that colours only a terminal and honours ``NO_COLOR``; files and pipes get wide lines."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_WIDTH)


def emit(value: dict[str, Any], *, as_json: bool, table: RenderableType | None = None) -> None:
    """Print ``value`` as one JSON object, or ``table`` for people (nothing when it is None); a str is never markup."""
    if as_json:
        sys.stdout.write(json.dumps(value, sort_keys=True, ensure_ascii=False).translate(_ESCAPED) + "\n")
    elif table is not None:
        console().print(plain(table))


def plain(cell: RenderableType) -> RenderableType:
    """A str as text that is neither rich markup nor a terminal escape, whoever wrote it; anything else as it is."""
    return Text(printable(cell)) if isinstance(cell, str) else cell


def rows_table(rows: Iterable[Sequence[str]]) -> Table:
    """Label and text in two aligned columns, without lines: the look of ``kasmina-edge deploy``."""
    table = Table(show_header=False, box=None, padding=(0, 2), pad_edge=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table with a header line."""
    heading = Text(printable(title), style="table.title")
    table = Table(title=heading, title_justify="left", box=None, header_style="bold", padding=(0, 2))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def run_app(app: typer.Typer, argv: Sequence[str] | None, *, program: str) -> int:
    """Run a typer app; typed errors become one sentence, the next step and an exit code.

    ``--debug`` anywhere in the call shows the traceback instead. Usage errors exit with 2, Ctrl-C with 130; with
    ``--json`` in the call a usage error is one JSON object as well.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    if argv is None and not debug:
        hush_native_libraries()
    args = [a for a in args if a != "--debug"]
    as_json = "--json" in args
    try:
        code = app(args=args, prog_name=program, standalone_mode=not as_json)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else (0 if exc.code is None else 1)
    except KasminaError as exc:
        if debug:
            raise
        report_error(exc, as_json=as_json)
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as exc:
        if isinstance(exc, _USAGE_ERROR):
            return _report_usage(exc, program)
        if debug:
            raise
        fault = KasminaError(
            f"unexpected {type(exc).__name__}: {exc}",
            "This is a fault in Kasmina; run again with --debug and report it.",
        )
        report_error(fault, as_json=as_json)
        return 1
    return code if isinstance(code, int) else 0


# typer's own copy of click or click itself, as its version has it
_USAGE_ERROR = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


def _report_usage(exc: Exception, program: str) -> int:
    """A wrong call as JSON."""
    error = cast(Any, exc)
    path = error.ctx.command_path if error.ctx is not None else program
    _write_error("UsageError", error.format_message(), f"See `{path} --help`.", error.exit_code)
    return int(error.exit_code)


def report_error(exc: KasminaError, *, as_json: bool) -> None:
    """One error on stderr (or as JSON on stdout)."""
    if as_json:
        _write_error(exc.kind, exc.message, exc.next_step, exc.exit_code)
        return
    err = console(stderr=True)
    err.print(Text(_lines(exc.message), style="bold red"))
    tail = f"(exit {exc.exit_code})"
    err.print(Text(_lines(f"{exc.next_step} {tail}" if exc.next_step else tail)))


def _lines(text: str) -> str:
    """Printable, with its line ends."""
    return "\n".join(map(printable, text.split("\n")))


def _write_error(kind: str, message: str, next_step: str, exit_code: int) -> None:
    body = {"error": kind, "message": message, "next_step": next_step, "exit_code": exit_code}
    sys.stdout.write(json.dumps(body, sort_keys=True) + "\n")


def size_text(size: int) -> str:
    """``940 B``, ``88 kB``, ``3.6 MB`` or ``1.1 GB``: decimal units, the largest that leaves a number from 1 on.

    >>> [size_text(size) for size in (940, 5600, 88256, 999_950, 3_640_000, 1_073_741_824)]
    ['940 B', '5.6 kB', '88 kB', '1.0 MB', '3.6 MB', '1.1 GB']
    """
    if size < 1000:
        return f"{size} B"
    shown, unit = size / 1000.0, "kB"
    for larger in ("MB", "GB", "TB"):
        if shown < 999.5:
            break
        shown, unit = shown / 1000.0, larger
    return f"{shown:.1f} {unit}" if shown < 9.95 else f"{shown:.0f} {unit}"
