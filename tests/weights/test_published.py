"""The published models by name have the parameters of the published files, key by key."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import sdjax
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.weights import infer, parts
from sdjax.weights.names import check_shapes, lazy_params
from sdjax.weights.published import PUBLISHED, published
from tests.weights.test_manifest import state_of

STATES = {
    "sd15": {"unet": "sd15_unet", "vae": "sd_vae", "text_encoder": "clip_vit_l14_text"},
    "sd21": {"unet": "sd21_unet", "vae": "sd_vae", "text_encoder": "openclip_h_text_23layers_sd2"},
    "sdxl": {
        "unet": "sdxl_base_unet",
        "vae": "sd_vae",
        "text_encoder": "clip_vit_l14_text",
        "text_encoder_2": "openclip_bigG_text_sdxl",
    },
}
# As published: Stable Diffusion's U-Nets by their papers and model cards.
PARAMETERS = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684}
KINDS = {
    "unet": (UNetConfig, parts.unet_shapes),
    "vae": (VAEConfig, parts.vae_shapes),
    "text_encoder": (TextEncoderConfig, parts.text_shapes),
    "text_encoder_2": (TextEncoderConfig, parts.text_shapes),
}


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name in PUBLISHED for part in STATES[name]]
)
def test_parameters(name, part):
    config, shapes = KINDS[part]
    own = config.from_dict(published(name)[part])
    state = state_of(STATES[name][part])
    check_shapes(lazy_params(state), flatten_dict(shapes(own)))
    if part == "unet":
        leaves = jax.tree.leaves(shapes(own))
        assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == PARAMETERS[name]
        # A state cannot tell the size of the pictures: SD2.1 has 512 in one file, 768 in another.
        inferred = {**infer.unet_config(state), "sample_size": own.sample_size}
        assert UNetConfig.from_dict(inferred) == own


def test_another_name():
    with pytest.raises(sdjax.SdjaxError, match="no published model 'sd3': there are sd15, sd21"):
        published("sd3")
