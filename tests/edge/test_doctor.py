"""Each cause that fills the trackers of Coral and Frigate, on a machine that has it and on one that has not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds.machines import (
    BOTH_RULES,
    FERANICK,
    GOOGLE_16,
    GROUP,
    PCI,
    RULE,
    elf,
    machine,
    node,
    pci_card,
    tree,
    usb_stick,
)

from kasmina_edge.cli import main
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.doctor import Finding, Machine, examine
from kasmina_edge.doctor.agent_service import check_service
from kasmina_edge.doctor.board import check_board
from kasmina_edge.doctor.broker import check_broker
from kasmina_edge.doctor.data_folder import check_data_folder
from kasmina_edge.doctor.edgetpu_library import check_compiler, check_library
from kasmina_edge.doctor.edgetpu_pci import check_pci
from kasmina_edge.doctor.edgetpu_usb import check_usb
from kasmina_edge.doctor.inference import check_engines, engine_findings
from kasmina_edge.doctor.libraries import check_libraries
from kasmina_edge.doctor.machine import Space
from kasmina_edge.engines import EngineCheck, engine_types
from kasmina_edge.errors import LinkError

LIBRARY = "usr/lib/x86_64-linux-gnu/libedgetpu.so.1"
NODE = "dev/bus/usb/002/004"
RULES = "lib/udev/rules.d/60-libedgetpu1-std.rules"


def by_id(findings: list[Finding]) -> dict[str, Finding]:
    assert len({f.id for f in findings}) == len(findings), findings
    return {f.id: f for f in findings}


def only(findings: list[Finding], name: str, level: str, *words: str) -> Finding:
    """The finding of that name, with these words; what is wrong says what to do."""
    found = by_id(findings)[name]
    text = f"{found.found} {found.cause} {found.next_step}"
    assert found.level == level and all(word in text for word in words), found
    return found


# The library and the compiler -----------------------------------------------------------------------------------------


def test_no_library(tmp_path: Path) -> None:
    assert "apt-get" in only(check_library(machine(tmp_path)), "edgetpu.library", "absent").next_step


def test_a_library_of_another_architecture(tmp_path: Path) -> None:
    pc = machine(tmp_path, {LIBRARY: elf(0xB7)})
    only(check_library(pc), "edgetpu.library", "fail", "built for aarch64", "this Python is x86_64")
    pi = replace(pc, arch="aarch64")
    only(check_library(pi), "edgetpu.library", "ok")
    only(check_library(replace(pi, bits=32)), "edgetpu.library", "fail", "this Python is armv7l")


def test_googles_library_of_2021_under_a_newer_runtime(tmp_path: Path) -> None:
    old = machine(tmp_path, {LIBRARY: elf(), "var/lib/dpkg/status": "Package: x\nVersion: 16.0\n\n" + GOOGLE_16})
    only(check_library(old), "edgetpu.library", "warn", "#812", "feranick")
    fits = replace(old, packages={"tflite-runtime": "2.5.0.post1"})
    only(check_library(fits), "edgetpu.library", "ok", "libedgetpu1-std 16.0")
    tree(tmp_path, {"var/lib/dpkg/status": FERANICK})
    only(check_library(old), "edgetpu.library", "ok", "16.0tf2.17.1")


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n" + bytes(40)])
def test_a_library_that_is_no_library_raises_nothing(data: bytes, tmp_path: Path) -> None:
    assert check_library(machine(tmp_path, {LIBRARY: data}))[0].id == "edgetpu.library"


def test_the_compiler_and_its_version(tmp_path: Path) -> None:
    only(check_compiler(machine(tmp_path)), "edgetpu.compiler", "absent", "only exporting needs it")
    only(check_compiler(machine(tmp_path, arch="aarch64")), "edgetpu.compiler", "absent", "none for this architecture")
    for said, level in (
        ("Edge TPU Compiler version 16.0.384591198\n", "ok"),
        ("Edge TPU Compiler version 14.1.317412892\n", "warn"),
        ("no such option", "warn"),
    ):
        only(check_compiler(machine(tmp_path, prints={"edgetpu_compiler": said})), "edgetpu.compiler", level)


# USB ------------------------------------------------------------------------------------------------------------------


def test_no_stick_and_no_bus(tmp_path: Path) -> None:
    only(check_usb(machine(tmp_path)), "edgetpu.usb", "absent", "no USB bus")
    other = machine(tmp_path, {"sys/bus/usb/devices/1-1/idVendor": "046d", "sys/bus/usb/devices/usb1/speed": "480"})
    only(check_usb(other), "edgetpu.usb", "absent", "1a6e:089a or 18d1:9302")


@pytest.mark.parametrize(("used", "words"), [(False, "not used since"), (True, "firmware loaded")])
def test_a_stick_that_works_before_and_after_its_first_use(used: bool, words: str, tmp_path: Path) -> None:
    pc = machine(tmp_path, {**usb_stick(used=used), RULES: BOTH_RULES})
    node(tmp_path, NODE, 0o666)
    found = check_usb(pc)
    only(found, "edgetpu.usb.id", "ok", words)
    only(found, "edgetpu.usb.port", "ok", "USB 3")
    only(found, "edgetpu.usb.rights", "ok")
    assert "edgetpu.usb.rule" not in by_id(found)


@pytest.mark.parametrize(
    ("speed", "level"), [("480", "warn"), ("12", "warn"), ("5000", "ok"), ("10000", "ok"), ("", "warn")]
)
def test_a_usb_2_port(speed: str, level: str, tmp_path: Path) -> None:
    node(tmp_path, NODE, 0o666)
    only(check_usb(machine(tmp_path, usb_stick(speed=speed))), "edgetpu.usb.port", level)


def test_a_missing_rule_and_one_that_names_half(tmp_path: Path) -> None:
    pc = machine(tmp_path, usb_stick())
    node(tmp_path, NODE, 0o666)
    only(check_usb(pc), "edgetpu.usb.rule", "fail", "only root", "apt-get install libedgetpu1-std")
    only(check_usb(replace(pc, user_id=0)), "edgetpu.usb.rule", "warn")
    tree(tmp_path, {"etc/udev/rules.d/99-coral.rules": "# 18d1\n" + RULE % "1a6e"})
    only(check_usb(pc), "edgetpu.usb.rule", "fail", "changes its id at the first use")
    tree(tmp_path, {"etc/udev/rules.d/99-coral.rules": BOTH_RULES})
    assert "edgetpu.usb.rule" not in by_id(check_usb(pc))


def test_rights_by_mode_and_group(tmp_path: Path) -> None:
    pc = machine(tmp_path, {**usb_stick(), RULES: BOTH_RULES})
    only(check_usb(pc), "edgetpu.usb.rights", "fail", "is missing", "udevadm trigger")
    node(tmp_path, NODE, 0o660)
    only(check_usb(pc), "edgetpu.usb.rights", "fail", "belongs to group plugdev", "usermod -aG plugdev")
    mine = (tmp_path / NODE).stat().st_gid
    only(check_usb(replace(pc, group_ids=frozenset({mine}))), "edgetpu.usb.rights", "ok")
    only(check_usb(replace(pc, user_id=0)), "edgetpu.usb.rights", "ok")
    tree(tmp_path, {"etc/group": f"root:x:{mine}:\n"})
    only(check_usb(pc), "edgetpu.usb.rights", "fail", "by root only")
    node(tmp_path, NODE, 0o664)
    only(check_usb(pc), "edgetpu.usb.rights", "fail")


@pytest.mark.parametrize("sign", [".dockerenv", "run/.containerenv", "run/systemd/container", "proc/1/cgroup"])
def test_a_container_without_the_bus_with_one_device_and_with_all(sign: str, tmp_path: Path) -> None:
    pc = machine(tmp_path, {**usb_stick(), sign: "0::/docker/abc"})
    assert pc.container
    found = check_usb(pc)
    only(found, "edgetpu.usb.container", "fail", "-v /dev/bus/usb:/dev/bus/usb")
    only(found, "edgetpu.usb.rights", "fail", "came back under another number")
    assert "edgetpu.usb.rule" not in by_id(found)
    node(tmp_path, NODE, 0o666)
    only(check_usb(pc), "edgetpu.usb.container", "warn", "one single USB device", "189")
    node(tmp_path, "dev/bus/usb/001/001", 0o666)
    only(check_usb(pc), "edgetpu.usb.container", "ok")


# PCIe -----------------------------------------------------------------------------------------------------------------


def test_no_card(tmp_path: Path) -> None:
    only(check_pci(machine(tmp_path)), "edgetpu.pci", "absent")
    other = machine(tmp_path, {f"{PCI}/vendor": "0x8086", f"{PCI}/device": "0x089a"})
    only(check_pci(other), "edgetpu.pci", "absent")


def test_a_card_that_works(tmp_path: Path) -> None:
    alive = {"sys/class/apex/apex_0/status": "ALIVE\n", "sys/class/apex/apex_0/temp": "48800\n"}
    pc = machine(tmp_path, {**pci_card(), **alive, "sys/class/apex/apex_0/trip_point0_temp": "85000"})
    node(tmp_path, "dev/apex_0", 0o666)
    found = by_id(check_pci(pc))
    assert {f.level for f in found.values()} == {"ok"}
    assert "48.8 °C, throttled from 85" in found["edgetpu.pci.temperature"].found


MODULES = {"sys/module/apex/": "", "sys/module/gasket/": ""}
BUILT = {"lib/modules/6.1.0-13/updates/dkms/apex.ko.xz": ""}
CAUSES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "no driver": ({}, {}, ("missing", "google/gasket-driver")),
    "not built for this kernel": ({"var/lib/dkms/gasket/": ""}, {}, ("was not built for kernel 6.1.0-13",)),
    "built, not loaded": (BUILT, {}, ("sudo modprobe apex",)),
    "secure boot": (
        {**BUILT, "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": b"\6\0\0\0\1"},
        {},
        ("nobody signed", "mokutil"),
    ),
    "blacklisted": ({**BUILT, "etc/modprobe.d/a.conf": "# x\nblacklist apex\n"}, {}, ("/etc/modprobe.d/a.conf",)),
    "blacklisted by install": ({"lib/modprobe.d/a.conf": "install gasket /bin/false"}, {}, ("module gasket",)),
    "large pages": (MODULES, {"page_bytes": 16384}, ("16384", "kernel8.img")),
    "card does not start": (MODULES, {}, ("dmesg", "pcie_aspm=off")),
    "container": ({".dockerenv": ""}, {}, ("--device /dev/apex_0",)),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_why_there_is_no_apex_node(cause: str, tmp_path: Path) -> None:
    files, changes, words = CAUSES[cause]
    only(check_pci(machine(tmp_path, {**pci_card(), **files}, **changes)), "edgetpu.pci.driver", "fail", *words)


def test_secure_boot_off_is_no_cause(tmp_path: Path) -> None:
    off = {**BUILT, "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": b"\6\0\0\0\0"}
    only(check_pci(machine(tmp_path, {**pci_card(), **off})), "edgetpu.pci.driver", "fail", "modprobe apex")


def test_two_copies_of_the_driver(tmp_path: Path) -> None:
    staging = {"lib/modules/6.1.0-13/kernel/drivers/staging/gasket/apex.ko": ""}
    pc = machine(tmp_path, {**pci_card(), **staging, **MODULES})
    node(tmp_path, "dev/apex_0", 0o666)
    assert "edgetpu.pci.conflict" not in by_id(check_pci(pc))
    tree(tmp_path, BUILT)
    only(check_pci(pc), "edgetpu.pci.conflict", "warn", "depmod")


def test_rights_heat_and_death_of_a_card(tmp_path: Path) -> None:
    hot = {"sys/class/apex/apex_0/temp": "90100", "sys/class/apex/apex_0/trip_point0_temp": "85000"}
    pc = machine(tmp_path, {**pci_card(), **hot, "sys/class/apex/apex_0/status": "DEAD"})
    node(tmp_path, "dev/apex_0", 0o660)
    found = check_pci(pc)
    only(found, "edgetpu.pci.rights", "fail", "usermod -aG plugdev")
    only(found, "edgetpu.pci.temperature", "warn", "90.1", "85")
    only(found, "edgetpu.pci.status", "fail", "DEAD")
    tree(tmp_path, {"etc/group": f"root:x:{(tmp_path / 'dev/apex_0').stat().st_gid}:\n"})
    only(check_pci(pc), "edgetpu.pci.rights", "fail", "65-apex.rules")


# Packages, machine, data ----------------------------------------------------------------------------------------------

PACKAGES = [
    ({"ai-edge-litert": "2.3.0", "tflite-runtime": "2.14.0"}, "libraries.runtimes", "warn"),
    ({"tflite-runtime": "2.14.0", "numpy": "2.2.0"}, "libraries.numpy", "fail"),
    ({"pycoral": "0.2.0"}, "libraries.pycoral", "warn"),
    ({"onnxruntime": "1.20.0", "onnxruntime-openvino": "1.20.0"}, "libraries.onnxruntime", "warn"),
]
FINE = [
    {"ai-edge-litert": "2.3.0", "numpy": "2.2.0", "onnxruntime": "1.20.0"},
    {"tflite-runtime": "2.14.0", "numpy": "1.26.4"},
    {"pycoral": "2.0.0"},
]


@pytest.mark.parametrize(("packages", "name", "level"), PACKAGES)
def test_packages_that_clash(packages: Mapping[str, str], name: str, level: str, tmp_path: Path) -> None:
    assert "pip" in only(check_libraries(machine(tmp_path, packages=packages)), name, level).next_step


@pytest.mark.parametrize("packages", FINE)
def test_packages_that_do_not(packages: Mapping[str, str], tmp_path: Path) -> None:
    only(check_libraries(machine(tmp_path, packages=packages)), "libraries", "ok")


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"bits": 32, "arch": "armv7l"}, "fail", "32 bits (armv7l)"),
        ({"bits": 32, "arch": "aarch64"}, "fail", "under a 64-bit kernel"),
        ({"libc": ("", "")}, "fail", "musl"),
        ({"libc": ("glibc", "2.24")}, "fail", "need 2.27"),
        ({"libc": ("glibc", "2.27")}, "warn", "ONNX Runtime needs 2.28"),
    ],
)
def test_no_wheels_for_this_python(changes: dict[str, Any], level: str, words: str, tmp_path: Path) -> None:
    only(check_libraries(machine(tmp_path, **changes)), "libraries.wheels", level, words)


def test_the_processors_instructions(tmp_path: Path) -> None:
    pc = machine(tmp_path, {"proc/cpuinfo": "flags\t\t: fpu avx avx2 fma\n"})
    only(check_board(pc), "machine.cpu", "ok", "AVX2")
    tree(tmp_path, {"proc/cpuinfo": "flags\t\t: fpu sse4_2 hypervisor\n"})
    only(check_board(pc), "machine.cpu", "warn", "virtual machine hides it")
    tree(tmp_path, {"proc/cpuinfo": "Features\t: fp asimd evtstrm\n"})
    only(check_board(replace(pc, arch="aarch64")), "machine.cpu", "warn", "dot product")
    tree(tmp_path, {"proc/cpuinfo": "Features\t: fp asimd asimddp\n"})
    only(check_board(replace(pc, arch="aarch64")), "machine.cpu", "ok")


@pytest.mark.parametrize(
    ("bits", "level", "words"),
    [("0x0", "ok", "enough"), ("0x50005", "fail", "under-voltage now"), ("0x10000", "warn", "since it was started"),
     ("0x4", "warn", "throttled now"), ("0x80008", "warn", "throttled now")],
)  # fmt: skip
def test_power_of_a_raspberry_pi(bits: str, level: str, words: str, tmp_path: Path) -> None:
    model = {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"}
    pi = machine(tmp_path, model, prints={"vcgencmd": f"throttled={bits}\n"})
    only(check_board(pi), "machine.power", level, words)
    tree(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": bits.removeprefix("0x") + "\n"})
    only(check_board(machine(tmp_path, model)), "machine.power", level, words)


def test_power_of_others_is_not_asked(tmp_path: Path) -> None:
    assert "machine.power" not in by_id(check_board(machine(tmp_path)))
    pi = machine(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5\0"})
    only(check_board(pi), "machine.power", "absent", "vcgencmd")


def test_heat_against_the_zones_own_limit(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    files = {f"{zone}/type": "cpu-thermal", f"{zone}/temp": "84000", f"{zone}/trip_point_0_type": "passive"}
    only(check_board(machine(tmp_path, {**files, f"{zone}/trip_point_0_temp": "85000"})), "machine.heat", "warn", "84")
    only(check_board(machine(tmp_path, {f"{zone}/temp": "50000"})), "machine.heat", "ok", "50 °C of 85")


def test_clock_and_watchdog(tmp_path: Path) -> None:
    pc = machine(tmp_path, {"dev/rtc0": "", "sys/class/watchdog/watchdog0/state": "inactive\n"})
    only(check_board(pc), "machine.clock", "warn", "nothing says it is kept", "set-ntp")
    only(check_board(replace(pc, clock=lambda: 0.0)), "machine.clock", "fail", "1970-01-01")
    only(check_board(pc), "machine.watchdog", "warn", "RuntimeWatchdogSec")
    tree(tmp_path, {"run/systemd/timesync/synchronized": "", "sys/class/watchdog/watchdog0/state": "active\n"})
    only(check_board(pc), "machine.clock", "ok")
    only(check_board(pc), "machine.watchdog", "ok")
    (tmp_path / "x").mkdir()
    bare = machine(tmp_path / "x", prints={"timedatectl": "yes\n"})
    only(check_board(bare), "machine.clock", "ok")
    only(check_board(bare), "machine.watchdog", "absent")
    only(check_board(machine(tmp_path / "x")), "machine.clock", "warn", "no battery clock")


DATA = Path("/var/lib/kasmina")


def data_of(tmp_path: Path, **changes: Any) -> Machine:
    made = machine(tmp_path, {"var/lib/kasmina/slots/": ""}, **changes)
    (tmp_path / "var/lib/kasmina").chmod(0o777)
    return made


def test_room_in_the_data_folder(tmp_path: Path) -> None:
    only(check_data_folder(machine(tmp_path), DATA), "data.folder", "absent", "fleet enroll")
    only(check_data_folder(data_of(tmp_path), DATA), "data.space", "ok", "10.0 GB")
    full = data_of(tmp_path, space=lambda path: Space(1_000_000, 10**6))
    only(check_data_folder(full, DATA), "data.space", "fail", "1,000,000", "67,108,864")
    only(check_data_folder(data_of(tmp_path, space=lambda p: Space(10**10, 3)), DATA), "data.inodes", "fail", "df -i")
    only(check_data_folder(data_of(tmp_path, space=lambda p: Space(10**10, None)), DATA), "data.space", "ok")
    closed = data_of(tmp_path)
    (tmp_path / "var/lib/kasmina").chmod(0o700)
    only(check_data_folder(closed, DATA, lambda: (True, "x")), "data.folder", "warn", "may not be looked into", "sudo")
    assert "data.key" not in by_id(check_data_folder(closed, DATA, lambda: (True, "x")))


def test_a_service_folder_that_hides_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/kasmina").symlink_to(tmp_path / "var/lib/private/kasmina")
    only(check_data_folder(machine(tmp_path), DATA), "data.folder", "warn", "may not be looked into")


@pytest.mark.parametrize(
    ("mounts", "level"),
    [
        ("/dev/sda1 / ext4 rw 0 0\n", None),
        ("overlay / overlay rw 0 0\n", "warn"),
        ("/dev/sda1 / ext4 rw 0 0\ntmpfs /var/lib tmpfs rw 0 0\n", "warn"),
        ("overlay / overlay rw 0 0\n/dev/sdb /var/lib/kasmina ext4 rw 0 0\n", None),
        ("/dev/mmcblk0p2 / ext4 ro,noatime 0 0\n", "fail"),
    ],
)
def test_the_medium_below_the_data_folder(mounts: str, level: str | None, tmp_path: Path) -> None:
    pc = data_of(tmp_path)
    tree(tmp_path, {"proc/self/mounts": mounts})
    found = by_id(check_data_folder(pc, DATA)).get("data.medium")
    assert (found.level if found else None) == level


def test_the_key_of_a_stolen_disk(tmp_path: Path) -> None:
    pc = data_of(tmp_path)
    only(check_data_folder(pc, DATA, lambda: (True, "the key lies beside")), "data.key", "warn", "disk is readable")
    only(check_data_folder(pc, DATA, lambda: (False, "kept by the TPM")), "data.key", "ok", "kept by the TPM")


def test_the_agent_and_the_broker(tmp_path: Path) -> None:
    pc = machine(tmp_path)
    only(check_service(pc, DATA, lambda: None), "service.agent", "absent", "service install")
    only(check_service(pc, DATA, lambda: {"status": "ok", "pid": 7}), "service.agent", "ok", "process 7", "by hand")
    stuck = {"status": "stuck", "problems": ["silent for 90 s"]}
    only(check_service(pc, DATA, lambda: stuck), "service.agent", "fail", "silent for 90 s", "journalctl")
    tree(tmp_path, {"etc/systemd/system/kasmina-edge.service": "[Unit]"})
    only(check_service(pc, DATA, lambda: None), "service.agent", "absent", "systemctl start")

    def refuse(address: str) -> None:
        raise LinkError("no such host")

    only(check_broker("", refuse), "service.broker", "absent")
    only(check_broker("mqtts://b:8883", refuse), "service.broker", "fail", "no such host")
    only(check_broker("mqtts://b:8883", lambda address: None), "service.broker", "ok")


# Engines and the whole ------------------------------------------------------------------------------------------------


class Broken:
    name = "broken"

    @classmethod
    def check(cls, profile: object, model: object) -> EngineCheck:
        raise RuntimeError("a third party's fault")


def test_an_engine_whose_check_fails_is_told_and_the_others_go_on() -> None:
    checks = check_engines(load_profile("x86-cpu"), {**engine_types(), "broken": Broken})  # type: ignore[dict-item]
    assert checks["litert"].ok and not checks["broken"].ok
    found = by_id(engine_findings(checks, load_profile("x86-cpu")))
    assert found["engine.litert"].level == "ok"
    assert "a third party's fault" in found["engine.broken"].cause
    coral = engine_findings({"litert": EngineCheck(True, "LiteRT CPU", "", "x not found")}, load_profile("coral"))
    only(coral, "engine.accelerator", "fail", "x not found")


def test_everything_on_a_bare_tree_and_on_a_strange_one(tmp_path: Path) -> None:
    found = examine(machine(tmp_path), DATA)
    assert len(found) >= 9 and not [f for f in found if f.id == "doctor"]
    assert all(f.next_step for f in found if f.level == "fail")
    strange = {
        "sys/bus/usb/devices": "a file",
        "proc/cpuinfo": b"\xff\xfe",
        "sys/class/thermal/thermal_zone0/temp": "x",
    }
    again = examine(machine(tmp_path / "s", {**strange, "etc/group": "::"}), DATA)
    assert not [f for f in again if f.id == "doctor"]


def test_a_check_that_fails_is_a_finding(tmp_path: Path) -> None:
    def fail(path: Path) -> Space:
        raise ZeroDivisionError("space")

    found = examine(data_of(tmp_path, space=fail), DATA)
    assert "ZeroDivisionError" in by_id(found)["doctor"].found
    assert "service.agent" in by_id(found)


def test_the_verb_says_what_runs_and_exits_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--data", str(tmp_path / "none"), "--profile", "coral"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert set(value) == {"profile", "runs", "engines", "findings"} and "litert" in value["runs"]
    assert {"id", "area", "level", "found", "cause", "next_step"} == set(value["findings"][0])
    assert value["engines"]["litert"]["ok"] is True
    assert main(["doctor", "--data", str(tmp_path), "--broker"]) == 0
    out = capsys.readouterr().out
    assert "no broker address is set" in out and "LiteRT CPU" in out


def test_groups_have_names(tmp_path: Path) -> None:
    pc = machine(tmp_path)
    node(tmp_path, "dev/x", 0o600)
    assert pc.group_of("/dev/x") == "plugdev"
    assert GROUP not in (0, (tmp_path / "dev/x").stat().st_gid)
