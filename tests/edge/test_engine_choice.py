"""Which engine runs where, and honesty about the accelerator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from worlds.bundles import compiled_bundle, make_bundle, make_profile, model_bytes

from kasmina_edge.bundle import Bundle
from kasmina_edge.contracts.manifest import FileEntry
from kasmina_edge.engines import choose_engine, open_engine
from kasmina_edge.engines.edgetpu import is_compiled, load_delegate, open_delegate
from kasmina_edge.engines.litert import LitertEngine
from kasmina_edge.errors import BundleError, EngineError, InputError
from kasmina_edge.settings import Settings

CORAL = make_profile(name="coral-usb", accelerator="edgetpu", delegate_library="libedgetpu.so.1")


def raising(exc: Exception) -> Any:
    def load(library: str) -> Any:
        raise exc

    return load


def test_the_profile_decides_the_order(host: Bundle) -> None:
    assert choose_engine(host.manifest, make_profile())[0].name == "litert"
    other = make_profile(engines=("onnxruntime", "litert"))
    kind, model, check = choose_engine(host.manifest, other)
    assert (kind.name, model.file.path, check.runs_on) == ("onnxruntime", "model.onnx", "ONNX Runtime CPU")


def test_only_files_that_are_there_are_chosen(host: Bundle) -> None:
    present = {p: d for p, d in host.files.items() if "tflite" not in p}
    with open_engine(Bundle(host.manifest, present, {}), make_profile()) as engine:
        assert engine.runs_on == "ONNX Runtime CPU"
    with pytest.raises(EngineError, match="litert: the bundle has no file for it"):
        choose_engine(host.manifest, make_profile(engines=("litert",)), present=("model.onnx",))


def test_a_missing_library_falls_back_and_says_so(host: Bundle) -> None:
    kind, _, check = choose_engine(host.manifest, CORAL)
    assert (kind.name, check.runs_on) == ("litert", "LiteRT CPU")
    assert check.accelerator == "libedgetpu.so.1 not found"
    with open_engine(host, CORAL) as engine:
        assert (engine.runs_on, engine.accelerator) == ("LiteRT CPU", "libedgetpu.so.1 not found")


def test_a_required_accelerator_that_is_missing_is_the_documented_sentence(host: Bundle) -> None:
    with pytest.raises(EngineError) as caught:
        choose_engine(host.manifest, CORAL, require_accelerator=True)
    assert caught.value.message == (
        "profile coral-usb asks for the Edge TPU, and libedgetpu.so.1 was not found on this machine."
    )
    assert caught.value.next_step == (
        "Install libedgetpu and plug the accelerator in, or leave out --require-accelerator to run on the CPU."
    )
    assert caught.value.exit_code == 4


def test_requiring_what_the_profile_does_not_have_is_refused(host: Bundle) -> None:
    with pytest.raises(EngineError, match="profile test-cpu has no accelerator to require"):
        choose_engine(host.manifest, make_profile(), require_accelerator=True)


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (OSError("libx.so: cannot open shared object file: No such file or directory"), "libx.so not found"),
        (OSError("libx.so: invalid ELF header"), "libx.so cannot be loaded (libx.so: invalid ELF header)"),
        (
            AttributeError("undefined symbol"),
            "libx.so is not a LiteRT delegate (it has no tflite_plugin_create_delegate)",
        ),
        (ValueError("Failed to load delegate from libx.so\n"), "libx.so present, no Edge TPU answered"),
    ],
)
def test_each_failure_of_load_delegate_is_a_reason(exc: Exception, text: str) -> None:
    delegate, why = open_delegate("libx.so", raising(exc))
    assert delegate is None and why.startswith(text)


def test_a_real_library_that_is_no_delegate_is_named(host: Bundle) -> None:
    delegate, why = open_delegate("libc.so.6")
    assert delegate is None and why.startswith("libc.so.6 is not a LiteRT delegate")
    profile = make_profile(name="wrong", accelerator="edgetpu", delegate_library="libc.so.6")
    assert choose_engine(host.manifest, profile)[2].accelerator == why
    with pytest.raises(EngineError, match=r"asks for the Edge TPU: libc\.so\.6 is not a LiteRT delegate"):
        choose_engine(host.manifest, profile, require_accelerator=True)


def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    path = tmp_path / "libfake.so"
    path.write_bytes(b"not a library")
    assert "cannot be loaded" in open_delegate(str(path))[1]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to make a library")
def test_a_delegate_without_a_device_is_present_and_unanswered(host: Bundle, tmp_path: Path) -> None:
    library = build(
        tmp_path,
        "void* tflite_plugin_create_delegate(char** k, char** v, unsigned long n, void (*e)(const char*))"
        '{ e("no device"); return 0; } void tflite_plugin_destroy_delegate(void* d) {}',
    )
    delegate, why = open_delegate(library)
    assert delegate is None and why.endswith("present, no Edge TPU answered (no device)")
    profile = make_profile(accelerator="edgetpu", delegate_library=library)
    told = choose_engine(host.manifest, profile)[2].accelerator  # a check looks at the library, not at the device
    assert told.endswith("present, bundle not compiled: CPU")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to make a library")
def test_a_present_delegate_with_an_uncompiled_bundle_is_the_cpu(host: Bundle, tmp_path: Path) -> None:
    library = build(
        tmp_path,
        "static long d[64]; void* tflite_plugin_create_delegate(char** k, char** v, unsigned long n, void* e)"
        "{ return d; } void tflite_plugin_destroy_delegate(void* d) {}",
    )
    profile = make_profile(name="coral", accelerator="edgetpu", delegate_library=library)
    check = choose_engine(host.manifest, profile)[2]
    assert check.runs_on == "LiteRT CPU"
    assert check.accelerator.endswith("libtest present, bundle not compiled: CPU")
    with pytest.raises(EngineError, match="the bundle holds no file compiled for it"):
        choose_engine(host.manifest, profile, require_accelerator=True)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to make a library")
def test_a_delegate_that_does_not_take_the_operation_is_not_called_an_edge_tpu(tmp_path: Path) -> None:
    library = build(
        tmp_path,
        "static long d[64]; void* tflite_plugin_create_delegate(char** k, char** v, unsigned long n, void* e)"
        "{ return d; } void tflite_plugin_destroy_delegate(void* d) {}",
    )
    profile = make_profile(name="coral", accelerator="edgetpu", delegate_library=library)
    bundle = compiled_bundle()
    assert choose_engine(bundle.manifest, profile)[2].runs_on == "Edge TPU", "before loading, all looks well"
    with open_engine(bundle, profile) as engine:
        assert engine.runs_on == "LiteRT CPU (Edge TPU: gone)", "the twin answers"
        assert engine.accelerator.startswith("Edge TPU: gone (") and engine.accelerator.endswith(", LiteRT CPU answers")
    with pytest.raises(EngineError, match=r"model_edgetpu\.tflite: .*(gone|did not take)"):
        open_engine(bundle, profile, require_accelerator=True)


DEVICE = """
#include <string.h>
static long d[64];
void* tflite_plugin_create_delegate(char** k, char** v, unsigned long n, void (*e)(const char*)) {
  for (unsigned long i = 0; i < n; i++)
    if (strcmp(k[i], "device") == 0 && strcmp(v[i], "usb:1") == 0) return d;
  e(n ? v[0] : "no option"); return 0; }
