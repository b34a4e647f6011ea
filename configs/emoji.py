"""Emoji from their names: the recipe of the model that the repository ships.

    python main.py train --config configs/emoji.py --workdir runs/emoji

It needs the font Noto Color Emoji and the names: apt install fonts-noto-color-emoji unicode-data.
On two cores of an AMD EPYC that other work shared (2026-11-23): 29 minutes for the autoencoder, 54
for the diffusion. Expect the nearest training picture to be the right one for 40 captions of 40.
The text encoder and the U-Net are as small as they are so that all weights fit 12 MB in float16.
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
    data=DataConfig(source="emoji", subset="core", image_size=64),
    autoencoder=AutoencoderRun(
        steps=3_000,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100),
        sheet_every=1_000,
        checkpoint_every=250,
        vae=VAEConfig(
            latent_channels=16,
            block_out_channels=(16, 32, 64, 96),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=64,
            mid_block_add_attention=False,
        ),
    ),
    diffusion=LatentRun(
        steps=9_000,
        batch_size=32,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200),
        sheet_every=1_000,
        checkpoint_every=500,
        ema_decay=0.999,
        unet=UNetConfig(
            sample_size=8,
            in_channels=16,
            out_channels=16,
            block_out_channels=(64, 80, 96),
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            layers_per_block=1,
            mid_block_type=None,
            cross_attention_dim=192,
            attention_head_dim=4,
            norm_num_groups=8,
            use_linear_projection=True,
        ),
        text_encoder=TextEncoderConfig(
            hidden_size=192,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=24,
            projection_dim=192,
        ),
        denoising=DenoisingConfig(
            schedule=ScheduleConfig("scaled_linear", 0.00085, 0.012),
            prediction="x_0",
        ),
        vocab_size=1024,
        sheet=SheetConfig(
            prompts=(
                "grinning face", "smiling face with sunglasses", "red heart", "tiger face",
                "penguin", "cherry blossom", "red apple", "pizza",
                "hot beverage", "birthday cake", "guitar", "crown",
                "blue heart with ribbon", "green apple with heart", "sunglasses on a lemon",
                "purple tulip",
            ),
            guidance_scale=2.0,
        ),
    ),
    export_dtype="float16",
)
