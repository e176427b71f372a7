"""What seed sites tell while `evolve` trains: the device's own records, and no bit of what learns is another for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from worlds import small_growth

from kasmina_edge.contracts.record import SeedTelemetry, TelemetryRecord
from kasmina_edge.errors import StorageError
from kasmina_trainer.evolve import Event, GrownNetwork, Parameters, evolve
from kasmina_trainer.evolve.arms import Arm
from kasmina_trainer.evolve.telling import RECORD_EVERY, Teller, written
from kasmina_trainer.seeds import attach_seeds, hash_state

LONGER = replace(small_growth.QUICK, steps=2 * RECORD_EVERY + 4)
NORMS = [(Arm("scale-bn-retune", ("norm",)), Arm("adapter", ("deep",)))]


def grow(**options: Any) -> GrownNetwork:
    seeds = options.pop("seeds", None) or small_growth.seeded()
    return evolve(seeds, **{**small_growth.task(), "rival": False, **options})


def with_norms(**options: Any) -> GrownNetwork:
    host = small_growth.trained_host()
    seeds = attach_seeds(host, ["norm", "deep"], example=torch.zeros(1, 1, small_growth.SIDE, small_growth.SIDE))
    return grow(seeds=seeds, blueprint=NORMS, **options)


def lines(path: Path) -> list[TelemetryRecord]:
    return [TelemetryRecord.from_bytes(line) for line in path.read_bytes().splitlines()]


def rows(record: TelemetryRecord) -> dict[str, SeedTelemetry]:
    return {row.site: row for row in record.seeds or ()}


def test_every_figure_of_the_issue_is_in_the_last_record(tmp_path: Path):
    path = tmp_path / "deep" / "telemetry.jsonl"
    grown = grow(telemetry=path, settings=LONGER, budget=Parameters(5000))
    told = lines(path)
    assert [record.sequence for record in told] == [0, 1, 2] and {record.boot for record in told} == {0}
    assert {record.source for record in told} == {"depthwise@s1,s2"}
    assert {record.bundle for record in told} == {grown.network.host_hash}
    last = told[-1]
    assert last.hardware is not None and last.hardware.rss_bytes
    whole, site = rows(last)[""], rows(last)["s1"]
    for name in ("activation_variance", "interface_drift", "weights_l1", "mean_output", "utilization", "age_s",
                 "gradient_norm", "contribution"):  # fmt: skip
        assert site.is_measured(name), name
    assert site.blueprint == "depthwise" and whole.budget is not None
    assert whole.budget.parameters == 5000 - sum(graft.parameters for graft in grown.grafts)
    middle = rows(told[1])[""]
    assert middle.safety is not None and middle.safety.drift is not None and 0 <= middle.safety.drift < 1
    assert sum(record.frames for record in told) >= LONGER.steps * LONGER.batch


def test_drift_rises_when_other_rows_are_trained_on_than_were_expected():
    x, _ = small_growth.task()["target"]
    heard: list[TelemetryRecord] = []
    network = small_growth.seeded()
    network.graft("s1", "adapter")
    sources = [small_growth.task()["train"]]
    teller = Teller(heard.append, sources, allowance=_no_limits(), seed=0)
    for rows_ in (sources[0][0], x):
        with teller.over(network, "adapter@s1", None) as told:
            for step in range(1, RECORD_EVERY + 1):
                network(torch.from_numpy(rows_[step : step + 8]))
                told(step, 0.0)
    first, second = (record.drift for record in (heard[0], heard[2]))
    assert first is not None and second is not None and first < 1 < second


def _no_limits() -> Any:
    from kasmina_trainer.evolve.budget import Allowance

    return Allowance()


@pytest.mark.parametrize("way", [grow, with_norms])
def test_looking_changes_no_bit(way: Any, tmp_path: Path):
    plain, looked = way(), way(telemetry=tmp_path / "t.jsonl")
    assert hash_state(plain.network.graft_state()) == hash_state(looked.network.graft_state())
    assert plain.acceptance == looked.acceptance and lines(tmp_path / "t.jsonl")


@pytest.mark.parametrize("way", [grow, with_norms])
def test_an_interrupted_run_goes_on_to_the_same_bytes(way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from kasmina_trainer.evolve import growing

    monkeypatch.setattr(growing, "CHECKPOINT_EVERY", 5)
    path, run = tmp_path / "t.jsonl", tmp_path / "run"

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        way(telemetry=path, folder=run, on_event=stop)
    path.write_bytes(path.read_bytes() + b'{"cut')
    grown = way(telemetry=path, folder=run, resume=True)
    assert hash_state(grown.network.graft_state()) == hash_state(way().network.graft_state())
    *_, cut, last = path.read_bytes().splitlines()
    assert cut == b'{"cut' and TelemetryRecord.from_bytes(last).frames > 0
    before = path.read_bytes()
    way(telemetry=path, folder=run, resume=True)
    assert path.read_bytes() == before  # what was trained is not trained, and not told, again


def test_a_race_counts_its_trainings_and_a_listener_hears_them():
    heard: list[TelemetryRecord] = []
    grow(telemetry=heard.append, blueprint=[Arm("se", ("s1",)), Arm("adapter", ("s2",))])
    assert [record.boot for record in heard] == list(range(len(heard))) and len(heard) == 3
    assert {record.source for record in heard} == {"se@s1", "adapter@s2"}
    assert len({(record.source, record.boot, record.sequence) for record in heard}) == len(heard)


def test_a_disk_that_refuses_is_told_before_anything_is_trained(tmp_path: Path):
    (tmp_path / "file").write_text("")
    heard: list[Event] = []
    with pytest.raises(StorageError, match="telemetry"):
        grow(telemetry=tmp_path / "file" / "telemetry", on_event=heard.append)
    assert not heard


def test_rows_that_are_all_alike_do_not_alarm():
    same = np.zeros((40, 1, 8, 8), np.float32)
    heard: list[TelemetryRecord] = []
    network = small_growth.seeded()
    network.graft("s1", "adapter")
    teller = Teller(heard.append, [(same, np.arange(40) % 3)], allowance=_no_limits(), seed=0)
    with teller.over(network, "adapter@s1", None) as told:
        for step in range(1, RECORD_EVERY + 1):
            network(torch.from_numpy(same[:8]))
            told(step, 0.0)
    assert heard[0].sampled and heard[0].drift in (None, 0.0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_as_such_when_the_file_is_closed_too() -> None:
    record: Any = SimpleNamespace(to_bytes=lambda: b"{}")
    with pytest.raises(StorageError, match="/dev/full"), written(Path("/dev/full")) as hear:
        hear(record)
