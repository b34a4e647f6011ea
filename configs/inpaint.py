r"""A model that repaints: nine channels at its U-Net's input, made from an ordinary one's four.

    python main.py train --config configs/inpaint.py --model MODEL --workdir runs/inpaint \
        --data.source folder:pictures

The new channels hold a random mask and what it leaves of the picture. The result is
runs/inpaint/model, a diffusers folder.
"""

from sdjax.data import DataConfig
from sdjax.training import OptimizerConfig, Recipe, TuningRun, adaptations

config = Recipe(
    data=DataConfig(source="folder:pictures", image_size=0),
    diffusion=TuningRun(
        adaptation=adaptations.Inpaint(),
        caption_dropout=0.1,
        steps=1_000,
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup_steps=50),
        ema_decay=0.0,
        sheet_every=250,
        checkpoint_every=250,
    ),
)
