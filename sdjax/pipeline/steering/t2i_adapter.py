"""T2I-Adapters as conditions: features of a picture, made once, that are added in the U-Net."""

import numpy as np

from sdjax import parallel
from sdjax.errors import SdjaxError
from sdjax.pipeline.compiled import arrays, coding, places
from sdjax.pipeline.compiled.once import one_a_device
from sdjax.pipeline.given import inputs
from sdjax.pipeline.steering.base import Source, Steering
from sdjax.weights import t2i_adapter

_GREY = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow has it


class T2IAdapter(Source):
    """A T2I-Adapter (arXiv 2302.08453) with its parameters, a copy on each local device.

    Called with a picture it gives a value for `generate(controls=[…])`.
    """

    kind = t2i_adapter.T2IAdapter

    def __call__(
        self, picture: inputs.Pictures, scale: float = 1.0, start: float = 0.0, end: float = 1.0
    ) -> "Featured":
        """What the picture asks for: the edges, depths or pose that the network was trained on.

        picture: as `generate` takes `image`, one, or one for each prompt or image; it is resized,
        and made grey for a network that takes one channel. scale: of the features. start, end: the
        share of the evaluations before which, and after which, they are not added.
        Raises SdjaxError for values that do not fit.
        """
        return Featured(self, picture, scale, start, end)


class Featured(Steering):
    """A `T2IAdapter` with its picture and strength; see `T2IAdapter.__call__`."""

    acts = "features"

    def check(self, unet, factor, size) -> None:
        config = self.source.network.config
        if config.in_channels not in (1, 3):
            raise SdjaxError(
                f"this T2I-Adapter takes {config.in_channels} channels: expected those of a grey "
                "or a coloured picture, 1 or 3"
            )
        wanted = _levels(unet, factor)
        if config.levels not in (wanted, wanted[:-1]):
            raise SdjaxError(
                "this T2I-Adapter is of another family than the model: its features are "
                f"{_shown(config.levels)}, the model takes {_shown(wanted)}"
            )
        multiple = config.downscale_factor
        for name, side in zip(("height", "width"), size, strict=True):
            if side % multiple:
                raise SdjaxError(
                    f"{name} must be a multiple of {multiple} for this T2I-Adapter, got {side}; "
                    f"the nearest is {max(1, round(side / multiple)) * multiple}"
                )

    def encoded(self, size, tile) -> tuple[np.ndarray, ...]:
        pictures, network = self.resized(size), self.source.network.clone(tile=tile)
        if network.config.in_channels == 1:
            pictures = (pictures @ _GREY)[..., None]
        run = places.compiled(coding.pictures_to_features, network, in_axes=(None, 0))
        params = parallel.placed(self.source.params)
        return one_a_device(lambda some: run(params, some), pictures)

    def arrays(self, encoded, which, branches, negatives, tables, rows) -> arrays.Features:
        return arrays.Features(
            levels=tuple(level[which][:, None] for level in encoded),
            scale=self.shares(branches, tables, rows),
        )


def _levels(unet, factor: int) -> tuple[tuple[int, int], ...]:
    """(pixels per feature, channels) where a U-Net takes features: on the way down, and in the
    middle."""
    last, result = len(unet.block_out_channels) - 1, []
    for level, (width, name) in enumerate(
        zip(unet.block_out_channels, unet.down_block_types, strict=True)
    ):
        ends = level if "CrossAttn" in name else min(level + 1, last)
        result.append((factor * 2**ends, width))
    return (*result, (factor * 2**last, unet.block_out_channels[-1]))


def _shown(levels) -> str:
    return ", ".join(f"{width} at 1/{factor}" for factor, width in levels)
