"""The published Stable Diffusion models by name: their configurations, without weights."""

from sdjax.errors import SdjaxError
from sdjax.weights import infer

_LEVELS = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
_SD2 = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024}
_UNETS = {
    "sd15": {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd21": {"sample_size": 96, **_SD2, "use_linear_projection": True},
    "sdxl": {
        "sample_size": 128,
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu",
}  # fmt: skip
_CLIP_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 512,
    "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu",
}  # fmt: skip
_CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280,
    "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu",
    "architectures": ["CLIPTextModelWithProjection"],
}  # fmt: skip
_TEXTS = {"sd15": [_CLIP_L], "sd21": [_CLIP_H], "sdxl": [_CLIP_L, _CLIP_G]}
_FAMILIES = {"sd15": ("sd1", "epsilon"), "sd21": ("sd2", "v_prediction"), "sdxl": ("sdxl", "epsilon")}
PUBLISHED = tuple(_UNETS)


def published(name: str) -> dict[str, dict]:
    """The configurations of a published model: {"unet", "vae", "text_encoder", …, "scheduler"}.

    name: "sd15" (512 pixels), "sd21" (768, v-prediction) or "sdxl" (1024, which has a
    "text_encoder_2" as well). The values are those of the models' config.json files. Raises
    SdjaxError for another name.
    """
    if name not in _UNETS:
        raise SdjaxError(f"no published model {name!r}: there are {', '.join(PUBLISHED)}")
    family, prediction_type = _FAMILIES[name]
    unet = {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": _LEVELS[0],
        "up_block_types": _LEVELS[1],
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        **_UNETS[name],
    }
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 8 * unet["sample_size"],
        "scaling_factor": infer.SCALING[family],
        "force_upcast": name == "sdxl",
    }
    texts = {
        part: {"vocab_size": 49408, "max_position_embeddings": 77, **infer.CLIP_TOKENS, **config}
        for part, config in zip(("text_encoder", "text_encoder_2"), _TEXTS[name], strict=False)
    }
    scheduler = infer.scheduler_config(family, prediction_type)
    return {"unet": unet, "vae": vae, **texts, "scheduler": scheduler}
