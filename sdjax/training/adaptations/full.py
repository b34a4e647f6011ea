"""Training of a model's own parameters, all of them or chosen layers."""

import re
from dataclasses import dataclass

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.errors import SdjaxError
from sdjax.weights.names import state_key

from .adaptation import Adaptation, adapted, as_float32


@dataclass(frozen=True)
class Full(Adaptation):
    """The parameters themselves: of the U-Net, of the text encoders, or of some layers."""

    unet: bool = True
    text_encoder: bool = False
    """Whether the text encoders are trained, both of SDXL."""
    layers: str = ""
    """Regular expression of the parameters that are trained, searched in names such as
    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight; empty for all."""
    text_encoder_learning_rate: float | None = None
    """Of the text encoders; None for the run's own."""

    def __post_init__(self):
        if not (self.unet or self.text_encoder):
            raise SdjaxError("nothing is trained: set adaptation.unet or text_encoder")
        try:
            re.compile(self.layers)
        except re.error as error:
            raise SdjaxError(
                f"adaptation.layers {self.layers!r} is not a regular expression: {error}"
            ) from error
        rate = self.text_encoder_learning_rate
        if rate is not None and not rate > 0:
            raise SdjaxError(f"text_encoder_learning_rate must be above 0, got {rate}")

    @property
    def trains_texts(self):
        """As the setting says."""
        return self.text_encoder

    def chosen(self, base):
        """For each part the paths of its trained leaves; SdjaxError where there are none."""
        found = {}
        for part, tree in base.items():
            wanted = self.unet if part == "unet" else self.text_encoder
            if part == "vae" or not wanted:
                continue
            paths = [path for path in flatten_dict(tree)
                     if re.search(self.layers, f"{part}.{state_key(path)}")]
            if paths:
                found[part] = paths
        if not found:
            raise SdjaxError(
                f"adaptation.layers {self.layers!r} names no parameter: expected part of a name "
                "such as unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
            )
        return found

    def init(self, key, base):
        """The chosen parameters as they are."""
        del key
        flat = {part: flatten_dict(tree) for part, tree in base.items() if part != "vae"}
        return as_float32({
            part: unflatten_dict({path: flat[part][path] for path in paths})
            for part, paths in self.chosen(base).items()
        })

    def kept(self, base):
        """The base without what is trained."""
        rest = dict(base)
        for part, paths in self.chosen(base).items():
            flat = flatten_dict(base[part])
            for path in paths:
                flat.pop(path)
            rest[part] = unflatten_dict(flat)
        return rest

    def apply(self, base, tree, key=None):
        """The base with the tree's leaves in their places."""
        del key
        parts = dict(base)
        for part, own in tree.items():
            parts[part] = unflatten_dict(flatten_dict(base.get(part, {})) | flatten_dict(own))
        return parts

    def rates(self, tree, learning_rate):
        """The text encoders' own rate, where there is one."""
        own = self.text_encoder_learning_rate
        return {
            part: jax.tree.map(
                lambda _, part=part: 1.0 if part == "unet" or own is None else own / learning_rate,
                leaves,
            )
            for part, leaves in tree.items()
        }

    def export(self, tree, folder, model, networks, dtype="float32", about=None):
        """Writes the whole model as a diffusers folder, `model/`."""
        del about
        place = folder / "model"
        whole = self.apply(model.params, tree)
        adapted(model, networks, whole).save_pretrained(place, dtype)
        return place
