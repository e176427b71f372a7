"""Measured figures against their targets; `make bench` runs `benchmarks.run`."""
