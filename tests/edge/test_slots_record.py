"""The boot record's decisions: pure, so every sequence of them can be tried."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kasmina_edge import boot_record as decide
from kasmina_edge.boot_record import EMPTY, BootRecord, Failure, Quarantined, choose_record, encode_record
from kasmina_edge.errors import InputError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FAILURE = Failure("ab" * 32, "digits 1.2.0", "reference probes 61.0 %, plan asks 95 %", 1_795_000_000.5)
RECORD = BootRecord(
    sequence=7, active="a", trial="b", tries_left=2, boot=4, previous=None, last_failure=FAILURE, live=True
)


def test_golden_bytes_of_a_record() -> None:
    data = (GOLDEN / "boot_record_v1").read_bytes()
    assert encode_record(RECORD) == data
    assert decide.decode_record(data) == RECORD


def test_golden_bytes_of_a_quarantine() -> None:
    entries = {"ab" * 32: Quarantined("reference probes 61.0 %, plan asks 95 %", 1_795_000_000.5)}
    data = (GOLDEN / "quarantine_v1.json").read_bytes()
    assert decide.encode_quarantine(entries) == data
    assert decide.decode_quarantine(data) == entries


slots = st.sampled_from(["a", "b"])
failures = st.none() | st.builds(
    Failure, st.text("0123456789abcdef", max_size=64), st.text(), st.text(), st.floats(0, 2**40)
)


@st.composite
def records(draw: st.DrawFn) -> BootRecord:
    active, trial, previous = draw(
        st.sampled_from(
            [
                (None, None, None),
                ("a", None, None),
                ("a", None, "b"),
                ("a", "b", None),
                ("b", "a", None),
                (None, "a", None),
            ]
        )
    )
    return BootRecord(
        sequence=draw(st.integers(1, 2**40)),
        active=active,
        trial=trial,
        tries_left=draw(st.integers(0, 100)) if trial else 0,
        boot=draw(st.integers(0, 2**40)),
        previous=previous,
        last_failure=draw(failures),
        live=draw(st.booleans()) if trial else False,
    )


@given(records())
def test_a_record_comes_back(record: BootRecord) -> None:
    assert decide.decode_record(encode_record(record)) == record


@given(records(), records())
def test_the_highest_sequence_counts_whichever_copy_it_is_in(one: BootRecord, other: BootRecord) -> None:
    chosen = choose_record(encode_record(one), encode_record(other))
    assert chosen is not None and chosen.sequence == max(one.sequence, other.sequence)
    assert choose_record(encode_record(one), None) == choose_record(None, encode_record(one)) == one
    assert choose_record(None, None) is None


@given(records(), records(), st.data())
def test_a_torn_or_damaged_copy_costs_the_other_nothing(old: BootRecord, new: BootRecord, data: st.DataObject) -> None:
    whole = encode_record(new)
    if data.draw(st.booleans()):
        torn = whole[: data.draw(st.integers(0, len(whole) - 2))]
    else:
        at = data.draw(st.integers(0, len(whole) - 2))
        torn = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    assert decide.decode_record(torn) in (None, new)  # a flip inside JSON may spell the same value
    assert choose_record(torn, encode_record(old)) in (old, new)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_record(data: bytes) -> None:
    assert decide.decode_record(data) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"active": "a", "trial": "a"},
        {"active": "a", "previous": "a"},
        {"trial": "b", "previous": "b"},
        {"tries_left": 1},
        {"live": True},
        {"tries_left": -1, "trial": "b"},
        {"tries_left": 101, "trial": "b"},
        {"sequence": 0},
        {"boot": -1},
        {"active": "c"},
        {"sequence": "1"},
        {"last_failure": {"reason": "x"}},
    ],
)
def test_a_contradictory_record_is_not_valid(wrong: dict[str, object]) -> None:
    fields = asdict(BootRecord(sequence=1)) | wrong
    assert decide.decode_record(sealed(fields)) is None
    assert decide.decode_record(sealed(asdict(BootRecord(sequence=1)))) is not None


def sealed(fields: dict[str, object], **outer: object) -> bytes:
    from kasmina_edge.contracts.canonical import canonical_bytes, sha256_hex

    body = {"format": 1, "record": fields, "sha256": sha256_hex(canonical_bytes(fields))}
    return canonical_bytes(body | outer)


def test_what_a_later_version_adds_is_ignored_and_another_format_is_not_read() -> None:
    fields = asdict(BootRecord(sequence=3, active="b"))
    later = decide.decode_record(sealed(fields | {"colour": "red"}))
    assert later == BootRecord(sequence=3, active="b")
    assert decide.decode_record(sealed(fields, format=2)) is None
    assert decide.decode_record(b"[]") is None
    assert decide.decode_record(b"0" * (decide.MAX_RECORD_BYTES + 1)) is None


class Device(RuleBasedStateMachine):
    """Any sequence of decisions keeps the promises that the store's disk work builds on."""

    def __init__(self) -> None:
        super().__init__()
        self.record = EMPTY
        self.holds: dict[str, int] = {}  # what each slot holds; counts up with every installation
        self.good: set[int] = set()  # what was ever confirmed

    def follow(self, record: BootRecord) -> None:
        assert record.sequence == self.record.sequence + 1
        assert decide.decode_record(encode_record(record)) == record
        self.record = record

    @precondition(lambda self: self.record.trial is None)
    @rule()
    def install(self) -> None:
        slot = decide.idle_slot(self.record)
        assert slot != self.record.active
        self.follow(decide.release_slot(self.record, slot))
        assert not self.record.names(slot)
        self.holds[slot] = len(self.good) + 1000 * self.record.sequence

    @precondition(lambda self: self.record.trial is None)
    @rule(slot=slots, tries=st.integers(1, 3))
    def begin(self, slot: decide.Slot, tries: int) -> None:
        if slot == self.record.active or slot not in self.holds:
            with pytest.raises(InputError):
                decide.start_trial(self.record, self.record.active or slot, tries if self.record.active else 0)
            return
        self.follow(decide.start_trial(self.record, slot, tries))
        assert self.record.serving == self.record.active
        assert self.record.tries_left == tries

    @precondition(lambda self: self.record.trial is not None and self.record.tries_left > 0)
    @rule()
    def live(self) -> None:
        self.follow(decide.let_live(self.record))
        assert self.record.serving == self.record.trial

    @precondition(lambda self: self.record.trial is not None and self.record.tries_left > 0)
    @rule()
    def confirm(self) -> None:
        before = self.record
        self.follow(decide.commit_trial(before))
        assert (self.record.active, self.record.previous) == (before.trial, before.active)
        assert self.record.active is not None
        self.good.add(self.holds[self.record.active])

    @precondition(lambda self: self.record.trial is not None)
    @rule()
    def withdraw(self) -> None:
        self.follow(decide.withdraw_trial(self.record, FAILURE))
        assert self.record.serving == self.record.active and self.record.last_failure == FAILURE

    @precondition(lambda self: self.record.trial is not None and self.record.tries_left == 0)
    @rule()
    def neither_live_nor_committed_without_a_try(self) -> None:
        for refused in (decide.let_live, decide.commit_trial):
            with pytest.raises(InputError, match="has failed its trial"):
                refused(self.record)

    @precondition(lambda self: self.record.trial is not None)
    @rule()
    def fail(self) -> None:
        before = self.record
        self.follow(decide.end_trial(before, FAILURE))
        assert self.record.active == before.active
        assert self.record.last_failure == FAILURE

    @precondition(lambda self: self.record.trial is None and self.record.previous is not None)
    @rule()
    def undo(self) -> None:
        before = self.record
        self.follow(decide.return_to_previous(before))
        assert (self.record.active, self.record.previous) == (before.previous, before.active)

    @rule()
    def restart(self) -> None:
        before = self.record
        self.follow(decide.count_start(before))
        assert self.record.boot == before.boot + 1
        assert self.record.tries_left == max(0, before.tries_left - 1)
        assert (self.record.active, self.record.trial) == (before.active, before.trial)

    @invariant()
    def only_what_was_confirmed_is_active_or_can_be_returned_to(self) -> None:
        for slot in (self.record.active, self.record.previous):
            assert slot is None or self.holds[slot] in self.good

    @invariant()
    def tries_are_counted_on_trial_only(self) -> None:
        assert self.record.trial is not None or self.record.tries_left == 0


