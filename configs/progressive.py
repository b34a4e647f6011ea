r"""A student whose every step is two of its teacher's, halved again and again: 8, 4, 2 and 1 step.

    python main.py train --config configs/progressive.py --model runs/shapes/model \
        --workdir runs/progressive --diffusion.steps 800
    python main.py evaluate shapes-accuracy --model runs/progressive/model --generation.steps 4

After each 400 updates the student is the next teacher: 800 of them give the student of 4 steps,
1200 that of 2, and all 1600 that of 1 step. The same command with more steps goes on from there.
The first teacher takes 16 steps with guidance, its students none. The result is
runs/progressive/model, a diffusers folder whose scheduler is the DDIMScheduler with "trailing"
steps.

--diffusion.distillation.scale-embedding 256, with --diffusion.distillation.guidance-steps 400 and
400 more steps, makes a student that takes the scale of guidance as an input;
--diffusion.distillation.guidance-scale says which scales.
"""

from sdjax.data import DataConfig
from sdjax.training import OptimizerConfig, Progressive, Recipe, TuningRun, adaptations
from sdjax.training.objectives.tuning import TuningSheet

config = Recipe(
    data=DataConfig(source="shapes", objects="one", image_size=32),
    examples=24_000,
    diffusion=TuningRun(
        adaptation=adaptations.Full(),
        distillation=Progressive(start_steps=16, round_steps=400, guidance_scale=(3.0, 3.0)),
        steps=1_600,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=50),
        ema_decay=0.98,
        sheet=TuningSheet(images=8, steps=4),
        sheet_every=400,
        checkpoint_every=200,
    ),
)
