"""The same pictures through another camera: warm light, colours that leak into each other, out of focus, noise.

All of it is fixed by the camera's own numbers, so a camera is a domain; only its noise differs from picture to picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kasmina_edge.errors import InputError
from kasmina_trainer.datasets.captioned.drawing import Pictures


@dataclass(frozen=True)
class Camera:
    """What a camera does to a picture.

    Attributes:
        leak: Share of each colour that its neighbours' sensors take, 0 to 1.
        light: What red, green and blue are multiplied by.
        focus_pixels: Standard deviation of the blur.
        noise: Standard deviation of the noise, of a full scale of 1.
    """

    leak: float = 0.35
    light: tuple[float, float, float] = (1.0, 0.75, 0.5)
    focus_pixels: float = 0.7
    noise: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.leak <= 1 or min(self.light) < 0 or self.focus_pixels < 0 or self.noise < 0:
            raise InputError(f"{self}: expected a leak of 0 to 1, and nothing below 0")

    def see(self, pictures: Pictures, *, seed: int) -> Pictures:
        """Pictures as this camera gives them.  # (N, 3, 32, 32) in [0, 1] to the same

        Args:
            pictures: As they are.
            seed: Of the noise.
        """
        mixed = np.eye(3, dtype=np.float32) * (1 - self.leak) + self.leak * np.roll(np.eye(3, dtype=np.float32), 1, 1)
        mixed = mixed * np.array(self.light, np.float32)[:, None]
        found = np.einsum("oc,nchw->nohw", mixed, pictures).astype(np.float32)
        for axis in (2, 3):
            found = _blurred(found, self.focus_pixels, axis)
        noise = np.random.default_rng((seed, 5)).standard_normal(found.shape, np.float32) * np.float32(self.noise)
        clipped: Pictures = np.clip(found + noise, 0.0, 1.0).astype(np.float32)
        return clipped


def _blurred(x: Pictures, deviation: float, axis: int) -> Pictures:
    """Blurred along one axis, the border repeated."""
    reach = int(np.ceil(3 * deviation))
    if not reach:
        return x
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    padded = np.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(x.ndim)], mode="edge")
    size = x.shape[axis]
    found = np.zeros_like(x)
    for at, weight in enumerate(weights):
        found += weight * np.take(padded, range(at, at + size), axis)
    return found
