"""What may be published at all: pure judgements on a bundle's own acceptance numbers and on a change plan."""

from __future__ import annotations

from collections.abc import Callable

from kasmina_edge.contracts.change_plan import ChangePlan
from kasmina_edge.contracts.manifest import MINIMUM_AGREEMENT, BundleManifest
from kasmina_edge.errors import InputError

Audit = Callable[..., object]


def acceptance_fault(manifest: BundleManifest) -> str | None:
    """Why a bundle's own parity or acceptance numbers forbid its publication; None when they do not."""
    for model in manifest.models:
        if model.parity is None:
            return f"{model.file.path} was never compared with a float network (no parity in its manifest)"
        if model.parity.top1_agreement < MINIMUM_AGREEMENT:
            return (
                f"{model.file.path} answers as its float network on {model.parity.top1_agreement:.2%} of "
                f"{model.parity.samples} inputs, at least {MINIMUM_AGREEMENT:.0%} is asked"
            )
    found = manifest.acceptance
    if found is None:
        return "brings grafts and no acceptance measurement" if manifest.grafts else None
    if not found.accepted:
        return "was not accepted: " + ("; ".join(found.reasons) or "no reason given")
    if manifest.grafts and found.gain_low <= 0:
        return f"claims acceptance, and the lower bound of its gain is {found.gain_low:.4f}"
    return None


def check_acceptance(manifest: BundleManifest, *, accept_anyway: bool, audit: Audit | None) -> None:
    """Refuse a bundle whose numbers fail; ``accept_anyway`` lets it through after it was written to the audit log.

    A wrapped third-party model has no parity at all: publishing it takes the same insisting, and leaves the same line.

    Args:
        manifest: What is to be published.
        accept_anyway: The operator insists.
        audit: ``AuditLog.append``.

    Raises:
        InputError: The numbers fail, or somebody insists without an audit log.
    """
    fault = acceptance_fault(manifest)
    if fault is None:
        return
    if not accept_anyway:
        raise InputError(
            f"{manifest.id}: {fault}", "Measure and improve it, or insist with --accept-anyway, which is audited."
        )
    if audit is None:
        raise InputError(f"{manifest.id}: {fault}, and accepting it anyway needs an audit log")
    audit("accept_anyway", bundle=manifest.id, content_digest=manifest.content_digest(), fault=fault)


def check_plan(plan: ChangePlan | None, manifest: BundleManifest) -> None:
    """Refuse a plan for another bundle than the one it is published with.

    Raises:
        InputError: The names differ.
    """
    if plan is not None and plan.bundle != manifest.name:
        raise InputError(f"{manifest.id}: the change plan is for {plan.bundle}")
