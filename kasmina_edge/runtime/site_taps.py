"""The taps at a bundle's seed sites, as the recorder opens them: one set for every bundle that comes into service."""

from __future__ import annotations

from collections.abc import Callable

from kasmina_edge.runtime.recorder import Taps
from kasmina_edge.runtime.serving import Serving
from kasmina_edge.telemetry.site_report import SiteContext
from kasmina_edge.telemetry.taps import SiteTaps

Context = Callable[[Serving], SiteContext]


def site_taps(clock: Callable[[], float], context: Context = lambda serving: SiteContext()) -> Taps:
    """What `Recorder` takes: looks into the sites of a bundle, and reads the hardware.

    Args:
        clock: Wall clock, seconds since 1970 UTC.
        context: What the runtime knows of a bundle and no tap can see.
    """

    def opened(serving: Serving) -> SiteTaps:
        from kasmina_edge.telemetry.hardware import HardwareReader

        return SiteTaps(
            serving.manifest,
            serving.engine.model,
            serving.model_data,
            context=context(serving),
            clock=clock,
            hardware=HardwareReader(),
        )

    return opened
