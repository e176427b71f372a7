"""What a grown network costs on a target: its int8 file, made once for every build of network."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

if TYPE_CHECKING:
    from kasmina_trainer.acceptance import AcceptanceLimits
    from kasmina_trainer.evolve.grown import Measure, Measured
    from kasmina_trainer.seeds import SeededNetwork

_CALIBRATION, _HELD_OUT = 128, 64  # frames; what a network costs does not depend on them
_BYTES = 1000

Frames = npt.NDArray[np.float32]


def limits_of(
    profile: str | None, *, latency_ms: float | None, memory_kb: float | None, energy_uj: float | None
) -> AcceptanceLimits:
    """The gate's usual limits with those of the command line.

    Args:
        profile: Target that they hold on.
        latency_ms: Most for one inference.
        memory_kb: Most for activations and weights, in thousands of bytes.
        energy_uj: Most for one inference.

    Raises:
        InputError: A limit without a profile.
    """
    from kasmina_trainer.acceptance import DEFAULT_LIMITS

    told = {"--max-ms": latency_ms, "--max-memory-kb": memory_kb, "--max-energy-uj": energy_uj}
    asked = [name for name, value in told.items() if value is not None]
    if asked and profile is None:
        raise InputError(f"{', '.join(asked)}: no target to judge it on", "Name one with --profile.")
    return replace(
        DEFAULT_LIMITS,
        maximum_latency_ms=latency_ms,
        maximum_peak_bytes=None if memory_kb is None else int(memory_kb * _BYTES),
        maximum_energy_uj=energy_uj,
    )


def int8_files(calibration: Frames, held_out: Frames, *, channels_last: bool = True) -> Measure:
    """Float answers, and the int8 file that the simulator reads.

    Two networks of the same operations and shapes have one file here: its price is the same, whatever its weights.

    Args:
        calibration: Frames as the app has them.  # (N, H, W, C), (N, L, C) or (N, C)
        held_out: More of them.
        channels_last: As `layout.as_app`.
    """
    files: dict[Any, bytes] = {}

    def measure(network: SeededNetwork) -> Measured:
        from kasmina_trainer.evolve.grown import Measured, torch_predictor
        from kasmina_trainer.export.tflite import export_tflite

        module = network.module_for_export()
        build = (tuple(network.growths), *((name, tuple(v.shape)) for name, v in module.state_dict().items()))
        if build not in files:
            files[build] = export_tflite(
                module,
                calibration=calibration[:_CALIBRATION],
                held_out=held_out[:_HELD_OUT],
                channels_last=channels_last,
            ).data
        return Measured(torch_predictor(network), files[build])

    return measure
