"""Intensities from files: one YAML a blueprint, composed by Hydra (its compose API), then checked by pydantic.

Hydra keeps one global state a process; here it is set aside while files are read and put back untouched, so that a
program which runs under Hydra itself can call this.
"""

from __future__ import annotations

import difflib
import math
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

from kasmina_edge.errors import InputError
from kasmina_trainer.intensity_scaler.levels import AXES, HIGHEST, Intensity, IntensitySettings

CONF = Path(__file__).parent / "conf"
"""The files that come with the package: ``intensity.yaml``, and ``blueprints/NAME.yaml`` for every blueprint."""

_MAIN, _GROUP = "intensity", "blueprints"
_MOST_BYTES = 65_536
_DEEPEST = 8
_HYDRAS = ("defaults", "hydra")
_SECTIONS = ("default", "ceilings")
_NAME = re.compile(r"^[a-z][a-z0-9-]{0,63}$")
_GLOBAL = (GlobalHydra, VersionBase, JobRuntime)
_LOCK = threading.Lock()


def load_intensities(
    names: Iterable[str] = (), *, folder: Path | str | None = None, overrides: Sequence[str] = ()
) -> IntensitySettings:
    """What is configured.

    Args:
        names: Blueprints that there are, as `blueprint_names` gives them: a file or an override for another one is
            refused. Nothing is checked where none are given.
        folder: Files of one's own, laid out as those of the package. A file here takes the place of the package's file
            of that name; what it leaves out is ``default``.
        overrides: ``NAME.AXIS=NUMBER``, for example ``depthwise.width=0.5``, ``default.gain=0.8`` or
            ``ceilings.learning_rate=1``; ``NAME=NUMBER`` is its gain. They come last; a ceiling
            they can only lower.

    Raises:
        InputError: A file is missing, too long, not YAML, has unknown keys or values outside their ranges, or an
            override is malformed; file and key are named. Files hold numbers alone: interpolations (``${...}``, which
            could read the environment), aliases and lists of other files are refused.
    """
    known = tuple(names)
    folder = None if folder is None else Path(folder)
    folders = [CONF] if folder is None else [folder.absolute(), CONF]
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder}: no such folder", f"Copy {CONF} and change what you need.")
    files = _files(folders)
    told = [_override(text) for text in overrides]
    _refuse_strangers(files, told, known)
    main = _first(folders, f"{_MAIN}.yaml")
    for path in (main, *files.values()):
        if not path.is_relative_to(CONF):
            _refuse_more_than_numbers(path)
    chosen = [f"+{_GROUP}@{_GROUP}.{name}={name}" for name in sorted(files)]
    values = {part: [f"++{key}={v!r}" for key, v, _ in told if key.startswith(part)] for part in ("default", _GROUP)}
    # Hydra looks for a main file in the first folder alone, and for all others in every folder.
    plain = _composed([main.parent], _MAIN, values["default"], [main])
    if unknown := set(plain) - set(_SECTIONS):
        raise InputError(f"{main}: unknown key {sorted(unknown)[0]}", f"Keys are {', '.join(_SECTIONS)}.")
    entries = _composed(folders, None, [*chosen, *values[_GROUP]], list(files.values())).get(_GROUP) or {}
    default = _level(plain.get("default"), {}, main, "default", told)
    base = default.model_dump()
    return IntensitySettings(
        default=default,
        ceilings=_ceilings(plain.get("ceilings"), main, told),
        blueprints={
            name: _level(entry, base, files.get(name), f"{_GROUP}.{name}", told)
            for name, entry in sorted(entries.items())
        },
    )


def _files(folders: Sequence[Path]) -> dict[str, Path]:
    """The file of each blueprint; earlier folders win."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted((folder / _GROUP).glob("*.yaml")):
            if not _NAME.fullmatch(path.stem):
                raise InputError(f"{path}: expected the name of a blueprint, a-z, 0-9 and -, a letter first")
            found.setdefault(path.stem, path)
    return found


def _first(folders: Sequence[Path], name: str) -> Path:
    return next(path for path in (folder / name for folder in folders) if path.is_file())


def _refuse_more_than_numbers(path: Path) -> None:
    """What Hydra would follow to other places, or blow up, is refused before anything is resolved."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        clause = f"at most {_MOST_BYTES:,} bytes are read" if len(data) > _MOST_BYTES else _more_than_numbers(data)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        clause = " ".join(str(exc).split())[:300]
    if clause:
        raise InputError(f"{path}: cannot be composed ({clause})", f"It holds numbers: {', '.join(AXES)}.")


