"""How good molecules are: stability, validity, uniqueness, novelty and connectedness."""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.molecules.bonds import bond_orders, stable_atoms
from sdjax.molecules.elements import chemistry
from sdjax.molecules.features import Molecule


@dataclasses.dataclass(frozen=True)
class Measures:
    """EDM's measures of a number of molecules, each a share in 0 … 1, and connectedness.

    atom_stability: of atoms whose bonds, by their lengths, are those of the element; without
    hydrogens, no more. molecule_stability: of molecules all of whose atoms are. validity: of
    molecules that RDKit takes. uniqueness: of different ones, by their largest part, among the
    valid. novelty: of ones not trained on among these; None where that is not known.
    connectedness: of molecules, valid or not, that are in one piece.
    """

    count: int
    atom_stability: float
    molecule_stability: float
    validity: float
    uniqueness: float
    novelty: float | None
    connectedness: float

    @property
    def valid_and_unique(self) -> float:
        """Share of all."""
        return self.validity * self.uniqueness

    def to_dict(self) -> dict:
        """For JSON."""
        return {**dataclasses.asdict(self), "valid_and_unique": self.valid_and_unique}


def measured(
    molecules: Sequence[Molecule], hydrogens: bool, known: Collection[str] | None = None
) -> Measures:
    """The measures of molecules, at least one.

    hydrogens: whether they have theirs. known: SMILES that were trained on, as `smiles` and
    `canonical` write them.
    """
    if not molecules:
        raise SdjaxError("there are no molecules to measure")
    stable = [stable_atoms(molecule, hydrogens) for molecule in molecules]
    valid = [text for text in map(smiles, molecules) if text is not None]
    different = set(valid)
    novelty = None
    if known is not None and different:
        novelty = len(different.difference(known)) / len(different)
    return Measures(
        count=len(molecules),
        atom_stability=float(np.concatenate(stable).mean()),
        molecule_stability=float(np.mean([own.all() for own in stable])),
        validity=len(valid) / len(molecules),
        uniqueness=len(different) / max(len(valid), 1),
        novelty=novelty,
        connectedness=float(np.mean([connected(molecule) for molecule in molecules])),
    )


def connected(molecule: Molecule) -> bool:
    """Whether bonds lead from each atom to all others."""
    reached = np.eye(len(molecule.numbers), dtype=bool)[0]
    bonds = bond_orders(molecule) > 0
    for _ in range(len(reached)):
        reached = reached | bonds[reached].any(0)
    return bool(reached.all())


def rdkit_molecule(molecule: Molecule):
    """An RDKit molecule with bonds by their lengths and a conformer, or None where it is not valid.
    """
    chem = chemistry("rdkit.Chem")
    made = chem.RWMol()
    for number in molecule.numbers:
        made.AddAtom(chem.Atom(int(number)))
    orders = np.triu(bond_orders(molecule))
    kinds = {1: chem.BondType.SINGLE, 2: chem.BondType.DOUBLE, 3: chem.BondType.TRIPLE}
    for i, j in np.argwhere(orders):
        made.AddBond(int(i), int(j), kinds[int(orders[i, j])])
    conformer = chem.Conformer(len(molecule.numbers))
    for i, place in enumerate(molecule.positions):
        conformer.SetAtomPosition(i, [float(value) for value in place])
    made.AddConformer(conformer)
    with chemistry("rdkit.rdBase").BlockLogs():
        try:
            chem.SanitizeMol(made)
        except ValueError:
            return None
    return made.GetMol()


def smiles(molecule: Molecule) -> str | None:
    """The canonical SMILES of the largest part, without hydrogens; None for what is not valid."""
    chem = chemistry("rdkit.Chem")
    made = rdkit_molecule(molecule)
    if made is None:
        return None
    largest = max(chem.GetMolFrags(made, asMols=True), key=lambda part: part.GetNumAtoms())
    return _written(chem, largest)


def canonical(texts: Sequence[str]) -> set[str]:
    """SMILES as `smiles` writes them; those that RDKit does not read are left out."""
    chem, found = chemistry("rdkit.Chem"), set()
    with chemistry("rdkit.rdBase").BlockLogs():
        for text in texts:
            made = chem.MolFromSmiles(text)
            if made is not None:
                found.add(_written(chem, made))
    return found


def _written(chem, made) -> str:
    try:
        bare = chem.RemoveHs(made)
    except ValueError:
        bare = made
    return chem.MolToSmiles(bare, isomericSmiles=False)
