"""Seed telemetry on the wire: every value with its bit, old and new readers, complete rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model
from worlds.telemetry import make_record

from kasmina_edge.contracts.canonical import Contract
from kasmina_edge.contracts.record import (
    MAX_SEEDS,
    AcceleratorReport,
    BudgetLeft,
    HardwareContext,
    SafetyScores,
    SeedTelemetry,
    TelemetryRecord,
    _Measured,
)
from kasmina_edge.errors import InputError
from kasmina_edge.telemetry import seed_telemetry
from kasmina_edge.telemetry.seed_rows import (
    SEED_COLUMNS,
    completed,
    newest_hardware,
    newest_with_seeds,
    seed_table,
)

KINDS: tuple[type[_Measured], ...] = (HardwareContext, BudgetLeft, SafetyScores, SeedTelemetry)
PLAIN = {
    HardwareContext: HardwareContext.BITS,
    BudgetLeft: BudgetLeft.BITS,
    SafetyScores: SafetyScores.BITS,
    SeedTelemetry: SeedTelemetry.BITS[:7],
}


def example(kind: type[_Measured], name: str) -> Any:
    if name in ("throttled", "under_voltage"):
        return False
    return 0 if name.endswith("bytes") or name in ("parameters", "capture_frames", "alert") else 0.0


def test_seed_telemetry_is_importable_where_seed_md_puts_it() -> None:
    assert seed_telemetry.SeedTelemetry is SeedTelemetry


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_has_one_bit(kind: type[_Measured]) -> None:
    values = set(kind.model_fields) - {"site", "blueprint", "looks", "reason", "energy_how"}
    assert set(kind.BITS) == values and len(kind.BITS) == len(values)
    for bit, name in enumerate(PLAIN[kind]):
        one = kind.parse({name: example(kind, name)})  # zero and False are measurements
        assert one.measured == 1 << bit and one.is_measured(name)
        assert all(not one.is_measured(other) for other in kind.BITS if other != name)
    assert kind().measured == 0
    with pytest.raises(InputError, match="has no value"):
        kind().is_measured("weather")


@given(st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(st.just(kind), st.sets(st.sampled_from(PLAIN[kind])))))
def test_bits_round_trip(given_: tuple[type[_Measured], set[str]]) -> None:
    kind, names = given_
    value = kind.parse({name: example(kind, name) for name in names})
    text = value.to_bytes()
    again = kind.from_bytes(text)
    assert again == value and again.to_bytes() == text
    assert {name for name in kind.BITS if again.is_measured(name)} == names
    assert json.loads(text)["measured"] == value.measured
    assert not any(v is None for v in json.loads(text).values())


@given(st.sampled_from(KINDS), st.integers(0, 2**16), st.data())
def test_a_bit_that_contradicts_its_value_is_refused(kind: type[_Measured], flip: int, data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(PLAIN[kind])))
    value = json.loads(kind.parse({name: example(kind, name) for name in names}).to_bytes())
    value["measured"] ^= flip
    if flip & ((1 << len(kind.BITS)) - 1):
        with pytest.raises(InputError, match="bit"):
            kind.parse(value)
    else:
        kind.parse(value)  # bits of names that are not known here


@pytest.mark.parametrize("mask", [True, -1, "3", 1.0, [1]])
def test_what_is_no_mask_is_refused(mask: Any) -> None:
    with pytest.raises(InputError, match="bit mask"):
        SafetyScores.parse({"drift": 1.0, "measured": mask})


def test_bits_follow_a_copy() -> None:
    row = SeedTelemetry(site="s1", interface_drift=0.1)
    assert row.model_copy(update={"age_s": 3.0}).measured == row.measured | 1 << SeedTelemetry.BITS.index("age_s")


def full_record() -> TelemetryRecord:
    return make_record(
        3,
        drift=0.5,
        check_frames=4,
        check_correct=3,
        latency_sketch="AQEB",
        hardware=HardwareContext(latency_us=25.0, rss_bytes=10, throttled=True),
        seeds=(
            SeedTelemetry(reason="no shadow", budget=BudgetLeft(parameters=-5), safety=SafetyScores(self_test=1.0)),
            SeedTelemetry(site="s1", blueprint="depthwise", utilization=0.25, interface_drift=0.01, age_s=7200.0),
            SeedTelemetry(site="s2", safety=SafetyScores(drift=0.9)),
        ),
        accelerator=AcceleratorReport(runs_on="CPU", events={"hang": 2}, cause="late"),
    )


def test_a_record_carries_it_all() -> None:
    record = full_record()
    again = TelemetryRecord.from_bytes(record.to_bytes())
    assert again == record and again.to_bytes() == record.to_bytes()


def test_records_without_the_new_parts_are_written_as_before() -> None:
    fields = json.loads(make_record(0).to_bytes())
    assert not fields.keys() & {"latency_sketch", "score_sketch", "hardware", "seeds", "accelerator"}
    assert "drift" in fields and fields["drift"] is None


class ReaderOf010(Contract):
    """What release 0.1.0 demands of a record; like every telemetry reader it ignores fields it does not know."""

    device: str
    bundle: str
    release: int
    boot: int
    sequence: int
    frames: int
    drift: float | None = None
    latency_us: dict[str, float] | None = None


def test_an_old_reader_reads_a_new_record() -> None:
    old = ReaderOf010.from_bytes(full_record().to_bytes())
    assert (old.device, old.sequence, old.drift) == ("cam-1", 3, 0.5)


OLD_BITS = SeedTelemetry.BITS[:10]
OldRow: Any = create_model(
    "OldRow", __base__=_Measured, **{n: (SeedTelemetry.model_fields[n].annotation, None) for n in OLD_BITS}
)  # type: ignore[call-overload]
OldRow.BITS = OLD_BITS


def test_a_gradient_norm_has_the_last_bit_and_older_readers_drop_it() -> None:
    row = SeedTelemetry(site="s1", utilization=0.5, gradient_norm=0.0)  # 0: a branch that is held still
    assert SeedTelemetry.BITS.index("gradient_norm") == 10 and row.measured == 1 << 5 | 1 << 10
    told = json.loads(row.to_bytes())
    old = OldRow.parse(told)
    assert old.measured == 1 << 5 and old.utilization == 0.5 and not hasattr(old, "gradient_norm")
    assert "gradient_norm" not in json.loads(SeedTelemetry(site="s1").to_bytes())
    with pytest.raises(InputError, match="gradient_norm"):
        SeedTelemetry.parse({**told, "measured": 1 << 5})


def test_a_record_bounds_its_rows_and_ignores_what_it_does_not_know() -> None:
    value = full_record().model_dump(mode="json")
    value["seeds"][1]["mood"] = 3
    value["hardware"]["fan_rpm"] = 900
    value["hardware"]["measured"] |= 1 << 40
    assert TelemetryRecord.parse(value) == full_record()
    with pytest.raises(InputError, match="seeds"):
        TelemetryRecord.parse({**value, "seeds": [{"site": "s"}] * (MAX_SEEDS + 1)})


def test_complete_rows_for_a_policy() -> None:
    whole, one, two = completed(full_record())
    for row in (whole, one, two):
        assert row.hardware is not None and row.hardware.latency_us == 25.0
        assert row.budget == BudgetLeft(parameters=-5) and row.reason == "no shadow"
        assert row.safety is not None and row.safety.check_accuracy == 0.75
        assert SeedTelemetry.from_bytes(row.to_bytes()) == row
    assert whole.safety is not None and (whole.safety.drift, whole.safety.self_test) == (0.5, 1.0)
    assert one.safety == whole.safety and (one.utilization, one.blueprint) == (0.25, "depthwise")
    assert two.safety is not None and two.safety.drift == 0.9  # what a row says itself stands
    assert completed(make_record(0)) == ()
    bare = completed(make_record(0, seeds=(SeedTelemetry(),)))[0]
    assert bare.measured == 0


def test_the_monitor_s_table() -> None:
    old = full_record()
    records = [old, make_record(4), make_record(2, seeds=(SeedTelemetry(site="old"),))]
    found = newest_with_seeds(records)
    assert found == old and newest_with_seeds([]) is None and newest_with_seeds([make_record(1)]) is None
    assert newest_with_seeds([old, make_record(9, bundle="c" * 64)]) is None  # another bundle runs by now
    assert newest_hardware(records) == old.hardware and newest_hardware([make_record(0)]) is None
    rows = seed_table([old])
    assert all(len(row) == len(SEED_COLUMNS) for row in rows)
    assert rows[1] == ("cam-1", "s1", "depthwise", "0.25", "-", "0.0100", "-", "2.0 h", "-5")
    assert [row[1] for row in rows] == ["(model)", "s1", "s2"]
