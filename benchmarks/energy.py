"""Energy of an inference on this machine, by whatever it shows; a machine that shows nothing is reported so."""

from __future__ import annotations

from typing import Any

from kasmina_edge.hardware_simulator.calibration_nets import reference_net
from kasmina_edge.hardware_simulator.net_timing import litert_opener
from kasmina_edge.telemetry.energy import EnergyMeter

Row = dict[str, Any]


def rows(quick: bool = False) -> list[Row]:
    """Microjoules an inference of calibration's reference network, idle power included."""
    call, runs = litert_opener()(reference_net()), 2_000 if quick else 20_000
    with EnergyMeter().measure() as run:
        for _ in range(runs):
            call()
    joules = run.energy.joules
    return [
        {
            "name": "energy.reference_inference",
            "target": None,
            "measured": None if joules is None else joules * 1e6 / runs,
            "unit": "uJ",
            "ok": True,
            "how": f"{run.energy.how}; {runs} inferences of calibration's reference network in a row",
        }
    ]
