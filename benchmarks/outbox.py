"""The outbox under its targets, encrypted, with records as the Collector makes them from a varying camera.

Everything is measured on files of this folder's file system with every flush going to the disk. The vault's key lies in
a key file; sealing, compression, SQLite and fsync are all inside the figures.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from kasmina_edge.safety.vault import Sealer, open_vault
from kasmina_edge.storage import append_durable
from kasmina_edge.telemetry.outbox import Outbox
from kasmina_edge.telemetry.seed_telemetry import Collector

RATE = 20_000
MAX_RECORD_BYTES = 100
STATISTICS_S = 1.0
GROWTH_MIB = 4.0
HELD = 1_000_000
DISTINCT = 2048  # blocks hold 512 records at most and are compressed one by one
RUNS = 5
_HUGE = 1 << 32
_SEED = 0


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Rate, bytes a record at full and at low rate, delay of statistics and of alerts, and memory with many held."""
    records = made_records(512 if quick else DISTINCT)
    with tempfile.TemporaryDirectory(prefix="kasmina-bench-") as name:
        folder = Path(name)
        sealer = open_vault(folder / "data", key_file=str(folder / "key")).sealer("outbox")
        return [
            *put_rate(folder, sealer, records, 20_000 if quick else 200_000),
            bytes_at_low_rate(folder, sealer, records, 8192, 8 if quick else 1),
            statistics_delay(folder, sealer, records, 2.0 if quick else 8.0),
            alert_delay(folder, sealer, records, 40 if quick else 300),
            memory(folder, 100_000 if quick else HELD),
        ]


def made_records(count: int) -> list[bytes]:
    """Records of two seconds at 30 frames a second: 60 latencies, 30 sampled frames, ten labels, drift features."""
    rng = np.random.default_rng(_SEED)
    found: list[bytes] = []
    now = [1.8e9]
    collector = Collector(
        device="cam-1", bundle=rng.bytes(32).hex(), release=12, slot="a", trial=False, boot=17, domains=(),
        source="app-1234-1800000000123", labels=[str(i) for i in range(10)], clock=lambda: now[0],
        emit=lambda record: found.append(record.to_bytes()),
    )  # fmt: skip
    frames = [rng.random((16, 16, 1)).astype(np.float32) * scale for scale in rng.uniform(0.5, 1.0, 199)]
    labels, shares = 10, rng.dirichlet(np.ones(10))
    while len(found) < count:
        for frame in frames:
            now[0] += 1 / 30 + rng.normal(0.0, 0.0005)
            label = int(rng.choice(labels, p=shares))
            collector.observe(frame, float(rng.lognormal(3.3, 0.15)), float(rng.beta(8, 2)), label)
    return found[:count]


