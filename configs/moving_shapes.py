r"""Short clips: motion modules trained inside a model of pictures that stays as it is.

    python main.py train --config configs/moving_shapes.py --workdir runs/moving_shapes
    python main.py evaluate moving --model runs/moving_shapes/base/model \
        --motion runs/moving_shapes/motion --generation.guidance-scale 3

One object moves slowly or quickly in one of eight directions, or stands still: "a large red
circle on a yellow background moving slowly left". A fifth of the pairs of object and motion is
kept out. First `configs/moving_frames.py` trains the model of pictures in
runs/moving_shapes/base; with --model another one is taken. The result is
runs/moving_shapes/motion, a folder of diffusers' MotionAdapter.
"""

from sdjax.data import DataConfig
from sdjax.training import OptimizerConfig, Recipe, TuningRun, TuningSheet, adaptations
from sdjax.training.objectives.denoising import DenoisingConfig

config = Recipe(
    data=DataConfig(source="moving", image_size=32),
    examples=10_000,
    base="moving_frames",
    diffusion=TuningRun(
        adaptation=adaptations.Motion(heads=4, positions=16),
        denoising=DenoisingConfig(
            schedule=None, prediction=None, timesteps="logit_normal", timestep_mean=0.4
        ),
        caption_dropout=0.1,
        steps=6_000,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=200),
        ema_decay=0.995,
        sheet_every=2_000,
        checkpoint_every=500,
        sheet=TuningSheet(
            prompts=(
                "a large red circle on a yellow background moving slowly left",
                "a small blue square on a white background moving quickly up right",
                "a medium green triangle on a black background standing still",
                "a large pink star on a cyan background moving quickly down",
            ),
            guidance_scale=3.0,
        ),
    ),
)
