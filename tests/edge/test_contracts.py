"""Contracts: canonical bytes, containers, topics, and every rule of the change plan with its words."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kasmina_edge.contracts import change_plan, manifest, profile, record, transfer
from kasmina_edge.contracts.arrays import pack_arrays, pack_members, unpack_arrays, unpack_members
from kasmina_edge.contracts.canonical import (
    MAX_CONTRACT_BYTES,
    MAX_TEXT_CHARACTERS,
    Contract,
    SignedContract,
    canonical_bytes,
    sha256_hex,
    short_digest,
)
from kasmina_edge.contracts.change_plan import ChangePlan, check_against_plan
from kasmina_edge.contracts.manifest import BundleManifest, FileEntry, Graft, ModelTensor
from kasmina_edge.contracts.record import Desired, Summary, TelemetryRecord
from kasmina_edge.contracts.topics import Topics
from kasmina_edge.errors import BundleError, InputError, KasminaError, PlanError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MODULES = (manifest, change_plan, profile, record, transfer)
KINDS: dict[str, type[Contract]] = {
    path.stem: next(getattr(m, path.stem) for m in MODULES if hasattr(m, path.stem))
    for path in sorted((GOLDEN / "contracts-1").glob("*.json"))
}
Value = Any

# --- canonical bytes -------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def test_golden_spellings() -> None:
    value = {"ü": [1, 2.0, 1e-07, 1e16, -0.0, True, None], "a": {"z": '\u2028/"\\\n', "b": ""}, "B": 0.1 + 0.2}
    golden = '{"B":0.30000000000000004,"a":{"b":"","z":"\u2028/\\"\\\\\\n"},"ü":[1,2.0,1e-07,1e+16,-0.0,true,null]}'
    assert canonical_bytes(value) == golden.encode()
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert short_digest(sha256_hex(b"")) == "e3b0c44298fc"


@given(plain)
def test_canonical_bytes_come_back_and_are_their_own_canonical_bytes(value: Value) -> None:
    data = canonical_bytes(value)
    assert canonical_bytes(json.loads(data)) == data
    assert json.loads(data) == value


@given(st.dictionaries(st.text(), st.integers()))
def test_the_order_of_writing_does_not_matter(value: dict[str, int]) -> None:
    assert canonical_bytes(dict(reversed(list(value.items())))) == canonical_bytes(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "\ud800"])
def test_what_has_no_canonical_bytes_is_refused(value: Value) -> None:
    with pytest.raises(ValueError):
        canonical_bytes(value)


# --- every contract --------------------------------------------------------------------------------------------------


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "contracts-1" / f"{name}.json").read_bytes())  # type: ignore[no-any-return]


def places(value: Value, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in places(part, (*at, key)))]


odd = st.sampled_from(
    [10**400, -1, 1e308, "\ud800", "x" * (MAX_TEXT_CHARACTERS + 1), [], {}, math.nan, "a\n", 2**53 + 1]
)


def test_there_are_contracts_to_try() -> None:
    assert {"BundleManifest", "ChangePlan", "HardwareProfile", "TelemetryRecord", "Reported"} <= KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
def test_a_changed_value_is_read_and_spelled_again_or_refused_in_our_words(name: str, data: st.DataObject) -> None:
    value = golden(name)
    *way, last = data.draw(st.sampled_from(places(value)[1:]))
    inner = value
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(plain | odd)
    raw = json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass")
    try:
        read = KINDS[name].from_bytes(raw, where="here")
    except KasminaError as exc:
        assert type(exc) is KINDS[name].error_type()
        assert exc.message.startswith("here") and len(exc.message) < 500 + MAX_TEXT_CHARACTERS
    else:
        assert KINDS[name].from_bytes(read.to_bytes()) == read
        assert not isinstance(read, SignedContract) or read.to_bytes() == raw


@pytest.mark.parametrize("name", KINDS)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_in_our_words(name: str, data: bytes) -> None:
    with pytest.raises(KINDS[name].error_type()):
        KINDS[name].from_bytes(data)


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b"\xff\xfe", b"\xed\xa0\x80", b"nul", b" " * (MAX_CONTRACT_BYTES + 1), b"9" * 5000]
)
def test_bytes_that_are_no_json_or_too_many_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="Desired: "):
        Desired.from_bytes(data)


def test_messages_name_the_place_and_both_values() -> None:
    value = golden("BundleManifest")
    value["models"][0]["inputs"][0]["scale"] = -1.0
    with pytest.raises(BundleError, match=r"^m\.models\[0\]\.inputs\[0\]\.scale: .*greater than 0, got -1\.0"):
        BundleManifest.parse(value, where="m")
    value["grafts"][0]["colour"] = "red"
    with pytest.raises(BundleError, match=r"(?m)\(and \d more\)$"):
        BundleManifest.parse(value)


@pytest.mark.parametrize("field", ["sequence", "release", "boot"])
@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1])
def test_a_device_cannot_send_numbers_that_a_database_cannot_hold(field: str, value: int) -> None:
    with pytest.raises(InputError, match=field):
        TelemetryRecord.parse(golden("TelemetryRecord") | {field: value})
    with pytest.raises(InputError, match="labels"):
        TelemetryRecord.parse(golden("TelemetryRecord") | {"labels": {"3": value}})


def test_not_measured_is_not_zero() -> None:
    bare = TelemetryRecord(
        device="cam", bundle="digits 1.0.0", release=1, sequence=0, started_s=0.0, duration_s=0.0, frames=0, sampled=0
    )
    assert (bare.drift, bare.score, bare.latency_us) == (None, None, None)
    with pytest.raises(InputError, match="variance"):
        Summary.parse({"count": 1, "mean": 0, "variance": -1, "minimum": 0, "maximum": 0})


def test_contracts_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        Desired(release=1).release = 2  # type: ignore[misc]


# --- the manifest ----------------------------------------------------------------------------------------------------


def parsed(**changes: Any) -> BundleManifest:
    return BundleManifest.parse(golden("BundleManifest") | changes, where="m")


def test_the_content_digest_knows_no_release_and_everything_else() -> None:
    whole = parsed()
    assert parsed(release=99).content_digest() == whole.content_digest()
    assert parsed(release=99).digest() != whole.digest()
    for change in ({"version": "1.1.1"}, {"provenance": {}}, {"parent": None}, {"profile": "x86-cpu"}):
        assert parsed(**change).content_digest() != whole.content_digest()


def test_a_manifest_lists_its_files_and_what_one_engine_needs() -> None:
    whole = parsed()
    assert [e.path for e in whole.files()] == [
        "model.tflite", "selftest-litert.npz", "model.onnx", "selftest-onnx.npz", "probes.npz",
    ]  # fmt: skip
    assert [e.path for e in whole.files_for(whole.models[1])] == ["model.onnx", "selftest-onnx.npz", "probes.npz"]
    assert whole.id == "digits 1.1.0-rc.1"


@pytest.mark.parametrize("path", ["manifest.json", "tuf"])
def test_reserved_names_are_refused(path: str) -> None:
    value = golden("BundleManifest")
    value["models"][0]["file"]["path"] = path
    with pytest.raises(BundleError, match=f"no file may be called {path}"):
        BundleManifest.parse(value)


@pytest.mark.parametrize("path", ["", ".x", "-x", "a/b", "../x", "a b", "a\n", "ä", "x" * 101])
def test_a_file_has_a_plain_name(path: str) -> None:
    with pytest.raises(BundleError, match="path"):
        FileEntry.parse({"path": path, "sha256": "0" * 64, "size_bytes": 0})


def test_contradictions_are_refused() -> None:
    value = golden("BundleManifest")
    value["models"][1]["file"]["path"] = "model.tflite"
    with pytest.raises(BundleError, match=r"two files are called model\.tflite"):
        BundleManifest.parse(value)
    with pytest.raises(BundleError, match="a bundle with grafts names its host"):
        parsed(host=None)
    with pytest.raises(BundleError, match=r"model\.tflite does not have the manifest's inputs and outputs"):
        parsed(inputs=golden("BundleManifest")["inputs"] * 2)
    with pytest.raises(BundleError, match="scale and zero_point come together"):
        ModelTensor.parse({"name": "x", "shape": [1], "dtype": "int8", "scale": 0.5})


def test_a_file_is_held_against_its_entry() -> None:
    entry = FileEntry.of("x", b"abc")
    entry.check(b"abc")
    with pytest.raises(BundleError, match="x: the manifest says 3 bytes, got 2"):
        entry.check(b"ab")
    with pytest.raises(BundleError, match="here: the manifest says sha256 ba7816bf8f01, got a52d159f262b"):
        entry.check(b"abd", where="here")


def test_versions_sort_as_people_expect() -> None:
    order = ["0.9.9", "1.0.0-alpha", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0-rc.1", "2.0.0"]
    keys = [parsed(version=v).version_key() for v in order]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    for wrong in ("1.0", "01.0.0", "1.0.0+x", "1.0.0-", "1.0.0\n", "v1.0.0", ""):
        with pytest.raises(BundleError, match="version"):
            parsed(version=wrong)


# --- the change plan -------------------------------------------------------------------------------------------------

GROWN = golden("BundleManifest")
BARE = GROWN | {"grafts": [], "host": None, "parent": None, "acceptance": None, "version": "1.0.0", "release": 1}
HOST = BundleManifest.parse(BARE)
HERE = HOST.content_digest()
PLAN = ChangePlan.parse(golden("ChangePlan") | {"hosts": [HERE]})


def offer(**changes: Any) -> BundleManifest:
    """A graft that the plan allows, changed."""
    return BundleManifest.parse(GROWN | {"host": HERE, "parent": HERE} | changes)


def graft(**changes: Any) -> dict[str, Any]:
    return GROWN["grafts"][0] | changes  # type: ignore[no-any-return]


def model(size_bytes: int, **changes: Any) -> dict[str, Any]:
    first = GROWN["models"][0]
    return first | {"file": first["file"] | {"size_bytes": size_bytes}} | changes  # type: ignore[no-any-return]


def plan(**changes: Any) -> ChangePlan:
    return ChangePlan.parse(json.loads(PLAN.to_bytes()) | changes)


def test_what_the_plan_allows_passes_for_every_role() -> None:
    for role in ("targets", "grafts", "desk"):
        check_against_plan(offer(), PLAN, HOST, signed_by=role)
        check_against_plan(HOST, PLAN, None, signed_by=role)  # a listed host: a graft taken back
    check_against_plan(HOST, None, None, signed_by="targets")
    check_against_plan(offer(), None, None, signed_by="desk")


@pytest.mark.parametrize(
    ("offered", "held", "host", "role", "words"),
    [
        (HOST, None, None, "grafts", "role grafts sends a host that the change plan does not list"),
        (parsed(grafts=[], host=None), PLAN, None, "grafts", "role grafts sends a host that the change plan does not"),
        (HOST, plan(hosts=["0" * 64]), None, "", "role  sends a host"),
        (offer(), None, HOST, "targets", "brings 1 grafts, and this device has no change plan"),
        (offer(), plan(bundle="faces"), HOST, "targets", "the change plan is for faces"),
        (offer(host="1" * 64), PLAN, HOST, "grafts", "host 111111111111 is not one the change plan lists"),
        (offer(), PLAN, None, "grafts", f"grown on host {HERE[:12]}, which this device does not hold"),
        (offer(), PLAN, parsed(grafts=[], host=None), "grafts", "which this device does not hold"),
        (offer(inputs=[{"name": "x", "shape": [1, 8, 8, 4], "labels": []}]), PLAN, HOST, "grafts", "inputs is not its"),
        (
            offer(outputs=[GROWN["outputs"][0] | {"labels": list("1023456789")}]),
            PLAN, HOST, "grafts", "outputs is not its host's; grafts may not change what the app sees",
        ),
        (offer(head="other"), PLAN, HOST, "grafts", "head is not its host's"),
        (
            offer(preprocessing={"mean": 0.0, "std": 1.0, "valid_range": None}),
            PLAN, HOST, "grafts", "preprocessing is not its host's",
        ),
        (offer(grafts=[graft()] * 5), PLAN, HOST, "grafts", "5 grafts, the change plan allows 4"),
        (offer(grafts=[graft(parameters=5001)]), PLAN, HOST, "grafts", "5001 parameters, the change plan allows 5000"),
        (
            offer(grafts=[graft(parameters=2501)] * 2),
            PLAN, HOST, "grafts", "5002 parameters, the change plan allows 5000",
        ),
        (
            offer(grafts=[graft(), graft(blueprint="mini-attention")]),
            PLAN, HOST, "grafts", r"grafts\[1\]: blueprint mini-attention v1 is not in the change plan",
        ),
        (
            offer(grafts=[graft(blueprint_version=2)]),
            PLAN, HOST, "grafts", r"grafts\[0\]: blueprint depthwise v2 is not in the change plan",
        ),
        (
            offer(grafts=[graft(site="s3")]),
            PLAN, HOST, "grafts", r"grafts\[0\]: site s3 is not in the change plan \(s1, s2\)",
        ),
        (
            offer(grafts=[graft(intensity=0.2)]),
            PLAN, HOST, "grafts", r"grafts\[0\]: intensity 0\.2 is outside 0\.25 to 1\.0",
        ),
        (offer(probes=None), PLAN, HOST, "grafts", "reference probes none, the change plan asks for"),
        (
            offer(probes={"file": GROWN["probes"]["file"] | {"sha256": "2" * 64}, "samples": 200}),
            PLAN, HOST, "grafts", "reference probes 222222222222, the change plan asks for",
        ),
        (
            offer(models=[model(30_007)]),
            PLAN, HOST, "grafts", r"model\.tflite is 30001 bytes larger than its host's, the change plan allows 30000",
        ),
        (
            offer(models=[model(30_007, compiled_for="edgetpu")]),
            PLAN, HOST, "grafts", "30001 bytes larger than its host's",
        ),
    ],
)  # fmt: skip
def test_every_rule_of_the_change_plan(
    offered: BundleManifest, held: ChangePlan | None, host: BundleManifest | None, role: str, words: str
) -> None:
    with pytest.raises(PlanError, match=f"^{offered.id}: .*{words}"):
        check_against_plan(offered, held, host, signed_by=role)
    check_against_plan(offered, held, host, signed_by="desk")


def test_an_engine_that_the_host_lacks_cannot_slip_past_the_ceiling() -> None:
    lean = BundleManifest.parse(BARE | {"models": BARE["models"][:1]})
    digest = lean.content_digest()
    with pytest.raises(PlanError, match=r"model\.onnx is for onnxruntime, which its host has no model for"):
        check_against_plan(offer(host=digest), plan(hosts=[digest]), lean, signed_by="grafts")


@pytest.mark.parametrize(
    "offered",
    [
        offer(grafts=[graft()] * 3 + [graft(parameters=56)]),
        offer(grafts=[graft(intensity=0.25)]),
        offer(models=[model(30_006)]),
        offer(models=[model(0)]),
        offer(models=[model(6), model(30_006, compiled_for="edgetpu", file=model(30_006)["file"] | {"path": "tpu"})]),
        offer(domains=[], acceptance=None, provenance={}, release=99),
    ],
)
def test_what_lies_exactly_on_a_limit_passes(offered: BundleManifest) -> None:
    check_against_plan(offered, PLAN, HOST, signed_by="grafts")


def test_a_plan_is_refused_in_its_own_words() -> None:
    with pytest.raises(PlanError, match=r"health\.minimum_accuracy"):
        ChangePlan.parse(golden("ChangePlan") | {"health": {"probes": "0" * 64, "minimum_accuracy": 1.1}})
    with pytest.raises(PlanError, match="controller_key"):
        ChangePlan.parse(golden("ChangePlan") | {"controller_key": "zz" * 32})
    assert isinstance(offer().grafts[0], Graft)


# --- containers and arrays -------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,10}(/[A-Za-z0-9_][A-Za-z0-9_.]{0,10})?", fullmatch=True)
members = st.dictionaries(names, st.binary(max_size=60), max_size=5)
arrays = hnp.arrays(
    st.sampled_from(["<f4", "<f8", "|i1", "|u1", "<i2", "<i4", "<i8", "|b1", ">f4", "<f2"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def unpack(data: bytes, max_bytes: int = 1 << 20) -> dict[str, bytes]:
    return unpack_members(data, where="here", max_bytes=max_bytes)


def test_golden_container() -> None:
    made = pack_arrays({"x": np.array([[1, -2], [3, 4]], np.int8), "half": np.array([0.5], np.float32)})
    made = pack_members({"arrays.npz": made, "tuf/1.root.json": b"{}", "empty": b""})
    assert made == (GOLDEN / "container_v1.zip").read_bytes()
    with zipfile.ZipFile(GOLDEN / "container_v1.zip") as archive:  # anybody's zip reader and numpy open it
        with np.load(io.BytesIO(archive.read("arrays.npz"))) as loaded:
            assert loaded["x"].tolist() == [[1, -2], [3, 4]]
        assert archive.namelist() == ["arrays.npz", "empty", "tuf/1.root.json"]


@given(members)
def test_members_come_back_and_their_order_does_not_matter(value: dict[str, bytes]) -> None:
    data = pack_members(value)
    assert unpack(data) == value
    assert pack_members(dict(reversed(list(value.items())))) == data


@given(st.dictionaries(names.filter(lambda n: "/" not in n), arrays, max_size=3))
def test_arrays_come_back(value: dict[str, npt.NDArray[Any]]) -> None:
    read = unpack_arrays(pack_arrays(value), where="here")
    assert read.keys() == value.keys()
    for name, array in value.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


@given(st.binary(max_size=400))
def test_random_bytes_are_no_container(data: bytes) -> None:
    for refuse in (lambda: unpack(data), lambda: unpack_arrays(data, where="here")):
        with pytest.raises(BundleError, match=r"^here: "):
            refuse()


def spoil(data: bytes, draw: st.DataObject) -> bytes:
    """Between one and four bytes changed, pieces cut out, or bytes put in."""
    spoiled = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, max(0, len(spoiled) - 1)))
        kind = draw.draw(st.sampled_from("=-+"))
        if kind == "=" and spoiled:
            spoiled[at] = draw.draw(st.integers(0, 255))
        elif kind == "-":
            del spoiled[at : at + draw.draw(st.integers(1, 40))]
        else:
            spoiled[at:at] = draw.draw(st.binary(max_size=8))
    return bytes(spoiled)


@given(members, st.data())
def test_a_spoiled_container_is_refused_or_another_canonical_one(value: dict[str, bytes], data: st.DataObject) -> None:
    spoiled = spoil(pack_members(value), data)
    try:
        read = unpack(spoiled)
    except BundleError:
        return
    assert pack_members(read) == spoiled


@given(arrays, st.data())
def test_a_spoiled_array_is_refused_or_another_whole_one(array: npt.NDArray[Any], data: st.DataObject) -> None:
    whole = unpack(pack_arrays({"x": array}))["x.npy"]
    spoiled = pack_members({"x.npy": spoil(whole, data)})
    try:
        read = unpack_arrays(spoiled, where="here")["x"]
    except BundleError:
        return
    assert read.dtype.kind in "biuf"


def test_the_end_of_a_container_may_not_point_elsewhere() -> None:
    data = bytearray(pack_members({"a": b"x" * 100}))
    central = data.rindex(b"PK\x01\x02")
    data[central + 42 : central + 46] = struct.pack("<I", len(data) - 5)  # the member would start at the last bytes
    with pytest.raises(BundleError, match="not a whole container"):
        unpack(bytes(data))


def zipped(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, body in entries:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), body, compress_type=method)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (zipped(("a", b"0" * 5_000_000), method=zipfile.ZIP_DEFLATED), "holds 5000000 bytes, at most 1048576 are read"),
        (zipped(("a", b"0" * 5000), method=zipfile.ZIP_DEFLATED), "a is compressed; members are stored"),
        (zipped(*((str(i), b"0" * 300_000) for i in range(4))), "holds 1200000 bytes, at most"),
        (zipped(("../a", b"")), r"unsafe member name '\.\./a'"),
        (zipped(("/a", b"")), "unsafe member name"),
        (zipped(("a/", b"")), "unsafe member name"),
        (zipped(("a\\b", b"")), "unsafe member name"),
        (zipped(("-rf", b"")), "unsafe member name"),
        (zipped(("a\nb", b"")), "unsafe member name"),
        (zipped(("ä", b"")), "unsafe member name"),
        (zipped(("x" * 200, b"")), "unsafe member name"),
        (zipped(("b", b""), ("a", b"")), "not in canonical form"),
        (pack_members({"a": b"x"}) + b"x", "not in canonical form"),
        (b"x" + pack_members({"a": b"x"}), "not in canonical form"),
        (pack_members({"a": b"x" * 100})[:-1], "not a whole container"),
        (b"", "not a whole container"),
    ],
)
def test_other_containers_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        unpack(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_may_not_be_there_twice() -> None:
    with pytest.raises(BundleError, match="a is there twice"):
        unpack(zipped(("a", b"1"), ("a", b"2")))


def npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + body


PLAIN = "{'descr': '|i1', 'fortran_order': False, 'shape': (2,), }\n"


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (npy(PLAIN, b"a"), r"header claims shape \(2,\), 1 bytes follow"),
        (npy(PLAIN, b"abc"), "3 bytes follow"),
        (npy(PLAIN.replace("2,", "999999999999, 999999999999"), b"ab"), "header claims shape"),
        (npy(PLAIN.replace("2,", "-1,"), b"ab"), "not that of a plain array"),
        (npy(PLAIN.replace("False", "True"), b"ab"), "C order"),
        (npy(PLAIN.replace("|i1", "|O"), b"ab"), "not that of a plain array"),
        (npy(PLAIN.replace("|i1", "<U1"), b"ab"), "not that of a plain array"),
        (npy(PLAIN.replace("|i1", "<f3"), b"ab"), "data type '<f3' not understood"),
        (npy(PLAIN.replace("'|i1'", "[('a', '|i1')]"), b"ab"), "not that of a plain array"),
        (npy("(" * 60, b"ab"), "not that of a plain array"),
        (npy(PLAIN, b"ab", b"\x02\x00"), r"not \.npy version 1\.0"),
        (b"", r"not \.npy version 1\.0"),
        (npy(PLAIN.replace("(2,)", "(" + "1, " * 70 + ")"), b"a"), "not a plain array"),
    ],
)
def test_members_that_are_no_plain_arrays_are_refused(member: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        unpack_arrays(pack_members({"x.npy": member}), where="here")


def test_other_members_among_arrays_are_refused() -> None:
    with pytest.raises(BundleError, match=r"x\.txt is not an \.npy member"):
        unpack_arrays(pack_members({"x.txt": b""}), where="here")
    with pytest.raises(BundleError, match="at most 10 are read"):
        unpack_arrays(pack_arrays({"x": np.zeros(9)}), where="here", max_bytes=10)


# --- topics ----------------------------------------------------------------------------------------------------------


def test_golden_topics() -> None:
    topics = Topics("kasmina", "lab-2")
    made = [
        topics.state("cam-1"), topics.reported("cam-1"), topics.desired("cam-1"), topics.request("cam-1"),
        topics.response("cam-1"), topics.barrier("cam-1"), topics.telemetry("cam-1"), topics.telemetry("+", "capture"),
        topics.event("cam-1"), topics.metadata("timestamp.json"), topics.target("ab.digits.kasmina"),
    ]  # fmt: skip
    base = "kasmina/lab-2"
    leaves = ["state", "reported", "desired", "req", "rsp", "barrier", "t/stats"]
    assert made == [
        *(f"{base}/d/cam-1/{leaf}" for leaf in leaves), f"{base}/d/+/t/capture", f"{base}/d/cam-1/ev",
        f"{base}/repo/m/timestamp.json", f"{base}/repo/t/ab.digits.kasmina",
    ]  # fmt: skip
    assert [topics.device_of(topic) for topic in made] == ["cam-1"] * 7 + [None, "cam-1", None, None]


@pytest.mark.parametrize("word", ["", "#", "+", "a/b", "Upper", "a" * 33, "cam-1\n", "ä"])
def test_words_of_a_topic_are_plain(word: str) -> None:
    with pytest.raises(InputError, match="expected 1 to 32"):
        Topics(site=word)
    if word != "+":
        with pytest.raises(InputError, match="device id"):
            Topics().state(word)
    if word != "a/b":
        assert Topics().device_of(f"kasmina/main/d/{word}/state") is None


@given(st.text())
def test_a_foreign_topic_belongs_to_no_device_or_to_the_one_it_names(topic: str) -> None:
    device = Topics().device_of(topic)
    assert device is None or topic.startswith(f"kasmina/main/d/{device}/")
