"""The embedding API: open a bundle or a data folder, infer, and follow updates without a dropped frame."""

from kasmina_edge.runtime.runtime import Runtime
from kasmina_edge.runtime.serving import Result

__all__ = ["Result", "Runtime"]
