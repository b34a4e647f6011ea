"""LPIPS (arXiv 1801.03924): a distance of pictures in the features of VGG16, by given weights."""

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.weights.names import to_jax_layout
from sdjax.weights.single_file import read_file

BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""VGG16's convolutions by torchvision's numbers, those between two poolings together."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10


def read_lpips(paths: str) -> dict:
    """The weights of one file or of several, separated by commas: float32 arrays by "convN" and
    "linN".

    Known are VGG16 as torchvision saves it (features.N.weight), the lpips package's whole network
    (net.sliceM.N.weight), and its or taming-transformers' linear layers (linN.model.1.weight).
    Raises SdjaxError for other keys that matter, and names what is missing.
    """
    params, shapes = {}, {}
    for path in paths.split(","):
        for key, tensor in read_file(path)[0].items():
            parts = key.split(".")
            if parts[0] == "features" or (parts[0] == "net" and len(parts) == 4):
                name = f"conv{parts[-2]}"
            elif parts[0].startswith("lin") and parts[0][3:].isdecimal():
                name = parts[0]
            elif parts[0] in ("classifier", "scaling_layer", "lins", "net"):
                continue  # the classes; the fixed shift and scale; copies of the linear layers
            else:
                raise SdjaxError(f"{path} has {key!r}, which is neither VGG16's nor LPIPS'")
            leaf = "bias" if key.endswith("bias") else "kernel"
            value = (to_jax_layout(tensor) if len(tensor.shape) > 1 else tensor).load()
            params.setdefault(name, {})[leaf] = np.asarray(value, np.float32)
            shapes[name, leaf] = value.shape
    wanted = [(f"conv{n}", leaf) for block in BLOCKS for n in block for leaf in ("kernel", "bias")]
    wanted += [(f"lin{i}", "kernel") for i in range(len(BLOCKS))]
    if missing := [f"{name}.{leaf}" for name, leaf in wanted if leaf not in params.get(name, {})]:
        raise SdjaxError(
            f"{paths} lacks {', '.join(missing[:4])}: expected the weights of VGG16 (features.N) "
            "and of LPIPS (linN.model.1.weight), in one file or in two separated by a comma"
        )
    for i, block in enumerate(BLOCKS):
        if shapes[f"lin{i}", "kernel"][-2:] != (shapes[f"conv{block[-1]}", "bias"][0], 1):
            raise SdjaxError(f"{paths}: lin{i} is not for features of conv{block[-1]}")
    return params


def lpips_features(params, images) -> list[jax.Array]:
    """Features [N, h, w, C] of images float32 [N, H, W, 3] in [-1, 1], weighted so that the mean
    squared differences of two pictures', summed over the list, are their LPIPS.

    Raises SdjaxError for pictures of less than 16 pixels, of which nothing is left after four
    poolings.
    """
    if min(images.shape[1:3]) < 16:
        raise SdjaxError(
            f"LPIPS wants pictures of at least 16x16, got {images.shape[2]}x{images.shape[1]}")
    x = (images - jnp.array(SHIFT)) / jnp.array(SCALE)
    found = []
    for i, block in enumerate(BLOCKS):
        if i:
            x = jax.lax.reduce_window(
                x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for number in block:
            own = params[f"conv{number}"]
            x = jax.nn.relu(own["bias"] + jax.lax.conv_general_dilated(
                x, own["kernel"], (1, 1), [(1, 1), (1, 1)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ))
        length = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
        weights = jnp.maximum(params[f"lin{i}"]["kernel"].reshape(-1), 0)
        found.append(x / (length + EPSILON) * jnp.sqrt(weights * x.shape[-1]))
    return found
