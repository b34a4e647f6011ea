"""What `benchmarks.finetune` measures of a finished training, and draws."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks import finetune_data as data
from sdjax import EMOJI, Control, StableDiffusion
from sdjax.evaluation.generation import Generation, generate
from sdjax.evaluation.grids import labelled_grid
from sdjax.evaluation.nearest import nearest, nearest_rate
from sdjax.evaluation.reconstruction import reconstruct
from sdjax.evaluation.sheets import sheet, to_uint8

BATCH = 4  # pictures at once, of all that is measured: one program each
SEEDS = 16
EIGHT = [f"seed {i}" for i in range(8)]


class Bench:
    """The pictures, the shipped model, the work folder of the trainings, and that of the sheets."""

    def __init__(self, source: str, work: Path, images: Path):
        self.work, self.images = work, images
        self.emoji = data.emoji(source)
        self.model = StableDiffusion.from_pretrained(EMOJI)
        self.known = list(self.model.captions)
        # The forty that `evaluate nearest-neighbour` draws.
        drawn = np.random.default_rng(0).permutation(len(self.known))
        self.asked = [self.known[i] for i in drawn[:40]]
        rest = [caption for caption in self.known if caption not in self.asked]
        self.styled = [rest[i] for i in np.random.default_rng(1).permutation(len(rest))[:20]]

    def pictures(self, captions):
        """The emoji of these captions, uint8 [N, 64, 64, 3]."""
        return np.stack([self.emoji[caption] for caption in captions])

    def made(self, captions, model=None):
        """What a model makes of captions, with the seeds 0, 1, …; uint8."""
        return generate(model or self.model, captions, Generation(batch_size=BATCH))

    def made_with(self, captions, network=None, control=(), image=(), **options):
        """The same with a ControlNet and its pictures, or with pictures to repaint; uint8.

        control, image: uint8 [N, 64, 64, 3], one a caption. options: of `generate`.
        """
        made = []
        for start in range(0, len(captions), BATCH):
            part = slice(start, start + BATCH)
            if network is not None:
                options["controls"] = [network(list(map(Image.fromarray, control[part])))]
            if len(image):
                options["image"] = list(map(Image.fromarray, image[part]))
            seeds = list(range(len(captions)))[part]
            made.append(self.model.generate(
                captions[part], seed=seeds, output="numpy", progress=False, **options
            ))  # fmt: skip
        return to_uint8(np.concatenate(made))

    def keep(self, image, name):
        """Writes a sheet."""
        image.save(self.images / f"finetune-{name}.webp", quality=85, method=6)

    def right(self, made, captions, known, called):
        """How many of these pictures have their nearest known one called as their caption."""
        return int(nearest_rate(made, captions, known, called).right.sum())

    def write_pictures(self, name):
        """The folder that a training reads."""
        folder = self.work / name
        if name == "style":
            pictures = [data.duotone(self.emoji[caption]) for caption in self.styled]
            data.write(folder, pictures, self.styled)
        elif name == "subject":
            data.write(folder, data.views(self.emoji[data.SUBJECT]))
        else:
            pictures, captions = data.turned_views(self.emoji, self.known)
            data.write(folder, pictures, captions)
            data.write(self.work / "edges", [data.edges(picture) for picture in pictures])
        return folder


def measure_lora(bench):
    """Forty emoji that are not among the twenty, without and with the style."""
    model, asked = bench.model, bench.asked
    truth = data.duotone(bench.pictures(asked))
    styled = data.duotone(bench.pictures(bench.known))
    rows = {"shipped": bench.made(asked)}
    name = model.load_lora(bench.work / "lora" / "lora.safetensors", 0.5)
    rows["LoRA, 0.5"] = bench.made(asked)
    model.set_lora_weights(**{name: 1.0})
    rows["LoRA"] = bench.made(asked)
    model.unload()
    limit = reconstruct(model.vae, model.params["vae"], truth, BATCH)
    figures = {
        label: {"off_style": data.off_style(made), "right": bench.right(
            made, asked, styled, bench.known)} for label, made in rows.items()
    }
    figures["off_style_of_the_autoencoder"] = data.off_style(limit)
    picture(bench, "lora", rows | {"the style itself": truth}, asked[:8])
    bench.keep(sheet(data.duotone(bench.pictures(bench.styled)), columns=10), "lora-pictures")
    return figures, [
        ("distance from the style's colours, levels of 255",
         f"{figures['shipped']['off_style']:.1f}", f"{figures['LoRA']['off_style']:.1f}"),
        ("nearest of 509 emoji in the style is the right one, of 40 it was not trained on",
         figures["shipped"]["right"], figures["LoRA"]["right"]),
    ]


def subject(bench, prompt):
    """The new emoji of sixteen seeds, the class, and forty captions known before."""
    captions = list(bench.emoji)
    others = data.views(bench.emoji[data.SUBJECT])[1:]
    known = np.concatenate([bench.pictures(captions), np.stack(others)])
    called = captions + [data.SUBJECT] * len(others)
    new = bench.made([prompt] * SEEDS)
    bear = bench.made(["bear"] * SEEDS)
    old = bench.made(bench.asked)
    core = bench.pictures(bench.known)
    figures = {
        "new": bench.right(new, [data.SUBJECT] * SEEDS, known, called),
        "class": bench.right(bear, ["bear"] * SEEDS, core, bench.known),
        "old": bench.right(old, bench.asked, core, bench.known),
        "nearest": [called[i] for i in nearest(new, known)[:, 0]],
    }
    return figures, new, bear


def rows_of_subject(before, after):
    """For the table."""
    return [
        (f"the new emoji, nearest of all emoji for {SEEDS} seeds", before["new"], after["new"]),
        (f"“bear” is still the bear, of {SEEDS} seeds", before["class"], after["class"]),
        ("captions known before that are still right, of 40", before["old"], after["old"]),
    ]


def measure_dreambooth(bench, name="dreambooth"):
    """The subject with the LoRA."""
    before, plain, bear = subject(bench, "sks bear")
    bench.model.load_lora(bench.work / name / "lora.safetensors")
    after, new, other = subject(bench, "sks bear")
    bench.model.unload()
    rows = {"“sks bear”, shipped": plain, "“sks bear”": new}
    picture(bench, name, rows | {"“bear”, shipped": bear, "“bear”": other}, EIGHT)
    return {"shipped": before, "trained": after}, rows_of_subject(before, after)


def measure_word(bench):
    """The subject by the learned word; the model itself is as it was."""
    before, plain, _ = subject(bench, "teddy bear")
    shipped, bench.model = bench.model, StableDiffusion.from_pretrained(EMOJI)
    bench.model.load_textual_inversion(bench.work / "word" / "word.safetensors")
    after, new, _ = subject(bench, "<teddy>")
    bench.model = shipped
    picture(bench, "word", {"“teddy bear”, shipped": plain, "“<teddy>”": new}, EIGHT)
    return {"shipped": before, "trained": after}, rows_of_subject(before, after)


def agreement(made, wanted):
    """How edges agree with a control picture's, within one pixel: precision, recall, and F1."""
    scores = []
    for picture, control in zip(made, wanted, strict=True):
        own, theirs = data.edges(picture)[..., 0] > 0, control[..., 0] > 0
        wide = [ndimage.binary_dilation(e, np.ones((3, 3))) for e in (own, theirs)]
        precision = (own & wide[1]).sum() / max(own.sum(), 1)
        recall = (theirs & wide[0]).sum() / max(theirs.sum(), 1)
        both = precision + recall
        scores.append((precision, recall, 2 * precision * recall / both if both else 0))
    return dict(zip(("precision", "recall", "f1"), map(float, np.mean(scores, 0)), strict=True))


