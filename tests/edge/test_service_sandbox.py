"""What the unit forbids is nothing that the agent or an engine needs: the same limits, put on real processes.

No test here can start systemd itself, so that its two sharpest limits are put on by other means: memory that is both
writable and executable by prctl(2), system calls outside the filter by strace's fault injection.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from worlds.bundles import make_bundle
from worlds.fleets import plan_limits, wait_for

from kasmina_edge.fleet.folder import FleetFolder
from kasmina_edge.service.unit import UnitPlan, unit_text
from kasmina_edge.transport.broker import start_mosquitto

TESTS = Path(__file__).resolve().parents[1]
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1  # linux/prctl.h, since Linux 6.3

RUN_ENGINES = f"""
import ctypes, mmap, sys
sys.path[:0] = sys.argv[1:]
assert ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0) == 0
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    sys.exit("writable and executable memory was given")
except PermissionError:
    pass
from worlds.bundles import make_bundle
from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.engines import engine_types, self_test
bundle, ran = make_bundle(), []
for model in bundle.manifest.models:
    engine = engine_types()[model.engine](model, bundle.read(model.file), load_profile("x86-cpu"))
    assert self_test(engine, bundle).ok
    ran.append(model.engine)
print(*ran)
"""


def has_mdwe() -> bool:
    """Whether this kernel knows the limit; it is not set here."""
    return int(ctypes.CDLL(None).prctl(PR_SET_MDWE + 1, 0, 0, 0, 0)) >= 0


@pytest.mark.skipif(not has_mdwe(), reason="SKIPPED LOUDLY: Linux before 6.3 cannot put MemoryDenyWriteExecute on here")
def test_engines_run_without_memory_that_is_writable_and_executable() -> None:
    assert "MemoryDenyWriteExecute=yes" in unit_text(UnitPlan(("x",), Path("/var/lib/kasmina")))
    done = subprocess.run(
        [sys.executable, "-c", RUN_ENGINES, str(TESTS), str(TESTS.parent)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= {"litert", "onnxruntime"}


def system_calls(group: str) -> set[str]:
    """The names in one of systemd's groups of system calls."""
    said = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    found: set[str] = set()
    for line in (line.strip() for line in said.stdout.splitlines()[1:]):
        if line and not line.startswith("#"):
            found |= system_calls(line) if line.startswith("@") else {line}
    return found


def filtered() -> set[str]:
    """What the unit's filter lets through, worked out as systemd.exec(5) says: lines in their order."""
    allowed: set[str] = set()
    for line in unit_text(UnitPlan(("x",), Path("/var/lib/kasmina"))).splitlines():
        if line.startswith("SystemCallFilter="):
            words = line.partition("=")[2]
            for group in words.removeprefix("~").split():
                allowed = allowed - system_calls(group) if words.startswith("~") else allowed | system_calls(group)
    return allowed


needs_tools = pytest.mark.skipif(
    not (shutil.which("strace") and shutil.which("systemd-analyze")),
    reason="SKIPPED LOUDLY: strace or systemd-analyze is missing, so that the system-call filter is not tried",
)


@contextmanager
def agent_under(refused: set[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """An agent to which some system calls answer EPERM, with a bundle waiting for it at a real controller."""
    log = folder / "agent.log"
    with start_mosquitto(0, folder / "broker") as broker:
        office = FleetFolder.init(
            folder / "fleet", offline_keys=folder / "offline", address=broker.address, clock=time.time
        )
        office.enroll("cam-1", folder / "cam-1")
        host = make_bundle()
        plan = office.draft_plan(host.manifest, plan_limits())
        office.publish(host, to=["@all"], offline_keys=folder / "offline", plan=plan)
        kasmina = [sys.executable, "-m", "kasmina_edge"]
        known = system_calls("@known")
        names = ",".join(f"?{name}" for name in sorted(refused & known))
        strace = ["strace", "-f", "-qq", "-o", str(folder / "trace"), "-e", f"inject={names}:error=EPERM"]
        with log.open("wb") as out:
            controller = subprocess.Popen([*kasmina, "controller", "--fleet", str(office.folder)], stderr=out)
            agent = subprocess.Popen([*strace, *kasmina, "run", "--data", str(folder / "cam-1"), "--json"], stderr=out)
        try:
            yield agent, log
        finally:
            for process in (agent, controller):
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(5)


def end_of(agent: subprocess.Popen[bytes]) -> int:
    """SIGTERM to the agent below strace."""
    for task in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
        subprocess.run(["kill", "-TERM", task], check=True)
    return agent.wait(20)


@pytest.mark.slow
@needs_tools
def test_an_update_passes_the_filter_of_system_calls(tmp_path: Path) -> None:
    refused = system_calls("@known") - filtered()
    assert {"mount", "ptrace", "setuid", "reboot"} <= refused and not {"openat", "futex"} & refused
    with agent_under(refused, tmp_path) as (agent, log):
        wait_for(lambda: b"update committed" in log.read_bytes(), lambda: log.read_text()[-2000:], deadline_s=90.0)
        assert end_of(agent) == 0
    hit = set(re.findall(r"(\w+)\([^\n]*\(INJECTED\)", (tmp_path / "trace").read_text()))
    assert hit <= {"mbind", "fchown"}, "a library asks for more than it did; look whether it can do without"


@pytest.mark.slow
@needs_tools
def test_a_filter_that_is_too_narrow_is_seen(tmp_path: Path) -> None:
    with agent_under({"flock"}, tmp_path) as (agent, log):
        wait_for(lambda: agent.poll() is not None, lambda: log.read_text()[-2000:], deadline_s=60.0)
        assert agent.returncode != 0 and b"update committed" not in log.read_bytes()
