"""One captioned object: "a large red circle on a yellow background".

    python main.py train --config configs/shapes.py --workdir runs/shapes

A fifth of the captions is kept out of training. An autoencoder (8x8x8 latents), then a
text-to-image U-Net with its own text encoder.

As measured on 2026-11-23 on two cores of an AMD EPYC, shared with other work: 17 minutes. The
autoencoder's pictures are read rightly in 93 % (stars lose their points), and with guidance 2 the
model's in 30 % of 256 seen captions and 29 % of 163 kept out: backgrounds 100 %, colours 94 %,
sizes 64 %, shapes 30 %.
"""

from sdjax.data import DataConfig
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.training import (
    AutoencoderRun,
    DenoisingConfig,
    LatentRun,
    OptimizerConfig,
    Recipe,
    ScheduleConfig,
    SheetConfig,
)

config = Recipe(
    data=DataConfig(source="shapes", objects="one", image_size=32),
    examples=12_000,
    autoencoder=AutoencoderRun(
        steps=2_400,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=100),
        reconstruction="l2",
        sheet_every=1_200,
        checkpoint_every=400,
        vae=VAEConfig(
            latent_channels=8,
            block_out_channels=(8, 16, 32),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=1,
            sample_size=32,
            mid_block_add_attention=False,
        ),
    ),
    diffusion=LatentRun(
        steps=3_600,
        batch_size=32,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200),
        sheet_every=1_200,
        checkpoint_every=400,
        unet=UNetConfig(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            block_out_channels=(48, 64, 80),
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            mid_block_type=None,
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=128,
            attention_head_dim=4,
            use_linear_projection=True,
        ),
        text_encoder=TextEncoderConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=24,
            projection_dim=128,
        ),
        denoising=DenoisingConfig(
            schedule=ScheduleConfig("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True),
            prediction="x_0",
        ),
        vocab_size=1024,
        sheet=SheetConfig(
            prompts=(
                "a large red circle on a yellow background",
                "a small blue square on a white background",
                "a medium green triangle on a black background",
                "a large pink star on a cyan background",
                "a small black heart on a pink background",
                "a medium white circle on a blue background",
                "a large yellow square on a green background",
                "a small cyan star on a red background",
            ),
        ),
    ),
)