TestDevice = Device.TestCase


def test_quick_power_cycles_without_a_trial_change_nothing_but_the_boot_counter() -> None:
    record = BootRecord(sequence=1, active="b", previous="a", boot=1)
    for _ in range(50):
        record = decide.count_start(record)
    assert record == BootRecord(sequence=51, active="b", previous="a", boot=51)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: decide.idle_slot(RECORD), "slot b is on trial, so no slot is idle"),
        (lambda: decide.start_trial(RECORD, "a", 1), "slot b is on trial already"),
        (lambda: decide.start_trial(replace(RECORD, trial=None), "a", 1), "slot a is active already"),
        (lambda: decide.start_trial(EMPTY, "a", 0), "tries: expected 1 to 100, got 0"),
        (lambda: decide.start_trial(EMPTY, "c", 1), "slot 'c': expected a or b"),  # type: ignore[arg-type]
        (lambda: decide.let_live(EMPTY), "nothing can be made live"),
        (lambda: decide.commit_trial(EMPTY), "nothing can be confirmed"),
        (lambda: decide.end_trial(EMPTY, FAILURE), "nothing can be rolled back"),
        (lambda: decide.return_to_previous(RECORD), "slot b is on trial; that comes first"),
        (lambda: decide.return_to_previous(EMPTY), "no previous bundle is kept"),
    ],
)
def test_what_cannot_be_is_refused(refused: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        refused()  # type: ignore[operator]


def test_a_long_reason_and_odd_characters_fit_the_record() -> None:
    failure = decide.make_failure("ab", "digits 1.0.0", "\udcff" + "x" * 1000, 1)
    assert len(failure.reason) == 500 and failure.reason.endswith("...")
    record = BootRecord(sequence=1, last_failure=failure)
    assert decide.decode_record(encode_record(record)) == record


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"format":2,"entries":{}}', b'{"format":1,"entries":[]}', b'{"format":1,"entries":{"a":{}}}'],
)
def test_a_damaged_quarantine_is_told(data: bytes) -> None:
    with pytest.raises(ValueError):
        decide.decode_quarantine(data)


def test_a_quarantine_is_plain_json() -> None:
    value = json.loads(decide.encode_quarantine({"ab": Quarantined("why", 2)}))
    assert value == {"format": 1, "entries": {"ab": {"reason": "why", "at_s": 2}}}


def test_a_prefix_names_a_quarantined_content_when_it_is_the_only_one() -> None:
    entries = {"a" * 12 + "b" * 52: Quarantined("", 1), "a" * 13 + "c" * 51: Quarantined("", 1)}
    assert decide.find_quarantined(entries, "a" * 13) == "a" * 13 + "c" * 51
    for named, count in (("a" * 12, 2), ("", 0), ("c" * 12, 0)):
        with pytest.raises(InputError, match=f"names {count} quarantined"):
            decide.find_quarantined(entries, named)
    with pytest.raises(InputError) as told:
        decide.find_quarantined({}, "a" * 64)
    assert told.value.next_step == "Quarantined here: nothing."


def test_a_decision_is_repeated_for_the_other_copy() -> None:
    assert decide.repeat(RECORD) == replace(RECORD, sequence=8)
