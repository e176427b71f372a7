"""Settings: every source, their order, and refusals that name file and field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kasmina_edge.errors import InputError
from kasmina_edge.settings import DEFAULTS, Settings, write_settings


def read(folder: Path | None = None, **options: object) -> Settings:
    options.setdefault("environ", {})
    options.setdefault("system_file", Path("/nonexistent/kasmina.toml"))
    return Settings.read(folder, **options)  # type: ignore[arg-type]


def test_defaults_are_marked_as_such() -> None:
    settings = read()
    assert settings["device.id"] == "local"
    assert {s.source for s in settings.sources().values()} == {"default"}
    assert set(settings.sources()) == set(DEFAULTS)


def test_order_of_sources(tmp_path: Path) -> None:
    system = tmp_path / "system.toml"
    (tmp_path / "kasmina.toml").write_text('[device]\nid = "from-data"\nsite = "from-data"\nroot = "from-data"\n')
    system.write_text('[device]\nsite = "from-system"\nroot = "from-system"\n')
    settings = read(
        tmp_path,
        system_file=system,
        environ={"KASMINA_DEVICE_ROOT": "from-variable", "KASMINA_DEVICE_PROFILE": "from-variable"},
        flags={"device.profile": "from-flag", "broker.address": None},
    )
    assert [settings[f"device.{k}"] for k in ("id", "site", "root", "profile")] == [
        "from-data",
        "from-system",
        "from-variable",
        "from-flag",
    ]
    sources = settings.sources()
    assert sources["device.root"].source == "KASMINA_DEVICE_ROOT"
    assert sources["device.profile"].source == "flag"
    assert sources["device.site"].source == str(system)
    assert sources["broker.address"].source == "default"


def test_variables_are_converted() -> None:
    settings = read(
        environ={
            "KASMINA_AGENT_CHECK_INTERVAL_S": "5",
            "KASMINA_BROKER_INSECURE": "TRUE",
            "KASMINA_DEVICE_GROUPS": "all, line-2",
            "KASMINA_TELEMETRY_WINDOW_FRAMES": "30",
        }
    )
    assert settings["agent.check_interval_s"] == 5.0
    assert settings["broker.insecure"] is True
    assert settings["device.groups"] == ("all", "line-2")
    assert settings["telemetry.window_frames"] == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[device", "not valid TOML"),
        ("[device]\nname = 1\n", "device.name: unknown setting"),
        ("[device]\nid = 3\n", "device.id: expected str, got 3"),
        ("[broker]\ninsecure = 1\n", "broker.insecure: expected bool, got 1"),
        ("[telemetry]\nwindow_frames = true\n", "telemetry.window_frames: expected int, got True"),
        ('[device]\ngroups = "all"\n', "device.groups: expected tuple"),
        ("device = 3\n", "device: expected a \\[section\\]"),
    ],
)
def test_a_wrong_file_is_one_sentence_with_path_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "kasmina.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert str(path) in caught.value.message


def test_an_oversized_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kasmina.toml").write_text("#" * 70_000)
    with pytest.raises(InputError, match="70000 bytes, at most 65536"):
        read(tmp_path)


def test_a_wrong_variable_names_itself() -> None:
    with pytest.raises(InputError, match=r"KASMINA_AGENT_CHECK_INTERVAL_S: agent.check_interval_s: expected float"):
        read(environ={"KASMINA_AGENT_CHECK_INTERVAL_S": "soon"})


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    values = {
        "device.id": "cam-1",
        "device.groups": ("all", "a b"),
        "agent.check_interval_s": 2.5,
        "broker.insecure": True,
    }
    write_settings(tmp_path / "kasmina.toml", values)
    settings = read(tmp_path)
    assert {name: settings[name] for name in values} == values
    assert (tmp_path / "kasmina.toml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("agent.check_interval_s", 0.0, "expected more than 0, got 0.0"),
        ("agent.check_interval_s", float("nan"), "expected more than 0, got nan"),
        ("telemetry.window_s", 0, "expected more than 0, got 0.0"),
        ("telemetry.window_frames", 0, "expected at least 1, got 0"),
        ("telemetry.sample_every", -2, "expected at least 1, got -2"),
        ("device.id", "Cam 1", "expected 1 to 32 of a-z, 0-9 and -, got 'Cam 1'"),
        ("device.id", "cam-1\n", "expected 1 to 32"),
        ("device.site", "", "expected 1 to 32"),
        ("device.root", "a/#", "expected 1 to 32"),
    ],
)
def test_a_value_out_of_range_names_its_source(tmp_path: Path, name: str, value: object, message: str) -> None:
    variable = f"KASMINA_{name.replace('.', '_').upper()}"
    section, key = name.split(".")
    path = tmp_path / "kasmina.toml"
    path.write_text(f"[{section}]\n{key} = {value if not isinstance(value, str) else json.dumps(value)}\n")
    for call, source in (
        (lambda: read(flags={name: value}), "flag"),
        (lambda: read(tmp_path), str(path)),
        (lambda: read(environ={variable: str(value)}), variable),
    ):
        if source == variable and value != value:
            continue  # a variable cannot spell NaN: that is a wrong type
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.message.startswith(f"{source}: {name}: expected ")
        assert message in caught.value.message
