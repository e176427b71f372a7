"""The unit: what systemd itself says about it, what is refused before it is written, and that removing undoes it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kasmina_edge.cli import main
from kasmina_edge.errors import EngineError, InputError, KasminaError
from kasmina_edge.service.installing import Host, Ran, install, plan_unit, remove
from kasmina_edge.service.unit import Credential, UnitPlan, unit_text
from kasmina_edge.settings import write_settings

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="SKIPPED LOUDLY: no systemd-analyze here, so nobody has judged the unit (apt: systemd)"
)
PLAN = UnitPlan(("/usr/bin/python3", "-m", "kasmina_edge"), Path("/var/lib/kasmina"), systemd=252)
PLANS = {
    "plain": PLAN,
    "named user": replace(PLAN, run_as="daemon"),
    "usb": replace(PLAN, accelerator="usb"),
    "pci": replace(PLAN, accelerator="pci"),
    "elsewhere": replace(PLAN, data=Path("/srv/my data/50%")),
    "home": replace(PLAN, read_home=True),
    "jit": replace(PLAN, jit=True),
    "usb, jit, home": replace(PLAN, accelerator="usb", jit=True, read_home=True),
    "sealed key": replace(PLAN, credential=Credential(Path("/etc/credstore.encrypted/kasmina-kek"), True)),
}
MOST_EXPOSURE = 2.0


def exposure(text: str, folder: Path) -> float:
    """What `systemd-analyze security` says of a unit."""
    path = folder / "kasmina-edge.service"
    path.write_text(text)
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--no-pager", str(path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1])


@needs_systemd
@pytest.mark.parametrize("name", PLANS)
def test_systemd_finds_little_exposed(name: str, tmp_path: Path) -> None:
    assert exposure(unit_text(PLANS[name]), tmp_path) <= MOST_EXPOSURE


@needs_systemd
def test_an_open_unit_is_found_exposed(tmp_path: Path) -> None:
    text = "\n".join(
        line for line in unit_text(PLAN).splitlines() if not line.startswith(("SystemCall", "Capability", "Protect"))
    )
    assert exposure(text, tmp_path) > MOST_EXPOSURE


@needs_systemd
@pytest.mark.parametrize("name", PLANS)
def test_systemd_reads_it_without_a_word(name: str, tmp_path: Path) -> None:
    path = tmp_path / "kasmina-edge.service"
    path.write_text(unit_text(PLANS[name]))
    done = subprocess.run([str(ANALYZE), "verify", str(path)], capture_output=True, text=True, timeout=60, check=False)
    ours = [line for line in done.stderr.splitlines() if "kasmina" in line]
    assert (done.returncode, ours) == (0, [])
    path.write_text(unit_text(PLANS[name]).replace("WatchdogSec=", "WachdogSec="))
    done = subprocess.run([str(ANALYZE), "verify", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert "WachdogSec" in done.stderr


def test_restart_steps_stand_only_where_systemd_knows_them() -> None:
    assert "RestartSteps" not in unit_text(PLAN)
    assert "RestartSteps=8" in unit_text(replace(PLAN, systemd=254))
    assert "StartLimitIntervalSec=0" in unit_text(PLAN)


def test_words_of_the_command_line_mean_themselves() -> None:
    text = unit_text(replace(PLAN, data=Path('/srv/a b/50%/$HOME/"q"')))
    assert '--data "/srv/a b/50%%/$$HOME/\\"q\\""' in text
    assert 'ReadWritePaths="/srv/a b/50%%/$HOME/\\"q\\""' in text


class Systemctl:
    """Remembers what it was asked; refuses what holds ``refuse``."""

    def __init__(self, refuse: str = "", version: int = 256) -> None:
        self.asked: list[str] = []
        self.refuse, self.version = refuse, version

    def __call__(self, command: Sequence[str]) -> Ran:
        line = " ".join(command)
        self.asked.append(line)
        if "--version" in line:
            return Ran(0, f"systemd {self.version} (x)")
        return Ran(1, "refused") if self.refuse and self.refuse in line else Ran(0, "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with systemd and an enrolled data folder."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    data = tmp_path / "var/lib/kasmina"
    data.mkdir(parents=True)
    write_settings(data / "kasmina.toml", {"device.id": "cam-1", "broker.address": "mqtts://b:8883"})
    return tmp_path


def host(root: Path, run: Systemctl, user_id: int = 0) -> Host:
    return Host(root=root, user_id=user_id, home=root / "home", run=run, program=(Path("/usr/bin/env"),), jit=False)


def test_installing_and_removing_leave_the_machine_as_it_was(root: Path) -> None:
    run = Systemctl()
    machine = host(root, run)
    before = sorted(p for p in root.rglob("*") if p.is_file())
    path, left = install(machine, plan_unit(machine))
    assert path == root / "etc/systemd/system/kasmina-edge.service" and left == []
    assert path.stat().st_mode & 0o777 == 0o644
    assert "RestartSteps=8" in path.read_text()
    assert run.asked[-2:] == ["systemctl daemon-reload", "systemctl enable --now kasmina-edge.service"]
    assert remove(machine, "system") == path
    assert "systemctl disable --now kasmina-edge.service" in run.asked and run.asked[-1] == "systemctl daemon-reload"
    assert sorted(p for p in root.rglob("*") if p.is_file()) == before
    assert remove(machine, "system") is None


def test_a_user_installs_without_root(root: Path) -> None:
    run = Systemctl()
    machine = host(root, run, user_id=1000)
    with pytest.raises(InputError, match="installed by root, this is user 1000"):
        install(machine, plan_unit(machine))
    path, left = install(machine, plan_unit(machine, scope="user", data=Path("/var/lib/kasmina")))
    assert path == root / "home/.config/systemd/user/kasmina-edge.service"
    assert "enable-linger" in left[0]
    assert run.asked[-1] == "systemctl --user enable --now kasmina-edge.service"
    assert not [a for a in run.asked if "--version" not in a and "--user" not in a]


def test_what_could_only_fail_is_not_written(root: Path) -> None:
    machine = host(root, Systemctl())
    with pytest.raises(InputError, match="not enrolled"):
        install(machine, plan_unit(machine, data=Path("/var/lib/other")))
    closed = root / "closed"
    closed.mkdir(mode=0o700)
    shut = replace(machine, program=(closed / "bin/python",))
    with pytest.raises(InputError, match="closed to other users"):
        install(shut, plan_unit(shut))
    refusing = host(root, Systemctl(refuse="id -u"))
    with pytest.raises(InputError, match="user kasmina is unknown"):
        install(refusing, plan_unit(refusing, run_as="kasmina"))
    assert not machine.unit_path("system").exists()
    failing = host(root, Systemctl(refuse="enable"))
    with pytest.raises(KasminaError, match=r"enable --now .* failed: refused"):
        install(failing, plan_unit(failing))


def test_without_systemd_the_way_without_it_is_told(root: Path) -> None:
    (root / "run/systemd/system").rmdir()
    image = host(root, Systemctl())
    path, left = install(image, plan_unit(image))
    assert path.is_file() and left == [
        "systemd does not run here; where it does: systemctl enable --now kasmina-edge.service"
    ]
    remove(image, "system")
    alpine = replace(image, run=lambda command: Ran(127, "not found"))
    with pytest.raises(EngineError, match="no systemd") as refused:
        install(alpine, plan_unit(alpine))
    assert "status --health" in refused.value.next_step and not path.exists()


def test_the_sealed_key_is_preferred_and_neither_is_no_line(root: Path) -> None:
    machine = host(root, Systemctl())
    assert "LoadCredential" not in unit_text(plan_unit(machine))
    for folder, line in (
        ("credstore", "LoadCredential=kasmina-kek:/etc/credstore/kasmina-kek"),
        ("credstore.encrypted", "LoadCredentialEncrypted=kasmina-kek:/etc/credstore.encrypted/kasmina-kek"),
    ):
        (root / "etc" / folder).mkdir(parents=True)
        (root / "etc" / folder / "kasmina-kek").write_bytes(b"k")
        assert line in unit_text(plan_unit(machine))


def test_a_dry_run_prints_and_changes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["service", "install", "--dry-run", "--data", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Written by") and f"--data {tmp_path}" in text and "\x1b" not in text
    assert main(["service", "show", "--accelerator", "gpu"]) == 2
    assert "expected usb or pci" in capsys.readouterr().err
    assert main(["service", "install", "--user", "--data", str(tmp_path)]) == 2
    assert "not enrolled" in capsys.readouterr().err
