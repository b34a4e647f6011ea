"""IP-Adapters and their files: .safetensors, and PyTorch's with its two dictionaries."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.folders import check_local
from sdjax.models import ip_adapter
from sdjax.models.ip_adapter import HEAD_WIDTH, PLAIN, PLUS, WHOLE, IPAdapterConfig
from sdjax.weights import infer
from sdjax.weights.kept_shapes import kept
from sdjax.weights.names import params_from_state
from sdjax.weights.single_file import read_file
from sdjax.weights.tensors import LazyTensor, dtype_of

ENDINGS = (".safetensors", ".bin")
_LAYER = r"ip_adapter\.(\d+)\.to_k_ip\.weight"


def adapter_file(source: str | os.PathLike) -> Path:
    """The one IP-Adapter's file of a folder, or the file itself; SdjaxError where there is none."""
    check_local(source)
    path = Path(source)
    if not path.is_dir():
        if not path.is_file():
            raise SdjaxError(f"no such file of an IP-Adapter: {source}")
        return path
    for ending in ENDINGS:
        found = sorted(file.name for file in path.glob(f"*{ending}") if "ip" in file.name.lower())
        if len(found) > 1:
            raise SdjaxError(f"{path} holds several IP-Adapters, name one: {', '.join(found)}")
        if found:
            return path / found[0]
    raise SdjaxError(f"{path} holds no IP-Adapter: expected ip-adapter….safetensors or .bin")


def adapter_config(state: Mapping[str, LazyTensor]) -> IPAdapterConfig:
    """What the shapes of a file say; SdjaxError where it is of no known layout."""
    names = [key.removeprefix("image_proj.") for key in state if key.startswith("image_proj.")]
    numbers = sorted(int(match[1]) for match in (re.fullmatch(_LAYER, key) for key in state) if match)
    if not names or not numbers:
        raise SdjaxError(
            "no IP-Adapter was found: expected tensors of image_proj and of ip_adapter, got "
            f"{', '.join(sorted(state)[:3])}, …"
        )
    if "norm.weight" in names and "proj.weight" not in names or any(
        "perceiver_resampler" in key or "_lora." in key for key in state
    ):  # fmt: skip
        raise SdjaxError(
            "this is an IP-Adapter for the embedding of a face (Face-ID), which is not supported: "
            "expected a plain, plus or full one"
        )
    if numbers != list(range(1, 2 * len(numbers), 2)):
        raise SdjaxError(f"ip_adapter must count 1, 3, 5, …, got {numbers[:4]}, …")

    def shape(name):
        if name not in state:
            raise SdjaxError(f"the IP-Adapter's tensor {name} is missing: of no known layout")
        return state[name].shape

    keys = [shape(f"ip_adapter.{number}.to_k_ip.weight") for number in numbers]
    context, layers = keys[0][1], tuple(width for width, _ in keys)
    if "proj.weight" in names:
        rows, width = shape("image_proj.proj.weight")
        return IPAdapterConfig(PLAIN, width, context, layers, rows // context)
    if "proj.3.weight" in names:
        width = shape("image_proj.proj.0.weight")[1]
        return IPAdapterConfig(WHOLE, width, context, layers)
    _, tokens, width = shape("image_proj.latents")
    return IPAdapterConfig(
        PLUS,
        shape("image_proj.proj_in.weight")[1],
        context,
        layers,
        tokens,
        width,
        heads=shape("image_proj.layers.0.0.to_q.weight")[0] // HEAD_WIDTH,
        depth=infer.count(state, r"image_proj\.layers\.(\d+)\."),
    )


@kept
def adapter_shapes(config: IPAdapterConfig) -> dict:
    """Shapes of an IP-Adapter's parameters."""
    shape = (1, 1, config.input_width) if config.kind == PLAIN else (1, 1, 1, config.input_width)
    network = ip_adapter.IPAdapter(config)
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))["params"]


def read_ip_adapter(
    source: str | os.PathLike, dtype: str = "float32"
) -> tuple[ip_adapter.IPAdapter, dict]:
    """(network, params) of a file, or of a folder with one.

    Raises SdjaxError for anything else, and for an adapter that is given the embedding of a face.
    """
    path = adapter_file(source)
    state, _ = read_file(path)
    try:
        config = adapter_config(state)
        params = params_from_state(state, dtype, adapter_shapes(config))
    except SdjaxError as error:
        raise SdjaxError(f"{path}: {error}") from error
    return ip_adapter.IPAdapter(config, dtype_of(dtype)), params
