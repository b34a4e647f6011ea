"""Bonds from distances: EDM's table (arXiv 2203.17003, appendix C) for the elements of QM9."""

import numpy as np

from sdjax.molecules.elements import NUMBERS, VALENCES, check_measurable
from sdjax.molecules.features import Molecule

# Typical lengths in pm, and how much longer a bond may be.
SINGLE = {
    "HH": 74, "HC": 109, "HN": 101, "HO": 96, "HF": 92, "CC": 154, "CN": 147, "CO": 143, "CF": 135,
    "NN": 145, "NO": 140, "NF": 136, "OO": 148, "OF": 142, "FF": 142,
}  # fmt: skip
DOUBLE = {"CC": 134, "CN": 129, "CO": 120, "NN": 125, "NO": 121, "OO": 121}
TRIPLE = {"CC": 120, "CN": 116, "CO": 113, "NN": 110}
MARGINS = (10, 5, 3)


def _limits():
    """Lengths in Å below which two elements have a bond of order 1, 2 and 3, by atomic number."""
    size = max(NUMBERS[symbol] for symbol in VALENCES) + 1
    found = np.zeros((3, size, size))
    for order, (lengths, margin) in enumerate(zip((SINGLE, DOUBLE, TRIPLE), MARGINS)):
        for (first, second), length in lengths.items():
            pair = NUMBERS[first], NUMBERS[second]
            found[order][pair] = found[order][pair[::-1]] = (length + margin) / 100
    return found


_LIMITS = _limits()
_VALENCE = np.array([dict((NUMBERS[s], v) for s, v in VALENCES.items()).get(i, 0)
                     for i in range(_LIMITS.shape[1])])


def bond_orders(molecule: Molecule) -> np.ndarray:
    """int [n, n]: 0 for no bond, 1, 2 or 3, by the distances alone.

    A pair has the highest order whose limit, and those of all lower orders, its distance is below.
    Raises SdjaxError for an element that the table lacks.
    """
    check_measurable(molecule.symbols)
    numbers, places = np.asarray(molecule.numbers), np.asarray(molecule.positions, np.float64)
    distance = np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))
    below = distance < _LIMITS[:, numbers[:, None], numbers[None]]
    orders = np.cumprod(below, axis=0).sum(0)
    np.fill_diagonal(orders, 0)
    return orders


def stable_atoms(molecule: Molecule, hydrogens: bool = True) -> np.ndarray:
    """bool [n]: whether each atom has the bonds of its element; without hydrogens, no more."""
    orders = bond_orders(molecule).sum(1)
    wanted = _VALENCE[molecule.numbers]
    return orders == wanted if hydrogens else orders <= wanted
