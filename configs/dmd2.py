r"""A student of four steps or fewer whose pictures are distributed as the guided model's: DMD2.

    python main.py train --config configs/dmd2.py --model runs/shapes/model --workdir runs/dmd2
    python main.py evaluate shapes-accuracy --model runs/dmd2/model --generation.steps 4

A second network learns what the student makes, five updates for each of the student's; the student
goes where the model finds its pictures likelier than that network does. The result is
runs/dmd2/model, a diffusers folder whose scheduler is the LCMScheduler at four timesteps.

--diffusion.distillation.gan-weight 1e-3 adds a judge that knows the pictures of the data.
"""

from sdjax.data import DataConfig
from sdjax.training import DMD2, OptimizerConfig, Recipe, TuningRun, adaptations
from sdjax.training.objectives.tuning import TuningSheet

config = Recipe(
    data=DataConfig(source="shapes", objects="one", image_size=32),
    examples=24_000,
    diffusion=TuningRun(
        adaptation=adaptations.Full(),
        distillation=DMD2(steps=4, guidance_scale=(3.0, 3.0)),
        steps=2_500,
        batch_size=32,
        optimizer=OptimizerConfig(learning_rate=3e-4, schedule="cosine", warmup_steps=100),
        ema_decay=0.98,
        sheet=TuningSheet(images=8, steps=4),
        sheet_every=500,
        checkpoint_every=250,
    ),
)
