"""Costs of two files on a target: the simulator's own figures, with the band that they carry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.errors import BundleError, InputError
from kasmina_edge.hardware_simulator import HardwareContext, read_workload
from kasmina_trainer.acceptance_cost import Costs, estimate_costs

FILE = (Path(__file__).parents[1] / "golden" / "digits.tflite").read_bytes()


@pytest.mark.parametrize("profile", ["coral", "raspberry-pi-4", "x86-cpu"])
def test_the_figures_are_the_simulators(profile: str):
    costs = estimate_costs(FILE, FILE, profile)
    workload = read_workload(FILE, "x")
    estimate = HardwareContext(load_profile(profile)).estimate(workload)
    assert costs.latency_ms == (estimate.latency_ms, estimate.latency_ms)
    assert costs.peak_bytes[0] == estimate.arena_bytes + estimate.constant_bytes
    assert costs.macs == (workload.macs, workload.macs) and costs.band == estimate.band
    assert len(costs.sentences()) == (2 if estimate.energy_uj is None else 3)


def test_a_difference_inside_the_band_is_told_as_one():
    costs = Costs("coral", (1.0, 1.05), (1000, 1100), (10.0, 20.0), 0.1, (5, 6))
    latency, energy, memory = costs.sentences()
    assert latency == "latency on coral: 1 -> 1.05 ms, a difference within the band of ± 10 %"
    assert energy == "energy on coral: 10 -> 20 uJ ± 10 %"
    assert memory == "memory on coral: 1000 -> 1100 bytes"
    assert replace(costs, band=None).sentences()[0].endswith("band unknown")


def test_unknown_targets_and_files_are_refused():
    with pytest.raises(InputError, match="abacus"):
        estimate_costs(FILE, FILE, "abacus")
    with pytest.raises(BundleError, match="after: 8 bytes that are neither"):
        estimate_costs(FILE, b"no model", "coral")
