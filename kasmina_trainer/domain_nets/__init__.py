"""Small hosts for the domains: points, characters, and series of sensors."""

from kasmina_trainer.domain_nets.characters import CharacterLstm, CharacterNet, NextCharacter, OneHot, lstm_of_size
from kasmina_trainer.domain_nets.points import PointNet
from kasmina_trainer.domain_nets.series import SeriesNet

__all__ = ["CharacterLstm", "CharacterNet", "NextCharacter", "OneHot", "PointNet", "SeriesNet", "lstm_of_size"]
