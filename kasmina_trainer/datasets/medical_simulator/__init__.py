"""Multi-lead synthetic ECG with known truth, in mV: patients, rhythms, noise, beat and rhythm annotations, WFDB files.

A patient is a set of numbers drawn from a seed, so parts of a data set that share no patient share no shape.
"""
