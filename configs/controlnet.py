r"""A ControlNet: pictures that steer a model, here the outlines of the data's own pictures.

    python main.py train --config configs/controlnet.py --model MODEL --workdir runs/controlnet \
        --data.source folder:pictures

--diffusion.beside FOLDER takes the control pictures, of the same names as the data's, from there.
The result is runs/controlnet/controlnet, a diffusers folder.
"""

from sdjax.data import DataConfig
from sdjax.training import OptimizerConfig, Recipe, TuningRun, adaptations

config = Recipe(
    data=DataConfig(source="folder:pictures", image_size=0),
    diffusion=TuningRun(
        adaptation=adaptations.ControlNet(),
        beside="edges",
        caption_dropout=0.5,
        steps=1_000,
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="cosine", warmup_steps=50),
        ema_decay=0.0,
        sheet_every=250,
        checkpoint_every=250,
    ),
)
