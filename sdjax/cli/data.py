"""`sdjax data`: what is done with data before a training."""

from pathlib import Path
from typing import Literal

from .common import check_known, parsed, prepare_devices
from .train import WORDS

COMMANDS = {"encode": "compute latents and embedded captions once"}


def encode(
    config: Path, out: str, dtype: Literal["float32", "float16"] = "float32"
) -> tuple[Path, str, str]:
    """Compute the latents of all pictures of a recipe, and what its captions are embedded as.

    sdjax data encode --config full --model FOLDER --data.source tar:gs://bucket/shards --out DIR

    A training then reads them by --data.source encoded:DIR. The same command goes on where an
    earlier one was stopped; on several hosts each makes its share. With --diffusion.cache-texts
    True the captions are embedded too, for a training with that option.

    Args:
      config: A recipe, as `train` takes it.
      out: A folder, or an address such as gs://bucket/encoded.
      dtype: Of the arrays that are kept; float16 takes half the room, and rounds.
    """
    return config, out, dtype


def run(arguments: list[str], program: str) -> int:
    """Reads the recipe's own options, and encodes."""
    if not arguments or arguments[0] in ("-h", "--help"):
        arguments = ["encode", "--help"]  # there is no other
    check_known("command of data", arguments[0], COMMANDS)
    own = {"config", "out", "dtype"}
    (config, out, dtype), rest = parsed(
        encode, arguments[1:], f"{program} data", words=WORDS,
        ours={*own, *(n.split()[0] for n in WORDS.values())},
        required=["--config", "--out"], return_unknown_args=True,
    )  # fmt: skip
    from sdjax import parallel
    from sdjax.training.recipes.encode_run import encode_recipe
    from sdjax.training.recipes.recipe import load_config, with_overrides

    recipe = with_overrides(load_config(config), rest, f"{program} data encode --config {config}")
    prepare_devices([32])
    with parallel.together(recipe.distributed):
        encode_recipe(recipe, out, dtype)
    return 0
