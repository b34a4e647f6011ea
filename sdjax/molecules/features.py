"""Molecules as arrays that a network sees, and back."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.molecules.elements import number_of, symbol_of


class Molecule(NamedTuple):
    """Atoms: numbers int [n], their elements; positions float32 [n, 3] in Å."""

    numbers: np.ndarray
    positions: np.ndarray

    @property
    def symbols(self) -> list[str]:
        """The elements' symbols."""
        return [symbol_of(int(number)) for number in self.numbers]


@dataclass(frozen=True)
class Features:
    """The features of an atom: its place, one of `elements`, and its charge, each over a scale.

    charges: whether the atomic number is a feature of its own. scales: what places, the mark of the
    element and the charge are divided by.
    """

    elements: tuple[str, ...] = ("H", "C", "N", "O", "F")
    charges: bool = True
    scales: tuple[float, float, float] = (1.0, 4.0, 10.0)

    def __post_init__(self):
        for symbol in self.elements:
            number_of(symbol)
        if not self.elements or len(set(self.elements)) != len(self.elements):
            raise SdjaxError(f"elements must differ, and be at least one, got {self.elements}")
        if len(self.scales) != 3 or not all(scale > 0 for scale in self.scales):
            raise SdjaxError(f"scales must be three numbers above 0, got {self.scales}")

    @property
    def numbers(self) -> np.ndarray:
        """Atomic numbers of the elements, int64."""
        return np.array([number_of(symbol) for symbol in self.elements])

    @property
    def width(self) -> int:
        """Numbers of an atom."""
        return 3 + len(self.elements) + self.charges

    def arrays(self, numbers, positions):
        """(x float32 [M, N, width], mask float32 [M, N, 1]) of numbers [M, N] and positions
        [M, N, 3]; number 0 is no atom. The middle of the atoms becomes the origin.

        Raises SdjaxError for an element that is none of these.
        """
        numbers = np.asarray(numbers)
        there = numbers > 0
        unknown = np.unique(numbers[there & ~np.isin(numbers, self.numbers)])
        if len(unknown):
            raise SdjaxError(
                f"a molecule has {symbol_of(int(unknown[0]))}, the model knows "
                f"{', '.join(self.elements)} alone"
            )
        mask = there[..., None].astype(np.float32)
        place, kind, charge = self.scales
        count = np.maximum(mask.sum(1, keepdims=True), 1)
        middle = (positions * mask).sum(1, keepdims=True) / count
        parts = [(positions - middle) / place, (numbers[..., None] == self.numbers) / kind]
        if self.charges:
            parts.append(numbers[..., None] / charge)
        return (np.concatenate(parts, -1) * mask).astype(np.float32), mask

    def molecules(self, x, mask) -> list[Molecule]:
        """The molecules of x [M, N, width]: each atom is of the element with the largest mark."""
        x = np.asarray(x)
        kinds = self.numbers[x[..., 3:3 + len(self.elements)].argmax(-1)]
        there = np.asarray(mask)[..., 0] > 0
        return [
            Molecule(own[atoms], (places[atoms] * self.scales[0]).astype(np.float32))
            for own, places, atoms in zip(kinds, x[..., :3], there, strict=True)
        ]