void tflite_plugin_destroy_delegate(void* x) {}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to make a library")
def test_the_device_string_reaches_the_delegate(host: Bundle, tmp_path: Path) -> None:
    library = build(tmp_path, DEVICE)
    assert open_delegate(library, device="usb:1")[1] == ""
    assert open_delegate(library, device="pci")[1].endswith("no Edge TPU answered at 'pci' (pci)")
    assert open_delegate(library)[1].endswith("no Edge TPU answered (no option)")
    profile = make_profile(accelerator="edgetpu", delegate_library=library)
    for device, present in (("usb:1", True), ("usb", False), ("", False)):
        check = choose_engine(host.manifest, profile.chosen(accelerator_device=device))[2]
        assert "present, bundle not compiled" in check.accelerator  # the device itself is not asked
        assert (open_delegate(library, device=device)[1] == "") == present


@pytest.mark.parametrize("device", ["usb", "pci", ":0", ":12", "usb:1", "pci:3", ""])
def test_device_strings_of_libedgetpu_are_taken(device: str) -> None:
    assert make_profile(accelerator_device=device).accelerator_device == device


def test_the_setting_takes_what_the_profile_takes() -> None:
    def setting(value: str) -> str:
        return str(Settings.read(None, environ={}, flags={"device.accelerator": value})["device.accelerator"])

    assert [setting(device) for device in ("", "usb", ":1", "pci:2")] == ["", "usb", ":1", "pci:2"]
    for wrong in ("usb3", ":", "usb:123"):
        with pytest.raises(InputError, match=r"device\.accelerator: expected usb, pci"):
            setting(wrong)


