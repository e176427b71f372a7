"""Fixtures that several of the edge's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worlds.bundles import make_bundle, make_profile

from kasmina_edge.bundle import Bundle
from kasmina_edge.runtime import Runtime
from kasmina_edge.slots import SlotStore


@pytest.fixture(scope="session")
def host() -> Bundle:
    """Digits 1.0.0, unsigned."""
    return make_bundle()


@pytest.fixture
def deploy(tmp_path: Path) -> Callable[..., SlotStore]:
    """Commit a bundle into a data folder (``tmp_path / "data"`` unless told), as the agent does."""

    def run(bundle: Bundle, *, engine: str = "litert", data: Path | None = None, commit: bool = True) -> SlotStore:
        store = SlotStore(data or tmp_path / "data")
        store.begin_trial(store.install(bundle, engine=engine))
        store.go_live()
        if commit:
            store.confirm()
        return store

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where `deploy` commits to."""
    return tmp_path / "data"


@pytest.fixture
def runtime(host: Bundle, deploy: Callable[..., SlotStore], data: Path) -> Iterator[Runtime]:
    """The host in service, without telemetry."""
    deploy(host)
    with Runtime.open(data, profile=make_profile(), telemetry=None) as opened:
        yield opened
