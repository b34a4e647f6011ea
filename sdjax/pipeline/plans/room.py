"""Whether what is asked for can fit into memory at all, told before anything is compiled."""

import math

import jax
import numpy as np

from sdjax import room
from sdjax.errors import SdjaxError
from sdjax.models.tiny_vae import TinyVAEConfig
from sdjax.pipeline.given.tiling import Tiling
from sdjax.pipeline.plans.request import Request

_RESULT_BYTES = {"pil": 1, "numpy": 4, "latents": 4}  # of a number in what is given back


def check_room(
    asked: Request, size, shape, unet, vae, dtype, seen: Tiling = Tiling()
) -> None:
    """SdjaxError where the memory is too small for arrays that are there at the same time in any
    case; what passes may still be too much.

    size: height and width in pixels. shape: of an image's latents. unet, vae: configurations.
    dtype: what they compute in. seen: how much of a picture each of them sees at a time.

    These arrays are what a convolution takes and gives: of the decoder at the picture's size, for
    one picture, and of the U-Net at the latents', for all that a device makes at once. The pictures
    themselves are all there in the end.
    """
    pixels, item = math.prod(size) * (asked.frames or 1), np.dtype(dtype).itemsize
    places = math.prod([axis.window for axis in seen.windows] or shape[:-1])
    tile = [axis.window * vae.downsampling for axis in seen.tiles] or size
    tiny = isinstance(vae, TinyVAEConfig)
    widths = vae.decoder_block_out_channels if tiny else vae.block_out_channels
    decoder = 2 * math.prod(tile) * widths[0] * item * (asked.output != "latents")
    batch = min(asked.batch_size or asked.total, asked.total)
    image = 2 * places * unet.block_out_channels[0] * item
    result = math.prod(shape) if asked.output == "latents" else 3 * pixels
    results = asked.total * result * _RESULT_BYTES[asked.output]
    sides = f"{size[1]}x{size[0]} pixels"
    memory = room.of_devices()
    if memory is not None:
        alone = -(-batch // (1 if memory.shared else jax.local_device_count()))
        _check(max(decoder, image), memory.size, f"pictures of {sides}", "smaller ones")
        _check(alone * image, memory.size, f"{batch} pictures of {sides} at once",
               "a smaller batch_size")  # fmt: skip
    host = room.of_host()
    if host is not None:
        _check(results, host, f"{asked.total} pictures of {sides}", "a smaller count")


def _check(needed: int, there: int, what: str, instead: str) -> None:
    if needed > there:
        raise SdjaxError(
            f"{what} take more memory than there is, at least {needed / 2**30:,.1f} GiB of "
            f"{there / 2**30:,.1f}: ask for {instead}"
        )