def put_rate(folder: Path, sealer: Sealer, records: list[bytes], count: int) -> list[dict[str, Any]]:
    """Two rows: records a second until all are durable, and what they take on the disk."""
    path = folder / "rate.db"
    outbox = Outbox(path, max_bytes=_HUGE, sealer=sealer)
    rates, cpu = [], time.process_time()
    for _ in range(RUNS):
        began = time.perf_counter()
        for i in range(count // RUNS):
            outbox.append("stats", records[i % len(records)], durable=False)
        outbox.flush()
        rates.append(count // RUNS / (time.perf_counter() - began))
    cpu = (time.process_time() - cpu) / count
    rate, held = statistics.median(rates), outbox.size().entries
    outbox.close()
    raw = statistics.fmean(map(len, records))
    each = on_disk(path) / count
    how = (
        f"median of {RUNS} runs of {count // RUNS:,} records of {raw:.0f} bytes from one thread, sealed, until flush() "
        f"returned; best {max(rates):,.0f}; {cpu * 1e6:.1f} us of CPU a record, all threads"
    )
    return [
        row("put_rate", RATE, rate, "records/s", held == count and rate >= RATE, how),
        row(
            "bytes_a_record", MAX_RECORD_BYTES, each, "bytes", each <= MAX_RECORD_BYTES,
            f"all files of {count:,} sealed records of {raw:.0f} bytes, put at full rate, after close",
        ),
    ]  # fmt: skip


def bytes_at_low_rate(folder: Path, sealer: Sealer, records: list[bytes], count: int, together: int) -> dict[str, Any]:
    """One row: the same where records are flushed alone, as a device does that makes one every two seconds."""
    path = folder / "slow.db"
    outbox = Outbox(path, max_bytes=_HUGE, sealer=sealer)
    for i in range(count):
        outbox.append("stats", records[i % len(records)], durable=i % together == 0)
    outbox.close()
    each = on_disk(path) / count
    how = f"{count:,} records, {together} in a transaction; small blocks are joined as they come"
    return row("bytes_a_record_low_rate", MAX_RECORD_BYTES, each, "bytes", each <= MAX_RECORD_BYTES, how)


def statistics_delay(folder: Path, sealer: Sealer, records: list[bytes], seconds: float) -> dict[str, Any]:
    """One row: longest time from an append to its being in the file, as another connection sees it, under full load."""
    path = folder / "delay.db"
    writer, reader = (Outbox(path, max_bytes=_HUGE, sealer=sealer) for _ in range(2))
    appended: list[float] = []
    done = threading.Event()

    def put() -> None:
        until = time.perf_counter() + seconds
        interval = 1.0 / 1000
        while time.perf_counter() < until:
            writer.append("stats", records[len(appended) % len(records)], durable=False)
            appended.append(time.perf_counter())
            time.sleep(interval)
        done.set()

    thread = threading.Thread(target=put)
    thread.start()
    longest, seen = 0.0, 0
    while not done.is_set() or seen < len(appended):
        now_there, now = reader.newest(), time.perf_counter()
        if now_there > seen:
            longest, seen = max(longest, now - appended[seen]), now_there
        time.sleep(0.002)
    thread.join()
    for outbox in (writer, reader):
        outbox.close()
    how = f"worst of {len(appended):,} records, about 1,000 a second, from append to another connection's sight"
    return row("statistics_durable", STATISTICS_S, longest, "s", longest <= STATISTICS_S, how)


def alert_delay(folder: Path, sealer: Sealer, records: list[bytes], count: int) -> dict[str, Any]:
    """One row: an alert's append against a bare append and fsync of the same bytes, taking turns."""
    path = folder / "alerts.db"
    outbox, other = (Outbox(path, sealer=sealer) for _ in range(2))
    ours, bare = [], []
    at_once = True
    for i in range(count):
        body = records[i % len(records)]
        began = time.perf_counter()
        alert = outbox.append("alert", body, priority=2)
        ours.append(time.perf_counter() - began)
        at_once = at_once and other.newest() == alert
        began = time.perf_counter()
        append_durable(folder / "bare", body)
        bare.append(time.perf_counter() - began)
    for each in (outbox, other):
        each.close()
    p50, p99 = (float(np.percentile(ours, share)) * 1000 for share in (50, 99))
    how = (
        f"p50 of {count} alerts in ms, p99 {p99:.1f}; a bare append and fsync of the same bytes p50 "
        f"{statistics.median(bare) * 1000:.2f} ms; every one in the file when append returned: {at_once}"
    )
    return row("alert_durable", None, p50, "ms", at_once, how)


def memory(folder: Path, held: int) -> dict[str, Any]:
    """One row: growth of a process between a tenth of the records and all, and a batch sent and acknowledged after."""
    arguments = [sys.executable, "-m", "benchmarks.outbox", str(folder), str(held)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=900)
    early, late, seconds, size = map(float, found.stdout.split())
    growth = (late - early) / 1024
    how = (
        f"anonymous memory of a process from {held // 10:,} to {held:,} records held and 60 of them sent: "
        f"{early / 1024:.1f} to {late / 1024:.1f} MiB; {size / 2**20:.0f} MiB on the disk, {seconds:.0f} s"
    )
    return row("memory_growth", GROWTH_MIB, growth, "MiB", growth <= GROWTH_MIB, how)


def _hold(folder: Path, held: int) -> None:
    """The child of `memory`."""
    sealer = open_vault(folder / "data", key_file=str(folder / "key")).sealer("outbox")
    records = made_records(512)
    outbox = Outbox(folder / "held.db", max_bytes=_HUGE, sealer=sealer)
    order = random.Random(_SEED)
    early = 0
    began = time.perf_counter()
    for i in range(held):
        outbox.append("stats", records[order.randrange(len(records))], durable=False)
        if i == held // 10:
            outbox.flush()
            early = anonymous_kib()
    outbox.flush()
    seconds = time.perf_counter() - began
    outbox.acknowledge(entry.id for entry in outbox.peek())
    late = anonymous_kib()
    outbox.close()
    print(early, late, seconds, on_disk(folder / "held.db"))


def anonymous_kib() -> int:
    """``RssAnon`` of this process (proc(5)): memory that is its own, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def on_disk(path: Path) -> int:
    """Bytes of a SQLite file with its log."""
    return sum(p.stat().st_size for p in path.parent.iterdir() if p.name in (path.name, f"{path.name}-wal"))


def row(name: str, target: float | None, measured: float, unit: str, ok: bool, how: str) -> dict[str, Any]:
    """One row of the table."""
    return {"name": f"outbox.{name}", "target": target, "measured": measured, "unit": unit, "ok": ok, "how": how}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _hold(Path(sys.argv[1]), int(sys.argv[2]))
