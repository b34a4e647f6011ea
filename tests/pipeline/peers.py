"""Small random pipelines of each published kind, made by PyTorch diffusers."""

import diffusers
import numpy as np
import torch
import transformers

import sdjax
from tests.weights.small import SCHEDULER, TEXT_SD1, UNET_SD1, VAE_SD1

PROMPTS = ["a large red circle", "a blue square"]
LENGTH = TEXT_SD1["max_position_embeddings"]
CLASSES = {
    "sd1": diffusers.StableDiffusionPipeline,
    "sd2": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "distilled": diffusers.StableDiffusionPipeline,
    "inpaint": diffusers.StableDiffusionInpaintPipeline,
    "pix2pix": diffusers.StableDiffusionInstructPix2PixPipeline,
    "depth": diffusers.StableDiffusionDepth2ImgPipeline,
    "x4": diffusers.StableDiffusionUpscalePipeline,
    "refiner": diffusers.StableDiffusionXLImg2ImgPipeline,
    "sdxl_inpaint": diffusers.StableDiffusionXLInpaintPipeline,
    "sdxl_levels": diffusers.StableDiffusionXLPipeline,
}
LINEAR = {"use_linear_projection": True, "attention_head_dim": [2, 4]}
UNETS = {
    "sd1": UNET_SD1,
    "distilled": {**UNET_SD1, "time_cond_proj_dim": 16},
    # diffusers splits open_clip's fused projections of SD2 at 1024, so its width is the real one.
    "sd2": {**UNET_SD1, **LINEAR, "cross_attention_dim": 1024},
    "sdxl": {
        **UNET_SD1,
        **LINEAR,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "cross_attention_dim": 24 + 32,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    },
}
UNETS |= {
    "inpaint": {**UNET_SD1, "in_channels": 9},
    "pix2pix": {**UNET_SD1, "in_channels": 8},
    "x4": {**UNETS["sd2"], "in_channels": 7, "num_class_embeds": 10, "attention_head_dim": 2},
    "depth": {**UNETS["sd2"], "in_channels": 5},
    "sdxl_inpaint": {**UNETS["sdxl"], "in_channels": 9},
    "sdxl_levels": {
        **UNETS["sdxl"],
        "block_out_channels": [16, 32, 32],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [2, 4, 4],
    },
    "refiner": {
        **UNETS["sdxl"],
        "cross_attention_dim": 32,
        "projection_class_embeddings_input_dim": 32 + 5 * 8,
    },
}
SD2_TEXT = {
    **TEXT_SD1,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 1,
    "hidden_act": "gelu",
}
BIG_TEXT = {**TEXT_SD1, "hidden_size": 32, "projection_dim": 32, "hidden_act": "gelu"}


def make(kind, folder):
    """A random pipeline of a kind, saved to a folder."""
    open_clip = kind in ("sd2", "x4", "depth")
    torch.manual_seed(0)
    parts = {
        "vae": diffusers.AutoencoderKL(**VAE_SD1),
        "unet": diffusers.UNet2DConditionModel(**UNETS[kind]),
        "tokenizer": _tokenizer("!" if open_clip else None),
    }
    text = SD2_TEXT if open_clip else TEXT_SD1
    parts["text_encoder"] = _text(transformers.CLIPTextModel, text, parts["tokenizer"])
    prediction = "v_prediction" if kind in ("sd2", "x4") else "epsilon"
    scheduler = diffusers.DDIMScheduler(**SCHEDULER, prediction_type=prediction)
    if kind.startswith("sdxl") or kind == "refiner":
        tokenizer = parts["tokenizer_2"] = _tokenizer("!")
        model = transformers.CLIPTextModelWithProjection
        parts["text_encoder_2"] = _text(model, BIG_TEXT, tokenizer)
        if kind == "refiner":
            parts |= {"tokenizer": None, "text_encoder": None, "requires_aesthetics_score": True}
            parts["force_zeros_for_empty_prompt"] = False
        pipeline = CLASSES[kind](**parts, scheduler=scheduler, add_watermarker=False)
    elif kind == "depth":
        pipeline = CLASSES[kind](**parts, scheduler=scheduler, **_depth_extras())
    elif kind == "x4":
        low_res = diffusers.DDPMScheduler(beta_start=0.001, beta_schedule="scaled_linear")
        pipeline = CLASSES[kind](**parts, scheduler=scheduler, low_res_scheduler=low_res)
    else:
        pipeline = CLASSES[kind](
            **parts,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def _tokenizer(pad=None):
    ours = sdjax.train_tokenizer(PROMPTS, vocab_size=600, max_length=LENGTH)
    return transformers.CLIPTokenizer(
        vocab=ours.vocabulary,
        merges=ours.merges,
        model_max_length=LENGTH,
        **({"pad_token": pad} if pad else {}),
    )


def _depth_extras():
    config = transformers.DPTConfig(
        hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8,
        image_size=32, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4] * 4,
        fusion_hidden_size=4,
    )  # fmt: skip
    return {
        "depth_estimator": transformers.DPTForDepthEstimation(config),
        "feature_extractor": transformers.DPTImageProcessor(),
    }


def _text(model, config, tokenizer):
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = {**config, **ids, "vocab_size": len(tokenizer)}
    return model(transformers.CLIPTextConfig(**config))


def quiet(pipeline):
    """The pipeline without its progress bars."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load(kind, folder):
    """The pipeline of a folder."""
    return quiet(CLASSES[kind].from_pretrained(folder))


def make_controlnet(unet, folder, seed=1):
    """Saves a ControlNet for a U-Net, whose zero convolutions are none, and gives the folder."""
    torch.manual_seed(seed)
    network = diffusers.ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(8, 16)
    )
    for name, parameter in network.named_parameters():
        if "controlnet" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    return folder


def images(pipeline, prompts, **options):
    """Images [N, H, W, 3] in 0 … 1 of 20 guided steps."""
    options = {"num_inference_steps": 20, "guidance_scale": 5.0, **options}
    return pipeline(prompts, output_type="np", **options).images


def torch_latents(noise):
    """NHWC noise as PyTorch has it."""
    return torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())


def assert_close(ours, theirs):
    """Our images in [-1, 1] against theirs in 0 … 1."""
    error = (ours + 1) / 2 - theirs
    assert np.abs(error).max() < 1e-3
    assert -10 * np.log10((error**2).mean()) > 60
