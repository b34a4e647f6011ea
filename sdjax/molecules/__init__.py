"""Molecules as points with elements: QM9, EDM's model of them, files, pictures and measures."""

from .data import PROPERTIES, QM9, cormorant_split, read_qm9
from .features import Features, Molecule
from .metrics import Measures, measured, smiles
from .model import MoleculeDiffusion
from .pictures import pictures
from .sdf import write_sdf

__all__ = [
    "Features",
    "Measures",
    "Molecule",
    "MoleculeDiffusion",
    "PROPERTIES",
    "QM9",
    "cormorant_split",
    "measured",
    "pictures",
    "read_qm9",
    "smiles",
    "write_sdf",
]
