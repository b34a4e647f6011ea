"""CLIP's picture encoder and its files: alone, in a whole CLIP, or in a safety checker.

Read are transformers' folders and single files in transformers' or open_clip's names.
"""


import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.models import clip_vision
from sdjax.weights.checkpoint import Part
from sdjax.weights.folder import STEMS, read_part
from sdjax.weights.hub import locate
from sdjax.weights.kept_shapes import kept
from sdjax.weights.parts import Pretrained, read_alone
from sdjax.weights.single_file import read_file
from sdjax.weights.vision_names import prefixed, vision_config, vision_state


@kept
def vision_shapes(config: clip_vision.CLIPVisionConfig) -> dict:
    """Shapes of a picture encoder's parameters."""
    pictures = jnp.zeros((1, config.image_size, config.image_size, config.num_channels))
    network = clip_vision.CLIPVision(config)
    return jax.eval_shape(network.init, jax.random.key(0), pictures)["params"]


def concepts(
    source, part: str, variant: str | None, revision: str | None, width: int
) -> dict[str, np.ndarray]:
    """What a safety checker compares a picture's embedding with: float32 vectors and thresholds.

    width: of the embedding. Raises SdjaxError where they are missing or of another width.
    """
    path = locate(source, variant, revision)
    state = read_part(path, part, variant).state if path.is_dir() else read_file(path)[0]
    found = {}
    for name in ("concept_embeds", "special_care_embeds"):
        for key in (name, f"{name}_weights"):
            if key not in state:
                raise SdjaxError(f"{source} is no safety checker: its tensor {key} is missing")
            found[key] = np.asarray(state[key].load(), np.float32)
        vectors, thresholds = found[name].shape, found[f"{name}_weights"].shape
        if vectors != (*thresholds, width):
            raise SdjaxError(
                f"{source}: {name} must have a threshold each and width {width}, got {vectors} and "
                f"{thresholds}"
            )
    return found


class CLIPVision(Pretrained, clip_vision.CLIPVision):
    """CLIP's picture transformer; see `sdjax.models.clip_vision.CLIPVision`."""

    part, stem = "image_encoder", STEMS[1]
    config_class, shapes = clip_vision.CLIPVisionConfig, staticmethod(vision_shapes)

    @classmethod
    def read(cls, source, part, variant, revision, config) -> Part:
        name = part or cls.part
        found = read_alone(
            source, name, variant, revision, config, vision_state, vision_config
        )
        described, state = found.config, found.state
        projected = clip_vision.PROJECTED in (described.get("architectures") or ())
        if projected or described.get("vision_config"):
            state = prefixed(state)
        return Part(described, state)
