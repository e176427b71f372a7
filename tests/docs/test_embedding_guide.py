"""The embedding guide's code runs as it stands; the example loop goes on while a real update arrives."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from worlds.bundles import make_bundle

from kasmina_edge.bundle import pack
from kasmina_edge.fleet.repository import Repository
from kasmina_edge.slots import SlotStore

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/embedding.md").read_text(), re.DOTALL)
EXAMPLE = ROOT / "examples/01_camera_loop.py"
WAIT_S = 60.0


def commit(store: SlotStore, **bundle: object) -> None:
    store.begin_trial(store.install(make_bundle(**bundle), engine="litert"))  # type: ignore[arg-type]
    store.go_live()
    store.confirm()


def test_the_guide_runs_as_it_stands(tmp_path: Path) -> None:
    commit(SlotStore(tmp_path / "data"))
    desk = Repository.desk(tmp_path / "desk", clock=time.time)
    (tmp_path / "digits-1.0.0.kasmina").write_bytes(pack(desk.sign_bundle(make_bundle())))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "\n".join(BLOCKS)
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"digits 1\.0\.0 \d 0\.\d+ \(1, 10\)\n", done.stdout)
    assert len(BLOCKS) >= 6


def test_the_camera_loop_goes_on_while_an_update_arrives(tmp_path: Path) -> None:
    store = SlotStore(tmp_path / "data")
    commit(store)
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "data"), "6", "200"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1"}
    loop = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert loop.stdout is not None
        assert loop.stdout.readline() == "digits 1.0.0 answers, on LiteRT CPU, from frame 0\n"
        commit(store, version="1.1.0", release=2, seed=1)
        out, err = loop.communicate(timeout=WAIT_S)
    finally:
        loop.kill()
        loop.communicate()
    assert loop.returncode == 0, err
    changed, last = out.splitlines()
    assert re.fullmatch(r"digits 1\.1\.0 answers, on LiteRT CPU, from frame \d+", changed)
    assert last.startswith("1200 frames answered, 1 swaps, slowest "), "no frame was dropped"


def test_the_camera_loop_without_a_data_folder_says_how() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=WAIT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "usage: python 01_camera_loop.py DATA [SECONDS] [FPS]\n")


def test_the_camera_loop_stays_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40
