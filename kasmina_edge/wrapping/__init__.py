"""From a third party's model file to a bundle: what its tensors are, and the self-test it is held to from then on."""

from kasmina_edge.wrapping.proof import Agreement
from kasmina_edge.wrapping.tensors import WrapPlan
from kasmina_edge.wrapping.wrap import Wrapped, wrap

__all__ = ["Agreement", "WrapPlan", "Wrapped", "wrap"]
