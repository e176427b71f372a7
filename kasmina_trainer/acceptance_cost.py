"""What a growth costs on its target: latency, memory and energy of both files, by the hardware simulator.

The figures are estimates with a band. A difference smaller than the band is told as such, and nothing is refused over
it; memory is counted and has no band.
"""

from __future__ import annotations

from dataclasses import dataclass

from kasmina_edge.contracts.profile import load_profile
from kasmina_edge.hardware_simulator import HardwareContext, read_workload


@dataclass(frozen=True)
class Costs:
    """What both networks cost on one target; every pair is (before, after).

    Attributes:
        profile: The target.
        latency_ms: Of one inference, nothing beside it.
        peak_bytes: Activations at their peak, and weights.
        energy_uj: Of one inference; None where the profile cannot say.
        band: Relative half-width of latency and energy that held 90 % of known cases; None: unknown.
        macs: Multiply-accumulates of one inference, counted in the files.
    """

    profile: str
    latency_ms: tuple[float, float]
    peak_bytes: tuple[int, int]
    energy_uj: tuple[float, float] | None
    band: float | None
    macs: tuple[int, int]

    def sentences(self) -> tuple[str, ...]:
        """The price of the growth, one sentence a figure, with the band.

        >>> Costs("coral", (1.0, 1.02), (1000, 1100), None, 0.1, (10, 12)).sentences()[0]
        'latency on coral: 1 -> 1.02 ms, a difference within the band of ± 10 %'
        """
        told = [f"latency on {self.profile}: {_change(self.latency_ms, self.band, 'ms')}"]
        if self.energy_uj is not None:
            told.append(f"energy on {self.profile}: {_change(self.energy_uj, self.band, 'uJ')}")
        before, after = self.peak_bytes
        told.append(f"memory on {self.profile}: {before} -> {after} bytes")
        return tuple(told)


def estimate_costs(before: bytes, after: bytes, profile: str) -> Costs:
    """Both model files on a target.

    Args:
        before: The network without the growth, as a .tflite or .onnx file.
        after: With it.
        profile: Name of the target.

    Raises:
        InputError: No such profile, or one without the numbers to estimate from.
        BundleError: A file that is neither of the two kinds, or damaged.
    """
    context = HardwareContext(load_profile(profile))
    loads = [read_workload(data, name) for data, name in ((before, "before"), (after, "after"))]
    first, second = (context.estimate(load) for load in loads)
    energy = None
    if first.energy_uj is not None and second.energy_uj is not None:
        energy = (first.energy_uj, second.energy_uj)
    bands = [e.band for e in (first, second) if e.band is not None]
    return Costs(
        profile=profile,
        latency_ms=(first.latency_ms, second.latency_ms),
        peak_bytes=(first.arena_bytes + first.constant_bytes, second.arena_bytes + second.constant_bytes),
        energy_uj=energy,
        band=max(bands) if len(bands) == 2 else None,
        macs=(sum(op.macs for op in loads[0].ops), sum(op.macs for op in loads[1].ops)),
    )


def _change(pair: tuple[float, float], band: float | None, unit: str) -> str:
    before, after = pair
    text = f"{before:.3g} -> {after:.3g} {unit}"
    if band is None:
        return f"{text}, band unknown"
    if abs(after - before) <= band * max(before, after):
        return f"{text}, a difference within the band of ± {100 * band:.0f} %"
    return f"{text} ± {100 * band:.0f} %"