def measure_controlnet(bench):
    """Forty emoji turned otherwise than in training, without and with their outlines."""
    asked = bench.asked
    truth = np.stack(data.turned_views(bench.emoji, asked, count=1, upright=False, seed=1)[0])
    wanted = np.stack([data.edges(picture) for picture in truth])
    network = Control.from_pretrained(bench.work / "controlnet" / "controlnet")
    rows = {"without": bench.made_with(asked)}
    rows["with control"] = bench.made_with(asked, network, wanted)
    rows["without caption"] = bench.made_with([""] * len(asked), network, wanted)
    rows["autoencoder"] = reconstruct(bench.model.vae, bench.model.params["vae"], truth, BATCH)
    figures = {label: agreement(made, wanted) for label, made in rows.items()}
    picture(bench, "controlnet", {
        "outlines": wanted, "without": rows["without"], "with": rows["with control"],
        "with, no caption": rows["without caption"],
    }, asked[:8])  # fmt: skip
    return figures, [("agreement of edges within one pixel (F1)",
                      f"{figures['without']['f1']:.2f}", f"{figures['with control']['f1']:.2f}")]


def measure_inpaint(bench):
    """The middle of forty emoji, turned otherwise than in training, repainted both ways."""
    asked, view = bench.asked, dict(count=1, upright=False, seed=1)
    truth = np.stack(data.turned_views(bench.emoji, asked, **view)[0])
    mask = np.zeros(truth.shape[1:3], np.float32)
    mask[16:48, 16:48] = 1
    trained = StableDiffusion.from_pretrained(bench.work / "inpaint" / "model")
    shipped, rows = bench.model, {}
    for words, captions in (("", asked), (", no caption", [""] * len(asked))):
        for label, model in (("plain", shipped), ("trained", trained)):
            bench.model = model
            rows[label + words] = bench.made_with(captions, image=truth, mask=mask, strength=1.0)
    bench.model = shipped
    figures = {label: repainted(made, truth) for label, made in rows.items()}
    left = np.where(mask[..., None] > 0, np.uint8(128), truth)
    picture(bench, "inpaint", {"given": left, **rows, "as it was": truth}, asked[:8])
    pairs = [("plain", "trained", "with caption"),
             ("plain, no caption", "trained, no caption", "without")]
    return figures, [
        (f"{what}, {words}", f"{figures[a][key]:.1f}", f"{figures[b][key]:.1f}")
        for key, what in (("error", "difference from the picture, levels of 255"),
                          ("seam", "step over the mask's border beyond the picture's own"))
        for a, b, words in pairs
    ]


