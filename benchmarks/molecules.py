"""Molecules of a trained model by few and many evaluations, beside the data and EDM's figures.

    python main.py train --config configs/molecules.py --workdir runs/molecules
    python -m benchmarks.molecules

Writes results/molecules.json: for each sampler and number of evaluations the measures of
`sdjax.molecules.measured` with Wilson's 95 % intervals and the time a molecule took; and those of
as many molecules of QM9's test split.
"""

import dataclasses
import json
import time
from pathlib import Path

import rich
import tyro

from benchmarks.common import RESULTS, machine
from sdjax.parallel import use_cpu_devices

PUBLISHED = {"EDM": {"validity": 0.975, "valid_and_unique": 0.943}, "data": {"validity": 0.977}}
"""Of arXiv 2203.17003, QM9 without hydrogens, 10,000 molecules by 1,000 evaluations."""
MANY = "ddpm"


def main(
    model: Path = Path("runs/molecules/model"),
    count: int = 2_000,
    samplers: tuple[str, ...] = ("unipc", "dpmpp_2m", "ddim", "ddpm"),
    evaluations: tuple[int, ...] = (5, 10, 20, 50, 100),
    many: bool = True,
    seed: int = 1_000_000,
    data: str = "qm9",
    out: Path = RESULTS / "molecules.json",
):
    """Measure a model.

    Args:
        model: Folder of the trained model.
        count: Molecules of each row.
        samplers: Names of `sdjax.sampler`.
        evaluations: Of the network, for each sampler.
        many: Also the training's own steps, all of them, by ddpm.
        seed: Of the first molecule; far from those of the training's sheets.
        data: Where QM9 is, as data.source.
        out: The file.
    """
    use_cpu_devices()
    from sdjax.evaluation.molecules import molecules_of
    from sdjax.evaluation.report import interval
    from sdjax.molecules import MoleculeDiffusion, cormorant_split, measured, read_qm9
    from sdjax.molecules.metrics import canonical

    found = MoleculeDiffusion.from_pretrained(model)
    whole = read_qm9(data)
    split = cormorant_split(len(whole))
    known = canonical(whole.smiles[split["train"]].tolist())
    tested = whole.chosen(split["test"][:count])
    real = measured(
        molecules_of(tested if found.hydrogens else tested.heavy()), found.hydrogens, known)
    result = {
        "machine": machine(), "model": dataclasses.asdict(found.network.config),
        "settings": {"count": count, "seed": seed}, "published": PUBLISHED,
        "data": real.to_dict(), "rows": [],
    }
    cells = [(name, steps) for steps in evaluations for name in samplers]
    cells += [(MANY, len(found.schedule))] * many
    found.generate(min(count, 256), steps=2, sampler=samplers[0], batch_size=256)  # compiled once
    for name, steps in cells:
        begun = time.monotonic()
        made = found.generate(
            count, steps=steps, sampler=name, seed=seed, batch_size=min(count, 256))
        seconds = time.monotonic() - begun
        measures = measured(made, found.hydrogens, known)
        row = {
            "sampler": name, "evaluations": steps, "seconds_a_molecule": seconds / count,
            **measures.to_dict(),
            "intervals": {key: interval(getattr(measures, key), count)
                          for key in ("validity", "valid_and_unique", "molecule_stability")},
        }
        result["rows"].append(row)
        rich.print({key: row[key] for key in (
            "sampler", "evaluations", "validity", "valid_and_unique", "novelty", "connectedness")})
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    rich.print(f"written to {out}")
    return result


if __name__ == "__main__":
    tyro.cli(main)