def _more_than_numbers(data: bytes) -> str:
    """What a file has besides numbers, as a clause with its line; "" when nothing."""
    depth = 0
    for event in yaml.parse(data.decode(), Loader=yaml.SafeLoader):
        line = f"line {event.start_mark.line + 1}"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            return f"{line}: more than {_DEEPEST} levels deep"
        if isinstance(event, yaml.AliasEvent):
            return f"{line}: *{event.anchor} is an alias, and none is followed"
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            return f"{line}: an interpolation, and none is resolved"
        if isinstance(event, yaml.ScalarEvent) and depth == 1 and event.value in _HYDRAS:
            return f"{line}: unknown key {event.value}"
    return ""


def _override(text: str) -> tuple[str, float, str]:
    """Key, value and text of one override."""
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if parts[0] == _GROUP:
        parts = parts[1:]
    if len(parts) == 1:
        parts = [*parts, "gain"]
    if not separator or len(parts) != 2 or not _NAME.fullmatch(parts[0]):
        raise InputError(f"intensity {text!r}: expected NAME.AXIS=NUMBER", "For example depthwise.width=0.5.")
    name, axis = parts
    if axis not in AXES:
        nearest = difflib.get_close_matches(axis, AXES, n=1, cutoff=0.0)[0]
        raise InputError(f"intensity {text!r}: {axis!r} is none of {', '.join(AXES)}", f"Did you mean {nearest}?")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"intensity {text!r}: expected a number, got {value!r}")
    return (f"{name}.{axis}" if name in _SECTIONS else f"{_GROUP}.{name}.{axis}"), number, text


def _refuse_strangers(files: dict[str, Path], told: Sequence[tuple[str, float, str]], known: Sequence[str]) -> None:
    """Names that no blueprint has; the package's own files are those of its own blueprints."""
    if not known:
        return
    asked = {key.split(".")[1]: text for key, _, text in told if key.startswith(f"{_GROUP}.")}
    asked |= {name: str(path) for name, path in files.items() if path.parent.parent != CONF}
    for name, where in asked.items():
        if name not in known:
            nearest = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
            raise InputError(f"{where}: no blueprint is called {name!r}", f"Did you mean {nearest}?")


def _composed(
    folders: Sequence[Path], name: str | None, overrides: Sequence[str], read: Sequence[Path]
) -> dict[str, Any]:
    """What Hydra makes of a main file, or of none, with overrides.

    Args:
        folders: Where it looks, first found first taken.
        name: The main file's.
        overrides: In Hydra's own grammar.
        read: The files that are read, for the message of an error.
    """
    paths = [str(folder).replace("\\", "\\\\").replace("'", "\\'") for folder in folders[1:]]
    quoted = ",".join(f"'file://{path}'" for path in paths)
    search = [f"hydra.searchpath=[{quoted}]"] if paths else []
    try:
        with _undisturbed(), initialize_config_dir(str(folders[0]), job_name=_MAIN, version_base="1.3"):
            plain = OmegaConf.to_container(compose(name, overrides=[*search, *overrides]), resolve=True)
    except Exception as exc:  # Hydra's own, OmegaConf's, the YAML reader's and the disk's
        text = str(exc)
        faulty = next((path for path in read if f"/{path.name}" in text or f".{path.stem}" in text), folders[0])
        told = " ".join(text.split())
        raise InputError(f"{faulty}: cannot be composed ({told[:300]})", "Mend the file, or leave it out.") from exc
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _level(
    entry: object, base: dict[str, float], path: Path | None, key: str, told: Sequence[tuple[str, float, str]]
) -> Intensity:
    """One checked level; the message of an error names the file, the key, and the overrides that touched it."""
    own = [text for changed, _, text in told if changed.rpartition(".")[0] == key]
    where = f"{' with '.join([str(path or 'no file'), *own])}: {key}"
    if not isinstance(entry, dict | None):
        raise InputError(f"{where}: expected {', '.join(AXES)}, got {entry!r}")
    return Intensity.parse({**base, **(entry or {})}, where=where)


def _ceilings(entry: object, path: Path, told: Sequence[tuple[str, float, str]]) -> Intensity:
    """The file's ceilings, which an override may lower and never raise."""
    filed = _level(entry, HIGHEST.model_dump(), path, "ceilings", ())
    asked = {key.rpartition(".")[2]: number for key, number, _ in told if key.startswith("ceilings.")}
    ceilings = _level({**filed.model_dump(), **asked}, {}, path, "ceilings", told)
    if not ceilings.at_most(filed):
        raise InputError(
            f"{path}: ceilings are {filed.text}; an override asked for {ceilings.text}, and it may only lower them",
            "Raise the ceiling in the file.",
        )
    return ceilings


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hydra's global state set aside, and put back as it was."""
    with _LOCK:
        instances: dict[Any, Any] = Singleton._instances
        resolvers = dict(BaseContainer._resolvers)
        kept = {kind: instances.pop(kind) for kind in _GLOBAL if kind in instances}
        try:
            yield
        finally:
            for kind in _GLOBAL:
                instances.pop(kind, None)
            instances.update(kept)
            BaseContainer._resolvers.clear()
            BaseContainer._resolvers.update(resolvers)
