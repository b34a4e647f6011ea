"""Properties by physics: GFN2-xTB (tblite) judges what a model was asked for."""

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.molecules.elements import chemistry
from sdjax.molecules.features import Molecule
from sdjax.molecules.metrics import rdkit_molecule

_BOHR, _HARTREE, _DEBYE = 0.529177210903, 27.211386, 2.541746
JUDGED = ("dipole", "homo", "lumo", "gap")
"""Properties that it gives; of other methods the scale differs, see `property_errors`."""


def computed(molecule: Molecule, name: str) -> float:
    """A property of a molecule by GFN2-xTB, its hydrogens added where it has none; NaN where the
    molecule is not valid or the method does not settle.
    """
    if name not in JUDGED:
        raise SdjaxError(f"the judge knows {', '.join(JUDGED)}, not {name!r}")
    whole = with_hydrogens(molecule)
    if whole is None:
        return float("nan")
    interface = chemistry("tblite.interface")
    calculator = interface.Calculator(
        "GFN2-xTB", np.asarray(whole.numbers), np.asarray(whole.positions, float) / _BOHR)
    calculator.set("verbosity", 0)
    try:
        result = calculator.singlepoint()
    except RuntimeError:
        return float("nan")
    if name == "dipole":
        return float(np.linalg.norm(result.get("dipole"))) * _DEBYE
    energies, filled = result.get("orbital-energies"), result.get("orbital-occupations") > 0.5
    homo, lumo = energies[filled].max(), energies[~filled].min()
    return float({"homo": homo, "lumo": lumo, "gap": lumo - homo}[name]) * _HARTREE


def with_hydrogens(molecule: Molecule) -> Molecule | None:
    """A molecule with hydrogens put where RDKit's MMFF wants them, the others left in place; itself
    where it has some; None where it is not valid.
    """
    if 1 in molecule.numbers:
        return molecule
    made = rdkit_molecule(molecule)
    if made is None:
        return None
    chem, fields = chemistry("rdkit.Chem"), chemistry("rdkit.Chem.rdForceFieldHelpers")
    made = chem.AddHs(made, addCoords=True)
    settings = fields.MMFFGetMoleculeProperties(made)
    if settings is not None:
        field = fields.MMFFGetMoleculeForceField(made, settings)
        for i in range(len(molecule.numbers)):
            field.MMFFAddPositionConstraint(i, 0.0, 1e4)
        field.Minimize(maxIts=200)
    numbers = np.array([atom.GetAtomicNum() for atom in made.GetAtoms()])
    return Molecule(numbers, made.GetConformer().GetPositions().astype(np.float32))


def property_errors(model, config, data=None) -> dict[str, float]:
    """How far molecules are from what they were asked for, in the property's unit.

    GFN2-xTB's values are brought to the data's by a line fitted on `judged` molecules of the test
    split: "floor" is the mean absolute error that is left on these. "error" is that of molecules
    made, "ceiling" the same with what was asked for shuffled among them, "judged" the share that
    could be computed.

    model: a `MoleculeDiffusion` with a condition. config: a `Molecules`. data: QM9.
    """
    from sdjax.molecules.data import cormorant_split

    if model.condition is None or data is None:
        raise SdjaxError("judged is for a model of a property, and needs data")
    name, count = model.condition.name, config.judged
    tested = data.chosen(cormorant_split(len(data))["test"][:count])
    wanted = tested.properties[name]
    real = np.array([
        computed(Molecule(own[own > 0].astype(int), places[own > 0]), name)
        for own, places in zip(tested.numbers, tested.positions, strict=True)
    ])
    there = np.isfinite(real)
    slope, shift = np.polyfit(real[there], wanted[there], 1)
    _, asked = model.drawn(count, seed=config.seed)
    made = np.array([computed(molecule, name) for molecule in model.generate(
        count, steps=config.steps, sampler=config.sampler, seed=config.seed,
        batch_size=config.batch_size)])
    usable = np.isfinite(made)
    values = slope * made[usable] + shift
    shuffled = np.random.default_rng(0).permutation(asked[usable])
    return {
        "floor": float(np.abs(slope * real[there] + shift - wanted[there]).mean()),
        "error": float(np.abs(values - asked[usable]).mean()),
        "ceiling": float(np.abs(values - shuffled).mean()),
        "judged": float(usable.mean()),
    }
