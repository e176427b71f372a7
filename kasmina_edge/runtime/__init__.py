"""The embedding API: open a bundle or a data folder, infer, and follow updates without a dropped frame."""

from kasmina_edge.runtime.channel import Stream
from kasmina_edge.runtime.result import Result
from kasmina_edge.runtime.runtime import Runtime

__all__ = ["Result", "Runtime", "Stream"]
