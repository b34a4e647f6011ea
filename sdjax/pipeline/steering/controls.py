"""Which kind of network steers: for who has a folder or a file and need not say what it is."""

import os

from sdjax.pipeline.steering.control import Control
from sdjax.pipeline.steering.t2i_adapter import T2IAdapter
from sdjax.weights.folder import read_config
from sdjax.weights.hub import locate
from sdjax.weights.single_file import read_file
from sdjax.weights.t2i_adapter import is_t2i_adapter


def read_control(
    source: str | os.PathLike, dtype: str = "float32", offload: bool = False
) -> Control | T2IAdapter:
    """A ControlNet or a T2I-Adapter, whichever a folder, a file or a hub repository holds.

    dtype: what it computes in and its parameters are held in. offload: see
    `StableDiffusion.from_pretrained`. Raises SdjaxError for anything else.
    """
    path = locate(source)
    if path.is_dir():
        config = path / "config.json"
        adapter = config.is_file() and read_config(config).get("_class_name") == "T2IAdapter"
    else:
        adapter = is_t2i_adapter(read_file(path)[0])
    return (T2IAdapter if adapter else Control).from_pretrained(
        path, dtype=dtype, offload=offload
    )
