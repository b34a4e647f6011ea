"""Which sampler, and how many steps? Every sampler on a real model, against 1,000 steps.

Two measures, both on the latents:

- Deterministic samplers follow one trajectory from the noise to the picture. Their error is the
  root mean square difference, image by image, from DDIM with 1,000 steps and the same noise, over
  the latents' standard deviation.
- All samplers, the stochastic ones too, make sets of pictures. Their distance is the energy
  distance from the set that DDPM makes with 1,000 steps and other seeds, zero for equal
  distributions. Two sets that do not differ have some distance by chance; what DDIM with 1,000
  steps has stands beside the others.

Steps are counted as evaluations of the network: for each number, a sampler takes as many of its
own steps as need no more. Samplers of distilled networks are left out, as the model is none.
Writes results/sampler_steps.json, docs/sampler_steps.png and the tables of docs/samplers.md.

    python -m benchmarks.sampler_steps
    python -m benchmarks.sampler_steps --only iPNDM   # anew; the others keep their figures
"""

import json
import re
from pathlib import Path

import numpy as np
import rich
import tyro

from benchmarks.common import RESULTS, machine
from sdjax import EMOJI, diffusion
from sdjax.parallel import use_cpu_devices

DOCS = Path(__file__).parent.parent / "docs"
KARRAS = {"sigmas": "karras"}
# Name in the plot: sampler, options.
DETERMINISTIC = {
    "DDIM": ("ddim", {}),
    "PLMS": ("plms", {}),
    "iPNDM": ("ipndm", {}),
    "Euler": ("euler", {}),
    "Heun": ("heun", {}),
    "LMS": ("lms", {}),
    "DPM2": ("dpm2", {}),
    "DPM++ 2M": ("dpmpp_2m", {}),
    "DPM++ 2M Karras": ("dpmpp_2m", KARRAS),
    "DPM++ 2S": ("dpmpp_2s", {}),
    "UniPC": ("unipc", {}),
    "DEIS": ("deis", {}),
}
STOCHASTIC = {
    "DDPM": ("ddpm", {}),
    "Euler a": ("euler_a", {}),
    "DPM2 a": ("dpm2_a", {}),
    "DPM++ 2S a": ("dpmpp_2s_a", {}),
    "DPM++ SDE Karras": ("dpmpp_sde", KARRAS),
    "DPM++ 2M SDE Karras": ("dpmpp_2m_sde", KARRAS),
    "DPM++ 3M SDE Karras": ("dpmpp_3m_sde", KARRAS),
}
SAMPLERS = DETERMINISTIC | STOCHASTIC
TRAILING = {"spacing": "trailing"}
OTHER_SEED = 10**6  # of the set that distances are measured from


def energy_distance(a, b):
    """2·E‖a − b‖ − E‖a − a'‖ − E‖b − b'‖ of two sets [n, d], over √d (Székely & Rizzo 2013)."""

    def mean_distance(x, y):
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        return np.sqrt(np.maximum(squared, 0)).mean()

    scale = np.sqrt(a.shape[1])
    within = mean_distance(a, a) + mean_distance(b, b)
    return float((2 * mean_distance(a, b) - within) / scale)


def steps_within(budget, config, name, options):
    """The most steps whose table needs no more than `budget` evaluations; 0 where one needs more.

    config: the model's scheduler configuration.
    """
    for steps in range(budget, 0, -1):
        table = diffusion.sampler_from_config(config, steps, name, **options)
        if table.evaluations <= budget:
            return steps
    return 0


def measure(latents, config, budgets, reference_steps, labels=SAMPLERS):
    """Runs samplers: a dict for JSON of errors and distances, and what the references have.

    latents: function of (sampler, its options, steps, first seed) that makes [n, d] latents.
    """
    smooth = latents("ddim", TRAILING, reference_steps, 0)
    noisy = latents("ddpm", TRAILING, reference_steps, OTHER_SEED)
    size = smooth.std()
    results = {}
    for label in labels:
        name, options = SAMPLERS[label]
        results[label] = []
        for budget in budgets:
            steps = steps_within(budget, config, name, options)
            if not steps:
                continue
            made = latents(name, options, steps, 0)
            row = {"evaluations": budget, "steps": steps, "distance": energy_distance(made, noisy)}
            if label in DETERMINISTIC:
                row["error"] = float(np.sqrt(((made - smooth) ** 2).mean()) / size)
            results[label].append(row)
        rich.print(label, [f"{row.get('error', row['distance']):.2g}" for row in results[label]])
    return {"results": results, "reference_distance": energy_distance(smooth, noisy)}


