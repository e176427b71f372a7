"""The Edge TPU's shared library and compiler: is it there, is it this machine's, does it fit the runtime."""

from __future__ import annotations

import re
import struct
from pathlib import PurePosixPath

from kasmina_edge.doctor.finding import Finding
from kasmina_edge.doctor.machine import Machine

LIBRARY = "libedgetpu.so.1"
FOLDERS = ("/usr/local/lib", "/usr/lib", "/lib", "/usr/lib64")
APT = "sudo apt-get install libedgetpu1-std   (from packages.cloud.google.com, or github.com/feranick/libedgetpu)"
ELF_MACHINES = {0x03: "i686", 0x28: "armv7l", 0x3E: "x86_64", 0xB7: "aarch64"}
SAME = {"amd64": "x86_64", "arm64": "aarch64", "armv6l": "armv7l", "armv8l": "armv7l", "i386": "i686"}
_PACKAGE = re.compile(r"^Package: (libedgetpu1-\w+)$.*?^Version: (\S+)$", re.MULTILINE | re.DOTALL)


def check_library(machine: Machine) -> list[Finding]:
    """Found, for this machine's architecture, and not older than the runtime can stand.

    Google's last build (16.0, of 2021) crashes under runtimes of TensorFlow 2.12 and later: google-coral/edgetpu#812.
    """
    path = find_library(machine)
    if path is None:
        return [Finding("edgetpu.library", "Edge TPU", "absent", f"{LIBRARY} not found", "", APT)]
    built_for = elf_machine(machine, path)
    ours = "armv7l" if machine.bits == 32 and machine.arch == "aarch64" else SAME.get(machine.arch, machine.arch)
    if built_for and built_for != ours:
        return [
            Finding(
                "edgetpu.library", "Edge TPU", "fail", f"{path} is built for {built_for}, this Python is {ours}",
                "the loader refuses it, or finds nothing", APT,
            )
        ]  # fmt: skip
    name, version = _package(machine)
    said = f"{path}, {name} {version}" if version else f"{path}, version not known to dpkg"
    runtime = next((n for n in ("ai-edge-litert", "tflite-runtime") if n in machine.packages), "")
    if version.split("-")[0] == "16.0" and runtime and _is_newer(runtime, machine.packages[runtime]):
        return [
            Finding(
                "edgetpu.library", "Edge TPU", "warn", said,
                f"Google's 16.0 of 2021 crashes under newer runtimes such as {runtime} {machine.packages[runtime]} "
                "(google-coral/edgetpu#812)",
                "install a build for your runtime: github.com/feranick/libedgetpu/releases",
            )
        ]  # fmt: skip
    return [Finding("edgetpu.library", "Edge TPU", "ok", said)]


def check_compiler(machine: Machine) -> list[Finding]:
    """``edgetpu_compiler`` is needed where bundles are made, and exists for x86-64 only."""
    path = machine.which("edgetpu_compiler")
    if path is None:
        only = "" if SAME.get(machine.arch, machine.arch) == "x86_64" else "; there is none for this architecture"
        return [
            Finding(
                "edgetpu.compiler", "Edge TPU", "absent", f"edgetpu_compiler not found{only}",
                "only exporting needs it: a device runs what was compiled elsewhere",
            )
        ]  # fmt: skip
    text = machine.run([path, "--version"]) or ""
    found = re.search(r"version (\d+\.\d+)", text)
    if not found:
        return [Finding("edgetpu.compiler", "Edge TPU", "warn", f"{path} does not say its version")]
    if float(found[1]) < 16.0:
        return [
            Finding(
                "edgetpu.compiler", "Edge TPU", "warn", f"edgetpu_compiler {found[1]} at {path}",
                "files of another compiler than 16.0 may be refused by the device's runtime",
                "sudo apt-get install edgetpu-compiler",
            )
        ]  # fmt: skip
    return [Finding("edgetpu.compiler", "Edge TPU", "ok", f"edgetpu_compiler {found[1]} at {path}")]


def find_library(machine: Machine) -> str | None:
    """Path of `LIBRARY` where the dynamic loader looks."""
    folders = [folder for folder in FOLDERS if machine.exists(folder)]
    deeper = [f"{f}/{n}" for f in folders for n in machine.names(f) if n.endswith(("-linux-gnu", "-linux-gnueabihf"))]
    for folder in (*deeper, *folders):
        if machine.exists(f"{folder}/{LIBRARY}"):
            return str(PurePosixPath(folder) / LIBRARY)
    return None


def elf_machine(machine: Machine, path: str) -> str:
    """Architecture in a shared library's header (ELF, e_machine); empty when it is none."""
    try:
        with machine.at(path).open("rb") as file:
            head = file.read(20)
    except OSError:
        return ""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ""
    order = "<" if head[5] == 1 else ">"
    number = struct.unpack(f"{order}H", head[18:20])[0]
    return ELF_MACHINES.get(number, f"machine {number:#x}")


def _package(machine: Machine) -> tuple[str, str]:
    for block in (machine.read_all("/var/lib/dpkg/status") or "").split("\n\n"):
        found = _PACKAGE.search(block)
        if found:
            return found[1], found[2]
    return "", ""


def _is_newer(runtime: str, version: str) -> bool:
    """Whether the runtime is of TensorFlow 2.12 or later; every ai-edge-litert is."""
    if runtime == "ai-edge-litert":
        return True
    parts = [int(p) for p in re.findall(r"\d+", version)[:2]]
    return parts >= [2, 12]
