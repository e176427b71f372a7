"""What this machine can run, and why not the rest: checks over a file tree and a command runner that are passed in.

A check reads and decides; it changes nothing, and never raises for what it finds. The causes are those that fill the
trackers of Coral and Frigate; where a check exists because of one report, its docstring names it.
"""

from kasmina_edge.doctor.examination import examine
from kasmina_edge.doctor.finding import Finding, Level
from kasmina_edge.doctor.machine import Machine

__all__ = ["Finding", "Level", "Machine", "examine"]
