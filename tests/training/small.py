"""Recipes of a few thousand parameters and four steps."""

from sdjax.data import DataConfig
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.training import (
    AutoencoderRun,
    DenoisingConfig,
    LatentRun,
    OptimizerConfig,
    PixelRun,
    Recipe,
    ScheduleConfig,
    SheetConfig,
)

RUN = {"steps": 4, "batch_size": 4, "log_every": 2, "checkpoint_every": 2, "sheet_every": 0,
       "optimizer": OptimizerConfig(warmup_steps=1)}
DATA = DataConfig(source="shapes", image_size=32)
LATENT = Recipe(
    data=DATA,
    examples=12,
    autoencoder=AutoencoderRun(**RUN, sheet_images=2, vae=VAEConfig(
        latent_channels=8, block_out_channels=(4, 4), norm_num_groups=2, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        mid_block_add_attention=False,
    )),
    diffusion=LatentRun(
        **RUN, vocab_size=600, sheet=SheetConfig(images=2, steps=2),
        denoising=DenoisingConfig(prediction="x_0"),
        unet=UNetConfig(
            sample_size=16, in_channels=8, out_channels=8, block_out_channels=(4,),
            layers_per_block=1, norm_num_groups=2, cross_attention_dim=8, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
            mid_block_type=None,
        ),
        text_encoder=TextEncoderConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=24, projection_dim=8,
        ),
    ),
)
PIXEL = PixelRun(
    **RUN, sheet=SheetConfig(images=4, steps=2, guidance_scale=1.0),
    unet=UNetConfig(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4,),
        layers_per_block=1, norm_num_groups=2, cross_attention_dim=None, attention_head_dim=None,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
    ),
    denoising=DenoisingConfig(ScheduleConfig("linear", 1e-4, 0.02), prediction="epsilon"),
)
PIXELS = Recipe(data=DATA, examples=8, diffusion=PIXEL)
