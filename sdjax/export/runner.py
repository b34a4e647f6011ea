"""An exported model's pictures, by NumPy and the target's runtime: what an app has to do.

    from sdjax.export.runner import Runner
    pixels = Runner("exported")("penguin", seed=1)

JAX is not imported, unless it is the target.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.export.layout import DECODER, PROGRAMS, SETTINGS, TEXT, UNET, VERSION
from sdjax.export.runtimes import opened
from sdjax.export.words import Words


class Runner:
    """A function of a prompt to a picture.

    folder: what `export` wrote. Raises SdjaxError where it is none, or the runtime is missing.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        try:
            self.settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SdjaxError(f"{folder} is no exported model: it needs {SETTINGS}") from error
        if self.settings["version"] != VERSION:
            raise SdjaxError(
                f"{folder} has layout {self.settings['version']}, expected {VERSION}: export anew"
            )
        self.programs = {
            name: opened(
                self.settings["target"], folder / self.settings["programs"][name]["file"],
                self.settings["programs"][name],
            )
            for name in PROGRAMS
        }  # fmt: skip
        self.words = [Words(one) for one in self.settings["tokenizers"]]
        self.batch = self.settings["batch"]

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        seed: int = 0,
        guidance_scale: float | None = None,
        noise: Callable[[tuple[int, ...]], np.ndarray] | None = None,
    ) -> np.ndarray:
        """float32 [H, W, 3] in [-1, 1].

        guidance_scale: the model's own where None; 1 turns guidance off. noise: a function of a
        shape [h, w, C] to normal noise, called first for where the picture starts from; NumPy's
        generator of `seed` where None. Prompts are taken literally.
        """
        scale = self.settings["guidance_scale"] if guidance_scale is None else guidance_scale
        shape = tuple(self.settings["latents"])
        if noise is None:
            noise = np.random.default_rng(seed).standard_normal
        guided = scale not in (0, 1) and not self.settings["distilled"]
        branches = [self.embedded(prompt)]
        if guided:
            branches.insert(0, self.embedded(negative_prompt))
        given = {name: np.concatenate([one[name] for one in branches]) for name in branches[0]}
        if self.settings["time_ids"] is not None:
            given["time_ids"] = np.float32(self.settings["time_ids"])[-len(branches) :]
        if self.settings["distilled"]:
            given["guidance_scale"] = np.float32([scale])

        def denoise(x, t):
            made = self.predicted({
                "sample": np.repeat(x[None], len(branches), 0),
                "timestep": np.full(len(branches), t, np.float32),
                **given,
            })  # fmt: skip
            return made[0] + np.float32(scale) * (made[1] - made[0]) if guided else made[0]

        x = sampled(denoise, self.settings["table"], lambda: np.float32(noise(shape)))
        return self.programs[DECODER](latents=x[None])["pixels"][0]

    def embedded(self, text: str | None) -> dict[str, np.ndarray]:
        """What the text encoders make of a text; of None what stands for no negative prompt."""
        names = self.settings["programs"][TEXT]["inputs"]
        ids = [words.ids(text or "") for words in self.words]
        made = self.programs[TEXT](**dict(zip(names, ids, strict=True)))
        if text is None and self.settings["zero_negative"]:
            made = {name: np.zeros_like(array) for name, array in made.items()}
        wanted = self.settings["programs"][UNET]["inputs"]
        return {name: array for name, array in made.items() if name in wanted}

    def predicted(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """The U-Net's predictions for any number of inputs, as many at once as it takes."""
        count, made = len(given["sample"]), []
        for first in range(0, count, self.batch):
            # The last call is filled up.
            numbers = np.minimum(np.arange(first, first + self.batch), count - 1)
            part = {name: array[numbers] for name, array in given.items()}
            made.append(self.programs[UNET](**part)["prediction"])
        return np.concatenate(made)[:count]


def sampled(denoise: Callable, table: dict, noise: Callable[[], np.ndarray]) -> np.ndarray:
    """Carries a sampler's table out, one row a step, as `sdjax.diffusion.tables` explains it.

    denoise: function of (x [h, w, C], timestep) to the prediction. table: of an export's settings.
    noise: gives normal noise [h, w, C] at each call, float32.
    """
    x = np.float32(table["initial_scale"]) * noise()
    y, history = np.zeros_like(x), [np.zeros_like(x)] * 3
    for row in table["rows"]:
        added = np.float32(row["noise"]) * noise() if row["noise"] else np.float32(0)
        if row["timestep"] is None:
            x = x + added
            continue
        prediction = denoise(np.float32(row["input_scale"]) * x, row["timestep"])
        outer, *inner = row["x_0"]
        x_0 = bounded(np.float32(outer) * _sum(inner, (x, prediction)), table)
        derivative = _sum(row["derivative"], (x, x_0, prediction))
        terms = (x, y, derivative, *history)
        x, y = _sum(row["x"], terms) + added, _sum(row["y"], terms)
        if row["remember"]:
            history = [derivative, *history[:-1]]
    return x


def bounded(x_0: np.ndarray, table: dict) -> np.ndarray:
    """x_0 clipped as the table says, or thresholded dynamically (arXiv 2205.11487)."""
    if table["threshold"] is not None:
        quantile, most = table["threshold"]
        bound = np.float32(np.clip(np.quantile(np.abs(x_0), quantile), 1, most))
        return np.clip(x_0, -bound, bound) / bound
    return x_0 if table["clip"] is None else np.clip(x_0, -table["clip"], table["clip"])


def _sum(coefficients: list[float], arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    return sum(np.float32(c) * array for c, array in zip(coefficients, arrays, strict=True))
