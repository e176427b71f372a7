"""What the profiles predict for their own anchors, beside what was published: for `profile check` and for the guide.

``python -m kasmina_edge.hardware_simulator.published FILE`` writes the table into a Markdown file, between two marks;
without a file it is printed. A test keeps docs/guides/profiles.md as this program writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kasmina_edge.contracts.profile import HardwareProfile, list_profiles
from kasmina_edge.errors import InputError
from kasmina_edge.hardware_simulator.anchoring import anchor_network
from kasmina_edge.hardware_simulator.context import HardwareContext

BEGIN = "<!-- written by python -m kasmina_edge.hardware_simulator.published; do not edit -->"
END = "<!-- end of what was written -->"


@dataclass(frozen=True)
class AnchorFigure:
    """One anchor of a profile.

    Attributes:
        network: Its name.
        published_ms: What somebody measured.
        predicted_ms: What the profile says; None where the network has no table or the profile cannot estimate.
        alone_ms: What it says when this anchor is taken out of the profile and the others stay; None without others.
        band: Half-width around the prediction, relative to it; None: unknown.
        why: What is missing, where something is.
    """

    network: str
    published_ms: float
    predicted_ms: float | None
    alone_ms: float | None
    band: float | None
    why: str = ""

    @property
    def off(self) -> float | None:
        """Predicted over published, minus 1: relative to what was measured, as errors are; the band is not."""
        return None if self.predicted_ms is None else self.predicted_ms / self.published_ms - 1.0

    @property
    def inside(self) -> bool | None:
        """Whether the band around the prediction holds the published figure; None where either is missing."""
        if self.predicted_ms is None or self.band is None:
            return None
        return abs(self.published_ms / self.predicted_ms - 1.0) <= self.band


def compare(profile: HardwareProfile) -> tuple[AnchorFigure, ...]:
    """Every anchor of a profile with what is predicted for it."""
    try:
        context = HardwareContext(profile)
    except InputError as exc:
        return tuple(AnchorFigure(a.network, a.latency_ms, None, None, None, exc.message) for a in profile.anchors)
    found = []
    for anchor in profile.anchors:
        work = anchor_network(anchor.network)
        if work is None:
            found.append(AnchorFigure(anchor.network, anchor.latency_ms, None, None, None, "no table of this network"))
            continue
        estimate = context.estimate(work)
        rest = [a for a in profile.anchors if a is not anchor and anchor_network(a.network) is not None]
        alone = None
        if rest:
            alone = HardwareContext(profile.model_copy(update={"anchors": tuple(rest)})).estimate(work).latency_ms
        found.append(AnchorFigure(anchor.network, anchor.latency_ms, estimate.latency_ms, alone, estimate.band))
    return tuple(found)


def markdown(profiles: Iterable[HardwareProfile]) -> str:
    """One table over all profiles; a profile without anchors has a line that says so."""
    lines = [
        "| profile | anchor | published ms | predicted ms | off | from its other anchors | band |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for profile in profiles:
        figures = compare(profile)
        if not figures:
            lines.append(f'| `{profile.name}` | none: every estimate says "band unknown" | | | | | unknown |')
        for f in figures:
            cells = [f"`{profile.name}`", f.network, _ms(f.published_ms)]
            if f.predicted_ms is None:
                cells += [f.why, "", "", ""]
            else:
                cells += [_ms(f.predicted_ms), _percent(f.off), _percent(_relative(f.alone_ms, f.published_ms)),
                          "unknown" if f.band is None else f"± {100 * f.band:.0f} %"]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def written_into(text: str, table: str) -> str:
    """The Markdown text with the table between its marks.

    Raises:
        InputError: The marks are not there, or not in order.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise InputError("the text has no place for the table", f"Put the lines {BEGIN!r} and {END!r} where it goes.")
    return f"{text[: begin + len(BEGIN)]}\n\n{table}\n\n{text[end:]}"


def shipped(names: Sequence[str] = ()) -> list[HardwareProfile]:
    """The profiles of the installed package or the checkout, by name."""
    return [p for name, p in sorted(list_profiles().items()) if not names or name in names]


def _relative(value: float | None, published: float) -> float | None:
    return None if value is None else value / published - 1.0


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.0f} %".replace("-0 %", "+0 %")


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


if __name__ == "__main__":
    made = markdown(shipped())
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.write_text(written_into(path.read_text(), made))
    else:
        sys.stdout.write(made + "\n")
