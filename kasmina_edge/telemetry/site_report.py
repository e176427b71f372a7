"""From figures and what the runtime knows to the rows of a record: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kasmina_edge.contracts.change_plan import ChangePlan
from kasmina_edge.contracts.manifest import BundleManifest, Graft, ModelFile
from kasmina_edge.contracts.record import MAX_SEEDS, BudgetLeft, SafetyScores, SeedTelemetry
from kasmina_edge.telemetry.details import short
from kasmina_edge.telemetry.site_measures import SiteFigures

WHOLE = ""
"""The site that is the whole model."""


class Grown(Protocol):
    """What has grafts: a bundle's manifest, or a network that is still on the desk."""

    @property
    def grafts(self) -> Sequence[Graft]:
        """What has grown, merged changes of the host among them."""


@dataclass(frozen=True)
class SiteContext:
    """What the runtime knows and no tap can see; None: not known.

    Attributes:
        committed_s: When the bundle was committed on this device, wall clock, seconds since 1970 UTC.
        plan: The device's change plan.
        captured: Frames and bytes captured under it, and when the first was; None: nothing is known of them.
        self_test: Share of the self-test vectors within tolerance.
        probe_accuracy: Share of the reference probes that were right.
        alert: 0 nothing stands, 1 a warning, 2 a critical alert.
    """

    committed_s: float | None = None
    plan: ChangePlan | None = None
    captured: tuple[int, int, float | None] | None = None
    self_test: float | None = None
    probe_accuracy: float | None = None
    alert: int | None = None


def report(
    grown: Grown,
    sites: Sequence[str],
    figures: Mapping[str, SiteFigures],
    context: SiteContext,
    *,
    now_s: float,
    latency_us: float | None = None,
    reason: str = "",
) -> list[SeedTelemetry]:
    """The rows of one record: the whole model, then each site.

    Args:
        grown: The manifest of the bundle that answers, or a network.
        sites: Seed sites in the order of flow.
        figures: What was measured, by site; the whole model's under `WHOLE`.
        context: What the runtime knows.
        now_s: Wall clock, seconds since 1970 UTC.
        latency_us: Median latency, for what the plan leaves of its ceiling.
        reason: Why the inside was not measured; empty where it was.
    """
    age = None if context.committed_s is None or context.committed_s > now_s else round(now_s - context.committed_s, 1)
    grafts = {graft.site: graft for graft in grown.grafts}
    used = [
        (grafts[site].parameters, found.utilization)
        for site, found in figures.items()
        if site in grafts and found.utilization is not None
    ]
    parameters = sum(count for count, _ in used)
    rows = []
    for site in (WHOLE, *sites):
        found, graft = figures.get(site, _NOTHING), grafts.get(site)
        share = found.utilization
        if site == WHOLE:
            share = sum(count * value for count, value in used) / parameters if parameters else None
        rows.append(
            SeedTelemetry(
                site=site[:128],
                blueprint=graft.blueprint if graft else None,
                looks=found.looks,
                reason=reason[:200] or None if site == WHOLE else None,
                activation_variance=_short(found.activation_variance),
                interface_drift=_short(found.interface_drift),
                weights_l1=_short(found.weights_l1),
                mean_output=_short(found.mean_output),
                contribution=_short(found.contribution),
                utilization=_short(share),
                age_s=age if site == WHOLE or graft else None,
                budget=budget_left(grown, context, now_s, latency_us) if site == WHOLE else None,
                safety=_safety(context) if site == WHOLE else None,
            )
        )
    return rows


_NOTHING = SiteFigures(0, None, None, None, None, None, None)


def budget_left(grown: Grown, context: SiteContext, now_s: float, latency_us: float | None = None) -> BudgetLeft | None:
    """What the change plan still allows after what the bundle takes; None without a plan."""
    plan = context.plan
    if plan is None:
        return None
    latency = None
    if plan.maximum_latency_us is not None and latency_us is not None:
        latency = plan.maximum_latency_us - latency_us
    frames = octets = days = None
    if plan.capture is not None and context.captured is not None:
        count, size, since_s = context.captured
        frames, octets = plan.capture.max_frames - count, plan.capture.max_bytes - size
        if plan.capture.max_days is not None:
            days = plan.capture.max_days - (0.0 if since_s is None else max(0.0, now_s - since_s) / 86_400.0)
    return BudgetLeft(
        parameters=plan.maximum_parameters - sum(graft.parameters for graft in grown.grafts),
        latency_us=latency,
        capture_frames=frames,
        capture_bytes=octets,
        capture_days=days,
    )


def every_site(manifest: BundleManifest, model: ModelFile) -> tuple[str, ...]:
    """Seed sites in the order of flow, whichever model file names them."""
    named = [site for one in (model, *manifest.models) for site in one.sites]
    grown = [graft.site for graft in manifest.grafts if not graft.mergeable]
    return tuple(dict.fromkeys([*named, *grown]))[: MAX_SEEDS - 1]


def _short(value: float | None) -> float | None:
    return None if value is None else short(value, 5)


def _safety(context: SiteContext) -> SafetyScores | None:
    scores = SafetyScores(self_test=context.self_test, probe_accuracy=context.probe_accuracy, alert=context.alert)
    return scores if scores.measured else None
