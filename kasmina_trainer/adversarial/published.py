"""The severities of MNIST-C, kind by kind.

Numbers are those of ``corruptions.py`` in github.com/google-research/mnist-c at commit bba57e4 (Apache-2.0), the code
that made the data set of Mu and Gilmer 2019 (arXiv:1906.02337, zenodo.org/record/3239543). Most kinds have five
severities, weakest first as a rule; the one that a function takes when none is asked for is the one that the data set
is made with. Stripe, dotted line, zigzag and Canny edges have one strength.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Severities of one kind.

    Attributes:
        means: What the numbers are, in words and units.
        steps: One tuple of numbers a severity; a single empty one where there is nothing to choose.
        data_set: The severity that the data set has, from 1.
    """

    means: str
    steps: tuple[tuple[float, ...], ...]
    data_set: int

    @property
    def chosen(self) -> tuple[float, ...]:
        """Numbers of the data set's severity."""
        return self.steps[self.data_set - 1]


_ONE: tuple[tuple[float, ...], ...] = ((),)
_TURNS: tuple[tuple[float, ...], ...] = ((0.2,), (0.4,), (0.6,), (0.8,), (1.0,))

PUBLISHED: dict[str, Published] = {
    "shot-noise": Published("photons at full scale", ((60,), (25,), (12,), (5,), (3,)), 5),
    "impulse-noise": Published("share of pixels", ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)), 4),
    "glass-blur": Published(
        "blur, pixels; reach of a swap, pixels; passes",
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), 1,
    ),
    "motion-blur": Published(
        "reach, pixels; width of the trail, pixels", ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), 1
    ),
    "shear": Published("angle, radians, either way", _TURNS, 2),
    "scale": Published("size of the digit", ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)), 3),
    "rotate": Published("angle, radians, either way", _TURNS, 2),
    "brightness": Published("added light", ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)), 5),
    "translate": Published("pixels along both axes, either way", ((1,), (2,), (3,), (4,), (5,)), 3),
    "stripe": Published("one strength", _ONE, 1),
    "fog": Published("weight of the fog; decay of its detail", ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), 5),
    "spatter": Published(
        "mean and deviation of the liquid; its blur, pixels; threshold; blur of a drop, pixels",
        ((0.65, 0.3, 4, 0.69, 0.6), (0.65, 0.3, 3, 0.68, 0.6), (0.65, 0.3, 2, 0.68, 0.5), (0.65, 0.3, 1, 0.65, 1.5),
         (0.67, 0.4, 1, 0.65, 1.5)), 4,
    ),
    "dotted-line": Published("one strength", _ONE, 1),
    "zigzag": Published("one strength", _ONE, 1),
    "canny-edges": Published("one strength", _ONE, 1),
}  # fmt: skip
