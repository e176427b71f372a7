"""An accelerator in a process of its own: late or gone, the CPU answers in its place.

Start at `supervisor.supervise`.
"""
