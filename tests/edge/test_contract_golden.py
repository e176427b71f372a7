"""Bytes of every released contract are read, spelled the same again, and keep their digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kasmina_edge.contracts import change_plan, manifest, presence, profile, record, transfer
from kasmina_edge.contracts.canonical import Contract, SignedContract
from kasmina_edge.errors import KasminaError

GOLDEN = sorted((Path(__file__).resolve().parents[1] / "golden").glob("contracts-*/*.json"))
SIGNED_DIGESTS = {
    "contracts-1/BundleManifest": "a793040262e0ed9729a7dbb5ff600ecf926028dc747707291c867935d60b4be4",
    "contracts-1/ChangePlan": "69a2a9b9ed76381d0006f58ddc7cf6561693db04be97163b29938ab09f0ebd5b",
    "contracts-1/HardwareProfile": "3524fd7dec2280dbc2e0358786e6180b0e81bb4db6ddc13bd78311c84ef8efeb",
    "contracts-2/BundleManifest": "5e514b777dca71167d1b6a0e2b7e44d5c7519336d8f6a543b7e637a2dd373ff7",
    "contracts-2/ChangePlan": "c97f09b44d150c2e7791613f617adeac6c6ee0f2a06459a264a463c138993560",
    "contracts-2/HardwareProfile": "d415bcedabdff577a8c61d25f8abdfdb027fa43ab5be4b44db54a5218616e8e7",
    "contracts-3/BundleManifest": "aa2cea985ef048692033c2d2ffd8d14811150be0ba9ac42467b77a2ec6432601",
    "contracts-4/BundleManifest": "31147ff1f14336f6088afa262f9d80cd2f9bf24bebf990acd2afefee77f78fe2",
}


def name(path: Path) -> str:
    """``contracts-1/BundleManifest``."""
    return f"{path.parent.name}/{path.stem}"


SIGNED = [p for p in GOLDEN if name(p) in SIGNED_DIGESTS]


def kind(path: Path) -> type[Contract]:
    """The contract that a golden file holds."""
    for module in (manifest, change_plan, presence, profile, record, transfer):
        if hasattr(module, path.stem):
            return getattr(module, path.stem)  # type: ignore[no-any-return]
    raise AssertionError(f"no contract is called {path.stem}")


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) >= 7


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_old_bytes_are_read_and_spelled_the_same(path: Path) -> None:
    data = path.read_bytes()
    assert kind(path).from_bytes(data, where=str(path)).to_bytes() == data


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_an_unknown_field_is_refused_where_signed_and_ignored_in_telemetry(path: Path) -> None:
    contract = kind(path)
    value = json.loads(path.read_bytes()) | {"surprise": 1}
    if issubclass(contract, SignedContract):
        with pytest.raises(KasminaError, match=r"surprise: unknown field"):
            contract.parse(value)
    else:
        assert contract.parse(value).to_bytes() == path.read_bytes()


@pytest.mark.parametrize("path", SIGNED, ids=name)
def test_another_spelling_of_a_signed_value_is_refused(path: Path) -> None:
    spaced = json.dumps(json.loads(path.read_bytes()), indent=1).encode()
    with pytest.raises(KasminaError, match="not in canonical form"):
        kind(path).from_bytes(spaced)


@pytest.mark.parametrize("path", SIGNED, ids=name)
def test_the_digest_of_a_signed_value_never_changes(path: Path) -> None:
    value = kind(path).from_bytes(path.read_bytes())
    assert isinstance(value, SignedContract)
    assert value.digest() == SIGNED_DIGESTS[name(path)]
