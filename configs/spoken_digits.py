r"""Speech: the digits of the Free Spoken Digit Dataset, "seven by jackson".

    python main.py train --config configs/spoken_digits.py --workdir runs/spoken_digits \
        --data.source folder:recordings
    python main.py evaluate spoken-digits --model runs/spoken_digits/model --recordings recordings \
        --generation.guidance-scale 2

`recordings` is the folder of that name of github.com/Jakobovski/free-spoken-digit-dataset: 3,000
recordings of 8 kHz by six speakers, of which the first five of each digit and speaker are kept out.
Pictures of 64x64 pixels are log-mel spectrograms of a second. An autoencoder (16x16x4 latents), then
a text-to-image U-Net with its own text encoder, as in configs/shapes.py; what is drawn becomes sound
by Griffin-Lim: `sample --model runs/spoken_digits/model --prompt "seven by jackson" --sound speech`.
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
    data=DataConfig(source="folder:recordings", image_size=64),
    autoencoder=AutoencoderRun(
        steps=5_000,
        batch_size=8,
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=100),
        reconstruction="l2",
        kl_weight=0.004,
        log_every=200,
        sheet_every=2_500,
        checkpoint_every=1_000,
        vae=VAEConfig(
            latent_channels=4,
            block_out_channels=(8, 16, 32),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            norm_num_groups=1,
            sample_size=64,
            mid_block_add_attention=False,
        ),
    ),
    diffusion=LatentRun(
        steps=4_000,
        batch_size=64,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=200),
        ema_decay=0.995,
        sheet_every=1_000,
        checkpoint_every=500,
        unet=UNetConfig(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(48, 96),
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
        ),
        vocab_size=1024,
        sheet=SheetConfig(
            guidance_scale=2.0,
            prompts=(
                "zero by george",
                "one by jackson",
                "two by lucas",
                "three by nicolas",
                "four by theo",
                "five by yweweler",
                "six by george",
                "seven by jackson",
            ),
        ),
    ),
)