def repainted(made, truth):
    """What the middle differs from the picture by (root mean square), and how much larger the
    steps over its border are than the picture's own (mean absolute); levels of 255."""
    made, truth = made.astype(np.float64), truth.astype(np.float64)
    error = np.sqrt(((made - truth)[:, 16:48, 16:48] ** 2).mean())

    def step(x):
        rows = np.abs(x[:, [16, 47], 16:48] - x[:, [15, 48], 16:48])
        columns = np.abs(x[:, 16:48, [16, 47]] - x[:, 16:48, [15, 48]])
        return (rows.mean() + columns.mean()) / 2

    return {"error": float(error), "seam": float(step(made) - step(truth))}


MEASURES = {
    "lora": measure_lora,
    "dreambooth": measure_dreambooth,
    "dreambooth-alone": lambda bench: measure_dreambooth(bench, "dreambooth-alone"),
    "word": measure_word,
    "controlnet": measure_controlnet,
    "inpaint": measure_inpaint,
}


def picture(bench, name, rows, columns):
    """A sheet: the first pictures of each row, enlarged, none picked."""
    def large(one):
        return Image.fromarray(one).resize((104, 104), Image.Resampling.LANCZOS)

    count = len(columns)
    grid = [[large(one) for one in made[:count]] for made in rows.values()]
    bench.keep(labelled_grid(grid, columns, list(rows)), name)
