"""Energy from made trees of /sys: wrap-around, rights, garbage, several domains, and that the source is always said."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasmina_edge.contracts.profile import HardwareProfile, load_profile
from kasmina_edge.contracts.record import HardwareContext, TelemetryRecord
from kasmina_edge.doctor.energy import check_energy
from kasmina_edge.doctor.machine import Machine
from kasmina_edge.hardware_simulator import read_workload
from kasmina_edge.hardware_simulator.calibration_nets import reference_net
from kasmina_edge.runtime.energy_account import energy_account
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.telemetry.details import with_energy
from kasmina_edge.telemetry.energy import (
    MAX_HOW,
    Energy,
    EnergyAccount,
    EnergyMeter,
    Sample,
    energy_between,
    energy_by_profile,
)
from kasmina_edge.telemetry.energy_sources import EnergySource, Found, find_sources
from kasmina_edge.telemetry.seed_telemetry import Collector

RAPL = "sys/class/powercap/intel-rapl:"
HWMON = "sys/class/hwmon/hwmon"
RANGE = 262_143_328_850


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def rapl(root: Path, number: str = "0", *, name: str = "package-0", energy: object = 1_000_000) -> Path:
    place = f"{RAPL}{number}/"
    return write(
        root,
        {f"{place}name": f"{name}\n", f"{place}energy_uj": f"{energy}\n", f"{place}max_energy_range_uj": f"{RANGE}\n"},
    )


def ticks(*times: float) -> Callable[[], float]:
    kept: Iterator[float] = iter(times)
    return lambda: next(kept)


def spend(root: Path, after: dict[str, str], *, seconds: float = 1.0, idle_power_w: float | None = None) -> Energy:
    """Energy between the tree as it is and as it becomes."""
    meter = EnergyMeter(root, clock=ticks(10.0, 10.0 + seconds), idle_power_w=idle_power_w)
    first = meter.sample()
    write(root, after)
    return meter.over([first, meter.sample()])


def test_nothing_here_is_not_measured_and_said(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    with meter.measure() as run:
        pass
    assert run.energy.joules is None
    assert run.energy.how == "not measured: no RAPL counter and no power sensor here"


def test_a_package_s_counter(tmp_path: Path) -> None:
    energy = spend(rapl(tmp_path), {f"{RAPL}0/energy_uj": "3500000"})
    assert energy.joules == pytest.approx(2.5)
    assert energy.how == "measured: rapl package-0, whole package, idle not subtracted"


def test_idle_power_is_subtracted_and_never_below_nothing(tmp_path: Path) -> None:
    energy = spend(rapl(tmp_path), {f"{RAPL}0/energy_uj": "3500000"}, idle_power_w=2.0)
    assert energy.joules == pytest.approx(0.5) and energy.how.endswith("idle 2 W subtracted")
    assert spend(rapl(tmp_path), {f"{RAPL}0/energy_uj": "3500000"}, idle_power_w=90.0).joules == 0.0


def test_a_counter_that_begins_anew(tmp_path: Path) -> None:
    energy = spend(rapl(tmp_path, energy=RANGE - 1_000_000), {f"{RAPL}0/energy_uj": "500000"})
    assert energy.joules == pytest.approx(1.5)


def test_a_counter_that_may_have_gone_round_twice_is_not_believed(tmp_path: Path) -> None:
    energy = spend(rapl(tmp_path), {f"{RAPL}0/energy_uj": "1500000"}, seconds=RANGE / 1e6 / 100)
    assert energy.joules is None and "more than once" in energy.how


def test_without_a_range_backwards_is_not_measured(tmp_path: Path) -> None:
    rapl(tmp_path)
    (tmp_path / f"{RAPL}0/max_energy_range_uj").unlink()
    energy = spend(tmp_path, {f"{RAPL}0/energy_uj": "5"})
    assert energy.joules is None and "went back from 1000000 to 5 uJ" in energy.how


def test_beyond_its_range_is_garbage(tmp_path: Path) -> None:
    energy = spend(rapl(tmp_path), {f"{RAPL}0/energy_uj": str(RANGE + 1)})
    assert energy.joules is None and "range" in energy.how


def test_more_than_any_machine_draws_is_garbage(tmp_path: Path) -> None:
    energy = spend(rapl(tmp_path), {f"{RAPL}0/energy_uj": "9000000000"})
    assert energy.joules is None and "8999 W, more than 2000 W" in energy.how


@pytest.mark.parametrize("text", ["", "no", "-5", "1.5", "0x10", "9" * 30, "\0\0"])
def test_a_counter_that_shows_no_number(tmp_path: Path, text: str) -> None:
    found = find_sources(rapl(tmp_path, energy=text))
    assert not found.sources and found.refused[0].reason == "it shows no number"
    later = spend(rapl(tmp_path), {f"{RAPL}0/energy_uj": text})
    assert later.joules is None and later.how == "not measured: rapl package-0 could not be read"


def test_packages_and_memory_add_up_and_nothing_counts_twice(tmp_path: Path) -> None:
    rapl(tmp_path, "0")
    rapl(tmp_path, "0:0", name="core")
    rapl(tmp_path, "0:1", name="dram")
    rapl(tmp_path, "1", name="package-1")
    rapl(tmp_path, "2", name="psys")
    write(tmp_path, {"sys/class/powercap/intel-rapl-mmio:0/name": "package-0\n",
                     "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "7\n"})  # fmt: skip
    assert find_sources(tmp_path).names == "rapl package-0, rapl dram 0, rapl package-1"
    energy = spend(tmp_path, {f"{RAPL}{n}/energy_uj": "2000000" for n in ("0", "0:0", "0:1", "1", "2")})
    assert energy.joules == pytest.approx(3.0) and "whole package + memory" in energy.how


def test_rights_that_are_missing_come_with_what_helps(tmp_path: Path) -> None:
    found = find_sources(rapl(tmp_path), problem=lambda path: errno.EACCES)
    assert not found.sources
    meter = EnergyMeter(found=found)
    assert meter.why_not == "rapl package-0: energy_uj is for root only since CVE-2020-8694"
    assert meter.over([meter.sample(), meter.sample()]).how == f"not measured: {meter.why_not}"
    assert str(tmp_path / f"{RAPL}0/energy_uj") in found.refused[0].next_step


def test_the_doctor_says_which(tmp_path: Path) -> None:
    (nothing,) = check_energy(Machine(root=tmp_path))
    assert (nothing.level, nothing.next_step) == ("absent", "")
    (there,) = check_energy(Machine(root=rapl(tmp_path)))
    assert there.level == "ok" and "rapl package-0 counts" in there.found
    (tmp_path / f"{RAPL}0/energy_uj").write_text("?")
    (broken,) = check_energy(Machine(root=tmp_path))
    assert broken.level == "absent" and broken.next_step


def test_a_board_s_supply_goes_before_the_package(tmp_path: Path) -> None:
    rapl(tmp_path)
    write(tmp_path, {f"{HWMON}3/name": "ina226\n", f"{HWMON}3/power1_input": "2000000\n",
                     f"{HWMON}3/power1_label": "VDD_IN\n", f"{HWMON}3/power2_input": "900000\n"})  # fmt: skip
    energy = spend(tmp_path, {f"{HWMON}3/power1_input": "4000000"}, seconds=2.0)
    assert energy.joules == pytest.approx(6.0)  # the mean of 2 and 4 W over 2 s
    assert energy.how.startswith("measured: ina226 VDD_IN, rail VDD_IN")


def test_a_sensor_s_own_energy_goes_before_its_power(tmp_path: Path) -> None:
    write(tmp_path, {f"{HWMON}0/name": "ina228", f"{HWMON}0/energy1_input": "100", f"{HWMON}0/power1_input": "1"})
    assert [source.unit for source in find_sources(tmp_path).sources] == ["uJ", "uW"]


def test_voltage_times_current(tmp_path: Path) -> None:
    write(tmp_path, {f"{HWMON}1/name": "ina3221", f"{HWMON}1/in1_input": "5000", f"{HWMON}1/curr1_input": "1000",
                     f"{HWMON}1/in1_label": "VDD_IN"})  # fmt: skip
    (source,) = find_sources(tmp_path).sources
    assert source.read() == 5e6
    (tmp_path / f"{HWMON}1/in1_input").unlink()
    assert source.read() is None


def test_industrial_io(tmp_path: Path) -> None:
    place = "sys/bus/iio/devices/iio:device0/"
    write(tmp_path, {f"{place}name": "ina219", f"{place}in_power2_raw": "100", f"{place}in_power2_scale": "20.0"})
    (source,) = find_sources(tmp_path).sources
    assert source.name == "ina219 power2" and source.read() == pytest.approx(2e6)
    write(tmp_path, {f"{place}in_power2_scale": "nan"})
    assert not find_sources(tmp_path).sources


@pytest.mark.parametrize("chip", ["BAT0", "amdgpu", "nvme", "ucsi_source_psy"])
def test_batteries_and_graphics_are_not_the_board(tmp_path: Path, chip: str) -> None:
    write(tmp_path, {f"{HWMON}0/name": chip, f"{HWMON}0/power1_input": "1000000"})
    assert not find_sources(tmp_path).sources


def test_a_block_is_measured_while_it_runs(tmp_path: Path) -> None:
    rapl(tmp_path)
    with EnergyMeter(tmp_path, clock=ticks(0.0, 2.0)).measure() as run:
        write(tmp_path, {f"{RAPL}0/energy_uj": "2000000"})
        assert run.energy.joules is None
    assert run.energy.joules == pytest.approx(1.0) and run.energy.seconds == 2.0


def test_power_is_sampled_by_a_thread_and_ends_with_the_block() -> None:
    taken = iter([2e6, *[4e6] * 10_000])
    found = Found((EnergySource("ina219 in", "rail in", "uW", lambda: next(taken)),))
    meter = EnergyMeter(found=found)
    with pytest.raises(KeyError), meter.measure() as run:
        raise KeyError
    assert run.energy.joules is not None and run.energy.joules > 0


counts = st.integers(0, RANGE)


@given(st.lists(counts, min_size=2, max_size=5), st.floats(0.01, 100.0))
def test_a_counter_never_gives_less_than_nothing_nor_more_than_its_range(values: list[int], seconds: float) -> None:
    found = Found((EnergySource("c", "s", "uJ", lambda: 0.0, RANGE),))
    samples = [Sample(i * seconds, (float(value),)) for i, value in enumerate(values)]
    energy = energy_between(samples, found)
    assert energy.joules is None or 0.0 <= energy.joules <= RANGE / 1e6
    assert energy.how.startswith(("measured: ", "not measured: ")) and len(energy.how) <= MAX_HOW


@given(st.lists(st.none() | st.floats(0, 1e9), min_size=2, max_size=8))
def test_power_lies_between_its_samples(values: list[float | None]) -> None:
    found = Found((EnergySource("p", "s", "uW", lambda: 0.0),))
    energy = energy_between([Sample(float(i), (value,)) for i, value in enumerate(values)], found)
    known = [value / 1e6 for value in values if value is not None]
    if energy.joules is not None:
        watts = energy.joules / energy.seconds
        assert min(known) * 0.999999 <= watts <= max(known) * 1.000001
    else:
        assert len(known) < 2


def profile(**fields: object) -> HardwareProfile:
    return HardwareProfile.parse({**load_profile("x86-cpu").model_dump(), **fields}, where="test")


def test_the_profile_s_estimate_says_so() -> None:
    by_mac = energy_by_profile(
        profile(energy_pj_per_mac=2.0, idle_power_w=0.5, power_w=9.0), seconds=0.01, macs=1_000_000, inferences=3
    )
    assert by_mac.joules == pytest.approx(3e6 * 2e-12 + 0.005)
    assert by_mac.how == "profile x86-cpu: 2 pJ a MAC + idle 0.5 W x time"
    by_power = energy_by_profile(profile(energy_pj_per_mac=2.0, power_w=9.0), seconds=0.5)
    assert (by_power.joules, by_power.how) == (4.5, "profile x86-cpu: 9 W x time")
    bare = profile(power_w=None, energy_pj_per_mac=None)
    assert energy_by_profile(bare, seconds=0.5, macs=5).joules is None


def test_an_inference_s_energy_since_the_last_look(tmp_path: Path) -> None:
    rapl(tmp_path)
    account = EnergyAccount(EnergyMeter(tmp_path, clock=ticks(0.0, 1.0, 2.0, 3.0)))
    write(tmp_path, {f"{RAPL}0/energy_uj": "3000000"})
    assert account.take(1000, 0.5) == (2000.0, "measured: rapl package-0, whole package, idle not subtracted")
    assert account.take(0, 0.0) is None
    write(tmp_path, {f"{RAPL}0/energy_uj": "broken"})
    assert account.take(10, 0.1) is None


def test_the_estimate_stands_in_where_nothing_is_shown(tmp_path: Path) -> None:
    account = EnergyAccount(EnergyMeter(tmp_path), lambda n, s: energy_by_profile(profile(power_w=4.0), seconds=s))
    assert account.take(100, 0.5) == (20_000.0, "profile x86-cpu: 4 W x time")


def test_records_with_details_carry_it_and_others_do_not_ask() -> None:
    class Meter:
        asked: list[tuple[int, float]] = []

        def take(self, inferences: int, busy_s: float) -> tuple[float, str] | None:
            self.asked.append((inferences, busy_s))
            return 123.456789, "measured: made up"

    taken: list[TelemetryRecord] = []
    now = [0.0]
    collector = Collector(
        device="d", bundle="b", release=1, slot="-", trial=False, source="s", boot=0, domains=(), labels=(),
        clock=lambda: now[0], emit=taken.append, window_frames=4, window_s=1e9, energy=Meter(),
    )  # fmt: skip
    for _ in range(8):
        collector.observe(None, 25.0, None, None)
    first, second = taken
    assert first.hardware is not None and second.hardware is None
    assert first.hardware.energy_uj == 123.46 and first.hardware.energy_how == "measured: made up"
    assert [count for count, _ in Meter.asked] == [4] and Meter.asked[0][1] == pytest.approx(1e-4, rel=0.02)
    back = TelemetryRecord.from_bytes(first.to_bytes())
    assert back == first and back.hardware is not None and back.hardware.is_measured("energy_uj")


def test_a_meter_that_fails_costs_no_record() -> None:
    class Broken:
        def take(self, inferences: int, busy_s: float) -> tuple[float, str] | None:
            raise OSError("gone")

    taken: list[TelemetryRecord] = []
    collector = Collector(
        device="d", bundle="b", release=1, slot="-", trial=False, source="s", boot=0, domains=(), labels=(),
        clock=lambda: 0.0, emit=taken.append, window_frames=1, energy=Broken(),
    )  # fmt: skip
    collector.observe(None, 25.0, None, None)
    assert taken[0].hardware is not None and taken[0].hardware.energy_uj is None


def test_what_was_not_measured_is_not_in_the_record() -> None:
    context = HardwareContext(rss_bytes=5)
    assert with_energy(context, None) is context
    assert "energy" not in str(context.model_dump(mode="json"))
    assert with_energy(None, (1.0, "measured: x")) == HardwareContext(energy_uj=1.0, energy_how="measured: x")


def answering(*, accelerator: str = "", model_data: bytes = b"", simulated: bool = False) -> Callable[[], Serving]:
    engine = SimpleNamespace(accelerator=accelerator, simulated=simulated)
    made: Any = SimpleNamespace(engine=engine, model_data=model_data)
    return lambda: made


def test_the_runtime_s_account_estimates_by_what_answers(tmp_path: Path) -> None:
    by_power = energy_account(answering(), profile(power_w=4.0), root=tmp_path)
    assert by_power.take(100, 0.5) == (20_000.0, "profile x86-cpu: 4 W x time")
    data = reference_net()
    by_mac = energy_account(answering(model_data=data), profile(energy_pj_per_mac=10.0), root=tmp_path).take(100, 0.5)
    assert by_mac is not None and by_mac[0] == pytest.approx(read_workload(data).macs * 1e-5)
    broken = energy_account(answering(model_data=b"?"), profile(energy_pj_per_mac=10.0, power_w=4.0), root=tmp_path)
    assert broken.take(100, 0.5) == (20_000.0, "profile x86-cpu: 4 W x time")


def test_an_accelerator_s_power_is_not_said_of_the_cpu(tmp_path: Path) -> None:
    coral = load_profile("coral-usb")
    assert coral.power_w
    assert energy_account(answering(), coral, root=tmp_path).take(100, 0.5) is None
    found = energy_account(answering(accelerator="Edge TPU"), coral, root=tmp_path).take(100, 0.5)
    assert found is not None and found[1].startswith("profile coral-usb: ")


def test_what_is_measured_goes_before_the_profile(tmp_path: Path) -> None:
    account = energy_account(answering(), profile(power_w=4.0), root=rapl(tmp_path))
    write(tmp_path, {f"{RAPL}0/energy_uj": "1000100"})
    found = account.take(100, 0.5)
    assert found is not None and found[1].startswith("measured: rapl package-0")


def test_a_simulated_device_never_has_this_machine_s_energy(tmp_path: Path) -> None:
    account = energy_account(answering(simulated=True), load_profile("coral-usb"), root=rapl(tmp_path))
    write(tmp_path, {f"{RAPL}0/energy_uj": "1000100"})
    found = account.take(100, 0.5)
    assert found is not None and found[1].startswith("profile coral-usb: ")
