"""Finds where two forms of a network part, and which recipe gets the most out of one on a given hardware."""
