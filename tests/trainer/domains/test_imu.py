"""IMU: a pickle that runs nothing, users in one part only, and a simulator that keeps to mechanics."""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
import types
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.fetching import cache_folder, is_fetched
from kasmina_trainer.datasets.imu import body, hapt, hapt_pickle, simulator, windows
from kasmina_trainer.datasets.imu.hapt_pickle import read_tables
from kasmina_trainer.datasets.imu.sensor import SensorModel, measured_sensor
from kasmina_trainer.datasets.imu.windows import LABELS, RATE_HZ, Recording, cut, split_by_user, users_of_parts

NAMES = ("acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z", "sequence", "label")


class Opcodes:
    """Writes pickles of protocol 2 by hand, as pandas before 1.1 and Python 3 wrote them."""

    @staticmethod
    def text(value: str) -> bytes:
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    @staticmethod
    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    @classmethod
    def named(cls, module: str, name: str) -> bytes:
        return f"c{module}\n{name}\n".encode()

    @classmethod
    def pack(cls, *parts: bytes) -> bytes:
        return b"(" + b"".join(parts) + b"t"

    @classmethod
    def call(cls, function: bytes, *arguments: bytes) -> bytes:
        return function + cls.pack(*arguments) + b"R"

    @classmethod
    def mapping(cls, **values: bytes) -> bytes:
        return b"}(" + b"".join(cls.text(k.replace("v0_14_1", "0.14.1")) + v for k, v in values.items()) + b"u"

    @classmethod
    def array(cls, kind: str, shape: tuple[int, ...], data: bytes, *, fortran: bool = False) -> bytes:
        raw = cls.call(
            cls.named("numpy.core.multiarray", "_reconstruct"),
            cls.named("numpy", "ndarray"),
            cls.pack(cls.number(0)),
            cls.call(cls.named("_codecs", "encode"), cls.text("b"), cls.text("latin1")),
        )
        minus = cls.number(-1)
        dtype = cls.call(cls.named("numpy", "dtype"), cls.text(kind), cls.number(0), cls.number(1))
        order = cls.text("|" if kind == "O8" else "<")
        dtype += cls.pack(cls.number(3), order, b"N", b"N", b"N", minus, minus, cls.number(0)) + b"b"
        sizes = cls.pack(*map(cls.number, shape))
        return raw + cls.pack(cls.number(1), sizes, dtype, b"I01\n" if fortran else b"I00\n", data) + b"b"

    @classmethod
    def numbers(cls, kind: str, values: np.ndarray[Any, Any]) -> bytes:
        plain = np.ascontiguousarray(values, "<f8" if kind == "f8" else "<i8").tobytes()
        told = cls.call(cls.named("_codecs", "encode"), cls.text(plain.decode("latin1")), cls.text("latin1"))
        return cls.array(kind, values.shape, told)

    @classmethod
    def frame(cls, columns: dict[str, np.ndarray[Any, Any]]) -> bytes:
        names = b"](" + b"".join(map(cls.text, columns)) + b"e"
        index = cls.call(
            cls.named("pandas.core.indexes.base", "_new_Index"),
            cls.named("pandas.core.indexes.base", "Index"),
            cls.mapping(data=cls.array("O8", (len(columns),), names), name=b"N"),
        )
        rows = cls.call(
            cls.named("pandas.core.indexes.base", "_new_Index"),
            cls.named("pandas.core.indexes.range", "RangeIndex"),
            cls.mapping(name=b"N", start=cls.number(0), stop=cls.number(5), step=cls.number(1)),
        )
        reals, wholes = list(columns.values())[:6], list(columns.values())[6:]
        places = [
            cls.call(cls.named("__builtin__", "slice"), cls.number(a), cls.number(b), cls.number(1))
            for a, b in ((0, len(reals)), (len(reals), len(columns)))
        ]
        values = [cls.numbers("f8", np.stack(reals)), cls.numbers("i8", np.stack(wholes))]
        blocks = [cls.mapping(values=v, mgr_locs=p) for v, p in zip(values, places, strict=True)]
        told = cls.mapping(
            v0_14_1=cls.mapping(axes=b"](" + index + rows + b"e", blocks=b"](" + b"".join(blocks) + b"e")
        )
        axes = b"](" + index + rows + b"e"
        manager = cls.made("pandas.core.internals.managers", "BlockManager")
        manager += cls.pack(axes, b"]", b"]", told) + b"b"
        return (
            cls.made("pandas.core.frame", "DataFrame") + cls.mapping(_data=manager, _typ=cls.text("dataframe")) + b"b"
        )

    @classmethod
    def made(cls, module: str, name: str) -> bytes:
        base = cls.named("__builtin__", "object")
        return cls.call(cls.named("copy_reg", "_reconstructor"), cls.named(module, name), base, b"N")

    @classmethod
    def whole(cls, frames: dict[int, list[bytes]]) -> bytes:
        items = b"".join(cls.number(k) + b"](" + b"".join(v) + b"e" for k, v in frames.items())
        return b"\x80\x02}(" + items + b"u."


