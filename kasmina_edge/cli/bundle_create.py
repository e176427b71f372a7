"""``bundle create`` and ``bundle diff``: a bundle from a third party's model file, and what two bundles differ in."""

from __future__ import annotations

import io
import math
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from kasmina_edge.bundle import pack, read_file
from kasmina_edge.cli.output import emit, grid, rows_table, size_text
from kasmina_edge.contracts.canonical import short_digest
from kasmina_edge.contracts.manifest import MAX_FILE_BYTES, BundleManifest, ModelTensor, Preprocessing
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.errors import InputError
from kasmina_edge.storage import make_private_folder, write_durable

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
MAX_SAMPLES_BYTES = 256 * 1024 * 1024
MAX_LABELS_BYTES = 1024 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]{1,32})?", re.ASCII)


def register(app: typer.Typer) -> None:
    """Add the verbs to ``kasmina-edge bundle``."""
    app.command("create")(create)
    app.command("diff")(diff)


def create(
    model: Annotated[Path, typer.Argument(help="A .tflite or .onnx file, or another that --engine takes.")],
    name: Annotated[str | None, typer.Option(help="The bundle's name; the file's, if not given.")] = None,
    version: Annotated[str, typer.Option(help="Semantic version.")] = "1.0.0",
    shapes: Annotated[
        list[str] | None, typer.Option("--input", help="NAME=1x512: the shape of an input with open axes.")
    ] = None,
    states: Annotated[
        list[str] | None,
        typer.Option("--state", help="IN=OUT carries an output to the next call; guessed by names. 'none': no guess."),
    ] = None,
    constants: Annotated[
        list[str] | None, typer.Option("--constant", help="NAME=16000: an input that the app is not to see.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Class names, one a line.")] = None,
    head: Annotated[
        Literal["classification", "other"] | None,
        typer.Option(help="What the first output is; classification where there are labels."),
    ] = None,
    mean: Annotated[float, typer.Option(help="Taken from every input value first.")] = 0.0,
    std: Annotated[float, typer.Option(help="Input values are then divided by it.")] = 1.0,
    valid_range: Annotated[
        str | None, typer.Option(help="LOW:HIGH of input values; others are refused on the device.")
    ] = None,
    vectors: Annotated[int, typer.Option(min=1, max=4096, help="Self-test vectors to draw.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="What they are drawn from.")] = 0,
    samples: Annotated[
        Path | None, typer.Option(help="Real inputs for the self-test: .npy, or .npz with one array an input.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Whose answers are the known ones.")] = "",
    profile: Annotated[str, typer.Option(help="Hardware target.")] = "x86-cpu",
    out: Annotated[Path, typer.Option(help="Folder for NAME-VERSION.kasmina.")] = Path("build"),
    as_json: JsonOption = False,
) -> None:
    """Wrap a third party's model file into a bundle, prove it, and sign it with the desk key."""
    from kasmina_edge.fleet.repository import Repository
    from kasmina_edge.wrapping import WrapPlan, wrap

    target = load_profile(profile)
    names = _labels(labels)
    plan = WrapPlan(
        name=_name_from(model) if name is None else _named(name),
        version=_versioned(version),
        profile=target.name,
        engine=engine,
        shapes={key: _shape(key, text) for key, text in _pairs("--input", shapes).items()},
        states=None if not states else {} if states == ["none"] else _pairs("--state", states),
        constants={key: _number("--constant", text) for key, text in _pairs("--constant", constants).items()},
        labels=names,
        head=head or ("classification" if names else "other"),
        preprocessing=_preprocessing(mean, std, valid_range),
        vectors=vectors,
        seed=seed,
        samples=_samples(samples),
    )
    made = wrap(_read(model, MAX_FILE_BYTES), model.name, plan, target)
    path = out / f"{plan.name}-{plan.version}.kasmina"
    if path.exists():
        raise InputError(f"{path}: is there already", "Give another --version, or remove the file.")
    data = pack(Repository.desk(clock=time.time).sign_bundle(made.bundle))
    make_private_folder(out)
    write_durable(path, data)
    manifest, entry = made.bundle.manifest, made.model
    rows = [
        (
            "bundle",
            f"{manifest.id}, {size_text(len(data))}, content {short_digest(manifest.content_digest())}, desk key",
        ),
        *(("input", _say(t)) for t in entry.app_inputs),
        *(("output", _say(t)) for t in entry.app_outputs),
        *(("constant", f"{t.name} = {t.constant:g}") for t in entry.inputs if t.constant is not None),
        *(("state", f"{pair.input} <- {pair.output}, begins with zeros") for pair in entry.states),
        *([("state", "the file remembers in variables of its own")] if entry.remembers else []),
        ("self-test", f"{entry.selftest.samples} vectors, tolerance {entry.selftest.tolerance:.3g} {_units(entry)}"),
        *(("", _agreement(a)) for a in made.agreements),
        *(("note", note) for note in made.notes),
        ("parity", "not measured: there is no float network to compare with"),
        ("written", str(path)),
        ("next", f"kasmina-edge deploy {path}"),
    ]
    value = {
        "file": str(path),
        "digest": manifest.content_digest(),
        "manifest": manifest.model_dump(mode="json"),
        "engines": [
            {"engine": a.engine, "runs_on": a.runs_on, "worst": a.worst, "agrees": a.agrees, "reason": a.reason}
            for a in made.agreements
        ],
        "notes": list(made.notes),
    }
    emit(value, as_json=as_json, table=rows_table(rows))


def diff(
    old: Annotated[Path, typer.Argument(help="A .kasmina file.")],
    new: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: JsonOption = False,
) -> None:
    """What differs between two bundles: fields of the manifest, and files by size and digest."""
    before, after = read_file(old).manifest, read_file(new).manifest
    changed = differences(before, after)
    value = {"same": not changed, "changed": {field: {"old": a, "new": b} for field, a, b in changed}}
    table = grid(f"{before.id} -> {after.id}", ("field", "old", "new"), changed) if changed else "no difference"
    emit(value, as_json=as_json, table=table)


def differences(before: BundleManifest, after: BundleManifest) -> list[tuple[str, str, str]]:
    """Field by field, (name, old, new) as text; "-" where one of them lacks it."""
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    return [
        (name, old.get(name, "-"), new.get(name, "-"))
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        if {"path", "sha256", "size_bytes"} <= value.keys():
            text = f"{value['path']}, {size_text(value['size_bytes'])}, {short_digest(value['sha256'])}"
            return {name: text}
        return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}".lstrip(".")).items()}
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return {k: v for i, part in enumerate(value) for k, v in _flat(part, f"{name}[{i}]").items()}
    if isinstance(value, list):
        return {name: ", ".join(map(str, value)) or "none"}
    return {name: "none" if value is None else str(value)}


def _read(path: Path, most: int) -> bytes:
    """A regular file's bytes, never more than ``most`` of them, whatever its size claims."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: no regular file", "Give the path of a file, e.g. model.onnx.")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    if len(data) > most:
        raise InputError(f"{path}: more than {most} bytes, at most so many are read")
    return data


def _name_from(model: Path) -> str:
    word = "".join(c if c.isascii() and c.isalnum() else "-" for c in model.stem.lower()).strip("-")
    return word[:64] or "model"


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"--name {name}: 1 to 64 of a-z, 0-9 and - make a name, the first no -", "For example --name door-camera."
        )
    return name


def _versioned(version: str) -> str:
    if not _VERSION.fullmatch(version):
        raise InputError(
            f"--version {version}: a semantic version is needed", "For example --version 1.2.3 or 1.2.3-rc1."
        )
    return version


def _preprocessing(mean: float, std: float, valid_range: str | None) -> Preprocessing:
    _finite("--mean", str(mean), mean)
    if _finite("--std", str(std), std) <= 0:
        raise InputError(f"--std {std}: input values are divided by it, it has to be above 0", "For example --std 255.")
    return Preprocessing.parse({"mean": mean, "std": std, "valid_range": _range(valid_range)})


def _pairs(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.rpartition("=")
        if not (name and equals and value):
            raise InputError(f"{option} {text}: expected NAME=VALUE")
        found[name] = value
    return found


def _shape(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace(",", "x").split("x"))
    except ValueError as exc:
        raise InputError(f"--input {name}={text}: expected lengths with x between, e.g. {name}=1x512") from exc


def _number(option: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError as exc:
        raise InputError(f"{option} {text}: expected a number") from exc
    return _finite(option, text, number)


def _finite(option: str, text: str, number: float) -> float:
    if not math.isfinite(number):
        raise InputError(f"{option} {text}: expected a finite number", "For example 0.5.")
    return number


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, _, high = text.partition(":")
    pair = _number("--valid-range", low), _number("--valid-range", high)
    if not pair[0] < pair[1]:
        raise InputError(f"--valid-range {text}: expected LOW:HIGH with LOW below HIGH")
    return pair


def _labels(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in _read(path, MAX_LABELS_BYTES).decode().splitlines()]
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not UTF-8 text") from exc
    return tuple(line for line in lines if line)


def _samples(path: Path | None) -> dict[str, Any] | None:
    """Arrays by input name; a single .npy goes by the name "" and fits a model with one input."""
    if path is None:
        return None
    data = _read(path, MAX_SAMPLES_BYTES)
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError) as exc:
        raise InputError(f"{path}: not a .npy or .npz file without pickles ({exc})") from exc


def _say(tensor: ModelTensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "a single number"
    quantized = "" if tensor.scale is None else f", quantized (float32 for the app, step {tensor.scale:.3g})"
    return f"{tensor.name}: {tensor.dtype} {shape}{quantized}"


def _units(model: Any) -> str:
    return "units" if any(t.dtype.startswith("float") for t in model.app_outputs) else "steps"


def _agreement(found: Any) -> str:
    if found.worst is None:
        return f"{found.engine}: not here ({found.reason.split('. Install')[0]})"
    verdict = "agrees" if found.agrees else "does NOT agree, and is not counted in the tolerance"
    return f"{found.engine}: {verdict}, worst {found.worst:.3g}"
