r"""One captioned object: "a large red circle on a yellow background".

    python main.py train --config configs/shapes.py --workdir runs/shapes
    python main.py evaluate shapes-accuracy --model runs/shapes/model --generation.guidance-scale 3
    python main.py evaluate reconstruction --model runs/shapes/model --data.source shapes \
        --data.image-size 32

A fifth of the captions is kept out of training. An autoencoder (8x8x8 latents), then a
text-to-image U-Net with its own text encoder.

As measured on 2026-11-23 on two cores of an AMD EPYC: 12 minutes 1 second for all of it, of which
the autoencoder took 5 minutes 26 seconds and the diffusion 6 minutes 20 seconds. With guidance 3
the oracle reads 98.8 % of 256 seen captions and 96.3 % of the 163 kept out wholly right; of the
autoencoder's reconstructions it reads 100 % of 256, at 38.9 dB.

What that took: pooled text in the time embedding of every residual block, beside cross-attention;
a KL weight at which the decoder learns to mend small errors; v-prediction at timesteps near the
middle; one group in the autoencoder's norms, as several of few channels lose colour.
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
    examples=24_000,
    autoencoder=AutoencoderRun(
        steps=15_000,
        batch_size=8,
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=100),
        reconstruction="l2",
        kl_weight=0.004,
        log_every=200,
        sheet_every=5_000,
        checkpoint_every=2_500,
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
        steps=4_200,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=200),
        ema_decay=0.99,
        sheet_every=1_400,
        checkpoint_every=700,
        unet=UNetConfig(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            block_out_channels=(64, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=64,
            attention_head_dim=4,
            use_linear_projection=True,
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            resnet_time_scale_shift="scale_shift",
        ),
        text_encoder=TextEncoderConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=16,
            projection_dim=64,
        ),
        denoising=DenoisingConfig(
            schedule=ScheduleConfig("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True),
            prediction="v_prediction",
            timesteps="logit_normal",
            timestep_mean=-0.4,
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
