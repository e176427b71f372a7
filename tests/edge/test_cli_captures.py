"""Erasing captured inputs through the program: here, in the plan that devices carry out, and in the list of grafts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli_fleet import Desk
from worlds.bundles import make_bundle, make_frames, make_graft
from worlds.fleets import plan_limits
from worlds.telemetry import make_record

from kasmina_edge.contracts.change_plan import ChangePlan, Erasure
from kasmina_edge.contracts.record import SeedTelemetry
from kasmina_edge.errors import InputError, StorageError
from kasmina_edge.fleet.erasures import MAX_IN_A_PLAN, CarriedOut, ErasureBook, carry_out, in_plan
from kasmina_edge.safety.encryption import load_signing_key
from kasmina_edge.telemetry.capture import CaptureStore
from kasmina_edge.telemetry.sketch import LogHistogram

PLAN = ["--blueprint", "depthwise", "--site", "s1", "--capture-frames", "10"]


class Line:
    """A fleet with one device, a plan that allows capture, and captures made at given seconds."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.data = desk, desk.folder / "cam-1"
        desk.call("fleet", "enroll", "cam-1", "--data", str(self.data), *desk.fleet)
        desk.call("fleet", "publish", str(desk.host_file), *desk.fleet, *desk.offline)
        desk.call("fleet", "plan", str(desk.host_file), *PLAN, *desk.fleet, *desk.offline)
        self.now = 0.0

    def capture(self, at_s: float) -> bytes:
        self.now = at_s
        plan = self.desk.office().repository.current_plan("digits")
        assert plan is not None
        store = CaptureStore(self.data / "capture", plan, "cam-1", lambda: self.now)
        assert store.keep(make_frames(1)[0], bundle="0" * 64)
        return store.upload(store.pending()[-1], load_signing_key(self.data / "device.key"))

    def erase(self, *arguments: str, code: int = 0) -> str:
        return self.desk.call("fleet", "erase", *arguments, "--yes", *self.desk.fleet, *self.desk.offline, code=code)


@pytest.fixture
def line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(Desk(tmp_path, capsys))


def test_an_erasure_goes_everywhere(line: Line) -> None:
    office = line.desk.office()
    store = office.store()
    early, late, waiting = line.capture(100.0), line.capture(200.0), line.capture(150.0)
    for item in (early, late):
        store.add_capture("cam-1", item)
    graft = make_graft(capture_batches=("cam-1/000000",))
    grown = make_bundle(version="1.1.0", seed=3, grafts=(graft,), parent=line.desk.host)
    office.publish(grown, to=["cam-1"], accept_anyway=True)

    told = json.loads(line.erase("cam-1", "--to", "1970-01-01T00:03:10Z", "--id", "dpo-7", "--json"))
    assert told["removed"] == 1 and told["plans"] == {"digits": 2} and told["grafts"] == ["digits 1.1.0 (release 2)"]
    assert [c.payload for c in store.captures()] == [late]
    plan = line.desk.office().repository.current_plan("digits")
    assert plan is not None and plan.erasures == (Erasure(id="dpo-7", to_s=190.0, device="cam-1"),)
    assert plan.capture is not None and plan.capture.max_frames == 10  # the rest of the plan stays
    with pytest.raises(InputError, match="an erasure covers it"):
        line.desk.office().store().add_capture("cam-1", waiting)  # what was on its way is not kept
    log = (line.desk.folder / "fleet/audit.log").read_text()
    assert '"captures_erased"' in log and "dpo-7" in log

    line.desk.call("fleet", "plan", str(line.desk.host_file), *PLAN, *line.desk.fleet, *line.desk.offline)
    following = line.desk.office().repository.current_plan("digits")
    assert following is not None and following.serial == 3 and following.erasures == plan.erasures


def test_a_demand_is_checked_before_anything_is_done(line: Line) -> None:
    assert "not an ISO 8601 moment" in line.erase("cam-1", "--to", "yesterday", code=2)
    assert "not before" in line.erase("cam-1", "--from", "2026-01-02", "--to", "2026-01-01", code=2)
    assert "no such device" in line.erase("cam-9", code=2)
    line.erase("cam-1", "--to", "1970-01-01T00:03:10Z", "--id", "dpo-7")
    line.erase("cam-1", "--to", "1970-01-01T00:03:10Z", "--id", "dpo-7")  # again: harmless
    assert "another scope" in line.erase("@all", "--id", "dpo-7", code=2)
    nowhere = ["--offline-keys", str(line.desk.folder / "nowhere")]
    said = line.desk.call("fleet", "erase", "cam-1", "--yes", *line.desk.fleet, *nowhere, code=2)
    assert "offline keys" in said


def test_the_keys_are_looked_at_before_anything_is_removed(line: Line) -> None:
    store = line.desk.office().store()
    store.add_capture("cam-1", line.capture(100.0))
    (line.desk.folder / "wrong").mkdir()
    wrong = ["--offline-keys", str(line.desk.folder / "wrong")]
    line.desk.call("fleet", "erase", "cam-1", "--yes", *line.desk.fleet, *wrong, code=2)
    assert len(store.captures()) == 1 and not (line.desk.folder / "fleet/erasures.json").exists()


