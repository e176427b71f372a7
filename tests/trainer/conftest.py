"""One small host and one small growth for all tests of the growth half."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from worlds import exports
from worlds.sharing import made_once

from kasmina_edge.bundle import Bundle
from kasmina_trainer.datasets.corruptions import blur
from kasmina_trainer.datasets.digits import DigitSplits, Samples, split_digits
from kasmina_trainer.evolve import GRAFT_SETTINGS, GrownNetwork, evolve
from kasmina_trainer.export import tflite
from kasmina_trainer.seeds import SeededNetwork, attach_seeds
from kasmina_trainer.training import HOST_SETTINGS, train_host

SEED = 0


@pytest.fixture(scope="session")
def parts() -> DigitSplits:
    """The split every growth test uses."""
    return split_digits(SEED)


@pytest.fixture(scope="session")
def trained_host(parts: DigitSplits, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A host trained for a quarter of the usual time; never edited."""
    settings = replace(HOST_SETTINGS, steps=90)
    own = tmp_path_factory.getbasetemp()
    return made_once(own, "trained-host", lambda: train_host(parts.host, seed=SEED, settings=settings))


@pytest.fixture
def seeded(trained_host: nn.Module) -> SeededNetwork:
    """The host with bare seed sites."""
    return attach_seeds(trained_host)


@pytest.fixture(scope="session")
def captured(parts: DigitSplits) -> Samples:
    """200 scenes seen through a lens out of focus."""
    scenes = parts.camera.take(slice(0, 200))
    return blur(scenes.x), scenes.y


@pytest.fixture(scope="session")
def held_out_captured(parts: DigitSplits) -> Samples:
    """150 other scenes through the same lens."""
    scenes = parts.camera.take(slice(200, 350))
    return blur(scenes.x), scenes.y


@pytest.fixture(scope="session")
def grown(trained_host: nn.Module, parts: DigitSplits, captured: Samples, held_out_captured: Samples) -> GrownNetwork:
    """A depthwise graft with its rival, grown in a fraction of the usual time."""
    return evolve(
        attach_seeds(trained_host),
        train=parts.host.samples,
        target=captured,
        holdout_clean=parts.probes.samples,
        holdout_target=held_out_captured,
        settings=replace(GRAFT_SETTINGS, steps=80),
        capture_batches=("a" * 64,),
        seed=SEED,
    )


@pytest.fixture(scope="session")
def host_network(trained_host: nn.Module) -> SeededNetwork:
    """The host with bare seed sites, for exports; never grown on."""
    return attach_seeds(trained_host)


@pytest.fixture(scope="session")
def grafted(trained_host: nn.Module, parts: DigitSplits) -> SeededNetwork:
    """Depthwise grafts at s1 and s2, trained for a lens out of focus."""
    return exports.grow(trained_host, parts)


@pytest.fixture(scope="session")
def host(host_network: SeededNetwork, parts: DigitSplits, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """digits 1.0.0."""
    own = tmp_path_factory.getbasetemp()
    return made_once(own, "digits-host", lambda: exports.host_bundle(host_network, parts))


@pytest.fixture(scope="session")
def graft_with_versions(
    grafted: SeededNetwork, parts: DigitSplits, host: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, tflite.TfliteExport]:
    """digits 1.1.0, grown on it, and the quantized versions that were weighed for it."""
    made: list[tflite.TfliteExport] = []
    real = tflite.export_tflite

    def watched(*args: Any, **options: Any) -> tflite.TfliteExport:
        made.append(real(*args, **options))
        return made[-1]

    def make() -> tuple[Bundle, tflite.TfliteExport]:
        with mock.patch.object(tflite, "export_tflite", watched):
            bundle = exports.graft_bundle(grafted, parts, host)
        return bundle, made[0]

    return made_once(tmp_path_factory.getbasetemp(), "digits-graft", make)


@pytest.fixture(scope="session")
def graft(graft_with_versions: tuple[Bundle, tflite.TfliteExport]) -> Bundle:
    """digits 1.1.0."""
    return graft_with_versions[0]


@pytest.fixture(scope="session")
def versions(graft_with_versions: tuple[Bundle, tflite.TfliteExport]) -> tflite.TfliteExport:
    """The graft's quantized versions."""
    return graft_with_versions[1]


@pytest.fixture
def digit_batch(parts: DigitSplits) -> torch.Tensor:
    """Eight digits.  # (8, 1, 16, 16)"""
    return torch.from_numpy(parts.probes.x[:8].copy())
