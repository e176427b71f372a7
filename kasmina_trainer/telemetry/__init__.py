"""What seed sites tell while a network grows on the desk: the device's own figures, from PyTorch's activations."""

from kasmina_trainer.telemetry.collectors import SeedCollector
from kasmina_trainer.telemetry.gradients import branch_weights, gradient_norms
from kasmina_trainer.telemetry.records import Window, record_of, shown

__all__ = ["SeedCollector", "Window", "branch_weights", "gradient_norms", "record_of", "shown"]
