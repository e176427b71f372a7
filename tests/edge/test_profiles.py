"""Profiles by name, alias and path, and one sentence that names file and field for every malformed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kasmina_edge.contracts.profile import HardwareProfile, list_profiles, load_profile, profile_folders, read_profile
from kasmina_edge.errors import InputError

PROFILES = Path(__file__).resolve().parents[2] / "profiles"
GOOD = (PROFILES / "x86-cpu.toml").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is searched before the shipped ones, by the documented variable."""
    monkeypatch.setenv("KASMINA_PROFILES", str(tmp_path))
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_profile(path)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_by_name() -> None:
    profile = load_profile("coral-usb")
    assert (profile.accelerator, profile.delegate_library) == ("edgetpu", "libedgetpu.so.1")


def test_by_alias() -> None:
    assert load_profile("coral") == load_profile("coral-usb")


def test_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('"x86-cpu"', '"mine"').replace('aliases = ["x86", "cpu"]', ""))
    assert load_profile(str(path)).name == "mine"


def test_every_shipped_profile_survives_its_canonical_bytes() -> None:
    profiles = list_profiles()
    assert {"coral-usb", "raspberry-pi-4", "raspberry-pi-5", "x86-cpu"} <= set(profiles)
    for profile in profiles.values():
        assert HardwareProfile.from_bytes(profile.to_bytes()) == profile


def test_an_unknown_name_gets_the_three_nearest() -> None:
    with pytest.raises(InputError) as caught:
        load_profile("corall")
    assert "'corall'" in str(caught.value)
    names = caught.value.next_step.removeprefix("Did you mean ").removesuffix("?").split(", ")
    assert len(names) == 3
    assert names[0] == "coral"


def test_an_own_folder_comes_first(folder: Path) -> None:
    (folder / "coral-usb.toml").write_text(GOOD.replace('"x86-cpu"', '"coral-usb"').replace('"x86", "cpu"', ""))
    assert profile_folders()[0] == folder
    assert load_profile("coral-usb").accelerator is None


def test_a_malformed_profile_in_an_own_folder_is_named(folder: Path) -> None:
    (folder / "mine.toml").write_text("name = ")
    with pytest.raises(InputError, match=r"mine\.toml: not valid TOML"):
        load_profile("coral-usb")


def test_a_missing_file(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "none.toml")


def test_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("name = 'x'\nthis is no TOML")
    assert "not valid TOML" in refusal(path)
    assert "line 2" in refusal(path)


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in refusal(path)


def test_too_long(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_text("#" * 70_000)
    assert "70000 bytes, at most 65536" in refusal(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("threads = 1", "threads = 1\nclock_ghz = 2.3", ".clock_ghz: unknown field"),
        ("clock_mhz = 2300.0", "clock_mhz = -1.0", ".clock_mhz: input should be greater than 0, got -1.0"),
        ("clock_mhz = 2300.0", "", ".clock_mhz: field required"),
        (
            '["litert", "onnxruntime"]',
            '["litert", "Tensor RT"]',
            ".engines[1]: string should match pattern",
        ),
        ("threads = 1", 'threads = 1\naccelerator_device = "usb3"', ".accelerator_device: string should match pattern"),
        ("threads = 1", 'threads = "many"', ".threads: input should be a valid integer"),
        ('name = "x86-cpu"', 'name = "X86 CPU"', ".name: string should match pattern"),
        ("latency_ms = 0.0247", "latency_ms = inf", ".anchors[0].latency_ms: input should be a finite number"),
        ("error_band = 1.0", "error_band = 3.0", ".error_band: input should be less than or equal to 1"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    path = tmp_path / "wrong.toml"
    path.write_text(GOOD.replace(old, new, 1))
    assert f"{path}{said}" in refusal(path)
