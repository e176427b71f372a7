"""What an Edge TPU would do with an exported file, said at export: no bundle for a Coral leaves without it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from kasmina_edge.contracts.profile import HardwareProfile
from kasmina_edge.errors import KasminaError
from kasmina_edge.hardware_simulator.edgetpu_map import SPLIT, EdgeTpuMap, map_edgetpu

MOST_REASONS = 3


@dataclass(frozen=True)
class Mapped:
    """The mapping report in short.

    Attributes:
        operators: How many the file has.
        on_tpu: How many of them would run on the Edge TPU.
        whole: Whether all would, in one segment.
        off: Why operators stay on the CPU for what they are, each with how often, in order of execution.
        table: Name of each operator, whether it maps, and why not; for one that maps, what is not certain about it.
        on_chip_bytes: Parameters that fit the chip's memory.
        streamed_bytes: Parameters that travel at every inference.
        refused: Why the compiler would refuse the file as a whole.
        followers: How many stay on the CPU only because they depend on one of ``off``.
    """

    operators: int
    on_tpu: int
    whole: bool
    off: tuple[tuple[str, int], ...]
    table: tuple[tuple[str, bool, str], ...]
    on_chip_bytes: int
    streamed_bytes: int
    refused: tuple[str, ...] = ()
    followers: int = 0

    @property
    def cautions(self) -> tuple[tuple[str, int], ...]:
        """What is not certain about operators that map, each with how often."""
        return tuple(Counter(f"{kind}: {why}" for kind, maps, why in self.table if maps and why).items())

    @property
    def sentence(self) -> str:
        """``19 of 19 operators map``; why the others do not, the cause before what follows; and what is not certain."""
        text = f"{self.on_tpu} of {self.operators} operators map"
        if self.off:
            text += f"; on the CPU: {_told(self.off)}"
            text += f"; {self.followers} more that depend on it" if self.followers else ""
        if self.cautions:
            text += f"; not certain: {_told(self.cautions)}"
        if self.refused:
            text += f"; the compiler refuses the file: {'; '.join(self.refused[:MOST_REASONS])}"
        if self.streamed_bytes:
            text += f"; {self.streamed_bytes} B of parameters travel at every inference"
        return text

    def summary(self) -> tuple[tuple[str, str], ...]:
        """A line a kind of operator: how many map, and why not the others; kinds that split the graph come first."""
        kinds = dict.fromkeys(name for name, _, _ in self.table)
        rows = []
        for kind in kinds:
            own = [(maps, why) for name, maps, why in self.table if name == kind]
            reasons = [why for maps, why in own if not maps]
            causes = [why for why in reasons if why != SPLIT]
            doubts = [why for maps, why in own if maps and why]
            text = f"{sum(maps for maps, _ in own)} of {len(own)}"
            if causes:
                text += f": {causes[0]}"
            elif reasons:
                text += f": {len(reasons)} depend on what stays on the CPU"
            elif doubts:
                text += f", not certain: {doubts[0]}"
            rows.append((0 if causes else 1 if reasons else 2, kind, text))
        return tuple((kind, text) for _, kind, text in sorted(rows, key=lambda row: row[0]))


def _told(reasons: tuple[tuple[str, int], ...]) -> str:
    return "; ".join(f"{why} ({count})" if count > 1 else why for why, count in reasons[:MOST_REASONS])


def report(data: bytes, profile: HardwareProfile) -> Mapped | None:
    """How a TFLite file maps; None where the profile is no Edge TPU."""
    if profile.accelerator != "edgetpu" and profile.kind != "edgetpu":
        return None
    return shortened(map_edgetpu(data))


def shortened(found: EdgeTpuMap) -> Mapped:
    """The mapping report in short. Pure."""
    ops = [(m.op.kind, m.maps, m.why) for m in found.ops]
    off = Counter(f"{entry.op.kind}: {entry.why}" for entry in found.roots)
    return Mapped(
        len(ops),
        sum(maps for _, maps, _ in ops),
        found.maps_whole,
        tuple(off.items()),
        tuple(ops),
        found.on_chip_bytes,
        found.streamed_bytes,
        found.refused,
        found.followers,
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
