"""The energy of an inference as the recorder asks for it: measured where the machine shows it, else by the profile."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import KasminaError
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.telemetry.energy import Energy, EnergyAccount, EnergyMeter, energy_by_profile


def energy_account(
    serving: Callable[[], Serving], profile: HardwareProfile, *, root: Path = Path("/")
) -> EnergyAccount:
    """What `Recorder` takes.

    Args:
        serving: What answers now: the profile's estimate needs its multiplications, and is not made where the profile
            speaks of an accelerator and the CPU answers.
        profile: The hardware target.
        root: Where ``sys`` lies.
    """

    def estimate(inferences: int, busy_s: float) -> Energy | None:
        now = serving()
        if profile.accelerator and not now.engine.accelerator and not now.engine.simulated:
            return None
        macs = _macs(now.model_data) if profile.energy_pj_per_mac is not None and now.model_data else None
        return energy_by_profile(profile, seconds=busy_s, macs=macs, inferences=inferences)

    return EnergyAccount(EnergyMeter(root), estimate, real=lambda: not serving().engine.simulated)


@lru_cache(maxsize=2)
def _macs(data: bytes) -> int | None:
    from kasmina_edge.hardware_simulator.reading import read_workload

    try:
        return read_workload(data).macs
    except KasminaError:
        return None
