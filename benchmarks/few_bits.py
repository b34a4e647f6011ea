"""Weights of few bits: bytes, time to make, and what they cost in quality.

    python -m benchmarks.few_bits
    python -m benchmarks.few_bits --models sd15 sdxl

"emoji" is the model that comes with the project: the share of its captions whose picture is nearest
to the right one of all that it learned, drawn twice, by the wide weights and by those of each kind.
"sd15" and "sdxl" are U-Nets of the published shapes with random weights: the noise that they predict
for one latent at one timestep, its signal to noise ratio over the prediction in float32, where that
of bfloat16 weights is told beside it. Random weights are harder than trained ones only in that no
layer has learned to be robust; the figure compares kinds, and does not tell pictures' quality.

Bytes are those of all parameters in memory, over float32.
"""

import json
import time
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from rich.table import Table

from benchmarks.common import RESULTS, machine

KINDS = ("nf4", "int8", "int4", "fp8")
WANTED = {"int8": (0.30, 0.5), "fp8": (0.30, None), "int4": (0.16, 2.0), "nf4": (0.16, 2.0)}
"""Largest share of the bytes, and points of accuracy that it may cost."""


def held(tree) -> int:
    """Bytes of the arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def emoji(captions: int) -> Iterator[dict]:
    """Accuracy and bytes of the shipped model, a row more with each kind of weights."""
    import sdjax
    from sdjax.data import DataConfig
    from sdjax.evaluation.generation import Generation, generate
    from sdjax.evaluation.known import known_pictures
    from sdjax.evaluation.nearest import nearest_rate

    known, names = known_pictures(DataConfig(source="emoji", subset="core"))
    different = list(dict.fromkeys(names))
    order = np.random.default_rng(0).permutation(len(different))[:captions]
    asked = [different[i] for i in order]
    wide = sdjax.StableDiffusion.from_pretrained(sdjax.EMOJI)
    rows, first = {}, None
    for kind in (None, *KINDS):
        start = time.perf_counter()
        model = wide if kind is None else wide.quantized(kind)
        seconds = time.perf_counter() - start
        made = generate(model, asked, Generation(batch_size=16))
        first = made if first is None else first
        rate = nearest_rate(made, asked, known, names)
        error = np.mean((made.astype(np.float32) - first.astype(np.float32)) ** 2)
        rows[kind or "float32"] = {
            "bytes": held(model.params), "ratio": held(model.params) / held(wide.params),
            "seconds": seconds, "captions": len(asked), "right": 100 * rate.first,
            "among_five": 100 * rate.among_five,
            "psnr_db": None if kind is None else float(10 * np.log10(255**2 / error)),
        }  # fmt: skip
        yield rows


def full(name: str, side: int) -> Iterator[dict]:
    """A published U-Net with random weights: bytes, seconds, and the error of one prediction."""
    import sdjax
    from sdjax.models.quantized import is_narrow
    from sdjax.training.recipes.base import _drawn
    from sdjax.weights.published import published
    from sdjax.weights.quantized.rounding import is_chosen, quantized

    config = sdjax.UNetConfig.from_dict(published(name)["unet"])
    network, random = sdjax.UNet(config), np.random.default_rng(0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.asarray(_drawn(path, leaf, random, "float32")),
        sdjax.UNet.shapes(config),
    )
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    inputs = [normal(1, side, side, 4), jnp.full(1, 500.0), normal(1, 77, config.context_width)]
    if config.addition_embed_type == "text_time":
        inputs.append({"text_embeds": normal(1, 1280), "time_ids": jnp.zeros((1, 6))})
    predict = jax.jit(lambda params: network.apply({"params": params}, *inputs))
    expected = np.asarray(predict(params))

    def decibels(params) -> float:
        error = np.mean((np.asarray(predict(params)) - expected) ** 2)
        return float(10 * np.log10(np.mean(expected**2) / error))

    whole, rows = held(params), {}
    half = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32), params)
    rows["bfloat16"] = {"bytes": whole // 2, "ratio": 0.5, "snr_db": decibels(half)}
    del half
    for kind in KINDS:
        size, seconds = 0, 0.0

        def made(path, leaf, kind=kind):
            nonlocal size, seconds
            names = tuple(key.key for key in path)
            if not is_chosen(names, leaf.shape, kind):
                size += leaf.nbytes
                return leaf
            start = time.perf_counter()
            few = quantized(leaf, kind, names[-1] == "embedding")
            seconds += time.perf_counter() - start
            size += held(few)
            return np.asarray(few) if is_narrow(few) else few

        # The same numbers as of the program that makes them wide itself: tests hold it to them.
        error = decibels(jax.tree_util.tree_map_with_path(made, params))
        rows[kind] = {"bytes": size, "ratio": size / whole, "seconds": seconds, "snr_db": error}
        yield rows


def main(
    models: tuple[Literal["emoji", "sd15", "sdxl"], ...] = ("emoji",),
    captions: int = 509,
    side: int = 32,
) -> None:
    """Measure, print a table and write benchmarks/results/few_bits.json, what is there else kept.

    Args:
        models: Which.
        captions: Of the shipped model's.
        side: Of the latents that the large U-Nets see.
    """
    path = RESULTS / "few_bits.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    settings = {"captions": captions, "side": side}
    for name in models:
        for rows in emoji(captions) if name == "emoji" else full(name, side):
            results[name] = {"machine": machine(), "settings": settings, "kinds": rows}
            RESULTS.mkdir(exist_ok=True)
            text = {"benchmark": "few_bits", "wanted": WANTED, "results": results}
            path.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n")
        table = Table(title=name, title_justify="left")
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        for column in ("weights", *columns):
            table.add_column(column, justify="right")
        for kind, row in rows.items():
            cells = (row.get(column) for column in columns)
            table.add_row(kind, *("" if x is None else f"{x:.4g}" for x in cells))
        rich.print(table)


if __name__ == "__main__":
    tyro.cli(main)
