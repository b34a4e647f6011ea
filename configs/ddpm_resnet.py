r"""DDPM in pixels: emoji at 32x32, residual blocks and full self-attention.

    python main.py train --config configs/ddpm_resnet.py --workdir runs/ddpm_resnet

The same data, steps and size as configs/ddpm_convnext.py, to be seen side by side.

It took 13 minutes 53 seconds on 2026-11-23, on one core of an AMD EPYC whose other core was at
work; the README has the last sheet. Faces are clear with v-prediction under the cosine schedule;
with epsilon under the linear one, the objective of arXiv 2006.11239, their colours were still wrong
after 2,500 steps. To see that:

    python main.py train --config configs/ddpm_resnet.py --workdir runs/ddpm_epsilon \
        --diffusion.denoising.prediction epsilon --diffusion.denoising.schedule.name linear \
        --diffusion.denoising.schedule.beta-start 1e-4 --diffusion.denoising.schedule.beta-end 0.02
"""

from sdjax.data import DataConfig
from sdjax.models import UNetConfig
from sdjax.training import (
    DenoisingConfig,
    OptimizerConfig,
    PixelRun,
    Recipe,
    ScheduleConfig,
    SheetConfig,
)

config = Recipe(
    data=DataConfig(source="emoji", subset="Smileys & Emotion", image_size=32),
    diffusion=PixelRun(
        steps=4_000,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=200),
        ema_decay=0.995,
        sheet_every=1_000,
        checkpoint_every=1_000,
        unet=UNetConfig(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            block_out_channels=(24, 48, 64),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=None,
            attention_head_dim=16,
            norm_num_groups=8,
        ),
        denoising=DenoisingConfig(
            schedule=ScheduleConfig("cosine"), prediction="v_prediction"
        ),
        sheet=SheetConfig(images=32, steps=50, guidance_scale=1.0),
    ),
)
