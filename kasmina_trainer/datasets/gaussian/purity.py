"""Purity of a clustering: the share of points whose class is the commonest of their cluster."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kasmina_edge.errors import InputError

Integers = npt.NDArray[np.integer]


def contingency(clusters: Integers, classes: Integers) -> npt.NDArray[np.int64]:
    """How many points of each class are in each cluster; rows and columns in rising order of their numbers.

    Raises:
        InputError: No points, or not as many classes as clusters.
    """
    if len(clusters) != len(classes) or not len(classes):
        raise InputError(f"purity: {len(clusters)} cluster numbers and {len(classes)} classes, expected as many")
    rows, row = np.unique(clusters, return_inverse=True)
    columns, column = np.unique(classes, return_inverse=True)
    table = np.zeros((len(rows), len(columns)), np.int64)
    np.add.at(table, (row, column), 1)
    return table


def purity(clusters: Integers, classes: Integers) -> float:
    """Purity in (0, 1] (Manning, Raghavan, Schuetze 2008, section 16.3).

    It rises with the number of clusters and is 1 when every point has its own: compare equal numbers, on points that
    the clusters were not made from.

    >>> purity(np.array([0, 0, 0, 1, 1]), np.array([5, 5, 7, 7, 7]))
    0.8

    Raises:
        InputError: As `contingency`.
    """
    return float(contingency(clusters, classes).max(1).sum() / len(classes))
