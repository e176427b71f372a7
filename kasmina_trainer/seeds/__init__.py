"""Seed sites on a frozen host: what grows there, how strongly, and how it is taken out without a trace.

The host inside a `SeededNetwork` is really frozen: evaluation-mode normalisation, no gradients, and a hash over its
whole state that is asserted before and after growth. Then isolation and removal are exact.
"""

from kasmina_trainer.seeds.attach import attach_seeds
from kasmina_trainer.seeds.discovery import FoundPort, choose_ports, find_ports
from kasmina_trainer.seeds.growth import Growth
from kasmina_trainer.seeds.integrity import GradientGuard, MergedHost, freeze, hash_state, outputs_equal
from kasmina_trainer.seeds.lifecycle import STEPS, LifeCycle, SiteState, Step, audit_steps
from kasmina_trainer.seeds.merging import Merge, merge_graft
from kasmina_trainer.seeds.network import SeededNetwork
from kasmina_trainer.seeds.report import SeedReport, SeedRow
from kasmina_trainer.seeds.site import SeedSite

__all__ = [
    "STEPS",
    "FoundPort",
    "GradientGuard",
    "Growth",
    "LifeCycle",
    "Merge",
    "MergedHost",
    "SeedReport",
    "SeedRow",
    "SeedSite",
    "SeededNetwork",
    "SiteState",
    "Step",
    "attach_seeds",
    "audit_steps",
    "choose_ports",
    "find_ports",
    "freeze",
    "hash_state",
    "merge_graft",
    "outputs_equal",
]
