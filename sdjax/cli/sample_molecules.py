"""`sdjax sample` with a model of molecules."""

import json
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.folders import check_writable, writable_folder

from .common import MODEL_WORDS, parsed, prepare_devices

CLASS = "MoleculeDiffusion"
_WORDS = {
    **MODEL_WORDS, "n_samples": "count", "num_samples": "count", "n_atoms": "atoms",
    "n_nodes": "atoms", "num_inference_steps": "steps", "scheduler": "sampler",
}  # fmt: skip


def is_meant(arguments: list[str]) -> bool:
    """Whether --model names a model of molecules; nothing heavy is imported for it."""
    given = [text.partition("=") for text in arguments]
    values = [value if equals else next_
              for (name, equals, value), next_ in zip(given, [*arguments[1:], ""], strict=True)
              if name == "--model"]
    path = Path(values[-1]) if values else None
    if path is None or path.suffix == ".npy":
        return path is not None
    try:
        index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # told where the model is read
        return False
    return isinstance(index, dict) and index.get("_class_name") == CLASS


def sample(
    model: str,
    config: Path | None = None,
    count: int = 1,
    atoms: int | None = None,
    value: float | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    dtype: str = "float32",
    out: Path = Path("molecules"),
    pictures: bool = True,
) -> dict:
    """Make molecules: one SDF file each, with its settings, and one captioned sheet of formulas.

    sdjax sample --model runs/molecules/model --count 24

    Args:
        model: A folder that training on molecules wrote, or EDM's generative_model_ema.npy.
        config: Of EDM's file, where it is not the model of QM9 with hydrogens: a folder with the
            network's config.json.
        count: How many.
        atoms: Of each; drawn as in the training set where not given.
        value: Of the property that the model was trained on, in its unit; drawn likewise.
        steps: Sampling steps; the model's own where not given.
        sampler: ddpm, unipc, dpmpp_2m, …; the model's own where not given.
        seed: Of the first; the others take seed + 1, seed + 2, …
        batch_size: Made at once.
        dtype: What the network computes in.
        out: Folder of the files; numbers go on after those that are there.
        pictures: Whether the sheet is drawn, which needs RDKit.
    """
    return dict(locals())


def run(arguments: list[str], program: str) -> int:
    """Reads the options, makes the molecules and writes them."""
    if "--prompt" in {text.partition("=")[0] for text in arguments}:
        raise SdjaxError("a model of molecules takes no --prompt: leave it out")
    given = parsed(sample, arguments, program, words=_WORDS, required=["--model"])
    from sdjax.molecules import MoleculeDiffusion, write_sdf
    from sdjax.molecules.elements import chemistry

    if given["pictures"]:
        try:
            chemistry()
        except SdjaxError as error:
            raise SdjaxError(f"{error}; or give --no-pictures") from error
    check_writable(given["out"])
    prepare_devices()
    model = MoleculeDiffusion.from_pretrained(
        given["model"], dtype=given["dtype"], config=given["config"])
    asked = ("count", "atoms", "value", "steps", "sampler", "seed", "batch_size")
    found = model.generate(**{name: given[name] for name in asked})
    folder = writable_folder(given["out"])
    first = 1 + max((int(path.stem) for path in folder.glob("*.sdf") if path.stem.isdigit()),
                    default=-1)
    names = ("model", "atoms", "value", "steps", "sampler")
    settings = {name: given[name] for name in names if given[name] is not None}
    for i, molecule in enumerate(found):
        notes = {"settings": json.dumps({**settings, "seed": given["seed"] + i})}
        write_sdf(folder / f"{first + i:05d}.sdf", [molecule], [notes])
    told = f"{len(found)} molecules from seed {given['seed']} on in {folder}"
    if given["pictures"]:
        told += f", and {_sheet(folder / f'{first:05d}-sheet.png', found)}"
    print(told)
    return 0


def _sheet(path, found) -> Path:
    from sdjax.evaluation.sheets import sheet
    from sdjax.molecules.pictures import pictures

    sheet(*pictures(found)).save(path)
    return path
