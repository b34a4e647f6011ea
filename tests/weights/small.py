"""Small models of each kind: diffusers' and transformers' config dicts, and a whole pipeline."""

import jax
import numpy as np

import sdjax
from sdjax.weights import parts

UNET_SD1 = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
VAE_SD1 = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 16,
    "scaling_factor": 0.18215,
}
TEXT_SD1 = {
    "vocab_size": 600,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "hidden_act": "quick_gelu",
    "bos_token_id": 598,
    "eos_token_id": 599,
    "pad_token_id": 599,
}
CLAP = {
    "vocab_size": 300,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 66,
    "projection_dim": 16,
    "pad_token_id": 1,
}
UNET_SOUND = {
    **UNET_SD1,
    "in_channels": 8,
    "out_channels": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": [16, 32],
    "class_embed_type": "simple_projection",
    "class_embeddings_concat": True,
    "projection_class_embeddings_input_dim": 16,
}
VAE_SOUND = {**VAE_SD1, "in_channels": 1, "out_channels": 1, "latent_channels": 8,
             "scaling_factor": 0.9}  # fmt: skip
VOCODER = {
    "model_in_dim": 16,
    "sampling_rate": 16_000,
    "upsample_initial_channel": 16,
    "upsample_rates": [4, 2],
    "upsample_kernel_sizes": [8, 4],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "normalize_before": False,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def random_params(shapes, seed=0):
    """Random parameters of the given shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)


def random_pipeline() -> sdjax.StableDiffusion:
    """A Stable Diffusion of the first kind that draws 16x16 noise."""
    tokenizer = sdjax.train_tokenizer(["red apple", "rocket"] * 2, vocab_size=530, max_length=16)
    text = sdjax.TextEncoderConfig.from_dict({**TEXT_SD1, "vocab_size": len(tokenizer)})
    unet, vae = sdjax.UNetConfig.from_dict(UNET_SD1), sdjax.VAEConfig.from_dict(VAE_SD1)
    params = {
        "unet": random_params(parts.unet_shapes(unet)),
        "vae": random_params(parts.vae_shapes(vae)),
        "text_encoder": random_params(parts.text_shapes(text)),
    }
    scheduler = {"_class_name": "DDIMScheduler", **SCHEDULER}
    return sdjax.StableDiffusion(
        sdjax.UNet(unet), sdjax.VAE(vae), sdjax.TextEncoder(text), tokenizer, scheduler, params
    )
