"""Hardware profile: one target as (chip, clock, runtime, version). Units stand in the key names: profiles/README.md."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, Strict

from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.contracts.manifest import EngineName, Name
from kasmina_edge.errors import InputError, KasminaError

MAX_PROFILE_BYTES = 64 * 1024
DEVICE_PATTERN = r"^(usb|pci)?(:\d{1,2})?$"
_UNITS = (
    "ns|us|ms|s|cycles|bytes|kib|macs|elements|ops|words|mhz|w|mw|nj|uj|pj|rows|columns|depth|channels|count|share|band|"
    "ratio|tops"
)
UNIT_PATTERN = re.compile(
    rf"_({_UNITS})(_per_(s|ms|us|cycle|mac|byte|element|op|layer|weight|pixel|row|call|inference|{_UNITS}))?$"
)
"""How the key of a coefficient ends: in its unit."""
MOST_COEFFICIENT = 1e12
"""Products of larger numbers with bytes and counts leave the range of floating point."""
DIVISORS = ("array_rows", "array_columns", "array_share", "product_share", "depthwise_share", "dense_share")
"""Coefficients, besides those per time, that layers divide by."""
_PER_TIME = re.compile(r"_per_(s|ms|us|cycle)$")


Number = Annotated[float, Strict()]
"""Neither true nor text, which would otherwise be taken for 1 and for what it spells."""
Whole = Annotated[int, Strict()]


class Anchor(SignedContract):
    """One published or measured latency of a known network on this target.

    Attributes:
        network: Name of a table in ``hardware_simulator/networks``, where there is one.
    """

    network: str
    latency_ms: Annotated[Number, Field(gt=0)]
    energy_uj: Annotated[Number, Field(gt=0)] | None = None
    source: str


class HardwareProfile(SignedContract):
    """One hardware target.

    Attributes:
        engines: Engines to try, in order; "auto" among them measures those that are here.
        accelerator: What the profile hopes for; absent hardware falls back to the CPU unless the caller forbids it.
        accelerator_device: Which of several: "" (the first), "usb", "pci", ":N", "usb:N" or "pci:N", N from 0
            (libedgetpu's option ``device``).
        error_band: Relative half-width that every estimate made from this profile carries.
        kind: The simulation layer that estimates for it.
        link: How the host reaches an accelerator.
        coefficients: Numbers of that layer's latency model, the unit in each key's name.
        weight_bits: Widths of weights that the runtime really computes with; 4 among them only where it was seen to.
        sources: Key of this file to where its number comes from, for every number that ``source`` does not cover;
            coefficients by ``coefficients``, or by ``coefficients.`` and how their keys begin.
    """

    name: Name
    aliases: tuple[Name, ...] = ()
    description: str
    chip: str
    clock_mhz: Annotated[Number, Field(gt=0)]
    runtime: str
    runtime_version: str
    engines: Annotated[tuple[EngineName, ...], Field(min_length=1)]
    accelerator: Literal["edgetpu"] | None = None
    accelerator_device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = ""
    delegate_library: str | None = None
    threads: Annotated[Whole, Field(ge=1, le=64)] = 1
    ram_bytes: Annotated[Whole, Field(gt=0)]
    peak_int8_tops: Annotated[Number, Field(gt=0)] | None = None
    power_w: Annotated[Number, Field(gt=0)] | None = None
    parameter_sram_bytes: Annotated[Whole, Field(gt=0)] | None = None
    error_band: Annotated[Number, Field(gt=0, le=1)]
    source: str
    anchors: tuple[Anchor, ...] = ()
    kind: Literal["cpu", "edgetpu", "npu", "mcu"] = "cpu"
    link: Literal["", "usb2", "usb3", "pcie"] = ""
    link_bytes_per_s: Annotated[Number, Field(gt=0)] | None = None
    memory_bytes_per_s: Annotated[Number, Field(gt=0)] | None = None
    flash_bytes: Annotated[Whole, Field(gt=0)] | None = None
    idle_power_w: Annotated[Number, Field(ge=0)] | None = None
    energy_pj_per_mac: Annotated[Number, Field(gt=0)] | None = None
    weight_bits: tuple[Literal[4, 8, 16, 32], ...] = (8,)
    coefficients: dict[str, Number] = {}
    sources: dict[str, str] = {}

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed profile is an `InputError`."""
        return InputError

    @classmethod
    def parse(cls, value: object, *, where: str = "") -> Self:
        """Validate plain data, each field alone and then together.

        Raises:
            InputError: The message names the field.
        """
        profile = super().parse(value, where=where)
        fault = profile._disagreement()
        if fault:
            raise InputError(f"{where or cls.__name__}.{fault}", "profiles/README.md explains every key.")
        return profile

    def _disagreement(self) -> str:
        """What does not go together, or "": the key, a colon, and why."""
        if self.kind == "edgetpu" and self.accelerator != "edgetpu":
            return 'kind: "edgetpu" needs accelerator = "edgetpu"'
        if self.kind == "mcu" and self.flash_bytes is None:
            return 'kind: "mcu" needs flash_bytes, where the weights lie'
        if self.link and self.accelerator is None and self.kind != "npu":
            return f'link: "{self.link}" has no accelerator at its end'
        if self.link_bytes_per_s is not None and not self.link:
            return "link_bytes_per_s: there is no link"
        names = (self.name, *self.aliases)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            return f"aliases: {', '.join(twice)} given twice"
        for key, value in self.coefficients.items():
            if not UNIT_PATTERN.search(key):
                return f"coefficients.{key}: the key does not end in a unit, e.g. _us or _cycles_per_mac"
            if not abs(value) <= MOST_COEFFICIENT:
                return f"coefficients.{key}: {value:g}, expected {MOST_COEFFICIENT:g} at most"
            if value == 0 and (_PER_TIME.search(key) or key in DIVISORS):
                return f"coefficients.{key}: 0, expected more: nothing would ever be done"
        for key, text in self.sources.items():
            if not self._has(key):
                return f"sources.{key}: this file has no such key"
            if not text.strip():
                return f"sources.{key}: empty, expected where the number comes from"
        return ""

    def _has(self, key: str) -> bool:
        table, dot, beginning = key.partition(".")
        if dot:
            return table == "coefficients" and any(each.startswith(beginning) for each in self.coefficients)
        return table in type(self).model_fields and table not in ("source", "sources") and bool(getattr(self, table))

    def unsourced(self) -> tuple[str, ...]:
        """Keys of numbers that nobody stands for; ``source`` covers all but coefficients."""
        begun = tuple(key.partition(".")[2] for key in self.sources if "." in key)
        free = () if "coefficients" in self.sources else self.coefficients
        found = tuple(f"coefficients.{key}" for key in free if not (begun and key.startswith(begun)))
        if self.source.strip():
            return found
        numbers = (key for key, value in self if isinstance(value, int | float) and key in self.model_fields_set)
        return (*found, *(key for key in numbers if key not in self.sources))

    def chosen(self, *, engine: str = "", accelerator_device: str = "") -> HardwareProfile:
        """This target with what a device's settings choose; "" leaves the profile's own.

        Args:
            engine: The one engine to use; "auto" measures the profile's and all others that are here.
            accelerator_device: As the attribute.

        Raises:
            InputError: Not such a name.
        """
        fields = self.model_dump()
        if engine:
            fields["engines"] = (*self.engines, engine) if engine == "auto" else (engine,)
        if accelerator_device:
            fields["accelerator_device"] = accelerator_device
        return HardwareProfile.parse(fields, where=f"profile {self.name} with the device's settings")


def profile_folders(extra: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Where profiles are looked for, first match wins.

    Args:
        extra: Folders that come first, e.g. ``profiles`` of a data folder. After them: ``$KASMINA_PROFILES``, the
            installed package, the checkout.
    """
    here = Path(__file__).resolve().parent.parent
    named = os.environ.get("KASMINA_PROFILES")
    folders = (*extra, *((Path(named),) if named else ()), here / "profiles", here.parent / "profiles")
    return tuple(f for f in dict.fromkeys(folders) if f.is_dir())


def read_profile(path: Path) -> HardwareProfile:
    """Read one TOML file.

    Raises:
        InputError: Missing, too long, not TOML, or a field is wrong; the message names file and field.
    """
    try:
        value = tomllib.loads(_profile_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InputError(f"{path}: not valid TOML ({exc})", "Correct the file, or choose another profile.") from exc
    return HardwareProfile.parse(value, where=str(path))


def _profile_bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would keep the reader for ever
            raise InputError(f"{path}: no plain file", "Name a profile file (.toml), or a profile of `profile list`.")
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_PROFILE_BYTES else b""
    except OSError as exc:
        raise InputError(
            f"{path}: cannot be read ({exc.strerror})", "Name a profile file (.toml), or a profile of `profile list`."
        ) from exc
    if max(size, len(data)) > MAX_PROFILE_BYTES:
        raise InputError(f"{path}: {size} bytes, at most {MAX_PROFILE_BYTES} are read")
    return data


@dataclass(frozen=True)
class FoundProfiles:
    """What the profile folders hold.

    Attributes:
        profiles: Every usable profile by name, with its file.
        faults: Files that are none, with what is wrong.
        withheld: Names and aliases that such a file claims and no folder before its own gives to another; nothing
            stands in for it.
    """

    profiles: Mapping[str, tuple[HardwareProfile, Path]]
    faults: Mapping[Path, InputError]
    withheld: Mapping[str, InputError]


def find_profiles(extra: Sequence[Path] = ()) -> FoundProfiles:
    """Every profile, and every file of the folders that is malformed or claims a name that another has.

    Args:
        extra: As `profile_folders`.
    """
    found: dict[str, tuple[HardwareProfile, Path]] = {}
    faults: dict[Path, InputError] = {}
    withheld: dict[str, InputError] = {}
    for folder in profile_folders(extra):
        before, claimed = set(found), dict[str, Path]()
        for path in sorted(folder.glob("*.toml")):
            try:
                profile = read_profile(path)
                _claim(claimed, profile, path)
            except InputError as exc:
                faults[path] = exc
                withheld = dict.fromkeys(_names_in(path) - before, exc) | withheld
            else:
                found.setdefault(profile.name, (profile, path))
    return FoundProfiles(found, faults, withheld)


def list_profiles(extra: Sequence[Path] = ()) -> dict[str, HardwareProfile]:
    """Every profile by name.

    Args:
        extra: As `profile_folders`.

    Raises:
        InputError: One is malformed, or two files of one folder claim the same name or alias.
    """
    found = find_profiles(extra)
    for fault in found.faults.values():
        raise fault
    return {name: profile for name, (profile, _) in found.profiles.items()}


def load_profile(name: str, extra: Sequence[Path] = ()) -> HardwareProfile:
    """A profile by name, alias, or path of a ``.toml`` file; files that are malformed and not meant are passed over.

    Args:
        name: What a user typed.
        extra: As `profile_folders`.

    Raises:
        InputError: No such profile (the three nearest names are given), or it is malformed.
    """
    if name.endswith(".toml"):
        return read_profile(Path(name))
    found = find_profiles(extra)
    if name in found.withheld:
        raise found.withheld[name]
    profiles = {each: profile for each, (profile, _) in found.profiles.items()}
    names: Mapping[str, HardwareProfile] = {
        **{alias: p for p in reversed(profiles.values()) for alias in p.aliases}, **profiles
    }  # fmt: skip
    if name in names:
        return names[name]
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    hint = f"Did you mean {', '.join(nearest)}?" if nearest else "No profiles are installed."
    unread = f"; not read: {', '.join(map(str, found.faults))}" if found.faults else ""
    raise InputError(f"no profile is called {name!r}{unread}", hint)


def _claim(claimed: dict[str, Path], profile: HardwareProfile, path: Path) -> None:
    """Write down that a file has these names.

    Raises:
        InputError: Another file of the folder has one of them.
    """
    names = (profile.name, *profile.aliases)
    for name in names:
        if name in claimed:
            raise InputError(f"{path}: {name!r} is taken by {claimed[name]}", "Give one of them another name.")
    claimed.update(dict.fromkeys(names, path))


def _names_in(path: Path) -> set[str]:
    """Names that a malformed file would have, as far as it can be read: its own, and those at the lines' beginnings."""
    try:
        text = _profile_bytes(path).decode(errors="replace")
    except InputError:
        text = ""
    lines = re.findall(r"^(?:name|aliases)\s*=(.*)$", text, re.MULTILINE)
    return {path.stem, *re.findall(r"[\"']([^\"']*)[\"']", " ".join(lines))}
