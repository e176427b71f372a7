"""`evolve` on the command line: limits on a target judge a growth, and telemetry goes to a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn
from typer.testing import CliRunner

from kasmina_edge.contracts.record import TelemetryRecord
from kasmina_edge.errors import InputError
from kasmina_trainer.checkpoints import save_host
from kasmina_trainer.cli import main
from kasmina_trainer.cli.app import app
from kasmina_trainer.cli.measuring import int8_files, limits_of
from kasmina_trainer.datasets.digits import DigitSplits
from kasmina_trainer.seeds import SeededNetwork

runner = CliRunner()
FREE = {"latency_ms": None, "memory_kb": None, "energy_uj": None}


def test_limits_of_the_command_line_are_those_of_the_gate():
    limits = limits_of("coral", latency_ms=1.5, memory_kb=2.5, energy_uj=7.0)
    assert (limits.maximum_latency_ms, limits.maximum_peak_bytes, limits.maximum_energy_uj) == (1.5, 2500, 7.0)
    assert limits_of(None, **FREE) == limits_of("coral", **FREE)


def test_a_limit_without_a_target_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(InputError, match="--max-ms, --max-energy-uj: no target") as caught:
        limits_of(None, latency_ms=1.0, memory_kb=None, energy_uj=1.0)
    assert "--profile" in caught.value.next_step
    assert main(["evolve", "--simulated", "blur", "--max-memory-kb", "5"]) == 2
    assert "--max-memory-kb: no target" in capsys.readouterr().err


def test_networks_of_one_build_share_a_file(seeded: SeededNetwork, parts: DigitSplits):
    measure = int8_files(parts.host.nhwc(), parts.probes.nhwc())
    first, again = measure(seeded), measure(seeded.fresh())
    assert first.file and first.file is again.file
    x = parts.probes.x[:5]
    assert first.predict(x).shape == (5,)


@pytest.mark.slow
def test_a_growth_over_its_limits_is_refused_and_its_telemetry_written(tmp_path: Path, trained_host: nn.Module):
    save_host(tmp_path / "host.checkpoint", trained_host, metadata={"seed": 0})
    told = tmp_path / "telemetry.jsonl"
    call = ["evolve", "--simulated", "blur", "--out", str(tmp_path), "--no-rival", "--steps", "60", "--json"]
    limits = ["--profile", "raspberry-pi-4", "--max-memory-kb", "10"]
    result = runner.invoke(app, [*call, *limits, "--telemetry", str(told)])
    value = json.loads(result.stdout)
    assert result.exit_code == 1 and not value["accepted"]
    assert "peak memory" in json.dumps(value)
    records = [TelemetryRecord.from_bytes(line) for line in told.read_bytes().splitlines()]
    assert len(records) == 2 and all(record.hardware for record in records)
    roomy = runner.invoke(app, [*call, "--profile", "raspberry-pi-4", "--max-memory-kb", "1000"])
    assert roomy.exit_code == 0, roomy.output
