"""How near the answers of an exported file are to the float network's, for whatever the answers are.

One judge measures all versions of a file: the share of answers that stay the same decides which version is shipped and
whether the export passes; the numbers of every output go into the manifest and the model card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kasmina_edge.contracts.manifest import MINIMUM_AGREEMENT, OutputParity, Parity
from kasmina_edge.errors import InputError, KasminaError

Array = npt.NDArray[Any]
Answers = Sequence[Array]
Measured = Callable[[Answers, Answers], tuple[float, float | None, float | None]]
"""Takes the float answers and a file's; gives agreement, accuracy and float accuracy."""

MOST_SQNR_DB = 200.0


@dataclass(frozen=True)
class OutputFigures:
    """One output of a file against the float network's.

    Attributes:
        name: The output's.
        cosine: Cosine similarity of all values, 1 where both are zero throughout.
        sqnr_db: Signal to quantization noise, 10 log10(sum x^2 / sum (x - q)^2), at most 200.
        max_abs_difference: In the output's units.
        mean_abs_difference: In the output's units.
    """

    name: str
    cosine: float
    sqnr_db: float
    max_abs_difference: float
    mean_abs_difference: float


def figures(name: str, reference: Array, answers: Array) -> OutputFigures:
    """Compare one output. Pure.

    Args:
        name: The output's.
        reference: The float network's.  # (N, ...)
        answers: The file's, in the same units.  # (N, ...)

    Raises:
        InputError: Other shapes, or nothing to compare.
        KasminaError: The file gives values that are not finite.
    """
    if reference.shape != answers.shape or not reference.size:
        raise InputError(f"output {name}: {answers.shape} answers against {reference.shape}; at least one is needed")
    if not np.isfinite(answers).all():
        count = int((~np.isfinite(answers)).sum())
        raise KasminaError(
            f"output {name}: {count} of {answers.size} answers are not finite",
            "This engine cannot run the file; another form (--weights 8) may do.",
        )
    x, q = reference.astype(np.float64).ravel(), answers.astype(np.float64).ravel()
    gap, power = x - q, float(x @ x)
    noise, other = float(gap @ gap), float(q @ q)
    cosine = float(x @ q) / np.sqrt(power * other) if power > 0 and other > 0 else float(power == other)
    sqnr = MOST_SQNR_DB if noise <= power * 1e-20 else 10 * np.log10(max(power, 1e-300) / noise)
    return OutputFigures(
        name,
        float(np.clip(cosine, -1, 1)),
        float(np.clip(sqnr, -MOST_SQNR_DB, MOST_SQNR_DB)),
        float(np.abs(gap).max()),
        float(np.abs(gap).mean()),
    )


@dataclass(frozen=True)
class Judge:
    """Compares answers with the float network's on one set of held-out inputs.

    Attributes:
        reference: The float network's answers, an array an output.
        names: The outputs' names.
        measured: What the head makes of them.
        compares: What the agreement counts, in words.
    """

    reference: tuple[Array, ...]
    names: tuple[str, ...]
    measured: Measured
    compares: str

    @property
    def float_accuracy(self) -> float | None:
        """The float network's own; None where no labels say what is right."""
        return self.measured(self.reference, self.reference)[2]

    def measure(self, answers: Answers) -> tuple[float, float | None]:
        """Agreement and accuracy of a version."""
        agreement, accuracy, _ = self.measured(self.reference, answers)
        return agreement, accuracy

    def outputs(self, answers: Answers) -> tuple[OutputFigures, ...]:
        """The numbers of every output."""
        return tuple(figures(n, r, a) for n, r, a in zip(self.names, self.reference, answers, strict=True))

    def parity(self, answers: Answers) -> Parity:
        """The manifest's numbers. Those of single outputs are left out where there is one output of classes."""
        found = self.outputs(answers)
        agreement, accuracy, float_accuracy = self.measured(self.reference, answers)
        several = len(found) > 1 or self.compares != TOP_ANSWERS
        return Parity(
            samples=len(self.reference[0]),
            top1_agreement=agreement,
            accuracy=accuracy,
            float_accuracy=float_accuracy,
            max_abs_difference=max(f.max_abs_difference for f in found),
            outputs=tuple(
                OutputParity(
                    name=f.name, max_abs_difference=f.max_abs_difference, mean_abs_difference=f.mean_abs_difference
                )
                for f in (found if several else ())
            ),
        )


TOP_ANSWERS = "top answers that are the float network's"
ALIKE = "least cosine similarity of an output with the float network's"
BOXES = "boxes that the float network gives too"


def classification(reference: Answers, labels: Array | None) -> Measured:
    """Top answers of a first output of classes; accuracy where the labels are known."""
    if reference[0].ndim != 2:
        raise InputError(
            f"a classification's first output is (N, classes), the network gives {[r.shape for r in reference]}"
        )

    def right(answers: Answers) -> float | None:
        return None if labels is None else float((answers[0].argmax(axis=1) == labels).mean())

    def measured(floats: Answers, answers: Answers) -> tuple[float, float | None, float | None]:
        same = float((answers[0].argmax(axis=1) == floats[0].argmax(axis=1)).mean())
        return same, right(answers), right(floats)

    return measured


def resemblance(floats: Answers, answers: Answers) -> tuple[float, float | None, float | None]:
    """For an output that means something else than classes: the least cosine similarity, 0 where it is negative."""
    found = (figures("", x, q).cosine for x, q in zip(floats, answers, strict=True))
    return max(0.0, min(found)), None, None


def require(path: str, found: Parity, compares: str = TOP_ANSWERS, minimum: float = MINIMUM_AGREEMENT) -> None:
    """Fail an export that answers differently from the network it was made of. Pure.

    Raises:
        KasminaError: The agreement is below ``minimum``; the message carries both numbers.
    """
    if found.top1_agreement < minimum:
        what = "top-1 agreement" if compares == TOP_ANSWERS else f"agreement ({compares})"
        raise KasminaError(
            f"{path}: {what} with the float network is {found.top1_agreement:.2%} on {found.samples} held-out "
            f"inputs, at least {minimum:.0%} is required",
            "Calibrate with frames of every domain, or train with weight decay so that the ranges stay small.",
        )
