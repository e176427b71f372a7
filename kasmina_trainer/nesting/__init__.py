"""Seeds inside seeds: a controller weighs children, a budget holds them, and arbitration settles who may come."""

from kasmina_trainer.nesting.arbitration import Fair, Grant, Policy, Priority, Request, arbitrate
from kasmina_trainer.nesting.budget import Budget
from kasmina_trainer.nesting.child import ChildSeed
from kasmina_trainer.nesting.config import MAX_CHILDREN, MAX_DEPTH, ChildConfig, NestedSeedConfig
from kasmina_trainer.nesting.controller import Controller
from kasmina_trainer.nesting.seed import NestedBranch
from kasmina_trainer.nesting.spawning import Nursery

__all__ = [
    "MAX_CHILDREN",
    "MAX_DEPTH",
    "Budget",
    "ChildConfig",
    "ChildSeed",
    "Controller",
    "Fair",
    "Grant",
    "NestedBranch",
    "NestedSeedConfig",
    "Nursery",
    "Policy",
    "Priority",
    "Request",
    "arbitrate",
]
