"""Tensors of a single file that belong to no network: known ones, foreign models, and the rest."""

import re
import warnings
from collections.abc import Mapping

from sdjax.errors import SdjaxError
from sdjax.weights import markers
from sdjax.weights.tensors import LazyTensor

# Where the networks are; their own tensors are checked when they are loaded.
_NETWORKS = re.compile(
    r"model\.diffusion_model\.|first_stage_model\.|control_model\.|"
    r"cond_stage_model\.(transformer|model)\.|conditioner\.embedders\.[01]\.(transformer|model)\.|"
    r"conditioner\.embedders\.0\.open_clip\.model\.visual\."
)
# What takes no part in making a picture here.
_KNOWN = re.compile(
    # Averages and losses of training, the noise levels that `markers` looks at, and their products.
    r"model_ema\.|loss\.|logvar$|lvlb_weights$|low_scale_model\.|"
    r"\w*alphas_cumprod(_prev)?$|betas$|posterior_\w+$|denoiser\.sigmas$|"
    # Of CLIP as a whole, which text encoders are cut from, and the depth estimator.
    r"(cond_stage_model|conditioner\.embedders\.[01])\.(logit_scale|text_projection)|"
    r".*position_ids$|depth_model\.|"
    # Of Stable Video Diffusion: CLIP's words, and the autoencoder again.
    r"conditioner\.embedders\.0\.open_clip\.model\.|conditioner\.embedders\.3\.encoder\."
)
_FOREIGN = {
    "noise_augmentor.": "SD2 unCLIP, which is given pictures by CLIP",
    "cc_projection.": "Zero123, which is given a picture and a camera by CLIP",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3, a transformer",
    "model.diffusion_model.double_blocks.": "Flux, a transformer",
}


def tell(state: Mapping[str, LazyTensor]) -> None:
    """Warns of tensors that nothing here understands, by their names.

    Raises SdjaxError for models that only look like a Stable Diffusion.
    """
    for start, kind in _FOREIGN.items():
        if any(key.startswith(start) for key in state):
            raise SdjaxError(f"the file holds {kind}: this kind of model is not supported")
    if not any(_NETWORKS.match(key) for key in state):
        return  # a part alone, without prefixes
    unknown = [
        key for key in state
        if not (_NETWORKS.match(key) or _KNOWN.match(key) or key in markers.KEYS)
    ]  # fmt: skip
    if unknown:
        more = ", …" if len(unknown) > 4 else ""
        warnings.warn(
            f"{len(unknown)} tensors of the file are not understood and left out: "
            f"{', '.join(unknown[:4])}{more}",
            stacklevel=4,
        )
