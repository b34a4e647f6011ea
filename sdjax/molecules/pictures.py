"""Pictures of molecules, drawn by RDKit."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdjax.molecules.elements import chemistry
from sdjax.molecules.features import Molecule
from sdjax.molecules.metrics import rdkit_molecule

INVALID = "not valid"


def pictures(molecules: Sequence[Molecule], size: int = 160) -> tuple[np.ndarray, list[str]]:
    """(uint8 [n, size, size, 3], captions): structural formulas with their SMILES; an empty
    picture for a molecule that is not valid.
    """
    chem, draw = chemistry("rdkit.Chem"), chemistry("rdkit.Chem.Draw.rdMolDraw2D")
    found, captions = [], []
    for molecule in molecules:
        made = rdkit_molecule(molecule)
        if made is None:
            found.append(np.full((size, size, 3), 255, np.uint8))
            captions.append(INVALID)
            continue
        made = chem.RemoveHs(made)
        made.RemoveAllConformers()
        canvas = draw.MolDraw2DCairo(size, size)
        draw.PrepareAndDrawMolecule(canvas, made)
        canvas.FinishDrawing()
        with Image.open(io.BytesIO(canvas.GetDrawingText())) as picture:
            found.append(np.asarray(picture.convert("RGB")))
        captions.append(chem.MolToSmiles(made, isomericSmiles=False))
    return np.stack(found), captions
