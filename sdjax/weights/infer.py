"""Configurations from the names and shapes of a state, for files that come without one.

What shapes cannot tell (the number of heads, the activation, the latents' scale) is that of the
published Stable Diffusion models.
"""

import re
from collections.abc import Iterable, Mapping

from sdjax.errors import SdjaxError
from sdjax.models.unet_config import VIDEO_MODEL
from sdjax.models.vae import CLIPS
from sdjax.weights.tensors import LazyTensor

CLIP_TOKENS = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
HEAD_WIDTH = 64  # of SD2 and SDXL, and of every published text encoder
SD1_HEADS = 8
SECOND_WIDTH = 1280  # of SDXL's second text encoder, bigG

EDM_SIGMA_MIN = 0.002
# Lin et al. 2023, arXiv 2305.08891: without the last timestep there is nothing of it to see.
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

X4_NOISE = {"beta_start": 0.0001, "beta_end": 0.02}  # of its latents and of the picture it gets

SCALING = {"svd": 0.18215, "sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "refiner": 0.13025, "x4": 0.08333}
PLAYGROUND_SCALING = 0.5  # beside the latents' own mean and deviation
SIZES = {"sd1": 64, "sd2": 64, "sdxl": 128, "refiner": 128, "x4": 128, "svd": 96}
VIDEO_FRAMES = 14  # of the first Stable Video Diffusion; the later ones' shapes are the same


def count(state: Iterable[str], pattern: str) -> int:
    """How many numbers from 0 on the group of a pattern takes over the keys."""
    return 1 + max((int(m[1]) for m in (re.match(pattern, key) for key in state) if m), default=-1)


def unet_family(config: Mapping) -> str:
    """sd1, sd2, sdxl, refiner, x4, svd or sound: which published model a U-Net's configuration is
    like.
    """
    if config.get("class_embed_type") == "simple_projection":
        return "sound"
    if config.get("_class_name") == VIDEO_MODEL:
        return "svd"
    if config.get("addition_embed_type") == "text_time":
        return "refiner" if config.get("cross_attention_dim") == SECOND_WIDTH else "sdxl"
    if config.get("num_class_embeds"):
        return "x4"
    return "sd2" if config.get("use_linear_projection") else "sd1"


def unet_config(state: Mapping[str, LazyTensor]) -> dict:
    """The config.json of a U-Net, or what it shares with it of a ControlNet, from its state."""

    def shape(key):
        if key not in state:
            raise SdjaxError(
                f"the U-Net's tensor {key} is missing: the file is not whole, or the model is of "
                "no published kind and needs its diffusers folder as `config`"
            )
        return state[key].shape

    if any(".temporal_res_block." in key for key in state):
        return _video_config(state, shape)
    levels = count(state, r"down_blocks\.(\d+)\.")
    widths = [shape(f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)]
    attended = [f"down_blocks.{i}.attentions.0.proj_in.weight" in state for i in range(levels)]
    depths = [
        max(1, count(state, rf"down_blocks\.{i}\.attentions\.0\.transformer_blocks\.(\d+)\."))
        for i in range(levels)
    ]
    middle = "mid_block.attentions.0"
    block = f"{middle}.transformer_blocks.0"
    depths[-1] = max(1, count(state, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\."))
    context = shape(f"{block}.attn2.to_k.weight")[1]
    linear = len(shape(f"{middle}.proj_in.weight")) == 2
    only_cross = [
        has and shape(f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_k.weight")[1]
        != widths[i]
        for i, has in enumerate(attended)
    ]
    config = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shape("conv_in.weight")[1],
        "block_out_channels": widths,
        "layers_per_block": count(state, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attended],
        "cross_attention_dim": context,
        "transformer_layers_per_block": depths if len(set(depths)) > 1 else depths[0],
        "attention_head_dim": [w // HEAD_WIDTH for w in widths] if linear else SD1_HEADS,
        "use_linear_projection": linear,
        "only_cross_attention": only_cross if any(only_cross) else False,
    }
    if "conv_out.weight" in state:
        up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attended)]
        config |= {"out_channels": shape("conv_out.weight")[0], "up_block_types": up}
    if "add_embedding.linear_1.weight" in state:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": shape("add_embedding.linear_1.weight")[1],
        }
    if "class_embedding.weight" in state:
        config["num_class_embeds"] = shape("class_embedding.weight")[0]
        config["attention_head_dim"] = SD1_HEADS
    if "time_embedding.cond_proj.weight" in state:
        config["time_cond_proj_dim"] = shape("time_embedding.cond_proj.weight")[1]
    return {**config, "sample_size": SIZES[unet_family(config)]}


def _video_config(state: Mapping[str, LazyTensor], shape) -> dict:
    """The config.json of Stable Video Diffusion's U-Net from its state."""
    levels, block = count(state, r"down_blocks\.(\d+)\."), "spatial_res_block.conv1.weight"
    widths = [shape(f"down_blocks.{i}.resnets.0.{block}")[0] for i in range(levels)]
    attended = [f"down_blocks.{i}.attentions.0.proj_in.weight" in state for i in range(levels)]
    middle = "mid_block.attentions.0.transformer_blocks"
    named = [f"{'CrossAttn' if has else ''}{{}}BlockSpatioTemporal" for has in attended]
    return {
        "_class_name": VIDEO_MODEL,
        "sample_size": SIZES["svd"],
        "in_channels": shape("conv_in.weight")[1],
        "out_channels": shape("conv_out.weight")[0],
        "block_out_channels": widths,
        "down_block_types": [name.format("Down") for name in named],
        "up_block_types": [name.format("Up") for name in reversed(named)],
        "layers_per_block": count(state, r"down_blocks\.0\.resnets\.(\d+)\."),
        "cross_attention_dim": shape(f"{middle}.0.attn2.to_k.weight")[1],
        "transformer_layers_per_block": count(state, rf"{re.escape(middle)}\.(\d+)\."),
        "num_attention_heads": [width // HEAD_WIDTH for width in widths],
        "projection_class_embeddings_input_dim": shape("add_embedding.linear_1.weight")[1],
        "num_frames": VIDEO_FRAMES,
    }


def controlnet_config(state: Mapping[str, LazyTensor]) -> dict:
    """The config.json of a ControlNet from its state."""
    hint = "controlnet_cond_embedding"
    widths = [state[f"{hint}.conv_in.weight"].shape[0]]
    for i in range(1, count(state, rf"{hint}\.blocks\.(\d+)\."), 2):
        widths.append(state[f"{hint}.blocks.{i}.weight"].shape[0])
    config = unet_config(state)
    del config["sample_size"]
    return {
        **config,
        "_class_name": "ControlNetModel",
        "conditioning_channels": state[f"{hint}.conv_in.weight"].shape[1],
        "conditioning_embedding_out_channels": widths,
    }


def vae_config(state: Mapping[str, LazyTensor], family: str = "sd1") -> dict:
    """The config.json of an AutoencoderKL from its state; `family` gives the latents' scale."""
    levels = count(state, r"encoder\.down_blocks\.(\d+)\.")
    widths = [state[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0]
              for i in range(levels)]
    if "decoder.time_conv_out.weight" in state:
        return {
            "_class_name": CLIPS,
            "in_channels": state["encoder.conv_in.weight"].shape[1],
            "out_channels": state["decoder.conv_out.weight"].shape[0],
            "latent_channels": state["decoder.conv_in.weight"].shape[1],
            "block_out_channels": widths,
            "layers_per_block": count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "sample_size": SIZES["svd"] * 2 ** (levels - 1),
            "scaling_factor": SCALING["svd"],
        }
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": widths,
        "layers_per_block": count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in state,
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "sample_size": SIZES[family] * 2 ** (levels - 1),
        "scaling_factor": SCALING[family],
    }


def text_config(state: Mapping[str, LazyTensor]) -> dict:
    """The config.json of a text encoder from its state without prefix."""
    vocabulary, width = state["embeddings.token_embedding.weight"].shape
    projected = "text_projection.weight" in state
    clip_l = width <= 768
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count(state, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": state["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "quick_gelu" if clip_l else "gelu",
        "projection_dim": state["text_projection.weight"].shape[0] if projected else width,
        **CLIP_TOKENS,
    }


def scheduler_config(family: str, prediction_type: str) -> dict:
    """The scheduler_config.json that the published models of a family have."""
    common = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    if family == "x4":
        return {
            "_class_name": "DDIMScheduler",
            **common,
            **X4_NOISE,
            "clip_sample": False,
            "set_alpha_to_one": False,
        }
    if family in ("sdxl", "refiner"):
        return {"_class_name": "EulerDiscreteScheduler", **common}
    if family == "svd":
        noise = {"sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True}
        kind = {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}
        return kind | common | noise
    if family == "sd1":
        return {
            "_class_name": "PNDMScheduler",
            "skip_prk_steps": True,
            "set_alpha_to_one": False,
            **common,
        }
    return {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "set_alpha_to_one": False,
        **common,
    }


def playground_scheduler_config() -> dict:
    """The scheduler_config.json of Playground 2.5, a network with EDM's preconditioning."""
    return {
        "_class_name": "EDMDPMSolverMultistepScheduler",
        "prediction_type": "epsilon",
        "sigma_min": EDM_SIGMA_MIN,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "rho": 7.0,
        "num_train_timesteps": 1000,
        "solver_order": 2,
        "solver_type": "midpoint",
        "algorithm_type": "dpmsolver++",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
        "thresholding": False,
    }


def cosxl_scheduler_config(sigma_min: float, sigma_max: float) -> dict:
    """The scheduler_config.json of CosXL, of EDM's preconditioning where v is predicted."""
    return {
        "_class_name": "EDMEulerScheduler",
        "prediction_type": "v_prediction",
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "sigma_data": 1.0,
        "sigma_schedule": "exponential",
        "num_train_timesteps": 1000,
        "final_sigmas_type": "zero",
    }


def low_res_scheduler_config() -> dict:
    """The low_res_scheduler of the x4 upscaler, which adds noise to the picture it is given."""
    return {
        "_class_name": "DDPMScheduler",
        **X4_NOISE,
        "beta_schedule": "scaled_linear",
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "variance_type": "fixed_small",
    }
