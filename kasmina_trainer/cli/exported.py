"""What ``export`` says of a finished bundle besides its parity: what it costs on its target, and which layers hurt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kasmina_edge.cli.output import size_text
from kasmina_edge.errors import KasminaError

if TYPE_CHECKING:
    from kasmina_edge.bundle import Bundle
    from kasmina_edge.hardware_simulator.context import Estimate
    from kasmina_trainer.quantization.report import QuantizationReport


def estimate_of(bundle: Bundle) -> tuple[Estimate | None, str]:
    """What the bundle's TFLite file costs on its target, or why that cannot be said."""
    from kasmina_edge.contracts.profile import load_profile
    from kasmina_edge.hardware_simulator import HardwareContext, read_workload

    data = bundle.files[bundle.model_for("litert").file.path]
    try:
        context = HardwareContext(load_profile(bundle.manifest.profile))
        return context.estimate(read_workload(data, bundle.manifest.name)), ""
    except KasminaError as exc:
        return None, exc.message


def estimate_rows(bundle: Bundle) -> list[tuple[str, str]]:
    """Latency with its band, each memory with both numbers, and whether it fits."""
    found, why = estimate_of(bundle)
    if found is None:
        return [("estimated", f"nothing: {why}")]
    comma = "," if found.band is None else ""
    rows = [("estimated", f"{found.latency_ms:.3g} ms{comma} {found.band_text} on {found.profile}")]
    rows += [("", note) for note in found.notes if any(word in note for word in ("band", "anchors", "too low"))]
    for fit in found.memory:
        text = f"{size_text(fit.needed_bytes)} of {size_text(fit.there_bytes)}"
        verdict = ", fits" if fit.ok else ", DOES NOT FIT" if fit.must else ", the rest is streamed"
        rows.append((f"  {fit.memory}", text + verdict))
    return rows


def estimate_value(bundle: Bundle) -> dict[str, Any] | None:
    """The same for machines."""
    found, _ = estimate_of(bundle)
    if found is None:
        return None
    return {
        "profile": found.profile,
        "latency_ms": found.latency_ms,
        "band": found.band,
        "fits": found.fits,
        "memory": [
            {"memory": f.memory, "needed_bytes": f.needed_bytes, "there_bytes": f.there_bytes, "fits": f.ok}
            for f in found.memory
        ],
        "energy_uj": found.energy_uj,
        "notes": list(found.notes),
    }


def report_rows(report: QuantizationReport | None) -> list[tuple[str, str]]:
    """Which layers the rounding hurts most, in one line."""
    from kasmina_trainer.export.report import shares

    if report is None:
        return []
    worst = ", ".join(f"{layer} ({share:.0%})" for layer, share in shares(report))
    notes = [note for note in report.notes if note.startswith("layers not measured")]
    return [("hurts most", f"{worst} of the error by rounding")] if worst else [("hurts most", n) for n in notes]
