"""`sdjax train`: a recipe to a model."""

from pathlib import Path

import tyro

from .common import check_near, description, prepare_devices


def train(config: Path, workdir: Path) -> tuple[Path, Path]:
    """Train a model by a recipe. The same command goes on where an earlier one was stopped.

    sdjax train --config configs/shapes.py --workdir runs/shapes

    sdjax train --config configs/shapes.py --workdir runs/short --diffusion.steps 800

    Every value of the recipe is an option; with --config and --help they are all listed.

    Args:
        config: A recipe: one of the project's by its name, such as shapes, or a Python file that
            sets `config`. An unknown name lists them.
        workdir: Folder for checkpoints, metrics, sample sheets and, at the end, the model.
    """
    return config, workdir


def run(arguments: list[str], program: str) -> int:
    """Reads the recipe's own options once its file is known, then trains; 3 where stopped early."""
    check_near(arguments, "--config", "--workdir")
    wants_help = {"-h", "--help"} & set(arguments)
    has_config = any(text.split("=")[0] == "--config" for text in arguments)
    if wants_help and has_config:
        arguments = [*(a for a in arguments if a not in wants_help), "--workdir", "."]
    (config, workdir), rest = tyro.cli(
        train,
        prog=f"{program} train",
        description=description(train, program),
        args=arguments,
        return_unknown_args=True,
    )
    from sdjax import training
    from sdjax.training.recipes.recipe import load_config, with_overrides

    rest = ["--help"] if wants_help else rest
    recipe = with_overrides(load_config(config), rest, f"{program} train --config {config}")
    prepare_devices([run.batch_size for run in recipe.runs.values()])
    return 0 if training.train(recipe, workdir) else 3