def columns(count: int = 5, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray[Any, Any]] = {name: rng.normal(size=count) for name in NAMES[:6]}
    return found | {"sequence": np.arange(count), "label": np.arange(count) % 13}


def test_tables_come_back_as_they_were_written() -> None:
    wanted = columns()
    data = Opcodes.whole({1: [Opcodes.frame(wanted), Opcodes.frame(columns(7, 1))], 2: [Opcodes.frame(wanted)]})
    found = read_tables(data, where="x")
    assert [len(v) for v in found.values()] == [2, 1] and list(found[1][0]) == list(NAMES)
    assert all(np.array_equal(found[1][0][name], wanted[name]) for name in NAMES)


class Evil:
    """Runs a command when a plain unpickler reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import sys; sys.modules['hapt_ran'] = sys",)


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """Name, pickle, what the refusal says."""
    op = Opcodes
    good = op.whole({1: [op.frame(columns())]})
    yield "a call", pickle.dumps(Evil(), 2), "the name __builtin__ exec"
    yield "protocol 4", pickle.dumps(Evil(), 4), "instruction"
    system = op.call(op.named("os", "system"), op.text("true"))
    yield "system", b"\x80\x02" + system + b".", "the name os system"
    yield "getattr", b"\x80\x02" + op.named("__builtin__", "getattr") + b".", "the name __builtin__ getattr"
    yield "dotted", b"\x80\x02" + op.named("numpy", "dtype.__class__") + b".", "the name numpy dtype.__class__"
    yield "numpy loads", b"\x80\x02" + op.named("numpy", "load") + b".", "the name numpy load"
    yield "joblib", b"\x80\x02" + op.named("pandas.core.frame", "DataFrame.eval") + b".", "the name pandas"
    yield "instance", b"\x80\x02(ios\nsystem\n.", "INST"
    yield "object", b"\x80\x02(cos\nsystem\no.", "the name os system"
    yield "extension", b"\x80\x02\x82\x01.", "EXT1"
    yield "persistent", b"\x80\x02Pabc\n.", "PERSID"
    yield "new object", b"\x80\x02" + op.named("numpy", "dtype") + b")\x81.", "NEWOBJ"
    yield "memo", b"\x80\x02}r\xff\xff\xff\x7f.", "of the memo"
    yield "endless", b"\x80\x02" + b"N0" * 200_000 + b"N.", "instruction"
    yield "many steps", b"\x80\x02](" + b"N" * 100_001 + b"e.", "instruction 100001"
    yield (
        "encode",
        b"\x80\x02" + op.call(op.named("_codecs", "encode"), op.text("x"), op.text("rot13")) + b".",
        "encoding",
    )
    short = op.call(op.named("_codecs", "encode"), op.text("1234"), op.text("latin1"))
    yield "short array", b"\x80\x02" + op.array("f8", (1000,), short) + b".", "needs 8000 bytes"
    yield "huge array", b"\x80\x02" + op.array("f8", (2**30, 8), short) + b".", "shape"
    yield "negative", b"\x80\x02" + op.array("f8", (-1,), short) + b".", "shape"
    yield "objects", b"\x80\x02" + op.array("O8", (1,), b"](" + op.number(5) + b"e") + b".", "no short text"
    yield "type", b"\x80\x02" + op.array("V8", (1,), short) + b".", "type 'V8'"
    yield "state", b"\x80\x02" + op.named("numpy", "ndarray") + op.mapping(__call__=b"N") + b"b.", "not a pickle"
    yield "after its end", good + b"cos\nsystem\n.", "after its end"
    yield "cut short", good[:-40], "not a pickle"
    yield "a list", b"\x80\x02].", "no dictionary"
    yield "no frame", b"\x80\x02}" + op.number(1) + b"](NNes.", "no data frame"
    yield "nothing", b"", "not a pickle"


@pytest.mark.parametrize(("name", "data", "told"), list(hostile()), ids=[name for name, _, _ in hostile()])
def test_hostile_pickles_are_refused_and_run_nothing(name: str, data: bytes, told: str) -> None:
    with pytest.raises(InputError, match="not a pickle of plain tables") as caught:
        read_tables(data, where="x.pkl")
    assert told in str(caught.value), name
    assert "hapt_ran" not in sys.modules


def test_the_hostile_call_would_have_run() -> None:
    """The negative control: what is refused above does run under Python's own rules."""
    pickle.loads(pickle.dumps(Evil(), 2))
    assert isinstance(sys.modules.pop("hapt_ran"), types.ModuleType)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_are_a_sentence_or_another_table(data: st.DataObject) -> None:
    good = bytearray(Opcodes.whole({1: [Opcodes.frame(columns())]}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_tables(bytes(good), where="x")
    except InputError as exc:
        assert "not a pickle" in str(exc)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 10 are read"):
        read_tables(b"\x80\x02}." * 4, where="x", max_bytes=10)
    bomb = gzip.compress(bytes(hapt_pickle.MAX_BYTES + 10), 1)
    with pytest.raises(InputError, match="unpacks to more"):
        hapt.read_gzip(bomb, hapt_pickle.MAX_BYTES, "x")
    with pytest.raises(InputError, match="missing or damaged"):
        hapt.load_hapt(folder=tmp_path, downloaded=None)


def recording(user: int, labels: list[tuple[int, int]]) -> Recording:
    told = np.concatenate([np.full(count, label, np.int64) for label, count in labels])
    signal = np.random.default_rng(user).normal(size=(6, len(told))).astype(np.float32)
    return Recording(user, signal, told)


def test_windows_hold_one_activity_and_transitions_only_where_they_are_asked_for() -> None:
    record = recording(1, [(3, 300), (7, 150), (4, 300), (-1, 300)])
    x, y = cut(record)
    assert x.shape == (len(y), 6, 128) and set(y.tolist()) == {3, 4}
    assert len(y) == 3 + 2 and np.array_equal(x[1], record.signal[:, 64:192])
    twelve = cut(record, classes=12)[1]
    assert set(twelve.tolist()) == {3, 4, 7} and len(twelve) > len(y)
    with pytest.raises(InputError, match="7 classes"):
        cut(record, classes=7)
    assert len(cut(recording(1, [(0, 100)]))[1]) == 0


@given(st.integers(0, 500), st.integers(6, 40))
@settings(max_examples=30, deadline=None)
def test_nobody_is_in_two_parts(seed: int, count: int) -> None:
    parts = users_of_parts(list(range(1, count + 1)) * 2, seed, validation=2, test=3)
    assert sum(map(len, parts)) == count and frozenset.union(*parts) == set(range(1, count + 1))
    with pytest.raises(InputError, match="leave too few"):
        users_of_parts([1, 2, 3], seed, validation=1, test=2)


def test_a_split_shows_who_leaks() -> None:
    """Every window of a user carries the user's number; no number is in two parts."""
    records = []
    for user in range(1, 13):
        record = recording(user, [(label, 200) for label in range(6)])
        records.append(Recording(user, np.full_like(record.signal, user), record.labels))
    splits = split_by_user(records, 3, validation=2, test=3)
    seen = [set(x[:, 0, 0].tolist()) for x, _ in (splits.train, splits.validation, splits.test)]
    assert [len(s) for s in seen] == [7, 2, 3] and not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    with pytest.raises(InputError, match="has 6 of 12 classes"):
        split_by_user(records, 3, classes=12, validation=2, test=3)


@lru_cache(maxsize=1)
def simulated() -> list[Recording]:
    return simulator.simulate(0, users=8)


def test_simulated_users_are_seeded_and_do_everything() -> None:
    found = simulated()
    again = simulator.simulate(0, users=2)
    assert len(found) == 16 and np.array_equal(found[3].signal, again[3].signal), "a user does not depend on how many"
    assert not np.array_equal(found[0].signal[:, :500], found[1].signal[:, :500])
    assert all(set(np.unique(r.labels)) == set(range(-1, 12)) for r in found)
    splits = simulator.load_simulated(0, users=8, classes=12)
    assert splits.labels == LABELS and splits.train[0].shape[1:] == (6, 128)
    with pytest.raises(InputError, match="at least 8"):
        simulator.load_simulated(0, users=5)


def test_a_perfect_sensor_keeps_to_mechanics() -> None:
    """At rest one g and no turn; rates add up to the attitude; over whole strides the force is gravity's."""
    rng = np.random.default_rng(0)
    upright = body.Posture(0.1, 0.2, 1.0)
    flat = body.Path(np.zeros((3, 400)), np.tile([[0.3], [0.1], [0.2]], 400))
    still = body.truth(flat, np.eye(3), RATE_HZ)
    assert np.allclose(np.linalg.norm(still[:3], axis=0), 1.0) and np.abs(still[3:]).max() < 1e-9
    gait = body.Gait(1.8, 0.02, 0.01, 0.02, 0.002, 0.06, 0.05, 0.03)
    path = body.walk(gait, upright, 20.0, RATE_HZ, rng)
    turned = body.attitude(path.angles)
    dt = 1 / (RATE_HZ * body.FINE)
    rates = body.rates(turned, dt)
    attitude = turned[0]
    for rate in rates[:, :-1].T:
        angle = float(np.linalg.norm(rate)) * dt
        x, y, z = rate * dt / max(angle, 1e-15)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        attitude = attitude @ (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)
    assert np.allclose(attitude, turned[-1], atol=1e-6)
    force = body.truth(path, np.eye(3), RATE_HZ)[:3]
    world = np.einsum("nij,jn->in", turned.reshape(-1, body.FINE, 3, 3)[:, 1], force)
    assert np.abs(world.mean(1) - [0, 0, 1]).max() < 0.02 and force.std(1).max() > 0.05


def test_a_sensor_adds_what_its_model_says_and_no_more() -> None:
    truth = np.zeros((6, 20_000))
    model = SensorModel(wander=0.0)
    read = np.stack([model.read(truth, np.random.default_rng(seed), RATE_HZ) for seed in range(30)])
    assert np.diff(read, axis=2).std((0, 2)) / np.sqrt(2) == pytest.approx(
        np.array(model.acceleration_noise + model.rate_noise), rel=0.05
    )
    assert read[:, 3:].mean(2).std() == pytest.approx(model.rate_offset, rel=0.3)
    steps = read[0, 0] / model.acceleration_step
    assert np.allclose(steps, np.round(steps), atol=1e-6)
    assert np.abs(model.read(truth + 50, np.random.default_rng(0), RATE_HZ)).max() <= model.rate_limit + 1e-3
    own = measured_sensor(simulated())
    assert np.array(own["noise"]) == pytest.approx(np.array(model.acceleration_noise + model.rate_noise), rel=0.5)


REAL_STD = {
    "walking": (0.234, 0.177, 0.141, 0.486, 0.532, 0.337),
    "stairs-up": (0.257, 0.173, 0.152, 0.493, 0.524, 0.382),
    "stairs-down": (0.372, 0.192, 0.160, 0.633, 0.562, 0.379),
}
"""Mean deviation of each channel over UCI HAPT's recordings, in 5.12 s windows; `test_those_are_the_real_ones`."""


def channel_std(records: list[Recording], label: int) -> np.ndarray[Any, Any]:
    found = []
    for record in records:
        rows = np.flatnonzero(record.labels == label)
        if len(rows) >= 512:
            pieces = record.signal[:, rows[: len(rows) // 256 * 256]].reshape(6, -1, 256)
            found.append(pieces.std(2).mean(1))
    return np.mean(found, 0)


@pytest.mark.parametrize("name", REAL_STD)
def test_simulated_gaits_are_as_strong_as_real_ones(name: str) -> None:
    ratio = channel_std(simulated(), LABELS.index(name)) / REAL_STD[name]
    assert ratio.min() > 0.75 and ratio.max() < 1.35, ratio.round(2)


@pytest.mark.slow
def test_those_are_the_real_ones() -> None:
    if not is_fetched(hapt.PACKAGE, cache_folder() / "hapt"):
        pytest.skip("UCI HAPT is not here: kasmina-trainer data fetch hapt")
    records = hapt.load_recordings(downloaded=None)
    assert len(records) == 61 and sum(len(r.labels) for r in records) == 1_122_772
    assert {r.user for r in records} == set(range(1, 31))
    for name, wanted in REAL_STD.items():
        assert channel_std(records, LABELS.index(name)) == pytest.approx(np.array(wanted), abs=0.002)
    noise = np.array(measured_sensor(records)["noise"])
    model = SensorModel()
    assert noise == pytest.approx(np.array(model.acceleration_noise + model.rate_noise), rel=0.05)
    assert windows.RATE_HZ == 50