@pytest.mark.parametrize("device", ["usb:", ":", "usb3", "PCI", "usb:1 ", "0", ":123", "usb:-1"])
def test_other_device_strings_are_refused(device: str) -> None:
    with pytest.raises(InputError, match=r"accelerator_device"):
        make_profile(accelerator_device=device)


@pytest.mark.parametrize(
    "exc", [OSError("x: no such file"), AttributeError("no symbol"), ValueError("no device"), RuntimeError("PyPy")]
)
def test_every_failure_of_load_delegate_is_one_typed_error_with_the_install_line(exc: Exception) -> None:
    with pytest.raises(EngineError, match=r"^libx\.so") as caught:
        load_delegate("libx.so", raising(exc), look=False)
    assert "apt-get install libedgetpu1-std" in caught.value.next_step
    assert caught.value.__cause__ is exc


def build(folder: Path, source: str) -> str:
    path = folder / "libtest.so"
    (folder / "d.c").write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(path), str(folder / "d.c")], check=True)
    return str(path)


def test_a_compiled_file_is_passed_over_without_its_accelerator() -> None:
    bundle = compiled_bundle()
    for profile, text in ((CORAL, "libedgetpu.so.1 not found"), (make_profile(), "")):
        with open_engine(bundle, profile) as engine:
            assert engine.model.compiled_for is None
            assert (engine.runs_on, engine.accelerator) == ("LiteRT CPU", text)
    with pytest.raises(EngineError, match=r"libedgetpu.so.1 was not found"):
        open_engine(bundle, CORAL, require_accelerator=True)


def test_a_compiled_file_is_known_by_its_operation() -> None:
    module = LitertEngine.library()[0]
    compiled = compiled_bundle().files["model_edgetpu.tflite"]
    assert is_compiled(module, compiled)
    assert not is_compiled(module, model_bytes("litert"))
    assert not is_compiled(module, model_bytes("litert") + b"edgetpu-custom-op")


def test_a_manifest_that_claims_a_compiled_file_is_refused() -> None:
    bundle = compiled_bundle()
    plain, compiled = bundle.manifest.models[0], bundle.manifest.models[-1]
    with pytest.raises(BundleError, match="says it is compiled for the Edge TPU, the file holds no edgetpu-custom-op"):
        LitertEngine(compiled, bundle.files[plain.file.path], CORAL)
    with pytest.raises(BundleError, match="says it is not compiled, the file holds an edgetpu-custom-op"):
        LitertEngine(plain, bundle.files[compiled.file.path], CORAL)
    for profile, why in ((CORAL, "libedgetpu.so.1 not found"), (make_profile(), "profile test-cpu has none")):
        with pytest.raises(EngineError, match=why):
            LitertEngine(compiled, bundle.files[compiled.file.path], profile)


def test_a_profile_without_a_usable_engine_says_why(host: Bundle) -> None:
    only_tpu = host.manifest.model_copy(update={"models": compiled_bundle().manifest.models[-1:]})
    with pytest.raises(EngineError, match=r"litert: model_edgetpu\.tflite is compiled for edgetpu; onnxruntime: the"):
        choose_engine(only_tpu, make_profile())
    onnx = make_bundle(engines=("onnxruntime",))
    tpu = make_profile(name="coral", accelerator="edgetpu", engines=("onnxruntime",))
    assert choose_engine(onnx.manifest, tpu)[2].accelerator == "ONNX Runtime does not reach an Edge TPU"
    fields = onnx.manifest.models[0].model_copy(update={"compiled_for": "edgetpu", "file": FileEntry.of("m", b"")})
    with pytest.raises(EngineError, match="m is compiled for edgetpu"):
        choose_engine(onnx.manifest.model_copy(update={"models": (fields,)}), tpu)


