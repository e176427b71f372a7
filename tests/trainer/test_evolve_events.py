"""What is told while a growth runs: files that TensorBoard's own reader reads, and a table for a terminal."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from worlds import small_growth

from kasmina_edge.errors import StorageError
from kasmina_trainer.evolve import evolve
from kasmina_trainer.evolve.events import Event, together
from kasmina_trainer.evolve.live import LiveTable
from kasmina_trainer.evolve.showing import shown
from kasmina_trainer.evolve.tensorboard import crc32c, record, scalar_event, scalars
from kasmina_trainer.training import TrainingSettings

TASK = {"blueprint": "se", "rival": False, "settings": TrainingSettings(steps=3, batch=8)}
EVENTS = (
    Event("phase", "race", values={"arms": 3}),
    *(Event("step", "depthwise@s1,s2 + se@s3", step, {"loss": 1 / step}) for step in range(1, 200)),
    Event("arm", "depthwise@s1", 20, {"score": -0.25, "parameters": 688, "nothing": float("nan")}),
    Event("verdict", "depthwise@s1", 350, {"target": 0.9, "clean": 0.98}),
)


def written(folder: Path) -> Path:
    clock = iter(range(10_000))
    with scalars(folder, wall=lambda: 1_700_000_000.0 + next(clock)) as tell:
        for event in EVENTS:
            tell(event)
    (path,) = folder.iterdir()
    return path


def test_tensorboards_own_reader_reads_every_figure(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written(tmp_path)
    read = accumulator.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    read.Reload()
    tags = read.Tags()["scalars"]
    assert set(tags) == {
        "race/arms", "depthwise@s1,s2+se@s3/loss", "depthwise@s1/score", "depthwise@s1/parameters",
        "depthwise@s1/target", "depthwise@s1/clean",
    }  # fmt: skip
    losses = read.Scalars("depthwise@s1,s2+se@s3/loss")
    assert [(e.step, e.value) for e in losses] == [(n, pytest.approx(1 / n)) for n in range(1, 200)]
    assert read.Scalars("depthwise@s1/score")[0].value == -0.25
    assert losses[1].wall_time - losses[0].wall_time == 1.0


def test_a_damaged_file_is_noticed_by_the_reader(tmp_path: Path):
    """The control: the check sums are looked at."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    path = written(tmp_path)
    whole = len(list(loader.LegacyEventFileLoader(str(path)).Load()))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert len(list(loader.LegacyEventFileLoader(str(path)).Load())) < whole


def test_check_sums_are_those_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@settings(max_examples=50, deadline=None)
@given(payload=st.binary(max_size=300))
def test_a_record_carries_its_length_and_two_check_sums(payload: bytes):
    data = record(payload)
    assert struct.unpack("<Q", data[:8])[0] == len(payload) and len(data) == 16 + len(payload)
    assert data[12:-4] == payload
    other = record(payload + b"x")
    assert other[8:12] != data[8:12]


def test_steps_above_a_byte_are_written_whole():
    assert scalar_event(0.0, 300, {})[9:12] == b"\x10\xac\x02"


def test_a_disk_that_refuses_is_told(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError), scalars(tmp_path / "file" / "folder"):
        pass


def test_several_listeners_hear_the_same():
    heard: list[list[str]] = [[], []]
    tell = together([lambda e: heard[0].append(e.name), None, lambda e: heard[1].append(e.name)])
    for event in EVENTS[:3]:
        tell(event)
    assert heard[0] == heard[1] == [event.name for event in EVENTS[:3]]


def test_the_table_shows_the_best_and_what_runs():
    table = LiveTable("Growing auto")
    for i in range(30):
        table(Event("arm", f"se@s{i:02d}", 20, {"score": i / 100, "parameters": 90 + i}))
    table(Event("step", "depthwise@s1", 7, {"loss": 0.5}))
    table.step(70, 700)
    names = [line.name for line in table.lines()]
    assert len(names) == 10 and names[0] == "se@s29" and names[-1] == "depthwise@s1"
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    text = console.export_text()
    assert "se@s29" in text and "+29.0 points" in text and "0.500" in text and "Growing auto" in text


def terminal() -> Console:
    """A terminal of memory."""
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=30, _environ={"TERM": "xterm"})


def written_on(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_growth_shows_itself_on_a_terminal_and_leaves_nothing_behind():
    console = terminal()
    with shown("depthwise", None, on=console) as (on_step, tell):
        assert on_step is not None and tell is not None
        for event in EVENTS:
            tell(event)
        on_step(3, 10)
    assert "depthwise@s1" in written_on(console) and "captured 90.0 %" in written_on(console)
    assert written_on(console).rstrip().endswith("\x1b[2K"), "the last thing is a line that is wiped"


@pytest.mark.parametrize("case", ["a pipe", "not wanted", "somebody counts"])
def test_nothing_is_shown_elsewhere(case: str):
    console = Console(file=io.StringIO()) if case == "a pipe" else terminal()
    counts = (lambda done, asked: None) if case == "somebody counts" else None
    with shown("depthwise", counts, wanted=case != "not wanted", on=console) as (on_step, tell):
        assert on_step is counts and tell is None
    assert written_on(console) == ""


def test_what_grows_is_the_same_to_the_bit_whether_it_is_shown(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    quiet = evolve(small_growth.seeded(), **{**small_growth.task(), **TASK})
    assert capfd.readouterr() == ("", ""), "a pipe gets nothing"
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)  # what rich takes for a terminal
    seen = evolve(small_growth.seeded(), **{**small_growth.task(), **TASK})
    out, err = capfd.readouterr()
    assert "se@" in err and out == ""
    evolve(small_growth.seeded(), **{**small_growth.task(), **TASK, "progress": False})
    assert capfd.readouterr() == ("", "")
    mine, theirs = seen.network.graft_state(), quiet.network.graft_state()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
