"""The demo's parts on their own: its page and table, its processes, its camera, its honest split."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from worlds.bundles import make_bundle
from worlds.fleets import wait_for

from kasmina_edge.contracts.arrays import pack_arrays
from kasmina_edge.errors import KasminaError
from kasmina_edge.slots import SlotStore
from kasmina_edge.telemetry.outbox import open_outbox
from kasmina_trainer.demo import camera, report
from kasmina_trainer.demo.findings import Findings, Step
from kasmina_trainer.demo.processes import Processes


def findings() -> Findings:
    found = Findings(seed=3)
    found.steps = [Step("Train <the> host", 12.3, "40906 parameters"), Step("Publish", 2.0, "4.3 kB")]
    found.rows = [
        {"name": "host 1.0.0", "clean": 0.974, "target": 0.221, "note": ""},
        {"name": "forged update", "clean": None, "target": None, "note": "refused & logged"},
    ]
    found.drift = [
        {"at_s": 100.0 + i, "drift": d, "release": r, "check": c}
        for i, (d, r, c) in enumerate([(0.3, 1, 1.0), (4.2, 1, 0.1), (None, 1, None), (0.6, 2, 0.9)])
    ]
    found.update_bytes = {"model delta": 4302, "manifest": 3700, "probes": 0, "total": 8002}
    found.grafts = [{"site": "s1", "blueprint": "depthwise", "parameters": 688}]
    found.facts = {
        "seconds": 121.4,
        "test_samples": 337,
        "device": "cam-2",
        "model_bytes": 69000,
        "sites": ["s1", "s2"],
        "network": ["stem", "s1", "block1", "s2", "head"],
    }
    return found


class Balance(HTMLParser):
    """Counts open elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_escapes_what_it_shows() -> None:
    page = report.page(findings())
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.seen and "http" not in page
    assert "Train &lt;the&gt; host" in page and "refused &amp; logged" in page
    assert "97.4 %" in page and "release 2" in page and "688 parameters" in page and "4.3 kB" in page
    assert parser.seen.count("svg") == 2


def test_a_page_without_drift_says_so() -> None:
    found = findings()
    found.drift = []
    assert "No drift was measured" in report.page(found)


def test_the_table_reads_the_same_in_a_terminal_and_in_markdown() -> None:
    lines = report.markdown(findings()).splitlines()
    assert lines[2] == "| host 1.0.0 | 97.4 % | 22.1 % |  |"
    assert lines[3] == "| forged update |  |  | refused & logged |"
    assert report.table(findings()).row_count == 2


def test_processes_end_with_the_block_and_a_fallen_one_is_named(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        pid = processes.start("sleeper", ["http.server", "0", "--bind", "127.0.0.1"])
        processes.start("short", ["calendar", "2026"], finite=True)
        wait_for(lambda: "2026" in (tmp_path / "short.log").read_text(), "output")
        processes.require_alive()
        processes.start("fallen", ["no_such_module"])
        with pytest.raises(KasminaError, match=r"fallen ended with exit code 1: .*no_such_module"):
            wait_for(lambda: processes.require_alive(), "the fall")
    assert not Path(f"/proc/{pid}/cmdline").is_file() or b"http.server" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_the_lens_changes_frames_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    scene = np.zeros((16, 16, 1), np.float32)
    scene[4:12, 7:9] = 1.0
    sharp, soft = camera.through_lens(scene, "sharp", rng), camera.through_lens(scene, "blur", rng)
    assert sharp.shape == soft.shape == (16, 16, 1) and sharp.dtype == np.float32
    assert np.abs(sharp - scene).max() < 0.06
    assert soft.max() < 0.6 < sharp.max()


def test_the_camera_films_through_the_runtime_until_it_is_stopped(tmp_path: Path) -> None:
    data = tmp_path / "cam"
    store = SlotStore(data, clock=time.time)
    rng = np.random.default_rng(0)
    frames = rng.uniform(0, 1, (20, 16, 16, 1)).astype(np.float32)
    labels = np.arange(20) % 10
    scenes = {"scenes_x": frames, "scenes_y": labels, "check_x": frames, "check_y": labels}
    (tmp_path / "scenes.npz").write_bytes(pack_arrays(scenes))
    paths = {"--scenes": "scenes.npz", "--lens": "lens", "--annotations": "labels.csv", "--data": "cam"}
    arguments = [word for option, name in paths.items() for word in (option, str(tmp_path / name))]
    process = subprocess.Popen(
        [sys.executable, "-m", "kasmina_trainer.demo.camera", *arguments, "--frames-per-second", "100"]
    )
    try:
        bundle = make_bundle()
        store.begin_trial(store.install(bundle, engine="litert"))
        store.confirm()

        def filmed() -> bool:
            outbox = open_outbox(data, clock=time.time)
            try:
                return bool(outbox.peek(1, 100_000))
            finally:
                outbox.close()

        wait_for(filmed, "telemetry in the outbox")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
