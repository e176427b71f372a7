"""Pictures with texts: coloured shapes by a grammar, with combinations held out, and real emoji with their names."""

from kasmina_trainer.datasets.captioned.camera import Camera
from kasmina_trainer.datasets.captioned.emoji import load_emoji
from kasmina_trainer.datasets.captioned.pairs import Pairs, Part, joined
from kasmina_trainer.datasets.captioned.shapes import CaptionedShapes
from kasmina_trainer.datasets.captioned.words import TEXT_SHAPE, encode

__all__ = ["TEXT_SHAPE", "Camera", "CaptionedShapes", "Pairs", "Part", "encode", "joined", "load_emoji"]
