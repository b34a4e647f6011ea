"""QM9 (Ramakrishnan et al. 2014) as the package qm9pack brings it, with Cormorant's split."""

import csv
import dataclasses
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.molecules.elements import NUMBERS, number_of

PARTS = ("qm9_part1.csv", "qm9_part2.csv", "qm9_part3.csv")
_POLARIZABILITY = "qm9_polarizability.csv"
_HARTREE = 27.211386  # eV
PROPERTIES = {
    "dipole": ("Dipole_debye", 1.0, "D"),
    "polarizability": ("Polarizability_bohr3", 1.0, "bohr³"),
    "homo": ("HOMO_au", _HARTREE, "eV"),
    "lumo": ("LUMO_au", _HARTREE, "eV"),
    "gap": ("HOMO_LUMO_gap_au", _HARTREE, "eV"),
    "heat_capacity": ("Heatcapacity_Cv_cal_mol_K", 1.0, "cal/(mol K)"),
}
"""Name -> (column, what it is multiplied with, unit)."""
TRAINED_ON, TESTED_ON = 100_000, 0.1  # Cormorant's, molecules and share


@dataclasses.dataclass(frozen=True)
class QM9:
    """Molecules: numbers int8 [M, N], 0 where there is no atom; positions float32 [M, N, 3] in Å;
    smiles str [M]; properties, each float32 [M].
    """

    numbers: np.ndarray
    positions: np.ndarray
    smiles: np.ndarray
    properties: dict[str, np.ndarray]

    def __len__(self):
        return len(self.numbers)

    def chosen(self, rows) -> "QM9":
        """These molecules, as few places as they need."""
        numbers = self.numbers[rows]
        size = int((numbers > 0).sum(1).max(initial=1))
        return QM9(
            numbers[:, :size], self.positions[rows][:, :size], self.smiles[rows],
            {name: values[rows] for name, values in self.properties.items()},
        )

    def heavy(self) -> "QM9":
        """The same without hydrogens, in their order."""
        order = np.argsort(~(self.numbers > 1), axis=1, kind="stable")
        numbers = np.take_along_axis(self.numbers, order, 1)
        there = numbers > 1
        size = int(there.sum(1).max(initial=1))
        positions = np.take_along_axis(self.positions, order[..., None], 1) * there[..., None]
        numbers, positions = (numbers * there)[:, :size], positions[:, :size]
        return dataclasses.replace(self, numbers=numbers, positions=positions)

    @property
    def sizes(self) -> np.ndarray:
        """Atoms of each, int64 [M]."""
        return (self.numbers > 0).sum(1)

    def digest(self) -> str:
        """A short hash of what it holds."""
        held = (self.numbers, self.positions, *self.properties.values())
        found = hashlib.sha256()
        for array in held:
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]


def folder_of(source: str) -> Path:
    """The folder of "qm9", that of the installed qm9pack, or of "qm9:FOLDER"; else SdjaxError."""
    kind, _, name = source.partition(":")
    if kind != "qm9":
        raise SdjaxError(f'molecules are read from "qm9" or "qm9:FOLDER", got {source!r}')
    if name:
        return Path(name)
    # The package is not imported: its code asks for more than its files.
    found = importlib.util.find_spec("qm9pack")
    if found is None:
        raise SdjaxError(
            'qm9 needs qm9pack, which is not installed: pip install "sdjax[molecules]"'
        )
    return Path(found.submodule_search_locations[0]) / "data"


def read_qm9(source: str = "qm9", every: int = 1) -> QM9:
    """All molecules in the order of their numbers, or every so many of them.

    source: "qm9", or "qm9:FOLDER" with a folder of qm9pack's CSV files. Raises SdjaxError where it
    is not there, or a line of it is not as it should be.
    """
    folder = folder_of(source)
    paths = [folder / name for name in PARTS if (folder / name).is_file()]
    if not paths:
        raise SdjaxError(f"{folder} has none of {', '.join(PARTS)}, the files of qm9pack")
    beside = folder / _POLARIZABILITY
    extra = {}
    if beside.is_file():
        extra = {row["XYZ_file"]: row for row in _rows(beside)}
    found = []
    for path in paths:
        for line, row in enumerate(_rows(path), 2):
            try:
                number = int(row["Index"])
                row |= extra.get(row["XYZ_file"], {})
                found.append((number, _molecule(row)))
            except (KeyError, ValueError, TypeError) as error:
                reason = error if isinstance(error, SdjaxError) else (
                    f"no molecule can be read ({type(error).__name__}: {error})")
                raise SdjaxError(f"{path}, line {line}: {reason}") from error
    found.sort(key=lambda pair: pair[0])
    return _packed([molecule for _, molecule in found[::every]])


def _rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _molecule(row):
    """(numbers, positions, SMILES, properties) of a line; numbers such as -1.2*^-5 are read too."""
    symbols = row["Elements"].strip("[]' ").replace("'", "").replace(" ", "").split(",")
    numbers = [NUMBERS.get(symbol) or number_of(symbol) for symbol in symbols]
    written = row["XYZ_Ang"].replace("*^", "e").replace("[", "").replace("]", "")
    positions = np.array(written.split(","), np.float64).reshape(-1, 3)
    if len(positions) != len(numbers) or not np.isfinite(positions).all():
        raise SdjaxError(f"it has {len(numbers)} elements and {positions.size} coordinates")
    values = [
        float((row.get(column) or "nan").replace("*^", "e")) * scale
        for column, scale, _ in PROPERTIES.values()
    ]
    return numbers, positions, row["SMILES"], values


def _packed(molecules):
    count = len(molecules)
    size = max(len(numbers) for numbers, *_ in molecules)
    numbers = np.zeros((count, size), np.int8)
    positions = np.zeros((count, size, 3), np.float32)
    for i, (own, places, *_) in enumerate(molecules):
        numbers[i, :len(own)], positions[i, :len(own)] = own, places
    values = np.array([values for *_, values in molecules], np.float32)
    return QM9(
        numbers, positions, np.array([smiles for _, _, smiles, _ in molecules]),
        dict(zip(PROPERTIES, values.T, strict=True)),
    )


def cormorant_split(count: int) -> dict[str, np.ndarray]:
    """Rows of train, valid and test, as Cormorant, and after it EDM, draw them from all of QM9:
    100,000, 17,748 and 13,083. Of a smaller set the shares are the same.
    """
    order = np.random.RandomState(0).permutation(count)
    whole = 130_831
    train = TRAINED_ON if count == whole else max(1, count * TRAINED_ON // whole)
    test = int(TESTED_ON * count)
    return {
        "train": order[:train], "valid": order[train:count - test], "test": order[count - test:],
    }
