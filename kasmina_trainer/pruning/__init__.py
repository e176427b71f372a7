"""Takes out what a network can spare, on trial: less work for the device, or everything as it was before.

`take_channels` and `shrink` make a smaller network that answers as the whole one does; `pruned` changes a network in
place and puts it back unless what is left was accepted.
"""

from __future__ import annotations

from kasmina_trainer.pruning.choosing import Amount, Choice, choose_channels
from kasmina_trainer.pruning.groups import Group, Structure, channel_groups, read_structure
from kasmina_trainer.pruning.recovery import Recovery, RecoveryRun, recover
from kasmina_trainer.pruning.seeds import Idleness, UtilizationSeeds
from kasmina_trainer.pruning.shrinking import Shrunk, shrink, take_channels
from kasmina_trainer.pruning.strategy import Cut, GroupNorm, Strategy, Taylor
from kasmina_trainer.pruning.surgery import silenced, take_out, without
from kasmina_trainer.pruning.trial import Judgement, Trial, Verdict, pruned
from kasmina_trainer.pruning.unstructured import Magnitude

__all__ = [
    "Amount",
    "Choice",
    "Cut",
    "Group",
    "GroupNorm",
    "Idleness",
    "Judgement",
    "Magnitude",
    "Recovery",
    "RecoveryRun",
    "Shrunk",
    "Strategy",
    "Structure",
    "Taylor",
    "Trial",
    "UtilizationSeeds",
    "Verdict",
    "channel_groups",
    "choose_channels",
    "pruned",
    "read_structure",
    "recover",
    "shrink",
    "silenced",
    "take_channels",
    "take_out",
    "without",
]
