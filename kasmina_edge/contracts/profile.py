"""Hardware profile: one target as (chip, clock, runtime, version). Units stand in the key names: profiles/README.md."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.contracts.manifest import EngineName, Name
from kasmina_edge.errors import InputError, KasminaError

MAX_PROFILE_BYTES = 64 * 1024
DEVICE_PATTERN = r"^(usb|pci)?(:\d{1,2})?$"


class Anchor(SignedContract):
    """One published or measured latency of a known network on this target."""

    network: str
    latency_ms: Annotated[float, Field(gt=0)]
    energy_uj: Annotated[float, Field(gt=0)] | None = None
    source: str


class HardwareProfile(SignedContract):
    """One hardware target.

    Attributes:
        engines: Engines to try, in order; "auto" among them measures those that are here.
        accelerator: What the profile hopes for; absent hardware falls back to the CPU unless the caller forbids it.
        accelerator_device: Which of several: "" (the first), "usb", "pci", ":N", "usb:N" or "pci:N", N from 0
            (libedgetpu's option ``device``).
        error_band: Relative half-width that every estimate made from this profile carries.
    """

    name: Name
    aliases: tuple[Name, ...] = ()
    description: str
    chip: str
    clock_mhz: Annotated[float, Field(gt=0)]
    runtime: str
    runtime_version: str
    engines: Annotated[tuple[EngineName, ...], Field(min_length=1)]
    accelerator: Literal["edgetpu"] | None = None
    accelerator_device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = ""
    delegate_library: str | None = None
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    ram_bytes: Annotated[int, Field(gt=0)]
    peak_int8_tops: Annotated[float, Field(gt=0)] | None = None
    power_w: Annotated[float, Field(gt=0)] | None = None
    parameter_sram_bytes: Annotated[int, Field(gt=0)] | None = None
    error_band: Annotated[float, Field(gt=0, le=1)]
    source: str
    anchors: tuple[Anchor, ...] = ()

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed profile is an `InputError`."""
        return InputError

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


def profile_folders() -> tuple[Path, ...]:
    """Where profiles are looked for, first match wins: ``$KASMINA_PROFILES``, the installed package, the checkout."""
    here = Path(__file__).resolve().parent.parent
    extra = os.environ.get("KASMINA_PROFILES")
    folders = (Path(extra),) if extra else ()
    return tuple(f for f in (*folders, here / "profiles", here.parent / "profiles") if f.is_dir())


def read_profile(path: Path) -> HardwareProfile:
    """Read one TOML file.

    Raises:
        InputError: Missing, too long, not TOML, or a field is wrong; the message names file and field.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    if len(data) > MAX_PROFILE_BYTES:
        raise InputError(f"{path}: {len(data)} bytes, at most {MAX_PROFILE_BYTES} are read")
    try:
        value = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InputError(f"{path}: not valid TOML ({exc})", "Correct the file, or choose another profile.") from exc
    return HardwareProfile.parse(value, where=str(path))


def list_profiles() -> dict[str, HardwareProfile]:
    """Every profile by name."""
    found: dict[str, HardwareProfile] = {}
    for folder in profile_folders():
        for path in sorted(folder.glob("*.toml")):
            profile = read_profile(path)
            found.setdefault(profile.name, profile)
    return found


def load_profile(name: str) -> HardwareProfile:
    """A profile by name, alias, or path of a ``.toml`` file.

    Raises:
        InputError: No such profile (the three nearest names are given), or it is malformed.
    """
    if name.endswith(".toml"):
        return read_profile(Path(name))
    profiles = list_profiles()
    names = {alias: p for p in profiles.values() for alias in (p.name, *p.aliases)}
    if name in names:
        return names[name]
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    hint = f"Did you mean {', '.join(nearest)}?" if nearest else "No profiles are installed."
    raise InputError(f"no profile is called {name!r}", hint)
