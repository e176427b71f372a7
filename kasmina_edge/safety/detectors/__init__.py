"""Streaming change detectors: one value in, one verdict out, a few hundred bytes of memory.

Three detectors behind one method, `Detector.update`, because no single one sees everything:

- `PageHinkley` (Page 1954, Biometrika 41:100) adds up deviations from the running mean: quickest for a small lasting
  shift of the mean, blind to a change of spread alone.
- `Adwin` (Bifet and Gavalda 2007, SDM, "ADWIN2") keeps as long a window as its mean stands still, in an exponential
  histogram; no threshold in the quantity's unit, and it says where the old regime ended.
- `WindowedKs` compares the distribution of a recent window with a reference window (two-sample Kolmogorov-Smirnov):
  sees spread and shape as well, slowest for a small shift of the mean.

All assume values that are independent of each other; `kasmina_edge.safety.drift_watch` standardises and whitens first.
A value that is not finite is left out and counted, because a single bad frame must not blind a device. Nothing here is
random, reads a clock or needs numpy's per-call overhead except one comparison in sixteen.
"""

from __future__ import annotations

from kasmina_edge.safety.detectors.adwin import Adwin, AdwinConfig
from kasmina_edge.safety.detectors.detector import Detector, DriftState
from kasmina_edge.safety.detectors.page_hinkley import PageHinkley, PageHinkleyConfig
from kasmina_edge.safety.detectors.windowed_ks import WindowedKs, WindowedKsConfig, kolmogorov_quantile

__all__ = [
    "Adwin",
    "AdwinConfig",
    "Detector",
    "DriftState",
    "PageHinkley",
    "PageHinkleyConfig",
    "WindowedKs",
    "WindowedKsConfig",
    "kolmogorov_quantile",
]
