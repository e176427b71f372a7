"""Profiles by name, alias and path, and one sentence that names file and field for every malformed one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kasmina_edge.contracts.profile import (
    HardwareProfile,
    find_profiles,
    list_profiles,
    load_profile,
    profile_folders,
    read_profile,
)
from kasmina_edge.errors import InputError

PROFILES = Path(__file__).resolve().parents[2] / "profiles"
GOOD = """
name = "x86-cpu"
aliases = ["x86", "cpu"]
description = "Any 64-bit x86 computer, CPU only"
chip = "x86-64"
clock_mhz = 2300.0 # of the machine that the anchor was measured on
runtime = "LiteRT with XNNPACK"
runtime_version = "ai-edge-litert 2.3.0"
engines = ["litert", "onnxruntime"]
threads = 1 # small networks: two threads on a busy machine were 10 times slower
ram_bytes = 4_294_967_296 # assumed
error_band = 1.0 # x86 CPUs differ by more than a factor of two, and shared machines are noisy
source = "measured by this project on a 2-core x86-64 Linux machine, Python 3.11"

[[anchors]]
network = "depthwise-se-residual-46706-parameters-int8"
latency_ms = 0.0247
source = "measured by this project, 2026-11: set_tensor + invoke + get_tensor, one thread"
"""


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
        load_profile("mine")
    with pytest.raises(InputError, match=r"'yours'; not read: .*mine\.toml"):
        load_profile("yours")
    with pytest.raises(InputError, match=r"mine\.toml: not valid TOML"):
        list_profiles()


def test_a_malformed_profile_stops_no_other(folder: Path) -> None:
    before = load_profile("coral-usb")
    (folder / "mine.toml").write_text("name = ")
    (folder / "endless.toml").symlink_to("/dev/zero")
    assert load_profile("coral-usb") == load_profile("coral") == before
    assert set(find_profiles().faults) == {folder / "mine.toml", folder / "endless.toml"}


@pytest.mark.parametrize("old", ["clock_mhz = 2300.0", 'chip = "x86-64"', "[[anchors]]"])
@pytest.mark.parametrize("name", ["coral-usb", "coral", "pi"])
def test_a_malformed_profile_is_never_replaced_by_a_shipped_one_of_its_name(folder: Path, old: str, name: str) -> None:
    text = GOOD.replace('"x86-cpu"', '"coral-usb"').replace('"x86", "cpu"', '"coral", "pi"')
    (folder / "board.toml").write_text(text)
    assert load_profile(name).chip == "x86-64"
    (folder / "board.toml").write_text(text.replace(old, old + " = 7", 1))
    with pytest.raises(InputError, match=r"board\.toml"):
        load_profile(name)


def test_a_malformed_profile_behind_a_good_one_of_its_name_harms_nobody(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.toml").write_text(GOOD.replace('"x86-cpu"', '"mine"').replace('["x86", "cpu"]', "[]"))
    (tmp_path / "behind").mkdir()
    (tmp_path / "behind" / "other.toml").write_text('name = "mine"\n')
    extra = (folder, tmp_path / "behind")
    assert load_profile("mine", extra).name == "mine"
    with pytest.raises(InputError, match=r"other\.toml"):
        load_profile("mine", extra[::-1])


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


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "endless.toml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(InputError, match=r"no plain file|cannot be read") as caught:
        read_profile(path)
    assert "profile list" in caught.value.next_step


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
        ("threads = 1", "threads = true", ".threads: input should be a valid integer, got True"),
        ("clock_mhz = 2300.0", "clock_mhz = true", ".clock_mhz: input should be a valid number, got True"),
        ("clock_mhz = 2300.0", 'clock_mhz = "120"', ".clock_mhz: input should be a valid number, got '120'"),
        ("latency_ms = 0.0247", 'latency_ms = "1"', ".anchors[0].latency_ms: input should be a valid number, got '1'"),
        (
            "threads = 1",
            "threads = 1\ncoefficients = {call_us = false}",
            ".coefficients.call_us: input should be",
        ),
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


NAMED = {
    "coral-dev-board", "coral-usb", "esp32-s3", "gap9", "hailo-8", "jetson-class", "ra8d1", "raspberry-pi-4",
    "raspberry-pi-5", "stm32h747", "stm32l4r5", "stm32u385", "stm32u575", "syntiant-ndp9120", "tpu-like", "x86-cpu",
}  # fmt: skip


def test_every_target_that_was_promised_is_there() -> None:
    assert set(list_profiles()) >= NAMED


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_number_of_a_shipped_profile_has_a_source(path: Path) -> None:
    profile = read_profile(path)
    assert profile.name == path.stem
    assert profile.unsourced() == ()
    assert all(anchor.source.strip() and anchor.latency_ms > 0 for anchor in profile.anchors)
    assert len(profile.source) > 10


def test_a_number_without_a_source_is_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = (PROFILES / "stm32u575.toml").read_text().replace("coefficients = ", "chip = ")
    path.write_text(text)
    assert len(read_profile(path).unsourced()) == 9
    fields = read_profile(PROFILES / "raspberry-pi-5.toml").model_dump(exclude_defaults=True)
    bare = HardwareProfile.parse(fields | {"source": ""})
    assert "clock_mhz" in bare.unsourced() and "ram_bytes" in bare.unsourced()


def test_names_are_unique_in_a_folder_and_names_beat_aliases(folder: Path) -> None:
    (folder / "one.toml").write_text(GOOD.replace('"x86-cpu"', '"one"').replace('"x86", "cpu"', '"stm32u575"'))
    assert load_profile("stm32u575").chip.startswith("STM32"), "a name is not taken over by somebody's alias"
    (folder / "two.toml").write_text(GOOD.replace('"x86-cpu"', '"two"').replace('"x86", "cpu"', '"one"'))
    with pytest.raises(InputError, match=r"two\.toml: 'one' is taken by .*one\.toml"):
        list_profiles()


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("hailo-8", "depthwise_share", "0.0", "coefficients.depthwise_share: 0, expected more"),
        ("syntiant-ndp9120", "product_macs_per_cycle", "0", "coefficients.product_macs_per_cycle"),
        ("tpu-like", "array_rows", "0.0", "coefficients.array_rows: 0, expected more"),
        ("coral-usb", "activation_sram_ratio", "1e308", "coefficients.activation_sram_ratio: 1e+308, expected 1e+12"),
        ("coral-usb", "op_us", "-1e13", "coefficients.op_us: -1e+13, expected 1e+12"),
        ("coral-usb", "moved_bytes_per_us", "0.0", "coefficients.moved_bytes_per_us: 0, expected more"),
    ],
)
def test_a_coefficient_that_no_layer_can_compute_with_is_refused(
    tmp_path: Path, name: str, key: str, value: str, said: str
) -> None:
    path = tmp_path / "mine.toml"
    text, changes = re.subn(rf"^{key} = .*$", f"{key} = {value}", (PROFILES / f"{name}.toml").read_text(), flags=re.M)
    assert changes == 1
    path.write_text(text)
    assert said in refusal(path)
    path.write_text(re.sub(rf"^{key} = .*$", f"{key} = 7.5", text, flags=re.M))
    assert read_profile(path).coefficients[key] == 7.5


def test_a_cost_may_be_nothing() -> None:
    fields = read_profile(PROFILES / "jetson-class.toml").model_dump(exclude_defaults=True)
    changed = {**fields["coefficients"], "activations_moved_share": 0.0, "call_us": 0.0}
    assert HardwareProfile.parse({**fields, "coefficients": changed}).coefficients == changed


def test_units_that_a_coefficient_may_end_in() -> None:
    fields = read_profile(PROFILES / "tpu-like.toml").model_dump(exclude_defaults=True)
    fields.pop("sources")
    for key in ("call_us", "int8_conv_step_ns", "dense_cycles_per_mac", "usb_bytes_per_s", "array_rows", "int8_band"):
        assert HardwareProfile.parse(fields | {"coefficients": {key: 1.0}}).coefficients == {key: 1.0}
    for key in ("speed", "us", "cycles_per_", "latency_us_"):
        with pytest.raises(InputError, match="does not end in a unit"):
            HardwareProfile.parse(fields | {"coefficients": {key: 1.0}})
