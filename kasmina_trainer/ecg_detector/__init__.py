"""Detectors for the medical simulator: patterns in ten seconds, beats in a running signal, and their scores."""
