"""Calibration on a made-up machine whose true times are known, and the files that it writes run by LiteRT itself."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kasmina_edge.cli import profile_calibrate
from kasmina_edge.contracts.profile import HardwareProfile, load_profile, read_profile
from kasmina_edge.errors import EngineError, InputError
from kasmina_edge.hardware_simulator import calibrate as calibrating
from kasmina_edge.hardware_simulator import read_workload
from kasmina_edge.hardware_simulator.calibrate import (
    Measurement,
    calibrated_profile,
    machine_facts,
    measure_machine,
)
from kasmina_edge.hardware_simulator.calibration_nets import KINDS, calibration_nets, mixtures, reference_net
from kasmina_edge.hardware_simulator.cpu_fit import (
    LEAST_BAND,
    around_prediction,
    band_of,
    fit_model,
    predict_us,
    shares_off,
)
from kasmina_edge.hardware_simulator.cpu_kernels import Tiles, delegated
from kasmina_edge.hardware_simulator.cpu_layer import CpuLayer, CpuModel
from kasmina_edge.hardware_simulator.flat_tables import Scalar, Table, floats, ints, text, write_flat
from kasmina_edge.hardware_simulator.net_timing import litert_opener, time_nets
from kasmina_edge.hardware_simulator.net_writer import NetWriter
from kasmina_edge.hardware_simulator.profile_text import profile_toml

TRUTH = CpuModel(
    Tiles(5, 8, 8, 16),
    {"call": 2000.0, "partition": 300.0, "conv_step": 9.0, "conv_tap": 1.5, "conv_block": 25.0, "conv_op": 150.0,
     "product_step": 8.0, "product_block": 21.0, "product_op": 90.0, "vector_step": 2.0, "vector_op": 110.0,
     "depth9_tile": 20.0, "depth9_pixel": 6.0, "depth9_op": 70.0, "depth25_tile": 50.0, "depth25_pixel": 9.0,
     "depth3_tile": 9.0, "group_tap": 4.0, "sum_element": 0.3, "product_element": 0.3, "spread_row": 6.0,
     "spread_element": 0.3, "table_element": 0.1, "mean_strip": 3.0, "mean_op": 90.0, "peak_tap": 0.5, "peak_op": 40.0,
     "average_visit": 3.0, "average_op": 200.0, "join_byte": 0.1, "join_row": 4.0, "pad_pixel": 10.0,
     "bilinear_tile": 7.0, "nearest_pixel": 4.0, "nearest_op": 300.0, "swish_element": 5.0, "softmax_element": 3.0,
     "softmax_op": 120.0, "move_byte": 0.05},
    None,
)  # fmt: skip


BASE = load_profile("x86-cpu").model_dump()


class Machine:
    """A processor of known speed: running a network moves the clock on, a busy neighbour moves it on further."""

    def __init__(self, *, noise: float = 0.0, slow: Callable[[float], float] = lambda at_s: 1.0) -> None:
        self.now_ns, self._rng, self._noise, self._slow = 0, np.random.default_rng(1), noise, slow

    def timer_ns(self) -> int:
        return self.now_ns

    def open(self, data: bytes) -> Callable[[], object]:
        us = predict_us(TRUTH, read_workload(data))

        def call() -> None:
            noise = self._noise and float(self._rng.lognormal(0.0, self._noise))
            self.now_ns += round(us * 1000.0 * self._slow(self.now_ns / 1e9) * (noise or 1.0))

        return call


def measured_on(machine: Machine, **more: int) -> Measurement:
    (found,) = measure_machine(
        machine.open,
        minutes=0.5,
        kinds=["int8"],
        timer_ns=machine.timer_ns,
        **{"fitted": 224, "held_out": 24, "rounds": 1, **more},
    )
    return found


@pytest.fixture(scope="module")
def quiet() -> Measurement:
    return measured_on(Machine())


def test_a_machine_s_own_tiles_and_times_are_found(quiet: Measurement) -> None:
    assert (quiet.model.tiles.rows, quiet.model.tiles.columns) == (5, 8)
    assert quiet.within_tenth == 1.0 and max(map(abs, quiet.off)) < 0.02
    assert quiet.model.band == LEAST_BAND
    assert quiet.model.ns["conv_step"] == pytest.approx(9.0, rel=0.05)
    assert quiet.reference_us == pytest.approx(predict_us(TRUTH, read_workload(reference_net())), rel=1e-3)


def test_a_machine_that_others_use_shows_in_the_spread_and_hardly_in_the_figures() -> None:
    files = [net.data for net in mixtures(16)]
    machine = Machine(noise=0.1, slow=lambda at_s: 1.5 if int(at_s / 0.3) % 3 == 0 else 1.0)
    timings = time_nets(
        files, machine.open, reference=reference_net(), rounds=3, block_ns=1_000_000, timer_ns=machine.timer_ns
    )
    assert np.median([t.spread for t in timings]) > 0.005
    off = np.array([t.p50_us / predict_us(TRUTH, read_workload(data)) for t, data in zip(timings, files, strict=True)])
    assert np.mean(np.abs(off / np.median(off) - 1) <= 0.05) >= 0.9


def test_without_the_reference_the_neighbour_would_be_in_the_figure() -> None:
    files = [net.data for net in mixtures(12)]
    machine = Machine(slow=lambda at_s: 1.0 + at_s)
    timings = time_nets(files, machine.open, reference=reference_net(), rounds=3, timer_ns=machine.timer_ns)
    truth = np.array([predict_us(TRUTH, read_workload(data)) for data in files])
    scaled = np.array([t.p50_us for t in timings]) / truth
    raw = np.array([t.raw_us for t in timings]) / truth
    assert scaled.std() / scaled.mean() < 0.1 * raw.std() / raw.mean()


def test_the_time_that_was_given_is_kept() -> None:
    files, shares = [reference_net()] * 3, []
    machine = Machine()
    time_nets(
        files, machine.open, reference=files[0], rounds=1000, seconds=0.1, timer_ns=machine.timer_ns, told=shares.append
    )
    assert machine.now_ns < 0.15e9 and shares == sorted(shares) and 0.5 < shares[-1] <= 1.0


def test_the_profile_predicts_as_the_model_does_and_reads_back(quiet: Measurement, tmp_path: Path) -> None:
    made = calibrated_profile(
        [quiet], name="my-box", chip="A chip", clock_mhz=1800.0, ram_bytes=2**31,
        runtime_version="ai-edge-litert 2.3.0", at=datetime(2026, 11, 23, tzinfo=UTC),
    )  # fmt: skip
    path = tmp_path / "my-box.toml"
    path.write_text(profile_toml(made, comment="Measured."))
    assert read_profile(path) == made
    assert made.error_band == LEAST_BAND and made.anchors[0].network == "kasmina-reference-int8"
    assert "24 other mixtures 100 % within 10 %" in made.sources["coefficients.int8"]
    layer = CpuLayer(made)
    for net in mixtures(5, seed=3):
        work = read_workload(net.data)
        costs = layer.costs(work)
        assert costs.latency_ms * 1000 == pytest.approx(predict_us(quiet.model, work), rel=2e-3)
        assert costs.band == LEAST_BAND and not costs.notes


def test_a_base_keeps_what_is_not_measured(quiet: Measurement) -> None:
    base = load_profile("raspberry-pi-4")
    facts = {
        "chip": "B",
        "clock_mhz": 1.0,
        "ram_bytes": 1,
        "runtime_version": "2",
        "at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    made = calibrated_profile([quiet], base=base, threads=base.threads, **facts)  # type: ignore[arg-type]
    assert (made.name, made.aliases, made.engines) == (base.name, base.aliases, base.engines)
    renamed = calibrated_profile([quiet], base=base, name="pi-here", **facts)  # type: ignore[arg-type]
    assert (renamed.name, renamed.aliases) == ("pi-here", ())
    coral = load_profile("coral-usb")
    if coral.kind != "cpu":
        with pytest.raises(InputError, match="only processors"):
            calibrated_profile([quiet], base=coral, **facts)  # type: ignore[arg-type]


def test_wrong_calls_are_refused() -> None:
    machine = Machine()
    with pytest.raises(InputError, match=r"0\.1 minutes"):
        measure_machine(machine.open, minutes=0.1)
    with pytest.raises(InputError, match="int3"):
        measure_machine(machine.open, kinds=["int3"])
    with pytest.raises(InputError, match="cannot tell"):
        fit_model([(read_workload(n.data), 5.0) for n in calibration_nets(20)], "int8")
    with pytest.raises(InputError, match="above zero"):
        fit_model([(read_workload(reference_net()), 0.0)], "int8")


def test_a_network_that_does_not_run_is_named() -> None:
    def broken(data: bytes) -> Callable[[], object]:
        raise ValueError("no such operator")

    with pytest.raises((EngineError, ValueError), match="no such operator"):
        time_nets([b"x"], broken, reference=b"x", rounds=1)


@given(st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=60))
def test_the_band_holds_nine_of_ten_of_what_it_was_made_from(off: list[float]) -> None:
    band = band_of(np.array(off))
    assert np.mean(np.abs(off) <= band) >= 0.9
    assert band == 1.0 or len(off) >= 19


@given(st.lists(st.floats(-0.4, 1.0), min_size=19, max_size=80))
def test_the_band_is_around_the_prediction(off: list[float]) -> None:
    """What is printed is predicted * (1 +- band): of the measured times so many lie within it."""
    measured = np.ones(len(off))
    predicted = measured * (1.0 + np.array(off))
    band = band_of(around_prediction(np.array(off)))
    share = np.mean((measured >= predicted * (1 - band) - 1e-9) & (measured <= predicted * (1 + band) + 1e-9))
    assert share >= 0.9


def test_a_band_around_the_measured_time_would_not_hold_what_is_printed() -> None:
    off = np.full(40, -0.4)  # every prediction is 40 % too low: the measured times are 67 % above it
    wrong, right = band_of(off), band_of(around_prediction(off))
    assert wrong == pytest.approx(0.4) and right == pytest.approx(1 / 0.6 - 1)
    predicted = 0.6
    assert not predicted * (1 + wrong) >= 1.0 and predicted * (1 + right) >= 1.0 - 1e-9
    assert band_of(around_prediction(np.full(40, -1.0))) == 1.0, "nothing predicted: as wide as there is"


def test_calibration_prints_the_band_around_its_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "fit_model", lambda judged, kind: TRUTH)
    monkeypatch.setattr(calibrating, "shares_off", lambda model, judged: np.full(len(judged), -0.2))
    found = measured_on(Machine(), fitted=8, held_out=24)
    assert found.model.band == pytest.approx(0.25) and found.off[0] == -0.2 and found.within_tenth == 0.0


def test_a_model_that_fits_nothing_gets_a_wide_band() -> None:
    nets = [(read_workload(n.data), 1.0 + 10 * i) for i, n in enumerate(mixtures(30))]
    assert band_of(shares_off(TRUTH, nets)) > 0.5


def test_facts_of_a_made_machine(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name : Fast CPU\ncpu MHz : 2300.5\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       1000 kB\n")
    facts = machine_facts(tmp_path)
    assert (facts.chip, facts.clock_mhz, facts.ram_bytes) == ("Fast CPU", 2300.5, 1_024_000)
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 9\0")
    place = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    place.mkdir(parents=True)
    (place / "cpuinfo_max_freq").write_text("1500000\n")
    assert machine_facts(tmp_path).chip == "Raspberry Pi 9" and machine_facts(tmp_path).clock_mhz == 1500.0
    nothing = machine_facts(tmp_path / "none")
    assert nothing.clock_mhz == 1000.0 and nothing.ram_bytes > 0 and nothing.chip


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@given(texts, st.dictionaries(st.from_regex(r"[a-z_]{1,12}_ns", fullmatch=True), st.floats(0, 1e9), max_size=5))
def test_any_profile_reads_back_from_its_text(source: str, coefficients: dict[str, float]) -> None:
    fields = {
        **BASE,
        "source": source,
        "coefficients": coefficients,
        "sources": {"clock_mhz": source},
    }
    made = HardwareProfile.parse(fields, where="test")
    assert HardwareProfile.parse(tomllib.loads(profile_toml(made, comment="a\nb")), where="text") == made


def test_flat_tables_read_back_with_the_library_s_own_reader() -> None:
    flatbuffers = pytest.importorskip("flatbuffers")
    inner = Table({1: Scalar("d", 2.5), 0: text("name")})
    data = write_flat(
        Table({0: Scalar("b", -3), 2: ints([7, 8, 9], "q"), 3: [inner, Table({})], 5: floats([0.5])}), b"TEST"
    )
    assert data[4:8] == b"TEST" and data == write_flat(
        Table({0: Scalar("b", -3), 2: ints([7, 8, 9], "q"), 3: [inner, Table({})], 5: floats([0.5])}), b"TEST"
    )
    number = flatbuffers.number_types
    root = flatbuffers.table.Table(data, flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0))
    assert root.Get(number.Int8Flags, root.Pos + root.Offset(4)) == -3
    assert not root.Offset(6) and root.VectorLen(root.Offset(8)) == 3
    whole = root.GetVectorAsNumpy(number.Int64Flags, root.Offset(8))
    assert whole.tolist() == [7, 8, 9] and root.Vector(root.Offset(8)) % 8 == 0
    first = flatbuffers.table.Table(data, root.Indirect(root.Vector(root.Offset(10))))
    assert first.String(first.Pos + first.Offset(4)) == b"name"
    assert first.Get(number.Float64Flags, first.Pos + first.Offset(6)) == 2.5


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_litert_runs_every_kind_and_its_delegate_takes_what_we_think(dtype: str) -> None:
    module = pytest.importorskip("ai_edge_litert.interpreter")
    for kind, (shape, fill) in KINDS.items():
        rng = np.random.default_rng(5)
        net = NetWriter(shape(rng), dtype)
        fill(rng, net)
        data = net.finish()
        litert_opener()(data)()
        interpreter = module.Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        ours = [delegated(op) for op in read_workload(data).ops]
        parts = sum(each["op_name"] == "DELEGATE" for each in interpreter._get_ops_details())
        assert bool(parts) == any(ours), kind
        alone = [op.kind for op in read_workload(data).ops if not delegated(op)]
        assert parts <= 1 + len(alone), (kind, parts, alone)


def test_softmax_answers_in_its_own_scale() -> None:
    pytest.importorskip("ai_edge_litert.interpreter")
    net = NetWriter((1, 10))
    net.softmax(net.input)
    assert abs(int(np.sum(litert_opener()(net.finish())().astype(int) + 128)) - 256) <= 10  # type: ignore[attr-defined]


def run(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command("calibrate")(profile_calibrate.calibrate)
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["calibrate", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_the_verb_writes_a_profile_that_estimates(
    quiet: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "measure_machine", lambda *args, **more: [quiet])
    path = tmp_path / "here.toml"
    code, shown = run("--name", "here", "--out", str(path), "--base", "x86-cpu", "--json")
    told = json.loads(shown)
    assert code == 0 and told["profile"] == "here" and told["measured"][0]["within_10_percent"] == 1.0
    assert CpuLayer(read_profile(path)).costs(read_workload(reference_net())).latency_ms > 0
    with pytest.raises(InputError, match="is there already"):
        run("--out", str(path))
    assert run("--out", str(path), "--force")[0] == 0
    code, shown = run()
    assert tomllib.loads(shown)["name"] == "this-cpu"
    with pytest.raises(InputError, match="onnxruntime"):
        run("--engine", "onnxruntime")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--base", "coral-usb"), "only processors"),
        (("--name", "My CPU"), "My CPU"),
        (("--out", "no/such/a.toml"), "folder"),
        (("--out", ".", "--force"), "is a folder"),
        (("--out", "."), "is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_minutes_are_spent(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*args: object, **more: object) -> list[Measurement]:
        raise AssertionError("measured")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrating, "measure_machine", measured)
    with pytest.raises(InputError, match=said):
        run(*words)


@pytest.mark.slow
def test_this_machine_is_predicted() -> None:
    pytest.importorskip("ai_edge_litert.interpreter")
    (found,) = measure_machine(litert_opener(), minutes=1.0, kinds=["int8"], fitted=420, held_out=40)
    assert found.within_tenth >= 0.8, found.off
