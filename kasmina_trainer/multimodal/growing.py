"""Growth on a frozen tower: grafts at its seed sites learn to meet the other tower again, which stays as it is.

Texts that were embedded long ago keep their places, so a grown image tower needs no new index; a grown text tower
needs no new pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kasmina_trainer.datasets.captioned import Pairs
from kasmina_trainer.multimodal.contrastive import Coded, align
from kasmina_trainer.multimodal.tiny_clip import TinyClip
from kasmina_trainer.seeds import SeededNetwork, attach_seeds
from kasmina_trainer.training import Progress, TrainingRun, TrainingSettings

Side = Literal["images", "texts"]
LEARN_GRAFT = TrainingSettings(steps=250, batch=128, learning_rate=6e-3, weight_decay=1e-3, shift=0)
LATE, EARLY = "blocks.3.site", "blocks.1.site"
"""Where the last map of the image tower looks back to the finer one: the places of cross-attention."""


@dataclass(frozen=True)
class Sprout:
    """One graft that is to be grown.

    Attributes:
        site: Of the tower.
        blueprint: Name in the library.
        config: Its settings; None: its defaults.
    """

    site: str
    blueprint: str
    config: Mapping[str, Any] | None = None


LATENT_ALIGN = Sprout("site", "latent-align")
CROSS_ATTENTION = Sprout(LATE, "cross-attention", {"size": 32, "tokens": 64})
INPUT_FILTER = Sprout("input", "input-filter")


def seeded_tower(clip: TinyClip, side: Side = "images") -> SeededNetwork:
    """One tower, frozen, with its seed sites; the image tower's last map may attend to its second one."""
    tower = clip.images if side == "images" else clip.texts
    return attach_seeds(tower, contexts={LATE: EARLY} if side == "images" else None)


def grow(
    seeds: SeededNetwork,
    clip: TinyClip,
    pairs: Pairs | Coded,
    sprouts: Sequence[Sprout] = (INPUT_FILTER, CROSS_ATTENTION, LATENT_ALIGN),
    *,
    side: Side = "images",
    settings: TrainingSettings = LEARN_GRAFT,
    seed: int = 0,
    on_step: Progress | None = None,
) -> TrainingRun:
    """Grow grafts on a tower and train them, and nothing else, with the contrastive loss. They are PROBING afterwards.

    Args:
        seeds: As `seeded_tower` gives it.
        clip: Whose other tower answers; neither it nor the temperature learns.
        pairs: Of the new domain, and of the old one where that is to be kept.
        sprouts: What grows where.
        side: Which tower ``seeds`` is.
        settings: How long and how boldly.
        seed: Chooses first weights and order.
        on_step: Called with (steps done, steps asked for).

    Raises:
        InputError: A sprout does not fit its site, or as `align`.
    """
    for sprout in sprouts:
        seeds.graft(sprout.site, sprout.blueprint, config=sprout.config, seed=seed)
    return align(
        seeds if side == "images" else clip.images,
        clip.texts if side == "images" else seeds,
        pairs,
        seeds.graft_parameters(),
        log_scale=clip.log_scale.detach(),
        training_modules=[seeds],
        settings=settings,
        seed=seed,
        on_step=on_step,
    )
