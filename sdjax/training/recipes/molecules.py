"""A recipe of molecules carried out: QM9, its split, buckets, diffusion, export."""

import dataclasses
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.molecules.data import PROPERTIES, QM9, cormorant_split, read_qm9
from sdjax.molecules.model import Condition, MoleculeDiffusion
from sdjax.molecules.pictures import pictures
from sdjax.parallel import in_turn, leader
from sdjax.training.loop.bucket_feed import BucketBatches
from sdjax.training.loop.feed import ArrayBatches
from sdjax.training.loop.fit import check, fit
from sdjax.training.loop.settings import say
from sdjax.training.objectives.molecules import MoleculeObjective, MoleculeRun

from .export import replacing, scheduler_config
from .recipe import Recipe


def train_molecules(recipe: Recipe, workdir: Path) -> bool:
    """Carries out the diffusion of a `MoleculeRun`, or goes on with it; True when it is finished.

    The result is workdir/model, which `MoleculeDiffusion` reads.
    """
    run, folder = recipe.diffusion, workdir / "diffusion"
    objective = MoleculeObjective(run)
    check(objective, run, folder)
    with in_turn():
        found = training_set(run, recipe.data.source, recipe.data.split, recipe.examples)
    say(f"{len(found)} molecules of {found.sizes.min()} to {found.sizes.max()} atoms")
    condition = condition_of(run, found)
    about = dataclasses.asdict(recipe)
    about = {name: about[name] for name in ("data", "examples", "diffusion")}
    about["molecules"] = f"{len(found)} ({found.digest()})"
    model = MoleculeDiffusion(
        run.network, None, scheduler_config(run.denoising, clip_sample=False), run.features,
        sizes_of(found), sampler=run.sheet.sampler, steps=run.sheet.steps, condition=condition,
    )
    model.table()  # what cannot be sampled is refused first
    outcome = fit(
        objective, {}, batches_of(run, buckets_of(run, found, condition)), run, folder,
        name="diffusion", sheet=sheet_of(run, model), about=about, placement=recipe.placement,
    )
    if outcome.finished and leader():
        model.params = outcome.ema["egnn"]
        with replacing(workdir / "model") as part:
            model.save_pretrained(part, recipe.export_dtype)
    return outcome.finished


def training_set(run: MoleculeRun, source="qm9", split="train", examples=0) -> QM9:
    """The molecules of a split that a run is trained on, its first `examples` where not 0.

    Raises SdjaxError where there are none.
    """
    whole = read_qm9(source)
    rows = cormorant_split(len(whole)) | {"all": np.arange(len(whole))}
    if split not in rows:
        raise SdjaxError(f"qm9 has the splits {', '.join(rows)}, got {split!r}")
    found = whole.chosen(rows[split])
    heavy = (found.numbers > 1).sum(1)
    usable = (heavy > 0) & (heavy <= run.max_heavy_atoms)
    if run.condition:
        usable &= np.isfinite(found.properties[run.condition])
    usable = np.flatnonzero(usable)[: examples or None]
    if not len(usable):
        raise SdjaxError(
            f"{source} has no molecule of up to {run.max_heavy_atoms} heavy atoms"
            + (f" with a {run.condition}" if run.condition else "")
        )
    found = found if run.hydrogens else found.heavy()
    return found.chosen(usable)


def condition_of(run: MoleculeRun, found: QM9) -> Condition | None:
    """The property of a run, as the molecules have it."""
    if not run.condition:
        return None
    values, unit = found.properties[run.condition], PROPERTIES[run.condition][2]
    return Condition.of(run.condition, unit, found.sizes, values)


def sizes_of(found: QM9) -> dict[int, int]:
    """Atoms -> how many molecules have them."""
    sizes, counts = np.unique(found.sizes, return_counts=True)
    return dict(zip(sizes.tolist(), counts.tolist(), strict=True))


def buckets_of(run: MoleculeRun, found: QM9, condition: Condition | None) -> list[dict]:
    """For each bucket that has molecules the arrays of a batch, as `MoleculeObjective` takes them,
    each filled up to the bucket's size.
    """
    largest = int(found.sizes.max())
    limits = [size for size in run.buckets if size < largest] + [largest]
    sets, least = [], 0
    for limit in limits:
        rows = np.flatnonzero((found.sizes > least) & (found.sizes <= limit))
        least = limit
        if len(rows):
            x, mask = run.features.arrays(
                found.numbers[rows, :limit], found.positions[rows, :limit])
            arrays = {"x": x, "mask": mask}
            if condition is not None:
                arrays["context"] = condition.told(found.properties[condition.name][rows])
            sets.append(arrays)
    return sets


def batches_of(run: MoleculeRun, sets):
    """Batches of the buckets, or of the one there is."""
    if len(sets) == 1:
        return ArrayBatches(sets[0], run.batch_size, run.seed)
    group = run.accumulation * run.steps_per_call
    return BucketBatches(sets, run.batch_size, run.seed, group=group)


def sheet_of(run: MoleculeRun, model: MoleculeDiffusion):
    """ema -> (pictures, SMILES), or None where RDKit is missing, which is told."""
    try:
        import rdkit as rdkit
    except ImportError:
        say('no sheets are drawn without RDKit: pip install "sdjax[molecules]"')
        return None
    return lambda ema: pictures(model.generate(
        run.sheet.images, seed=run.sheet.seed, params=ema["egnn"], batch_size=run.sheet.images))
