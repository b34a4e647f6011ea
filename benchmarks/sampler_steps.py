"""Which sampler, and how many steps? Every sampler on a real model, against 1,000 steps.

The reference is DDIM with all 1,000 timesteps, from the same initial noise. Deterministic samplers
follow the same trajectories, so their latents are compared one by one; all samplers, the stochastic
ones too, are compared as sets by the energy distance, which is zero for equal distributions. Two
reference sets of other seeds tell what distance chance alone makes. Writes
results/sampler_steps.json and docs/sampler_steps.png.

    python -m benchmarks.sampler_steps
"""

import json
from pathlib import Path

import numpy as np
import rich
import tyro
from rich.table import Table

from benchmarks.common import RESULTS, machine
from main import SHIPPED
from sdjax.parallel import use_cpu_devices

TRAILING = {"spacing": "trailing"}
# Name in the plot: sampler, options. Steps are evaluations of the network.
DETERMINISTIC = {
    "DDIM": ("ddim", TRAILING),
    "PLMS": ("plms", TRAILING),
    "Euler": ("euler", {}),
    "Heun": ("heun", {}),
    "DPM++ 2M": ("dpmpp_2m", {}),
    "DPM++ 2M Karras": ("dpmpp_2m", {"sigmas": "karras"}),
    "DPM++ 2S": ("dpmpp_2s", {}),
    "UniPC": ("unipc", {}),
    "DEIS": ("deis", {}),
    "LMS": ("lms", {}),
}
STOCHASTIC = {
    "DDPM": ("ddpm", TRAILING),
    "Euler a": ("euler_a", {}),
    "DPM++ SDE Karras": ("dpmpp_sde", {"sigmas": "karras"}),
    "DPM++ 2M SDE Karras": ("dpmpp_2m_sde", {"sigmas": "karras"}),
    "DPM++ 3M SDE Karras": ("dpmpp_3m_sde", {"sigmas": "karras"}),
}
TWICE = {"heun", "dpmpp_sde"}  # evaluations a step


def energy_distance(a, b):
    """2·E‖a − b‖ − E‖a − a'‖ − E‖b − b'‖ of two sets [n, d], over √d (Székely & Rizzo 2013)."""

    def mean_distance(x, y):
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        return np.sqrt(np.maximum(squared, 0)).mean()

    scale = np.sqrt(a.shape[1])
    within = mean_distance(a, a) + mean_distance(b, b)
    return float((2 * mean_distance(a, b) - within) / scale)


def plot(results, chance, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 5))
    for name, rows in results.items():
        steps = [row["evaluations"] for row in rows]
        if name in DETERMINISTIC:
            panels[0].loglog(steps, [row["error"] for row in rows], "o-", ms=3, label=name)
        style = "o-" if name in DETERMINISTIC else "s--"
        panels[1].loglog(steps, [row["distance"] for row in rows], style, ms=3, label=name)
    panels[1].axhline(chance, color="grey", lw=1, label="two reference sets")
    for panel, title in zip(
        panels, ("error of each image's latents", "energy distance of the sets"), strict=True
    ):
        panel.set_title(title)
        panel.set_xlabel("evaluations of the network")
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(
    model: str = str(SHIPPED),
    prompts: tuple[str, ...] = ("red apple", "smiling face", "dog face", "blue heart"),
    images: int = 16,
    steps: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 40),
    reference_steps: int = 1000,
    guidance_scale: float = 2.0,
    save: bool = True,
):
    """Measures, prints and writes. images: of each prompt."""
    use_cpu_devices()
    from sdjax import StableDiffusion

    sd = StableDiffusion.from_pretrained(model)

    def latents(name, options, count, seed=0):
        made = sd.generate(
            list(prompts), steps=count, sampler=name, guidance_scale=guidance_scale, seed=seed,
            count=images, output="latents", **options,
        )  # fmt: skip
        return np.asarray(made, np.float64).reshape(len(made), -1)

    reference = latents("ddim", TRAILING, reference_steps)
    chance = energy_distance(reference, latents("ddim", TRAILING, reference_steps, seed=10**6))
    size = reference.std()
    results = {}
    for label, (name, options) in (DETERMINISTIC | STOCHASTIC).items():
        results[label] = []
        for count in steps:
            made = latents(name, options, count // 2 if name in TWICE else count)
            row = {"evaluations": count, "distance": energy_distance(made, reference)}
            if label in DETERMINISTIC:
                row["error"] = float(np.sqrt(((made - reference) ** 2).mean()) / size)
            results[label].append(row)

    for kind, title in (("error", "Error over the latents' deviation"), ("distance", "Distance")):
        table = Table("sampler", *map(str, steps), title=title)
        for label, rows in results.items():
            if kind in rows[0]:
                table.add_row(label, *(f"{row[kind]:.3f}" for row in rows))
        rich.print(table)
    rich.print(f"distance of two reference sets: {chance:.3f}")
    if save:
        RESULTS.mkdir(exist_ok=True)
        written = {
            "benchmark": "sampler_steps",
            "machine": machine(),
            "settings": {
                "model": Path(model).name,
                "prompts": prompts,
                "images": images,
                "guidance_scale": guidance_scale,
                "reference_steps": reference_steps,
            },
            "chance": chance,
            "results": results,
        }
        (RESULTS / "sampler_steps.json").write_text(json.dumps(written, indent=1) + "\n")
        plot(results, chance, Path(__file__).parent.parent / "docs" / "sampler_steps.png")


if __name__ == "__main__":
    tyro.cli(main)
