"""The hardware context from a made-up sysfs: each sensor's lie, absence and alarm moves its own value and no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kasmina_edge.contracts.record import HardwareContext
from kasmina_edge.telemetry.details import with_latency
from kasmina_edge.telemetry.hardware import HardwareReader, ask_firmware

ZONE = "sys/class/thermal/thermal_zone{}/temp"
COOLING = "sys/class/thermal/cooling_device0/{}"
WORD = "sys/devices/platform/soc/soc:firmware/get_throttled"
CPU = "sys/devices/system/cpu/"


def write(root: Path, files: dict[str, str]) -> HardwareReader:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return HardwareReader(root, mailbox=None)


def test_nothing_shown_is_nothing_measured(tmp_path: Path) -> None:
    found = HardwareReader(tmp_path, mailbox=None).read()
    assert found == HardwareContext() and found.measured == 0


def test_the_hottest_zone_and_the_accelerator(tmp_path: Path) -> None:
    reader = write(
        tmp_path,
        {
            ZONE.format(0): "41500\n", ZONE.format(1): "63250\n", ZONE.format(2): "-273000\n",
            ZONE.format(3): "no\n", ZONE.format(4): "255000", "sys/class/apex/apex_0/temp": "71000\n",
        },
    )  # fmt: skip
    found = reader.read()
    assert (found.temperature_c, found.accelerator_temperature_c) == (63.25, 71.0)
    write(tmp_path, {ZONE.format(0): "88000\n"})
    assert reader.read().temperature_c == 88.0


@pytest.mark.parametrize(
    ("word", "throttled", "weak"),
    [
        ("0", False, False),
        ("1\n", False, True),
        ("2", True, False),
        ("4", True, False),
        ("8", True, False),
        ("50005", True, True),
        ("50000\n", False, False),  # it was, since boot, and is no more
    ],
)
def test_raspberry_pi_s_word(tmp_path: Path, word: str, throttled: bool, weak: bool) -> None:
    found = write(tmp_path, {WORD: word}).read()
    assert (found.throttled, found.under_voltage) == (throttled, weak)


def test_an_odd_word_is_not_measured(tmp_path: Path) -> None:
    found = write(tmp_path, {WORD: "what"}).read()
    assert (found.throttled, found.under_voltage) == (None, None)


def test_the_mailbox_is_asked_where_sysfs_is_silent(tmp_path: Path) -> None:
    found = HardwareReader(tmp_path, mailbox=lambda: 0x4).read()
    assert (found.throttled, found.under_voltage) == (True, False)
    assert ask_firmware(str(tmp_path / "vcio")) is None
    (tmp_path / "vcio").write_bytes(b"")
    assert ask_firmware(str(tmp_path / "vcio")) is None  # not the mailbox: the call is refused


def test_a_processor_that_is_cooled_is_throttled(tmp_path: Path) -> None:
    reader = write(tmp_path, {COOLING.format("type"): "cpufreq-cpu0\n", COOLING.format("cur_state"): "0\n"})
    assert reader.read().throttled is False
    write(tmp_path, {COOLING.format("cur_state"): "2\n"})
    assert reader.read().throttled is True
    write(tmp_path, {COOLING.format("type"): "Fan\n"})
    assert reader.read().throttled is None


def test_intel_counts_are_throttling_when_they_rise(tmp_path: Path) -> None:
    name = CPU + "cpu0/thermal_throttle/core_throttle_count"
    reader = write(tmp_path, {name: "7\n"})
    assert [reader.read().throttled for _ in range(2)] == [False, False]
    write(tmp_path, {name: "8\n"})
    assert [reader.read().throttled for _ in range(2)] == [True, False]


def test_the_slowest_core_s_clock(tmp_path: Path) -> None:
    for i, now in enumerate(("1800000", "600000")):
        write(tmp_path, {f"{CPU}cpufreq/policy{i}/scaling_cur_freq": now})
        write(tmp_path, {f"{CPU}cpufreq/policy{i}/cpuinfo_max_freq": "1800000"})
    found = HardwareReader(tmp_path, mailbox=None).read()
    assert found.frequency_share == pytest.approx(1 / 3) and found.throttled is None


def test_a_weak_supply_by_the_kernel_s_monitor(tmp_path: Path) -> None:
    files = {"sys/class/hwmon/hwmon1/name": "rpi_volt\n", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n"}
    assert write(tmp_path, files).read().under_voltage is True
    assert write(tmp_path, {"sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0"}).read().under_voltage is False


def test_memory(tmp_path: Path) -> None:
    rollup = "55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:   1696 kB\nPss:   299 kB\nPss_Anon: x kB\n"
    reader = write(tmp_path, {"proc/self/smaps_rollup": rollup, "proc/meminfo": "MemAvailable:  1000 kB\n"})
    found = reader.read()
    assert (found.rss_bytes, found.pss_bytes, found.available_bytes) == (1696 * 1024, 299 * 1024, 1000 * 1024)
    (tmp_path / "proc/self/smaps_rollup").unlink()
    write(tmp_path, {"proc/self/status": "Name:\tapp\nVmRSS:\t  500 kB\n"})
    found = reader.read()
    assert (found.rss_bytes, found.pss_bytes) == (500 * 1024, None)


def test_reads_are_bounded_and_do_not_wait(tmp_path: Path) -> None:
    zone = tmp_path / ZONE.format(0)
    zone.parent.mkdir(parents=True)
    os.mkfifo(zone)  # nobody will ever write: a plain open would wait for good
    reader = write(tmp_path, {ZONE.format(1): "42000" + " " * 5000 + "7", ZONE.format(2): "9" * 50_000})
    assert reader.read().temperature_c == 42.0


def test_this_machine_is_read() -> None:
    found = HardwareReader().read()
    assert found.rss_bytes is not None and found.rss_bytes > 1_000_000
    assert HardwareContext.from_bytes(found.to_bytes()) == found


def test_latencies_come_from_the_window() -> None:
    window = {"p50": 25.123456, "p99": 48.0, "max": 300.0}
    assert with_latency(None, None) is None
    assert with_latency(None, window) == HardwareContext(latency_us=25.123, latency_p99_us=48.0)
    joined = with_latency(HardwareContext(rss_bytes=5), window)
    assert joined is not None and (joined.rss_bytes, joined.latency_us) == (5, 25.123)
    assert with_latency(HardwareContext(rss_bytes=5), None) == HardwareContext(rss_bytes=5)
