"""How good the molecules of a model are, beside those of the data."""

from dataclasses import dataclass

from sdjax.errors import SdjaxError, check_at_least
from sdjax.molecules.data import cormorant_split, read_qm9
from sdjax.molecules.features import Molecule
from sdjax.molecules.judge import property_errors
from sdjax.molecules.metrics import canonical, measured
from sdjax.molecules.model import MoleculeDiffusion

from .report import Figures, interval, percent, show

ROWS = ("atom_stability", "molecule_stability", "validity", "uniqueness", "valid_and_unique",
        "novelty", "connectedness")


@dataclass(frozen=True)
class Molecules:
    """Stability, validity, uniqueness, novelty and connectedness, by EDM's measures.

    Writes molecules.json. Needs RDKit; novelty and the data's own figures need QM9.
    """

    count: int = 1_000
    """Molecules made."""
    steps: int | None = None
    """Sampling steps; the model's own where None."""
    sampler: str | None = None
    """A name of `sdjax.sampler`; the model's own where None."""
    seed: int = 0
    """Of the first molecule."""
    batch_size: int = 64
    """Molecules made at once."""
    data: str = "qm9"
    """Where molecules for novelty and comparison are read from, as data.source; empty for neither.
    """
    judged: int = 0
    """Molecules whose property GFN2-xTB computes, for a model of a property; 0 for none."""
    out: str = "evaluation"
    """Folder of the results."""

    def __post_init__(self):
        check_at_least(1, self, "count", "batch_size")
        check_at_least(0, self, "judged")

    def load(self, source) -> MoleculeDiffusion:
        """The model."""
        if source is None:
            raise SdjaxError("name the model of molecules by --model")
        return MoleculeDiffusion.from_pretrained(source)


def evaluate_molecules(model: MoleculeDiffusion, config: Molecules = Molecules(), subject=None):
    """Run it: {"model": the measures and 95 % intervals, "data": those of as many molecules of the
    test split, …}.

    subject: what the model is called there, its folder or file.
    """
    figures, known, results = Figures(config, "molecules", subject), None, {}
    found = model.generate(
        config.count, steps=config.steps, sampler=config.sampler, seed=config.seed,
        batch_size=config.batch_size,
    )
    if config.data:
        whole = read_qm9(config.data)
        split = cormorant_split(len(whole))
        known = canonical(whole.smiles[split["train"]].tolist())
        tested = whole.chosen(split["test"][: config.count])
        tested = molecules_of(tested if model.hydrogens else tested.heavy())
        results["data"] = measured(tested, model.hydrogens, known).to_dict()
    made = measured(found, model.hydrogens, known)
    results["generated"] = made.to_dict() | {
        "intervals": {name: interval(getattr(made, name), made.count)
                      for name in ("molecule_stability", "validity", "valid_and_unique")},
    }
    if config.judged:
        results["property"] = property_errors(model, config, whole if config.data else None)
    columns = [name for name in ("generated", "data") if name in results]
    results = figures.write(results)
    show("Molecules", columns, [
        ("molecules", *(results[column]["count"] for column in columns)),
        *((name.replace("_", " "), *(_share(results[column][name]) for column in columns))
          for name in ROWS),
        *((name.replace("_", " "), f"{value:.3f}", "") for name, value in
          results.get("property", {}).items() if isinstance(value, float)),
    ], figures.path(".json"))
    return results


def molecules_of(data) -> list[Molecule]:
    """The molecules of a `QM9`."""
    return [
        Molecule(numbers[numbers > 0].astype(int), positions[numbers > 0])
        for numbers, positions in zip(data.numbers, data.positions, strict=True)
    ]


def _share(value):
    return "" if value is None else percent(value)
