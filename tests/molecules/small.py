"""A few molecules of QM9 as lines of its files, and a network of a few hundred parameters."""

import csv

import jax
import numpy as np

from sdjax.models import EGNNConfig
from sdjax.molecules import MoleculeDiffusion
from sdjax.molecules.data import PARTS, PROPERTIES
from sdjax.molecules.model import Condition
from sdjax.training import (
    DenoisingConfig,
    MoleculeRun,
    OptimizerConfig,
    ScheduleConfig,
    SheetConfig,
)
from sdjax.training.objectives.molecules import MoleculeObjective
from sdjax.training.recipes.export import scheduler_config

# Symbols, coordinates in Å and SMILES: experimental or ideal geometries.
METHANE = ("CHHHH", 1.09 / 3**0.5 * np.array(
    [[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]), "C")
WATER = ("OHH", np.array([[0, 0, 0], [0.757, 0.586, 0], [-0.757, 0.586, 0]]), "O")
ETHENE = ("CCHHHH", np.array([
    [0.667, 0, 0], [-0.667, 0, 0], [1.232, 0.928, 0], [1.232, -0.928, 0], [-1.232, 0.928, 0],
    [-1.232, -0.928, 0]]), "C=C")
CYANIDE = ("HCN", np.array([[0, 0, -1.065], [0, 0, 0], [0, 0, 1.156]]), "C#N")
MOLECULES = (METHANE, WATER, ETHENE, CYANIDE)


def write_lines(folder, molecules=MOLECULES, repeats=4, **fields):
    """A file as qm9pack's in `folder`, each molecule several times; the folder.

    fields: of the last line, in place of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (symbols, places, smiles) in enumerate(molecules * repeats):
        # Small numbers are written as in the set.
        places = [[f"{v:.6f}" if abs(v) > 1e-3 else "1.2*^-6" for v in place] for place in places]
        rows.append({
            "XYZ_file": f"dsgdb9nsd_{i + 1:06d}.xyz", "Index": i + 1, "SMILES": smiles,
            "Elements": str(list(symbols)).replace(" ", ""),
            "XYZ_Ang": str(places).replace("'", "").replace(" ", ""),
            **{column: f"{0.1 * i:.3f}" for column, *_ in PROPERTIES.values()},
        })
    rows[-1] |= fields
    with (folder / PARTS[0]).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def small_run(**fields):
    """A run of four steps."""
    return MoleculeRun(**{**dict(
        steps=4, batch_size=4, log_every=2, checkpoint_every=2, sheet_every=0, hydrogens=True,
        optimizer=OptimizerConfig(warmup_steps=1), egnn=EGNNConfig(hidden_nf=8, n_layers=1),
        denoising=DenoisingConfig(ScheduleConfig("polynomial_2", num_timesteps=21), "epsilon"),
        sheet=SheetConfig(images=2, sampler="ddpm", steps=21, guidance_scale=1.0),
    ), **fields})


def small_model(run=None, sizes=None, condition=False):
    """A model of random weights."""
    run = run or small_run(condition="gap" if condition else "")
    params = MoleculeObjective(run).init(jax.random.key(0))["egnn"]
    values = {size: (0.0, 1.0, 2.0) for size in (3, 5)}
    return MoleculeDiffusion(
        run.network, params, scheduler_config(run.denoising, clip_sample=False), run.features,
        sizes or {3: 1, 5: 3}, sampler="ddpm", steps=21,
        condition=Condition("gap", "eV", 1.0, 0.5, values) if condition else None,
    )
