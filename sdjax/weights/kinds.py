"""What kind of model some parts make: whose conventions it follows, and what its U-Net is given."""

from collections.abc import Mapping

from sdjax.weights import infer
from sdjax.weights.checkpoint import Part

LATENT_CHANNELS = 4  # of configurations that do not say, as in diffusers


def family_of(parts: Mapping[str, Part]) -> str:
    """Whose conventions a file of these parts follows: sd1, sd2, sdxl, refiner, x4, svd or sound."""
    if "unet" in parts:
        config = parts["unet"].config
        family = infer.unet_family(config)
        if family == "sdxl" and "text_encoder_2" in parts and "text_encoder" not in parts:
            # The refiner's context is the second encoder's alone; SDXL's is that of both.
            alone = parts["text_encoder_2"].config.get("hidden_size")
            return "refiner" if config.get("cross_attention_dim") == alone else "sdxl"
        if family in ("sd1", "sd2") and "text_encoder" in parts:
            # The layout of the text encoder decides, whatever projections the U-Net has.
            act = parts["text_encoder"].config.get("hidden_act", "quick_gelu")
            return "sd1" if act == "quick_gelu" else "sd2"
        return family
    if "controlnet" in parts:
        return infer.unet_family(parts["controlnet"].config)
    if "vae" in parts and parts["vae"].config.get("scaling_factor") == infer.SCALING["sdxl"]:
        return "sdxl"
    return "sdxl" if set(parts) == {"text_encoder_2"} else "sd1"


def given_beside(parts: Mapping[str, Part]) -> str:
    """What a U-Net's input channels hold beside the latents: "", "inpainting", "edit" or "depth".

    Counted from the autoencoder's latent channels, without one from those that the U-Net predicts:
    a mask and an image, an image, or a depth map; "other" where they are none of these.
    """
    unet = parts["unet"].config
    taken = unet.get("in_channels") or LATENT_CHANNELS
    if "vae" in parts:
        latents = parts["vae"].config.get("latent_channels") or LATENT_CHANNELS
    else:
        latents = unet.get("out_channels") or LATENT_CHANNELS
    kinds = {0: "", 1: "depth", latents: "edit", latents + 1: "inpainting"}
    return kinds.get(taken - latents, "other")
