"""Recipes of a few thousand parameters and four steps."""

import dataclasses

import jax
import numpy as np

import sdjax
from sdjax.data import DataConfig
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.text.tokenizer import BEGIN, END
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
from sdjax.weights import VAE, TextEncoder, UNet

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


def small_model(texts, second=False):
    """A pipeline of random networks whose tokenizer is learned from these texts; with a second text
    encoder and sizes as SDXL has them.
    """
    run, tokenizer = LATENT.diffusion, sdjax.train_tokenizer(texts, vocab_size=600, max_length=24)
    text = dataclasses.replace(
        run.text_encoder, vocab_size=len(tokenizer), bos_token_id=tokenizer.vocabulary[BEGIN],
        eos_token_id=tokenizer.vocabulary[END], pad_token_id=tokenizer.pad_id,
        num_hidden_layers=3,
    )
    unet, extra = run.unet, {}
    if second:
        unet = dataclasses.replace(
            unet, cross_attention_dim=16, addition_embed_type="text_time",
            addition_time_embed_dim=4, projection_class_embeddings_input_dim=8 + 6 * 4,
        )
    networks = {"unet": UNet(unet), "vae": VAE(LATENT.autoencoder.vae),
                "text_encoder": TextEncoder(text)}
    if second:
        own = dataclasses.replace(text, architectures=("CLIPTextModelWithProjection",))
        networks["text_encoder_2"] = TextEncoder(own)
        extra = {"text_encoder_2": networks["text_encoder_2"], "tokenizer_2": tokenizer}
    random = np.random.default_rng(0)
    params = {
        name: jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32) / 4,
                           network.shapes(network.config))
        for name, network in networks.items()
    }
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
                "num_train_timesteps": 1000, "_class_name": "DDIMScheduler"}
    return sdjax.StableDiffusion(
        networks["unet"], networks["vae"], networks["text_encoder"], tokenizer, schedule, params,
        **extra,
    )
