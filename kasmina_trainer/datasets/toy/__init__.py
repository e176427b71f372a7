"""Small sets with a known best answer: points, formal languages, and Shakespeare's plays beside them.

- `points`: two spirals, concentric spheres, parity of N signs, checkerboards; classes and the best accuracy there is.
- `language`: probabilistic automata (brackets, embedded Reber words) whose entropy in bits a character is exact.
- `shakespeare`: 37 plays, cut between plays.
- `ngram`: the n-gram model that a language model has to beat.
"""

from kasmina_trainer.datasets.toy.language import Automaton, Text, Texts, bracket_language, reber_language
from kasmina_trainer.datasets.toy.ngram import NGram
from kasmina_trainer.datasets.toy.points import checkerboard, concentric_spheres, parity, sphere_accuracy, two_spirals
from kasmina_trainer.datasets.toy.shakespeare import load_shakespeare

__all__ = [
    "Automaton",
    "NGram",
    "Text",
    "Texts",
    "bracket_language",
    "checkerboard",
    "concentric_spheres",
    "load_shakespeare",
    "parity",
    "reber_language",
    "sphere_accuracy",
    "two_spirals",
]
