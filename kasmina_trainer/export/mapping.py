"""What an Edge TPU would do with an exported file, said at export: no bundle for a Coral leaves without it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import KasminaError
from kasmina_edge.hardware_simulator.edgetpu_map import map_edgetpu

MOST_REASONS = 3


@dataclass(frozen=True)
class Mapped:
    """The mapping report in short.

    Attributes:
        operators: How many the file has.
        on_tpu: How many of them would run on the Edge TPU.
        whole: Whether all would, in one segment.
        off: Reasons of the others, each with how often, the most frequent first.
        table: Name of each operator, whether it maps, and why not.
        on_chip_bytes: Parameters that fit the chip's memory.
        streamed_bytes: Parameters that travel at every inference.
        refused: Why the compiler would refuse the file as a whole.
    """

    operators: int
    on_tpu: int
    whole: bool
    off: tuple[tuple[str, int], ...]
    table: tuple[tuple[str, bool, str], ...]
    on_chip_bytes: int
    streamed_bytes: int
    refused: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """``19 of 19 operators map``, and why the others do not."""
        text = f"{self.on_tpu} of {self.operators} operators map"
        if self.off:
            text += "; on the CPU: " + "; ".join(
                f"{why} ({count})" if count > 1 else why for why, count in self.off[:MOST_REASONS]
            )
        if self.refused:
            text += f"; the compiler refuses the file: {'; '.join(self.refused[:MOST_REASONS])}"
        if self.streamed_bytes:
            text += f"; {self.streamed_bytes} B of parameters travel at every inference"
        return text

    def summary(self) -> tuple[tuple[str, str], ...]:
        """A line a kind of operator: how many map, and the first reason of those that do not."""
        kinds = dict.fromkeys(name for name, _, _ in self.table)
        rows = []
        for kind in kinds:
            own = [(maps, why) for name, maps, why in self.table if name == kind]
            reasons = [why for maps, why in own if not maps]
            text = f"{sum(maps for maps, _ in own)} of {len(own)}" + (f": {reasons[0]}" if reasons else "")
            rows.append((kind, text))
        return tuple(rows)


def report(data: bytes, profile: HardwareProfile) -> Mapped | None:
    """How a TFLite file maps; None where the profile is no Edge TPU."""
    if profile.accelerator != "edgetpu" and profile.kind != "edgetpu":
        return None
    found = map_edgetpu(data)
    ops = [(m.op.kind, m.maps, m.why) for m in found.ops]
    off = Counter(f"{kind}: {why}" for kind, maps, why in ops if not maps)
    return Mapped(
        len(ops),
        sum(maps for _, maps, _ in ops),
        found.maps_whole,
        tuple(sorted(off.items(), key=lambda pair: (-pair[1], pair[0]))),
        tuple(ops),
        found.on_chip_bytes,
        found.streamed_bytes,
        found.refused,
    )


def require(mapped: Mapped | None, profile: HardwareProfile) -> None:
    """Stop where a network would not run on the Edge TPU as a whole. Pure.

    Raises:
        KasminaError: The message says how many operators map and why the others do not.
    """
    if mapped is not None and not mapped.whole:
        raise KasminaError(
            f"profile {profile.name}: {mapped.sentence}",
            "Replace these operations, or leave out --require-mapping: the CPU runs what does not map.",
        )
