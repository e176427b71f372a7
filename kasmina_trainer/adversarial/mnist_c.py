"""MNIST-C: fifteen ways in which a picture goes wrong and still shows the same digit (Mu and Gilmer 2019).

Fifteen pure functions on pictures in [0, 1], each in the module of its family, at the severities of
`published.PUBLISHED`. Written from the paper and from the numbers of the published code; every random choice comes from
the seed, so that the same pictures and seed give the same bytes. The stored data set differs from what stands here by
its random choices, and by its rounding to bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kasmina_edge.errors import InputError
from kasmina_trainer.adversarial.blur import glass_blur, motion_blur
from kasmina_trainer.adversarial.edges import canny_edges
from kasmina_trainer.adversarial.noise import impulse_noise, shot_noise
from kasmina_trainer.adversarial.pictures import Images, stacked
from kasmina_trainer.adversarial.published import PUBLISHED
from kasmina_trainer.adversarial.strokes import dotted_line, stripe, zigzag
from kasmina_trainer.adversarial.warp import rotate, scale, shear, translate
from kasmina_trainer.adversarial.weather import brightness, fog, spatter
from kasmina_trainer.datasets.digits import Samples

_FUNCTIONS: dict[str, Callable[..., Images]] = {
    "shot-noise": shot_noise,
    "impulse-noise": impulse_noise,
    "glass-blur": glass_blur,
    "motion-blur": motion_blur,
    "shear": shear,
    "scale": scale,
    "rotate": rotate,
    "brightness": brightness,
    "translate": translate,
    "stripe": stripe,
    "fog": fog,
    "spatter": spatter,
    "dotted-line": dotted_line,
    "zigzag": zigzag,
    "canny-edges": canny_edges,
}
KINDS = tuple(_FUNCTIONS)
FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": ("shot-noise", "impulse-noise"),
    "blur": ("glass-blur", "motion-blur"),
    "affine": ("shear", "scale", "rotate", "translate"),
    "light": ("brightness", "fog", "spatter"),
    "strokes": ("stripe", "dotted-line", "zigzag"),
    "edges": ("canny-edges",),
}


def corrupt(x: Images, kind: str, severity: int | None = None, *, seed: int = 0) -> Images:
    """Pictures gone wrong in one way.

    Args:
        x: In [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        kind: One of `KINDS`.
        severity: From 1; the data set's when left out.
        seed: Of everything that is drawn; same pictures, kind, severity and seed give the same bytes.

    Raises:
        InputError: No such kind or severity, or no such pictures.
    """
    if kind not in _FUNCTIONS:
        raise InputError(f"corruption {kind!r}: expected one of {', '.join(KINDS)}")
    published = PUBLISHED[kind]
    severity = published.data_set if severity is None else severity
    if not 1 <= severity <= len(published.steps):
        raise InputError(f"severity {severity} of {kind}: expected 1 to {len(published.steps)}")
    return _FUNCTIONS[kind](x, *published.steps[severity - 1], seed=seed)


def suite(samples: Samples, *, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, Samples]]:
    """The same samples gone wrong in every way, one kind after the other, at the data set's severities.

    Args:
        samples: Pictures (N, 1, 28, 28) and labels (N,).
        seed: As in `corrupt`.
        kinds: Some of `KINDS`.
    """
    for kind in kinds:
        yield kind, (corrupt(samples[0], kind, seed=seed), samples[1])


def picture(x: Images, *, seed: int = 0) -> list[tuple[str, Images]]:
    """The same few pictures in every kind, the clean ones first; what `pages.grey_pictures.contact_sheet` takes.

    Args:
        x: In [0, 1].  # (N, 1, 28, 28) or (N, 28, 28)
        seed: As in `corrupt`.

    Returns:
        Names and pictures.  # (N, 28, 28)
    """
    clean = stacked(x)
    return [("clean", clean), *((kind, corrupt(clean, kind, seed=seed)) for kind in KINDS)]
