"""The optimize guide: its commands exist as they stand, its causes are the code's, and its walk can be walked."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import nn

from kasmina_trainer.cli import main
from kasmina_trainer.cli.app import app
from kasmina_trainer.optimize import causes
from kasmina_trainer.optimize.causes import COARSE, FAULTS

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/optimize.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]


def words() -> Iterator[str]:
    """Every cause that the code can tell."""
    yield from re.findall(r'return Cause\(\s*"([^"]+)"', inspect.getsource(causes))


def test_the_table_of_causes_is_the_codes() -> None:
    told = re.findall(r"^\| ([a-z0-9 -]+) \| .* \| .* \|$", GUIDE, re.MULTILINE)
    assert set(told) - {"cause"} == set(words()) >= {*COARSE, *FAULTS}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_can_be_called(command: str) -> None:
    program, verb, *rest = shlex.split(command)
    assert program == "kasmina-trainer"
    known: Any = typer.main.get_command(app)
    options = {name for parameter in known.commands[verb].params for name in parameter.opts}
    given = [word for word in rest if word.startswith("--")]
    assert set(given) <= options
    assert len(COMMANDS) >= 7


@pytest.mark.slow
def test_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command in order, in an empty folder, on a host that was trained in seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["train", "--out", ".", "--steps", "60"]) == 0
    assert main(["export", "--checkpoint", "host.checkpoint", "--out", ".", "--profile", "x86-cpu"]) == 0
    module = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    torch.export.save(torch.export.export(module.eval(), (torch.zeros(1, 1, 8, 8),)), "net.pt2")
    x = np.random.default_rng(0).uniform(0, 1, (300, 8, 8, 1)).astype(np.float32)
    np.savez("frames.npz", x=x, y=(x.mean((1, 2, 3)) * 3).astype(np.int64))
    for command in COMMANDS:
        _, *call = shlex.split(command)
        if call[0] == "optimize" and "--recipe" not in call and "--dry-run" not in call:
            call += ["--qat-steps", "10"]
        code = main(call)
        told = capsys.readouterr()
        assert code in ((0, 1) if call[0] == "optimize" else (0,)), (command, told.err)
    assert (tmp_path / "again/model.tflite").read_bytes() == (tmp_path / "best/model.tflite").read_bytes()
    assert (tmp_path / "digits-1.0.0.stm32l4r5.html").is_file()
