"""IP-Adapters as conditions: pictures that the U-Net's attention looks at beside the prompt."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from sdjax import parallel
from sdjax.errors import SdjaxError
from sdjax.models.ip_adapter import PLAIN, cross_attentions
from sdjax.pipeline.compiled import arrays, coding, places
from sdjax.pipeline.compiled.once import one_a_device
from sdjax.pipeline.given import inputs
from sdjax.pipeline.steering.base import Source, Steering, held
from sdjax.weights.clip_vision import CLIPVision
from sdjax.weights.ip_adapter import adapter_file, read_ip_adapter
from sdjax.words import told_words

ENCODER = "image_encoder"  # beside an IP-Adapter, as it is published
_pictures = inputs.picture_list("RGB")


@dataclasses.dataclass(frozen=True, eq=False)
class IPAdapter(Source):
    """An IP-Adapter (arXiv 2308.06721) and its picture encoder, a copy on each local device.

    Called with a picture it gives a value for `generate(controls=[…])`.
    """

    encoder: CLIPVision
    encoder_params: Any

    @classmethod
    @told_words
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        image_encoder: str | os.PathLike | None = None,
        dtype: str = "float32",
        offload: bool = False,
    ) -> "IPAdapter":
        """Reads a plain, plus or full IP-Adapter of SD1 or SDXL.

        source: a .safetensors or .bin file, or a folder with one. image_encoder: the CLIP that it
        was trained with, a folder, file or hub id as `sdjax.CLIPVision` reads it; None for the
        folder image_encoder beside the file. dtype: what both compute in and their parameters are
        held in. offload: see `StableDiffusion.from_pretrained`. Raises SdjaxError where they do not
        fit, and for adapters of faces' embeddings.
        """
        path = adapter_file(source)
        if image_encoder is None:
            image_encoder = path.parent / ENCODER
            if not image_encoder.is_dir():
                raise SdjaxError(
                    f"{path} needs the picture encoder that it was trained with: give its folder "
                    f"as image_encoder, there is no {Path(ENCODER)} beside the file"
                )
        network, params = read_ip_adapter(path, dtype)
        encoder, encoder_params = CLIPVision.from_pretrained(image_encoder, dtype=dtype)
        _check_encoder(network.config, encoder.config, path, image_encoder)
        return cls(network, held(params, offload), encoder, held(encoder_params, offload))

    def __call__(
        self, picture, scale: float = 1.0, start: float = 0.0, end: float = 1.0
    ) -> "Referenced":
        """What the prompt's attention looks at as well: the subject, or the style, of a picture.

        picture: as `generate` takes `image`, one, or one for each prompt or image, of which the
        middle square is seen; [[a, b]] shows two together, the same number to each image. scale:
        how much they count beside the prompt. start, end: the share of the evaluations before
        which, and after which, they do not.
        Raises SdjaxError for values that do not fit.
        """
        return Referenced(self, picture, scale, start, end)


class Referenced(Steering):
    """An `IPAdapter` with its pictures and strength; see `IPAdapter.__call__`."""

    acts = "references"

    @staticmethod
    def check_picture(name: str, value: object) -> list[list]:
        """A group of pictures for each prompt or image."""
        several = isinstance(value, list | tuple)
        if several and any(isinstance(one, list | tuple) for one in value):
            groups = [_pictures(f"{name} {i}", one) for i, one in enumerate(value)]
        else:
            groups = [[one] for one in _pictures(name, value)]
        counts = {len(group) for group in groups}
        if len(counts) > 1:
            raise SdjaxError(
                f"{name} must show the same number of pictures to each image, got "
                f"{' and '.join(map(str, sorted(counts)))}"
            )
        return groups

    def check(self, unet, factor, size) -> None:
        own = self.source.network.config
        wanted = tuple(width for _, width in cross_attentions(unet))
        if (own.layers, own.context_width) != (wanted, unet.context_width):
            raise SdjaxError(
                f"this IP-Adapter is of another family than the model: it is for {len(own.layers)} "
                f"attentions to contexts {own.context_width} wide, the model has {len(wanted)} to "
                f"contexts {unet.context_width} wide"
            )

    def encoded(self, size, tile) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Keys and values of each group of pictures, and last of what no picture is."""
        from sdjax.data.clip_picture import clip_picture  # which loads what data loaders need

        source = self.source
        side = source.encoder.config.image_size
        shown = np.stack(
            [[clip_picture(_as_image(one), side) for one in group] for group in self.picture]
        )
        shown = np.concatenate([shown, np.zeros_like(shown[:1])])
        keep = np.float32(np.arange(len(shown)) < len(self.picture))
        run = places.compiled(
            coding.pictures_to_references, source.encoder, source.network, in_axes=(None, 0)
        )
        params = parallel.placed((source.encoder_params, source.params))
        return one_a_device(lambda some: run(params, some), (shown, keep))

    def arrays(self, encoded, which, branches, negatives, tables, rows) -> arrays.Reference:
        nothing = len(self.picture)
        seen = np.full((len(which), branches), nothing)
        seen[:, negatives:] = which[:, None]
        return arrays.Reference(
            layers=jax.tree.map(lambda array: array[seen], encoded),
            scale=self.shares(branches, tables, rows),
        )


def _check_encoder(own, encoder, path, source) -> None:
    """SdjaxError where a picture encoder does not give what an IP-Adapter takes."""
    if own.kind == PLAIN and not encoder.projected:
        raise SdjaxError(
            f"{path} takes the projected embedding of a picture, which {source} does not give: "
            "expected a CLIPVisionModelWithProjection"
        )
    width = encoder.projection_dim if own.kind == PLAIN else encoder.hidden_size
    if width != own.input_width:
        raise SdjaxError(
            f"{path} takes {own.input_width} numbers from its picture encoder, {source} gives "
            f"{width}: expected the one that it was trained with"
        )


def _as_image(picture: Image.Image | np.ndarray) -> Image.Image:
    """A picture of `inputs.picture_list` with 8 bits, as CLIP's preparation takes it."""
    if isinstance(picture, Image.Image):
        return picture
    return Image.fromarray(np.uint8(np.rint((picture + 1) * 127.5)))
