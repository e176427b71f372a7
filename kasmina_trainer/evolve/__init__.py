"""The growth loop: what could grow, a race, training, the gate, and what stands beside it; `evolve` is the way in."""

from kasmina_trainer.evolve.arms import Arm as Arm
from kasmina_trainer.evolve.budget import Macs as Macs
from kasmina_trainer.evolve.budget import Parameters as Parameters
from kasmina_trainer.evolve.budget import parse_budget as parse_budget
from kasmina_trainer.evolve.events import Event as Event
from kasmina_trainer.evolve.evolving import RIVAL as RIVAL
from kasmina_trainer.evolve.evolving import evolve as evolve
from kasmina_trainer.evolve.growing import FULL as FULL
from kasmina_trainer.evolve.growing import FULL_SETTINGS as FULL_SETTINGS
from kasmina_trainer.evolve.growing import GRAFT_SETTINGS as GRAFT_SETTINGS
from kasmina_trainer.evolve.growing import RETUNE_SETTINGS as RETUNE_SETTINGS
from kasmina_trainer.evolve.growing import default_settings as default_settings
from kasmina_trainer.evolve.grown import GrownNetwork as GrownNetwork
from kasmina_trainer.evolve.grown import Measured as Measured
from kasmina_trainer.evolve.grown import torch_predictor as torch_predictor
from kasmina_trainer.evolve.intensities import parse_intensities as parse_intensities
from kasmina_trainer.evolve.recipes import RECIPES as RECIPES
from kasmina_trainer.evolve.recipes import sites_for as sites_for
from kasmina_trainer.evolve.rivals import RIVALS as RIVALS