def test_a_demand_that_was_cut_names_its_grafts_when_it_is_repeated(line: Line) -> None:
    office = line.desk.office()
    office.store().add_capture("cam-1", line.capture(100.0))
    plan = office.repository.current_plan("digits")
    assert plan is not None
    grown = make_bundle(version="1.1.0", seed=3, grafts=(make_graft(capture_batches=("cam-1/000000",)),))
    demand, path = Erasure(id="dpo-7", to_s=500.0), line.desk.folder / "fleet/erasures.json"

    def cut(plan: ChangePlan, erasures: tuple[Erasure, ...]) -> int:
        raise StorageError("the medium with the keys was pulled")

    def again(sign: Callable[[ChangePlan, tuple[Erasure, ...]], int]) -> CarriedOut:
        remove = office.store().erase_captures
        return carry_out(
            demand, ErasureBook(path), remove=remove, plans=[plan], sign=sign, manifests=[(2, grown.manifest)]
        )

    with pytest.raises(StorageError):
        again(cut)
    assert office.store().captures() == []
    done = again(lambda plan, erasures: 2)
    assert done.removed == () and done.grafts == ("digits 1.1.0 (release 2)",)
    assert ErasureBook(path).all() == (demand,), "a store that reads it as before"
    ErasureBook(path).add(Erasure(id="dpo-8", to_s=600.0))
    assert again(lambda plan, erasures: 3).grafts == done.grafts, "another demand keeps what is known of this one"


def spans(count: int, gap_s: float = 10.0) -> list[Erasure]:
    return [Erasure(id=f"e{i}", device="cam-1", from_s=i * gap_s, to_s=i * gap_s + 5.0) for i in range(count)]


def test_no_demand_is_pushed_out_of_a_plan(tmp_path: Path) -> None:
    book = ErasureBook(tmp_path / "erasures.json")
    many = spans(MAX_IN_A_PLAN)
    (tmp_path / "erasures.json").write_bytes(type(book._read())(erasures=tuple(many)).to_bytes())
    assert in_plan(book.all()) == tuple(many)
    with pytest.raises(InputError, match=f"{MAX_IN_A_PLAN + 1} separate spans.*at most {MAX_IN_A_PLAN}"):
        book.add(Erasure(id="one-more", device="cam-2", to_s=5.0))
    assert book.all() == tuple(many), "nothing was forgotten, nothing half written down"
    book.add(Erasure(id="within", device="cam-1", from_s=1.0, to_s=2.0))
    book.add(Erasure(id="bridge", device="cam-1", from_s=4.0, to_s=12.0))
    carried = in_plan(book.all())
    assert len(carried) == MAX_IN_A_PLAN - 1
    assert [e for e in carried if e.from_s < 20.0] == [Erasure(id=carried[0].id, device="cam-1", from_s=0.0, to_s=15.0)]
    assert carried[0].id.startswith("joined-"), "under a new name, so that devices carry it out anew"
    book.add(Erasure(id="all", to_s=9e9))
    assert [e.id for e in in_plan(book.all())] == ["all"]


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "cam-1", "cam-2"]), st.integers(0, 20), st.integers(1, 6)),
        min_size=1, max_size=12,
    ),
    st.integers(1, 12),
)  # fmt: skip
def test_a_plan_covers_exactly_what_was_demanded(demands: list[tuple[str | None, int, int]], limit: int) -> None:
    made = [Erasure(id=f"e{i}", device=d, from_s=a, to_s=a + n) for i, (d, a, n) in enumerate(demands)]
    try:
        carried = in_plan(made, limit)
    except InputError:
        assert len(made) > limit
        return
    assert len(carried) <= limit
    for device in ("cam-1", "cam-2", "cam-3"):
        for half in range(56):
            at_s = half / 2
            assert any(e.covers(device, at_s) for e in carried) == any(e.covers(device, at_s) for e in made)


def test_sampling_stands_in_the_plan(line: Line) -> None:
    rule = ["--capture-random", "2", "--capture-unsure", "1", "--capture-drifted", "3", "--capture-days", "14"]
    value = json.loads(
        line.desk.call(
            "fleet", "plan", str(line.desk.host_file), *PLAN, *rule, "--json", *line.desk.fleet, *line.desk.offline
        )
    )
    assert value["capture"]["max_days"] == 14.0
    assert value["capture"]["sampling"] == {
        "window_s": 60.0, "frames": 2, "low_score": 0.6, "low_score_frames": 1, "drift_frames": 3
    }  # fmt: skip
    assert plan_limits().capture_sampling is None
    said = line.desk.call(
        "fleet", "plan", str(line.desk.host_file), *PLAN, "--capture-random", "100", *line.desk.fleet, code=2
    )
    assert "64" in said


def test_seed_telemetry_is_shown_by_site_and_latency_for_all(line: Line) -> None:
    said = line.desk.call("fleet", "seeds", *line.desk.fleet)
    assert "No device has sent seed telemetry" in said and "not measured" in said
    assert "not enrolled here" in line.desk.call("fleet", "seeds", "cam-9", *line.desk.fleet, code=2)
    sketch = LogHistogram()
    for _ in range(100):
        sketch.add(50.0)
    record = make_record(
        started_s=time.time(),
        seeds=(SeedTelemetry(site="", looks=9), SeedTelemetry(site="s1", looks=9, utilization=0.25)),
        latency_sketch=sketch.encode(),
    )
    line.desk.office().store().record_telemetry([record])
    said = line.desk.call("fleet", "seeds", *line.desk.fleet)
    assert "s1" in said and "0.25" in said and "latency of 100 inferences: p50 50 us" in said
    value = json.loads(line.desk.call("fleet", "seeds", "cam-1", "--json", *line.desk.fleet))
    assert value["latency_us"]["count"] == 100 and value["devices"]["cam-1"][1]["utilization"] == 0.25