def markdown(measured, budgets, settings):
    """The tables, one row a sampler, as Markdown."""
    results = measured["results"]

    def table(kind):
        lines = [
            f"| {' | '.join(['sampler', *map(str, budgets)])} |",
            "|---" * (len(budgets) + 1) + "|",
        ]
        for label, rows in results.items():
            values = {row["evaluations"]: row[kind] for row in rows if kind in row}
            if values:
                cells = [f"{values[n]:.2g}" if n in values else "" for n in budgets]
                lines.append(f"| {' | '.join([label, *cells])} |")
        return "\n".join(lines)

    prompts = ", ".join(f"“{prompt}”" for prompt in settings["prompts"])
    return f"""
![error and distance over evaluations](sampler_steps.png)

The model `{settings["model"]}`, {settings["images"]} images each of {prompts}, guidance
{settings["guidance_scale"]:g}. Columns are evaluations of the network.

Deterministic samplers: difference of each image's latents from DDIM with
{settings["reference_steps"]:,} steps, over their standard deviation.

{table("error")}

All samplers: energy distance of the set from that of DDPM with
{settings["reference_steps"]:,} steps and other seeds. DDIM with
{settings["reference_steps"]:,} steps has {measured["reference_distance"]:.2g}.

{table("distance")}
"""


def write_between_marks(path, text):
    """Replaces what stands between the page's marks, so that no figure is copied by hand."""
    start, end = "<!-- sampler_steps: written by the command -->", "<!-- /sampler_steps -->"
    page, count = re.subn(
        f"({re.escape(start)}\n).*?({re.escape(end)})",
        lambda match: match[1] + text + match[2],
        path.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{path} must have the marks {start} and {end} once, found {count}")
    path.write_text(page, encoding="utf-8")


def plot(measured, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 5))
    for i, (name, rows) in enumerate(measured["results"].items()):
        steps = [row["evaluations"] for row in rows]
        style = {"color": f"C{i % 10}", "marker": "os^"[i // 10], "ms": 3, "label": name}
        if name in DETERMINISTIC:
            panels[0].loglog(steps, [row["error"] for row in rows], "-", **style)
        line = "-" if name in DETERMINISTIC else "--"
        panels[1].loglog(steps, [row["distance"] for row in rows], line, **style)
    panels[1].axhline(
        measured["reference_distance"], color="grey", lw=1, label="DDIM, reference steps"
    )
    for panel, title in zip(
        panels, ("error of each image's latents", "energy distance of the sets"), strict=True
    ):
        panel.set_title(title)
        panel.set_xlabel("evaluations of the network")
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize=6, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def kept(settings):
    """What results/sampler_steps.json holds, which must be of the same settings."""
    written = json.loads((RESULTS / "sampler_steps.json").read_text())
    if written["settings"] != settings:
        raise SystemExit(f"the figures there are of {written['settings']}: measure all samplers")
    return written


def main(
    model: str = str(EMOJI),
    prompts: tuple[str, ...] = ("red apple", "smiling face", "dog face", "blue heart"),
    images: int = 16,
    steps: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 40),
    reference_steps: int = 1000,
    guidance_scale: float = 2.0,
    only: tuple[str, ...] = (),
    save: bool = True,
):
    """Measures, prints and writes.

    images: of each prompt. steps: evaluations of the network. only: names of the plot, to measure
    these anew and keep the others' figures, where they have the same settings.
    """
    for label in only:
        if label not in SAMPLERS:
            raise SystemExit(f"no sampler {label!r} in the plot: choose from {', '.join(SAMPLERS)}")
    use_cpu_devices()
    from sdjax import StableDiffusion

    sd = StableDiffusion.from_pretrained(model)

    def latents(name, options, count, seed):
        # Noise of JAX: PyTorch's would be drawn on the host for all 1,000 steps.
        made = sd.generate(
            list(prompts), steps=count, sampler=name, guidance_scale=guidance_scale, seed=seed,
            count=images, noise="jax", output="latents", **options,
        )  # fmt: skip
        return np.asarray(made, np.float64).reshape(len(made), -1)

    settings = {
        "model": Path(model).name,
        "prompts": list(prompts),
        "images": images,
        "guidance_scale": guidance_scale,
        "reference_steps": reference_steps,
    }
    before = kept(settings) if only else {"machine": machine(), "renewed": {}, "results": {}}
    measured = measure(latents, sd.scheduler_config, steps, reference_steps, only or SAMPLERS)
    found = before["results"] | measured["results"]
    measured["results"] = {label: found[label] for label in SAMPLERS if label in found}
    text = markdown(measured, steps, settings)
    print(text)
    if save:
        RESULTS.mkdir(exist_ok=True)
        written = {
            "benchmark": "sampler_steps",
            "machine": before["machine"],
            "renewed": before.get("renewed", {}) | {label: machine() for label in only},
            "settings": settings,
            **measured,
        }
        (RESULTS / "sampler_steps.json").write_text(json.dumps(written, indent=1) + "\n")
        plot(measured, DOCS / "sampler_steps.png")
        write_between_marks(DOCS / "samplers.md", text)


if __name__ == "__main__":
    tyro.cli(main)
