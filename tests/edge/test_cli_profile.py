"""``kasmina-edge profile``: list, show and check in words, JSON and exit codes, and folders of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from worlds.bundles import make_bundle, model_bytes

from kasmina_edge.bundle import pack
from kasmina_edge.cli.output import run_app
from kasmina_edge.cli.profile import app

ROOT = Path(__file__).resolve().parents[2]
GOOD = (ROOT / "profiles" / "stm32u575.toml").read_text()


def call(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, str]:
    code = run_app(app, [str(a) for a in args], program="kasmina-edge profile")
    found = capsys.readouterr()
    return code, " ".join((found.out + found.err).split())


def value(capsys: pytest.CaptureFixture[str], *args: str | Path) -> tuple[int, dict[str, Any]]:
    code = run_app(app, [*(str(a) for a in args), "--json"], program="kasmina-edge profile")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, "one object"
    return code, json.loads(lines[0])


def mine(folder: Path, *changes: tuple[str, str]) -> Path:
    text = GOOD.replace('"stm32u575"', '"mine"').replace('aliases = ["nucleo-u575zi"]\n', "")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_list_says_who_has_anchors_and_a_band(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found = value(capsys, "list", "--data", tmp_path)
    assert code == 0 and len(found) >= 16
    assert found["stm32u575"] == {
        "aliases": ["nucleo-u575zi"], "chip": "STM32U575ZIT6Q, Cortex-M33 with DSP and FPU", "kind": "mcu",
        "anchors": 4, "band": 0.14, "description": "NUCLEO-U575ZI-Q, Cortex-M33 at 160 MHz, 1.8 V, SMPS",
    }  # fmt: skip
    assert found["tpu-like"]["band"] is None, "nothing was measured: no band, whatever the file says"
    code, out = call(capsys, "list", "--data", tmp_path)
    assert code == 0 and "± 14 %" in out and "unknown" in out and "ndp9120" in out


def test_show_gives_every_number_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = call(capsys, "show", "nucleo-u575zi")
    assert code == 0
    words = ["786,432", "768 KB RAM", "depthwise_cycles_per_mac", "benchmarks.mcu", "ModelMacc", "tiny_results_v1.2"]
    for word in (*words, "mlperf-tiny-vww-live", "59.277"):
        assert word in out
    code, found = value(capsys, "show", "tpu-like")
    assert code == 0 and found["predictions"] == [] and found["coefficients"]["array_rows"] == 256
    assert "No anchors" in call(capsys, "show", "tpu-like")[1]


def test_a_wrong_name_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = call(capsys, "show", "stm32u57")
    assert code == 2 and "Did you mean stm32u575," in out
    code, found = value(capsys, "show", "stm32u57")
    assert code == 2 and found["error"] == "InputError"


def test_what_a_model_costs_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = tmp_path / "net.tflite"
    model.write_bytes(model_bytes("litert"))
    code, found = value(capsys, "show", "stm32u575", "--model", model)
    assert code == 0 and found["latency_ms"] > 0 and found["band"] == 0.14 and found["fits"]
    assert found["energy_how"].startswith("profile") and len(found["ops"]) >= 1
    code, out = call(capsys, "show", "stm32u575", "--model", model)
    assert code == 0 and "± 14 %" in out and "slowest" in out and "flash" in out
    assert "band unknown" in call(capsys, "show", "tpu-like", "--model", model)[1]
    bundle = make_bundle()
    whole = tmp_path / "net.kasmina"
    whole.write_bytes(pack(bundle))
    inside = tmp_path / "net.tflite"
    inside.write_bytes(bundle.files["model.tflite"])
    seen = [value(capsys, "show", "stm32u575", "--model", path)[1] for path in (whole, inside)]
    assert seen[0]["latency_ms"] == seen[1]["latency_ms"] > 0
    code, out = call(capsys, "show", "stm32u575", "--model", tmp_path / "none.tflite")
    assert code == 2 and "cannot be read" in out


def test_check_everything_that_is_shipped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found = value(capsys, "check", "--data", tmp_path)
    assert code == 0 and found["ok"] and len(found["profiles"]) >= 16
    predicted = [a for p in found["profiles"] for a in p["anchors"] if a["predicted_ms"] is not None]
    assert len(predicted) >= 50 and all(a["inside"] is not False for a in predicted)


def test_check_finds_what_has_no_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    start = GOOD.index("coefficients = ")
    path = mine(tmp_path, (GOOD[start : GOOD.index("\n", start) + 1], ""))
    code, out = call(capsys, "check", path)
    assert code == 1 and "product_cycles_per_mac: nobody says where it comes from" in out
    code, found = value(capsys, "check", path)
    assert code == 1 and not found["ok"] and len(found["faults"]) == 9


def test_check_finds_what_cannot_be_estimated_from(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    start = GOOD.index("copy_cycles_per_byte = ")
    path = mine(tmp_path, (GOOD[start : GOOD.index("\n", start) + 1], ""))
    code, out = call(capsys, "check", path)
    assert code == 1 and "coefficients lack copy_cycles_per_byte" in out and "well formed" not in out
    code, found = value(capsys, "check", path)
    assert code == 1 and found["faults"] == ["profile mine: coefficients lack copy_cycles_per_byte"]


def test_check_says_that_a_profile_without_figures_gives_no_estimate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bare.toml"
    bare = GOOD[: GOOD.index("[coefficients]")] + '[sources]\nclock_mhz = "data sheet"\n'
    path.write_text(bare.replace('"stm32u575"', '"bare"').replace('aliases = ["nucleo-u575zi"]\n', ""))
    code, out = call(capsys, "check", path)
    assert code == 0 and "profile bare is well formed; profile bare: no" in out
    assert "anchors and no coefficients to estimate from" in out


def test_check_finds_an_anchor_outside_the_band(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = mine(tmp_path, ("latency_ms = 59.277", "latency_ms = 159.277"))
    code, out = call(capsys, "check", path)
    assert code == 1 and "mlperf-tiny-vww-live: published 159.277 ms, predicted" in out and "band ± 14 %" in out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("flash_bytes = 2_097_152\n", "", 'kind: "mcu" needs flash_bytes'),
        ('kind = "mcu"', 'kind = "edgetpu"', 'needs accelerator = "edgetpu"'),
        ('kind = "mcu"', 'kind = "mcu"\nlink = "usb3"', 'link: "usb3" has no accelerator'),
        ('kind = "mcu"', 'kind = "mcu"\nlink_bytes_per_s = 5.0', "link_bytes_per_s: there is no link"),
        ("copy_cycles_per_byte = ", "copy_speed = ", "coefficients.copy_speed: the key does not end in a unit"),
        ("[sources]", '[sources]\nidle_power_w = "x"', "sources.idle_power_w: this file has no such key"),
        ("[sources]", '[sources]\n"coefficients.usb" = "x"', "sources.coefficients.usb: this file has no such key"),
        ("[sources]", '[sources]\nchip = " "', "sources.chip: empty"),
        ("ram_bytes = 786_432", 'ram_bytes = 786_432\naliases = ["mine"]', "aliases: mine given twice"),
    ],
)
def test_what_does_not_go_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = mine(tmp_path, (old, new))
    code, found = value(capsys, "check", path)
    assert code == 2 and said in found["message"] and str(path) in found["message"]


def test_check_refuses_what_is_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(capsys, "check", tmp_path)[0] == 2
    assert "no such file" in call(capsys, "check", tmp_path / "none.toml")[1]
    code, out = call(capsys, "check", "stm32u575", "coral", "ndp9120")
    assert code == 0 and out.count("is well formed") == 3


def test_own_folders_come_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own, data = tmp_path / "own", tmp_path / "data"
    (data / "profiles").mkdir(parents=True)
    own.mkdir()
    mine(own)
    mine(data / "profiles", ("clock_mhz = 160.0", "clock_mhz = 80.0"))
    args = ("show", "mine", "--data", data)
    assert value(capsys, *args)[1]["clock_mhz"] == 80.0
    assert value(capsys, *args, "--profiles", own)[1]["clock_mhz"] == 160.0
    assert value(capsys, "show", "mine", "--data", tmp_path)[0] == 2
    assert "no such folder" in call(capsys, "list", "--profiles", tmp_path / "none")[1]


def test_two_files_with_one_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine(tmp_path)
    (tmp_path / "other.toml").write_text((tmp_path / "mine.toml").read_text().replace('"mine"', '"other"', 1).replace(
        "ram_bytes", 'aliases = ["mine"]\nram_bytes', 1))  # fmt: skip
    for verb in ("mine", "other"):
        code, out = call(capsys, "show", verb, "--profiles", tmp_path)
        assert code == 2 and "'mine' is taken by" in out and "other.toml" in out


def test_a_malformed_file_is_listed_and_stops_no_verb(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = mine(tmp_path, ("clock_mhz = 160.0", 'clock_mhz = "160"'))
    said = f"{path}.clock_mhz: input should be a valid number, got '160'"
    code, found = value(capsys, "list", "--profiles", tmp_path)
    assert code == 0 and found.pop(str(path)) == {"error": said} and found == value(capsys, "list")[1]
    code, out = call(capsys, "list", "--profiles", tmp_path)
    assert code == 0 and "mine" in out and "not read" in out and "coral-usb" in out
    assert call(capsys, "show", "coral", "--profiles", tmp_path)[0] == 0
    assert call(capsys, "check", "coral", "--profiles", tmp_path)[0] == 0
    assert said in call(capsys, "show", "mine", "--profiles", tmp_path)[1]
    code, found = value(capsys, "check", "--profiles", tmp_path)
    assert code == 1 and [each["faults"] for each in found["profiles"] if not each["ok"]] == [[said]]
