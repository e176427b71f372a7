"""One model on one target: what it costs, when, where the memory goes, and how far from the limits it runs."""

from __future__ import annotations

from collections.abc import Sequence

from kasmina_edge.cli.output import size_text
from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.hardware_simulator.context import Estimate, HardwareContext
from kasmina_edge.hardware_simulator.timeline import roof_of, roofline, timeline
from kasmina_edge.hardware_simulator.workload import Workload
from kasmina_trainer.pages.charts import memory_chart, roofline_chart, time_bars
from kasmina_trainer.pages.document import Content, Markup, document, facts, paragraphs, section
from kasmina_trainer.pages.figure import number


def hardware_page(workload: Workload, profile: HardwareProfile) -> str:
    """The page of one model file.

    Args:
        workload: As `read_workload` gives it.
        profile: The target.

    Raises:
        InputError: The profile has nothing to estimate from.
    """
    estimate = HardwareContext(profile).estimate(workload)
    lead = (
        f"Estimated for {profile.chip}, {profile.runtime} {profile.runtime_version}; nothing here was measured on it."
    )
    return document(
        f"{workload.name or 'A model'} on {profile.name}", lead, hardware_sections(workload, estimate, profile)
    )


def hardware_sections(workload: Workload, estimate: Estimate, profile: HardwareProfile) -> Sequence[Markup]:
    """The cards of that page, for others to put in theirs."""
    slices = timeline(workload, estimate)
    ram = next((fit.there_bytes for fit in estimate.memory if fit.memory == "RAM"), None)
    return (
        section("What it costs", facts(_figures(workload, estimate)), paragraphs(estimate.notes, class_="small")),
        section("Where the time goes", time_bars(slices, estimate.fixed_us)),
        section("Where the memory goes", memory_chart(slices, estimate.arena_bytes, ram)),
        section("How near to the limits", roofline_chart(roofline(workload, estimate, profile), roof_of(profile))),
    )


def _figures(workload: Workload, estimate: Estimate) -> list[tuple[str, Content]]:
    energy = "unknown" if estimate.energy_uj is None else f"{number(estimate.energy_uj)} uJ"
    fits = "yes" if estimate.fits else "no: " + "; ".join(
        f"{f.memory} {size_text(f.needed_bytes)} of {size_text(f.there_bytes)}"
        for f in estimate.memory if f.must and not f.ok
    )  # fmt: skip
    return [
        ("latency", f"{number(estimate.latency_ms)} ms, {estimate.band_text}"),
        ("activations", size_text(estimate.arena_bytes)),
        ("weights and biases", size_text(estimate.constant_bytes)),
        ("multiply-accumulates", number(float(workload.macs))),
        ("energy an inference", energy),
        ("fits", fits),
    ]
