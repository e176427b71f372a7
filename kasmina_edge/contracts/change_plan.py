"""The change plan: the signed list of modifications a device will accept. No plan, no grafts and no capture."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kasmina_edge.contracts.canonical import SignedContract
from kasmina_edge.contracts.manifest import BundleManifest, Digest, Name
from kasmina_edge.contracts.record import DeviceId
from kasmina_edge.errors import KasminaError, PlanError

Share = Annotated[float, Field(ge=0, le=1)]
FramesAWindow = Annotated[int, Field(ge=0, le=64)]


class CaptureSampling(SignedContract):
    """Which inputs a device keeps by itself, beside those that the app offers; frames are counted a window.

    Attributes:
        window_s: Length of a window; what it picked waits in memory until its end.
        frames: Picked at random from all frames that were looked at, whatever they show. A graft that learned from
            these beat one that learned from low scores alone: out of its domain a network is confidently wrong.
        low_score: Frames whose top score lies below are of the second kind; None: there is no second kind.
        low_score_frames: Picked at random from those.
        drift_frames: Picked at random while drift stands at or above its alarm line.
    """

    window_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    frames: FramesAWindow = 1
    low_score: Share | None = None
    low_score_frames: FramesAWindow = 1
    drift_frames: FramesAWindow = 0

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed part of a plan is a `PlanError`."""
        return PlanError


class CaptureBudget(SignedContract):
    """How much of its input a device may keep, sealed to ``controller_key``.

    Attributes:
        max_days: Days, counted from the first frame kept of this budget, after which nothing more is kept and what
            still waits for its upload is erased; None: no such limit.
        sampling: None: only what the app offers is kept.
        renewal: Another number grants the same budget anew. A newer plan alone does not: it may be signed for an
            erasure, or for another device's sake.
    """

    max_frames: Annotated[int, Field(ge=0)]
    max_bytes: Annotated[int, Field(ge=0)]
    max_days: Annotated[float, Field(gt=0, le=3650)] | None = None
    sampling: CaptureSampling | None = None
    renewal: Annotated[int, Field(ge=0)] = 0

    def identity(self) -> str:
        """Names the budget: the same until frames, bytes or the renewal change; days and sampling may."""
        return self.model_copy(update={"sampling": None, "max_days": None}).digest()


