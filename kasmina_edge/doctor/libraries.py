"""Python packages that get in each other's way, and interpreters for which there are no wheels."""

from __future__ import annotations

import re

from kasmina_edge.doctor.finding import Finding
from kasmina_edge.doctor.machine import Machine

LEAST_GLIBC = (2, 27)  # the wheels' manylinux tags: ai-edge-litert 2_27, onnxruntime 2_28
ONNX_GLIBC = (2, 28)
INSTALL = "pip install ai-edge-litert"


def check_libraries(machine: Machine) -> list[Finding]:
    """All of them."""
    found = [*_runtimes(machine), *_numpy(machine), *_pycoral(machine), *_onnx(machine), *_wheels(machine)]
    return found or [Finding("libraries", "libraries", "ok", "no package is in another's way")]


def _runtimes(machine: Machine) -> list[Finding]:
    have = [n for n in ("ai-edge-litert", "tflite-runtime", "tensorflow") if n in machine.packages]
    if "ai-edge-litert" in have and "tflite-runtime" in have:
        return [
            Finding(
                "libraries.runtimes", "libraries", "warn", f"two TFLite runtimes: {_named(machine, have)}",
                "one process that loads both may crash; Kasmina takes ai-edge-litert",
                "pip uninstall tflite-runtime",
            )
        ]  # fmt: skip
    return []


def _numpy(machine: Machine) -> list[Finding]:
    """tflite-runtime was built against numpy 1 and fails at its first array with numpy 2."""
    numpy = machine.packages.get("numpy", "")
    if "tflite-runtime" in machine.packages and "ai-edge-litert" not in machine.packages and _major(numpy) >= 2:
        return [
            Finding(
                "libraries.numpy", "libraries", "fail",
                f"numpy {numpy} with tflite-runtime {machine.packages['tflite-runtime']}",
                "tflite-runtime was built for numpy 1 and ended in 2023", f"{INSTALL}   (or: pip install 'numpy<2')",
            )
        ]  # fmt: skip
    return []


def _pycoral(machine: Machine) -> list[Finding]:
    """The index's ``pycoral`` is a tool for maps of coral reefs; Google's is 1.x and 2.0.0 of its own index."""
    version = machine.packages.get("pycoral")
    if version is None or _major(version) >= 1:
        return []
    return [
        Finding(
            "libraries.pycoral", "libraries", "warn", f"pycoral {version} is the coral-reef atlas's, not Google's",
            "the name in the package index belongs to somebody else; Kasmina needs no pycoral",
            "pip uninstall pycoral",
        )
    ]  # fmt: skip


def _onnx(machine: Machine) -> list[Finding]:
    have = [n for n in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino") if n in machine.packages]
    if len(have) < 2:
        return []
    return [
        Finding(
            "libraries.onnxruntime", "libraries", "warn", f"several ONNX Runtimes: {_named(machine, have)}",
            "they overwrite each other's files: what runs is the one that was installed last",
            f"pip uninstall {' '.join(have)} && pip install {have[-1]}",
        )
    ]  # fmt: skip


def _wheels(machine: Machine) -> list[Finding]:
    """There are wheels for 64-bit x86 and Arm with glibc, and for nothing else."""
    if machine.bits == 32:
        kernel = " under a 64-bit kernel" if machine.arch in ("aarch64", "x86_64") else ""
        return [
            Finding(
                "libraries.wheels", "libraries", "fail", f"this Python has 32 bits{kernel} ({machine.arch})",
                "neither LiteRT nor ONNX Runtime has wheels for 32 bits", "install a 64-bit system image",
            )
        ]  # fmt: skip
    name, version = machine.libc
    if name != "glibc":
        return [
            Finding(
                "libraries.wheels", "libraries", "fail", f"C library {name or 'musl or unknown'}, wheels need glibc",
                "Alpine and other musl systems have no wheels of LiteRT", "use a Debian or Ubuntu image",
            )
        ]  # fmt: skip
    have = tuple(int(p) for p in re.findall(r"\d+", version)[:2])
    if have < ONNX_GLIBC:
        which = "LiteRT and ONNX Runtime need" if have < LEAST_GLIBC else "ONNX Runtime needs"
        need = LEAST_GLIBC if have < LEAST_GLIBC else ONNX_GLIBC
        level = "fail" if have < LEAST_GLIBC else "warn"
        return [
            Finding(
                "libraries.wheels", "libraries", level,  # type: ignore[arg-type]
                f"glibc {version}, {which} {need[0]}.{need[1]}",
                "the system is too old for the wheels", "upgrade to Debian 11, Ubuntu 20.04 or later",
            )
        ]  # fmt: skip
    return []


def _named(machine: Machine, names: list[str]) -> str:
    return ", ".join(f"{n} {machine.packages[n]}" for n in names)


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0
