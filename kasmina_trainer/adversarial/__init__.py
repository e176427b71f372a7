"""Inputs gone wrong, by nature and by intent: corruptions, attacks, a detector that notices, a graft that repairs."""
