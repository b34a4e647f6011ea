r"""Molecules: EDM (arXiv 2203.17003) on QM9, heavy atoms alone.

    pip install "sdjax[molecules]"
    python main.py train --config configs/molecules.py --workdir runs/molecules
    python main.py sample --model runs/molecules/model --count 24
    python main.py evaluate molecules --model runs/molecules/model

Not trained to its end yet. Two cores of an AMD EPYC made about 650 molecules a second of their time
in training, so that the 30,000 steps, 19 times through the set, should take about 50 minutes of
them. With hydrogens as atoms, or of EDM's own size, see docs/molecules.md.
"""

from sdjax.data import DataConfig
from sdjax.models import EGNNConfig
from sdjax.training import MoleculeRun, OptimizerConfig, Recipe, SheetConfig

config = Recipe(
    data=DataConfig(source="qm9"),
    diffusion=MoleculeRun(
        steps=30_000,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=500, weight_decay=0.0),
        ema_decay=0.9995,
        log_every=250,
        sheet_every=5_000,
        checkpoint_every=2_500,
        egnn=EGNNConfig(hidden_nf=64, n_layers=4),
        sheet=SheetConfig(images=24, sampler="unipc", steps=50, guidance_scale=1.0),
    ),
)
