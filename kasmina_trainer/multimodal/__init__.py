"""Pictures and texts in one space: small towers, contrastive training, retrieval, and growth at seed sites."""

from kasmina_trainer.multimodal.contrastive import align, contrastive_loss
from kasmina_trainer.multimodal.growing import grow
from kasmina_trainer.multimodal.retrieval import (
    Recall,
    class_vectors,
    found_first,
    mean_recall,
    nearest,
    ranks,
    recall,
    unit,
)
from kasmina_trainer.multimodal.tiny_clip import TinyClip, embed, train_tiny_clip
from kasmina_trainer.multimodal.towers import ImageTower, TextTower

__all__ = [
    "ImageTower",
    "Recall",
    "TextTower",
    "TinyClip",
    "align",
    "class_vectors",
    "contrastive_loss",
    "embed",
    "found_first",
    "grow",
    "mean_recall",
    "nearest",
    "ranks",
    "recall",
    "train_tiny_clip",
    "unit",
]
