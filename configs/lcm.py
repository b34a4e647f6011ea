r"""A student that makes pictures in one to eight steps, without guidance: latent consistency.

    python main.py train --config configs/lcm.py --model runs/shapes/model --workdir runs/lcm
    python main.py evaluate shapes-accuracy --model runs/lcm/model --generation.steps 4

It is taught by the model itself, guided, on the pictures of configs/shapes.py. The result is
runs/lcm/model, a diffusers folder whose scheduler is the LCMScheduler. For a large model a LoRA is
enough: configs/lcm_lora.py.

--diffusion.distillation.scale-embedding 256 makes a student that takes the scale of guidance as an
input; --diffusion.distillation.guidance-scale says which scales.
"""

from sdjax.data import DataConfig
from sdjax.training import LCM, OptimizerConfig, Recipe, TuningRun, adaptations
from sdjax.training.objectives.tuning import TuningSheet

config = Recipe(
    data=DataConfig(source="shapes", objects="one", image_size=32),
    examples=24_000,
    diffusion=TuningRun(
        adaptation=adaptations.Full(),
        distillation=LCM(guidance_scale=(3.0, 3.0), distance="l2"),
        steps=1_500,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=100),
        ema_decay=0.95,
        sheet=TuningSheet(images=8, steps=4),
        sheet_every=500,
        checkpoint_every=250,
    ),
)