class Erasure(SignedContract):
    """A demand to erase captured inputs, on the device and on their way; it stands for every later plan as well.

    Attributes:
        id: Names the demand in the audit logs of device and controller.
        device: Whose captures; None: those of every device.
        from_s: Captures of this moment or later, by the device's clock, seconds since 1970 UTC.
        to_s: Captures before this moment.
    """

    id: Name
    device: DeviceId | None = None
    from_s: Annotated[float, Field(ge=0)] = 0.0
    to_s: Annotated[float, Field(gt=0)]

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed part of a plan is a `PlanError`."""
        return PlanError

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.from_s >= self.to_s:
            raise ValueError(f"from_s {self.from_s} is not before to_s {self.to_s}")
        return self

    def covers(self, device: str, at_s: float) -> bool:
        """Whether a capture of ``device`` at ``at_s`` is to be erased."""
        return self.device in (None, device) and self.from_s <= at_s < self.to_s


class HealthLimits(SignedContract):
    """What a trial bundle must show before it is committed.

    Attributes:
        probes: Digest of the reference probes file; a graft cannot bring its own.
        minimum_accuracy: On the reference probes.
        maximum_loss: Most that accuracy on the probes may fall, trial against active, paired.
        live_frames: Frames of live input compared before the commit; 0 skips the comparison.
        maximum_score_drop: Most that the mean live score may fall, trial against active.
        live_timeout_s: Wait at most so long for live frames; with none seen, the probes alone decide.
    """

    probes: Digest
    minimum_accuracy: Share
    maximum_loss: Share = 0.02
    live_frames: Annotated[int, Field(ge=0, le=100_000)] = 40
    maximum_score_drop: Share = 0.2
    live_timeout_s: Annotated[float, Field(ge=0, le=86_400)] = 30.0


class ChangePlan(SignedContract):
    """Signed by the targets role; enforced on the device.

    Attributes:
        bundle: Name of the bundle this plan is for.
        serial: Counts up with each new plan; an older one is refused.
        hosts: Content digests of the hosts that grafts may sit on.
        blueprints: Accepted versions by blueprint kind.
        intensity: Accepted range.
        maximum_growth_bytes: Most that a model file may be larger than its host's.
        maximum_latency_us: Ceiling of the self-test's median latency on this device; None: no ceiling.
        maximum_energy_uj: Ceiling an inference, for devices that can measure it; None: no ceiling.
        controller_key: X25519 public key (hex) that captures are sealed to.
        erasures: Captured inputs that must not exist any more, nor come to be.
    """

    format: Literal[1] = 1
    bundle: Name
    serial: Annotated[int, Field(ge=1)]
    hosts: tuple[Digest, ...]
    blueprints: dict[Name, tuple[int, ...]]
    sites: tuple[str, ...]
    intensity: tuple[Share, Share] = (0.0, 1.0)
    maximum_grafts: Annotated[int, Field(ge=0)] = 4
    maximum_parameters: Annotated[int, Field(ge=0)]
    maximum_growth_bytes: Annotated[int, Field(ge=0)]
    maximum_latency_us: Annotated[float, Field(gt=0)] | None = None
    maximum_energy_uj: Annotated[float, Field(gt=0)] | None = None
    health: HealthLimits
    capture: CaptureBudget | None = None
    controller_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    erasures: Annotated[tuple[Erasure, ...], Field(max_length=1024)] = ()

    @classmethod
    def error_type(cls) -> type[KasminaError]:
        """A malformed plan is a `PlanError`."""
        return PlanError


def check_against_plan(
    manifest: BundleManifest, plan: ChangePlan | None, host: BundleManifest | None, *, signed_by: str
) -> None:
    """Refuse a bundle that the plan does not allow; the device calls it before anything is downloaded.

    Args:
        manifest: The bundle offered.
        plan: This device's plan, or None.
        host: Manifest of the host below it as this device knows it, or None.
        signed_by: The role that vouches for the manifest: ``targets`` (offline keys) or ``grafts`` (an online key,
            which may send grafts and take them back, and nothing else) in a fleet; ``desk`` where no fleet root is
            pinned and the person at the device installs what they built themselves.

    Raises:
        PlanError: The first rule that is broken, with both numbers.
    """
    where = f"{manifest.id}"
    if signed_by == "desk":
        return
    if not manifest.grafts:
        if signed_by == "targets" or (plan is not None and manifest.content_digest() in plan.hosts):
            return
        raise PlanError(f"{where}: role {signed_by} sends a host that the change plan does not list")
    if plan is None:
        raise PlanError(f"{where}: brings {len(manifest.grafts)} grafts, and this device has no change plan")
    if manifest.name != plan.bundle:
        raise PlanError(f"{where}: the change plan is for {plan.bundle}")
    if manifest.host not in plan.hosts:
        raise PlanError(f"{where}: host {(manifest.host or 'none')[:12]} is not one the change plan lists")
    if host is None or host.content_digest() != manifest.host:
        raise PlanError(f"{where}: grown on host {(manifest.host or 'none')[:12]}, which this device does not hold")
    for field in ("inputs", "outputs", "head", "preprocessing"):
        if getattr(manifest, field) != getattr(host, field):
            raise PlanError(f"{where}: {field} is not its host's; grafts may not change what the app sees")
    if len(manifest.grafts) > plan.maximum_grafts:
        raise PlanError(f"{where}: {len(manifest.grafts)} grafts, the change plan allows {plan.maximum_grafts}")
    parameters = sum(g.parameters for g in manifest.grafts)
    if parameters > plan.maximum_parameters:
        raise PlanError(f"{where}: {parameters} parameters, the change plan allows {plan.maximum_parameters}")
    low, high = plan.intensity
    for i, graft in enumerate(manifest.grafts):
        at = f"{where}: grafts[{i}]"
        if graft.blueprint_version not in plan.blueprints.get(graft.blueprint, ()):
            raise PlanError(f"{at}: blueprint {graft.blueprint} v{graft.blueprint_version} is not in the change plan")
        if graft.site not in plan.sites:
            raise PlanError(f"{at}: site {graft.site} is not in the change plan ({', '.join(plan.sites)})")
        if not low <= graft.intensity <= high:
            raise PlanError(f"{at}: intensity {graft.intensity} is outside {low} to {high}")
    if manifest.probes is None or manifest.probes.file.sha256 != plan.health.probes:
        found = manifest.probes.file.sha256[:12] if manifest.probes else "none"
        raise PlanError(f"{where}: reference probes {found}, the change plan asks for {plan.health.probes[:12]}")
    sizes = {(m.engine, m.compiled_for): m.file.size_bytes for m in host.models}
    for model in manifest.models:
        size = sizes.get((model.engine, model.compiled_for), sizes.get((model.engine, None)))
        if size is None:
            raise PlanError(f"{where}: {model.file.path} is for {model.engine}, which its host has no model for")
        growth = model.file.size_bytes - size
        if growth > plan.maximum_growth_bytes:
            raise PlanError(
                f"{where}: {model.file.path} is {growth} bytes larger than its host's, "
                f"the change plan allows {plan.maximum_growth_bytes}"
            )
