"""A profile as a thing to ask: what does this network cost there, does it fit, and how sure is that?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.arena import Planner, arena_bytes
from kasmina_edge.hardware_simulator.events import AllCourses, Event
from kasmina_edge.hardware_simulator.layer import Costs, OpCost, SimulationLayer
from kasmina_edge.hardware_simulator.soundness import uncounted
from kasmina_edge.hardware_simulator.tflm_structures import structure_bytes
from kasmina_edge.hardware_simulator.workload import Workload

LAYERS = {
    "cpu": "kasmina_edge.hardware_simulator.cpu_layer:CpuLayer",
    "edgetpu": "kasmina_edge.hardware_simulator.edgetpu_layer:EdgeTpuLayer",
    "mcu": "kasmina_edge.hardware_simulator.mcu_layer:McuLayer",
    "npu": "kasmina_edge.hardware_simulator.npu_layer:NpuLayer",
}
"""``kind`` of a profile to the class that estimates for it."""
PLANNERS: dict[str, Planner] = {"mcu": "tflm"}
"""Kinds whose runtime packs its activations otherwise than LiteRT."""
TFLM = "TFLite Micro"
MCU_POINTER_BYTES = 4
NO_FIGURES = "Measure the device with `kasmina-edge profile calibrate`, or add a published latency as an anchor."
MOST_MS = 1e15
"""Thirty thousand years: whatever takes longer is a mistake in a profile."""
_BY_LAYER = "profile: energy of its anchors"
_BY_MACS = "profile: pJ per MAC + idle power"
_BY_MACS_ALONE = "profile: pJ per MAC; idle power unknown"
_BY_POWER = "power x time"
_UNKNOWN = "unknown: the profile gives neither pJ per MAC nor power"


@dataclass(frozen=True)
class Fit:
    """One memory and what is asked of it.

    Attributes:
        memory: ``RAM``, ``flash`` or ``parameter SRAM``.
        needed_bytes: By the network.
        there_bytes: On the target.
        must: Whether the network cannot run where it does not fit; parameters beyond the SRAM only stream.
    """

    memory: str
    needed_bytes: int
    there_bytes: int
    must: bool = True

    @property
    def ok(self) -> bool:
        """Whether it fits."""
        return self.needed_bytes <= self.there_bytes


@dataclass(frozen=True)
class Estimate:
    """What one inference costs on a target.

    Attributes:
        network: The workload's name.
        profile: The target's name.
        latency_ms: Of one inference, nothing hot, nobody beside it.
        band: Half-width around the prediction, relative to it, that held 90 % of known cases; None: unknown.
        arena_bytes: Peak of the activations.
        constant_bytes: Weights, biases and tables.
        energy_uj: Of one inference; None where the profile cannot say.
        energy_how: Where the energy comes from, e.g. ``profile: pJ per MAC + idle power``.
        ops: One entry an operation, in the workload's order.
        fixed_us: What an inference costs besides its operations.
        notes: Sentences for people.
        fits: Everything that it must have is there.
        memory: Each memory with both numbers.
    """

    network: str
    profile: str
    latency_ms: float
    band: float | None
    arena_bytes: int
    constant_bytes: int
    energy_uj: float | None
    energy_how: str
    ops: tuple[OpCost, ...]
    fixed_us: float
    notes: tuple[str, ...]
    fits: bool
    memory: tuple[Fit, ...] = ()

    @property
    def band_text(self) -> str:
        """``± 12 %``, or that the band is unknown."""
        return "band unknown" if self.band is None else f"± {100 * self.band:.0f} %"


class HardwareContext:
    """One target, ready to estimate.

    Args:
        profile: The target; its ``kind`` chooses the simulation layer.
        events: Things that happen to it; `begin` starts them.
        seed: Of the events.
        layer: What estimates instead of the layer of the profile's kind.

    Raises:
        InputError: The profile has no number to estimate from; the message names what is missing.
    """

    def __init__(
        self,
        profile: HardwareProfile,
        *,
        events: Sequence[Event] = (),
        seed: int = 0,
        layer: SimulationLayer | None = None,
    ) -> None:
        if not profile.anchors and not profile.coefficients:
            raise InputError(f"profile {profile.name}: no anchors and no coefficients to estimate from", NO_FIGURES)
        self.profile = profile
        self.events, self.seed = tuple(events), seed
        self._layer = layer or layer_of(profile)

    def estimate(self, workload: Workload) -> Estimate:
        """Latency, memory and energy of one inference, without events.

        Raises:
            InputError: The layer cannot estimate it, or the profile's numbers give no time; the message says why.
        """
        profile, costs = self.profile, self._layer.costs(workload)
        latency_ms = costs.latency_ms
        if workload.ops and not 0.0 < latency_ms < MOST_MS:
            raise InputError(
                f"profile {profile.name}: its coefficients give {latency_ms:g} ms for {workload.name}",
                "Correct the coefficients, the anchors or clock_mhz of the profile.",
            )
        arena = arena_bytes(workload, planner=PLANNERS.get(profile.kind, "litert"))
        memory = self._memory(workload, arena)
        energy_uj, energy_how = self._energy(workload, costs, latency_ms)
        notes = [*workload.notes, *costs.notes]
        missed = uncounted(workload)
        if missed:
            notes.append(f"multiplications of {', '.join(missed[:3])} are not counted: the estimate is too low")
        if not profile.anchors:
            notes.append(f"profile {profile.name} has no anchors: how far the estimate may be off is unknown")
        if profile.kind == "mcu" and not profile.runtime.startswith(TFLM):
            notes.append(f"the arena is packed as {TFLM} does it; {profile.runtime} may need less")
        notes += [
            f"{fit.memory}: {fit.needed_bytes} bytes needed, {fit.there_bytes} there" for fit in memory if not fit.ok
        ]
        return Estimate(
            network=workload.name,
            profile=profile.name,
            latency_ms=latency_ms,
            band=costs.band if profile.anchors and not missed else None,
            arena_bytes=arena,
            constant_bytes=workload.constant_bytes,
            energy_uj=energy_uj,
            energy_how=energy_how,
            ops=costs.ops,
            fixed_us=costs.fixed_us,
            notes=tuple(dict.fromkeys(notes)),
            fits=all(fit.ok for fit in memory if fit.must),
            memory=memory,
        )

    def begin(self) -> AllCourses:
        """The events from time 0 on; every call begins anew, and the seed makes all alike."""
        return AllCourses(self.events, self.seed)

    def _memory(self, workload: Workload, arena: int) -> tuple[Fit, ...]:
        """Weights lie in flash where there is flash, in RAM elsewhere."""
        profile = self.profile
        constants, moving = workload.constant_bytes, arena + workload.kept_bytes
        if profile.kind == "mcu" and profile.runtime.startswith(TFLM):
            moving += structure_bytes(workload, MCU_POINTER_BYTES)
        if profile.flash_bytes is not None:
            found = [
                Fit("RAM", moving, profile.ram_bytes),
                Fit("flash", constants, profile.flash_bytes),
            ]
        else:
            found = [Fit("RAM", moving + constants, profile.ram_bytes)]
        if profile.parameter_sram_bytes is not None:
            found.append(Fit("parameter SRAM", constants, profile.parameter_sram_bytes, must=False))
        return tuple(found)

    def _energy(self, workload: Workload, costs: Costs, latency_ms: float) -> tuple[float | None, str]:
        profile = self.profile
        if costs.no_energy:
            return None, f"unknown: {costs.no_energy}"
        if costs.energy_uj is not None:
            return costs.energy_uj, _BY_LAYER
        if profile.energy_pj_per_mac is not None:
            moving_uj = workload.macs * profile.energy_pj_per_mac * 1e-6
            if profile.idle_power_w is None:
                return moving_uj, _BY_MACS_ALONE
            return moving_uj + profile.idle_power_w * latency_ms * 1e3, _BY_MACS
        if profile.power_w is not None:
            return profile.power_w * latency_ms * 1e3, _BY_POWER
        return None, _UNKNOWN


def layer_of(profile: HardwareProfile) -> SimulationLayer:
    """The simulation layer of a profile's kind.

    Raises:
        InputError: The profile lacks a number that the layer needs.
    """
    module, _, name = LAYERS[profile.kind].partition(":")
    layer: SimulationLayer = getattr(import_module(module), name)(profile)
    return layer
