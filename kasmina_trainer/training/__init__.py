"""Supervised training of hosts, grafts and retunes."""

from kasmina_trainer.training.answers import accuracy as accuracy
from kasmina_trainer.training.answers import as_tensors as as_tensors
from kasmina_trainer.training.answers import check_device as check_device
from kasmina_trainer.training.answers import one_core as one_core
from kasmina_trainer.training.answers import predict_labels as predict_labels
from kasmina_trainer.training.loop import HOST_SETTINGS as HOST_SETTINGS
from kasmina_trainer.training.loop import TEMPERATURE as TEMPERATURE
from kasmina_trainer.training.loop import channels_last as channels_last
from kasmina_trainer.training.loop import train as train
from kasmina_trainer.training.loop import train_host as train_host
from kasmina_trainer.training.settings import Group as Group
from kasmina_trainer.training.settings import Minutes as Minutes
from kasmina_trainer.training.settings import Progress as Progress
from kasmina_trainer.training.settings import Thinned as Thinned
from kasmina_trainer.training.settings import TrainingRun as TrainingRun
from kasmina_trainer.training.settings import TrainingSettings as TrainingSettings
from kasmina_trainer.training.settings import Watch as Watch
from kasmina_trainer.training.state import TrainingState as TrainingState