# ---- a kept verdict, and what strangers do


def test_a_kept_verdict_does_not_excuse_from_the_self_test(tmp_path: Path) -> None:
    from kasmina_edge.engines.measure import Verdicts, chosen_by_measurement, verdict_key

    bundle, auto = make_bundle(), make_profile().chosen(engine="auto")
    verdicts, key = Verdicts(tmp_path), verdict_key(bundle, auto)
    verdicts.put(key, "litert-plain")  # its kernels round otherwise: it fails this bundle's self-test
    assert chosen_by_measurement(bundle, auto, folder=tmp_path) == "litert"
    assert Verdicts(tmp_path).get(key) == "litert", "the right one is kept from now on"


def test_another_build_of_an_engine_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from kasmina_edge.engines.measure import verdict_key
    from kasmina_edge.engines.registry import build_of

    bundle, auto = make_bundle(), make_profile().chosen(engine="auto")
    before = verdict_key(bundle, auto)
    assert build_of(LitertEngine).startswith("kasmina_edge.engines.litert:LitertEngine ")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.0+other")
    assert verdict_key(bundle, auto) != before


HEAD = """
import time
from kasmina_edge.engines.litert import LitertEngine
class E(LitertEngine):
    name = "stranger"
"""
STRANGERS = {
    "import exits": ("stranger", "import sys; sys.exit(3)", "SystemExit: 3"),
    "import panics": ("stranger", "class Panic(BaseException): pass\nraise Panic('rust')", "Panic: rust"),
    "called auto": ("auto", HEAD.replace("stranger", "auto"), "cannot name an engine"),
    "check exits": (
        "stranger",
        HEAD + "    @classmethod\n    def check(cls, p, m): raise SystemExit(4)",
        "SystemExit: 4",
    ),
    "check is None": ("stranger", HEAD + "    @classmethod\n    def check(cls, p, m): pass", "gives None"),
    "load exits": ("stranger", HEAD + "    def _load(self, d, p): raise SystemExit(9)", "SystemExit(9)"),
    "load hangs": ("stranger", HEAD + "    def _load(self, d, p): time.sleep(60)", "not ready after 0.3 s"),
    "run exits": (
        "stranger",
        HEAD + "    def _call(self): return self._run\n    def _run(self, x): exit(5)",
        "SystemExit(5)",
    ),
    "close fails": ("stranger", HEAD + "    def _close(self): raise SystemExit(6)", ""),
}


@pytest.mark.parametrize("how", STRANGERS)
def test_a_broken_stranger_stops_nobody(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from kasmina_edge.engines import measure
    from kasmina_edge.engines.registry import engine_types, registered_engines

    name, source, said = STRANGERS[how]
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (tmp_path / "stranger_engine.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kasmina_edge.engines]\n{name} = stranger_engine:E\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(measure, "STRANGER_S", 0.3 if how == "load hangs" else 10.0)
    bundle, auto = make_bundle(), make_profile().chosen(engine="auto")
    try:
        reasons = [r.reason for r in registered_engines() if r.source == "stranger"]
        found = {m.name: m for m in measure.measure_engines(bundle, auto, blocks=1)}
        assert found["litert"].ok
        if said:
            told = reasons if name not in engine_types() else [found[name].reason]
            assert said in told[0] and not (name in found and found[name].ok)
        if how != "load hangs":
            with open_engine(bundle, make_profile(engines=("stranger", "litert"))) as engine:
                assert engine.name == ("stranger" if how in ("run exits", "close fails") else "litert")
        with open_engine(bundle, auto) as engine:
            assert engine.name in ("litert", "stranger")
    finally:
        sys.modules.pop("stranger_engine", None)
