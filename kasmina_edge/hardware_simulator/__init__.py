"""What a network costs on hardware that is not here: time, memory and energy, each with how sure it is.

`read_workload` takes a model file apart, `HardwareContext` asks the profile's simulation layer what each operation
costs, and the engine ``simulated`` (`simulated_engine`) lets a whole device be rehearsed in that time.
"""

from kasmina_edge.hardware_simulator.arena import arena_bytes
from kasmina_edge.hardware_simulator.context import Estimate, Fit, HardwareContext
from kasmina_edge.hardware_simulator.reading import read_workload
from kasmina_edge.hardware_simulator.workload import OpWork, TensorWork, Workload

__all__ = [
    "Estimate",
    "Fit",
    "HardwareContext",
    "OpWork",
    "TensorWork",
    "Workload",
    "arena_bytes",
    "read_workload",
]
