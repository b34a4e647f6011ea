"""Two captioned objects and how they lie: "a large red circle above a small blue square on a
yellow background".

    python main.py train --config configs/shapes_pairs.py --workdir runs/shapes_pairs

A fifth of the combinations is kept out of training. The networks are those of configs/shapes.py,
the U-Net a little wider; every 6,000th checkpoint is kept, to see how accuracy grows with training.

Not yet trained to its end: time and result are still to be measured.
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
    data=DataConfig(source="shapes", objects="two", image_size=64),
    examples=30_000,
    autoencoder=AutoencoderRun(
        steps=2_400,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=100),
        sheet_every=600,
        checkpoint_every=400,
        vae=VAEConfig(
            latent_channels=16,
            block_out_channels=(8, 16, 32, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=64,
            mid_block_add_attention=False,
        ),
    ),
    diffusion=LatentRun(
        steps=48_000,
        batch_size=32,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200),
        sheet_every=3_000,
        checkpoint_every=1_000,
        keep_every=6_000,
        unet=UNetConfig(
            sample_size=8,
            in_channels=16,
            out_channels=16,
            block_out_channels=(80, 96, 112),
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
            schedule=ScheduleConfig("scaled_linear", 0.00085, 0.012),
            prediction="x_0",
        ),
        vocab_size=1024,
        sheet=SheetConfig(
            prompts=(
                "a large red circle above a small blue square on a yellow background",
                "a small white star left of a large black heart on a pink background",
                "a small green triangle inside a large cyan circle on a white background",
                "a medium pink square below a medium yellow star on a blue background",
                "a large blue heart right of a small red circle on a black background",
                "a medium black triangle above a large white square on a green background",
                "a small cyan heart inside a large red square on a yellow background",
                "a large yellow circle left of a medium green star on a red background",
            ),
        ),
    ),
)
