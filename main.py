"""Diffusion in JAX, from the command line: `python main.py --help`."""

import difflib
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro

from sdjax import EMOJI, memory
from sdjax.errors import SdjaxError


def prepare_devices(batch_sizes=()) -> None:
    """One XLA device a core where the CPU computes, as far as they divide the sizes of batches
    that cannot be padded, and compiled programs kept between runs.
    """
    from sdjax import parallel

    memory.keep_freed_memory()
    parallel.use_cpu_devices(batch_sizes=batch_sizes)
    parallel.use_compile_cache()


def sample(
    prompt: tuple[str, ...],
    model: str = str(EMOJI),
    negative_prompt: str | None = None,
    steps: int = 30,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    sampler: str | None = None,
    spacing: Literal["leading", "trailing", "linspace"] | None = None,
    sigmas: str | None = None,
    eta: float | None = None,
    seed: int = 0,
    count: int = 1,
    height: int | None = None,
    width: int | None = None,
    clip_skip: int = 0,
    batch_size: int = 8,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    noise: Literal["torch", "jax"] | None = None,
    out: Path = Path("images"),
) -> None:
    """Turn prompts into pictures, each a numbered PNG, and one captioned sheet of them all.

    python main.py sample --prompt "a smiling cat"

    python main.py sample --prompt "red heart" "rocket" --count 4 --seed 7 --out pictures

    python main.py sample --prompt "rocket" --model runs/mine/model --sampler dpmpp_2m --steps 20

    Args:
        prompt: One or more prompts, each in quotes.
        model: A diffusers folder, a .safetensors or .ckpt file, or a hub id; the emoji model that
            comes with the project where not given.
        negative_prompt: What to steer away from.
        steps: Sampling steps.
        guidance_scale: How much the prompt counts; 1 turns guidance off and halves the work. The
            model's own where not given: 2 for the emoji, 7.5 for models that have none.
        guidance_rescale: Share of the contrast added by guidance that is taken back, 0 to 1.
        sampler: ddim, euler, euler_a, dpmpp_2m, unipc, …; the model's own where not given.
        spacing: How the timesteps are laid out; the sampler's own way where not given.
        sigmas: Noise levels: karras, exponential, beta, …; the sampler's own where not given.
        eta: Noise of a stochastic sampler, 0 to 1.
        seed: Of the first picture; the others take seed + 1, seed + 2, …
        count: Pictures of each prompt.
        height: In pixels; the size the model was trained at where not given.
        width: In pixels; the size the model was trained at where not given.
        clip_skip: Layers of the text encoder left out at its end.
        batch_size: Pictures made at once.
        dtype: What the networks compute in.
        noise: Who draws the noise: with torch a seed gives the picture that it gives in PyTorch, or
            the sampler is refused. Torch, for every sampler, where not given.
        out: Folder of the pictures; numbers go on after those that are there.
    """
    from sdjax.folders import check_writable
    from sdjax.pipeline import StableDiffusion
    from sdjax.pipeline.pictures import save_pictures
    from sdjax.pipeline.request import listed

    prepare_devices()
    prompts = listed(prompt)
    check_writable(out)
    pipeline = StableDiffusion.from_pretrained(model, dtype=dtype)
    options = {"spacing": spacing, "sigmas": sigmas, "eta": eta}
    chosen = {
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance_scale": pipeline.guidance_scale if guidance_scale is None else guidance_scale,
        "guidance_rescale": guidance_rescale,
        "sampler": sampler,
        "height": height,
        "width": width,
        "clip_skip": clip_skip,
        "noise": noise,
        **{name: value for name, value in options.items() if value is not None},
    }
    images = pipeline.generate(prompts, seed=seed, count=count, batch_size=batch_size, **chosen)
    captions = [text for text in prompts for _ in range(count)]
    settings = {name: value for name, value in chosen.items() if value is not None}
    notes = [{**settings, "model": model, "seed": seed + i} for i in range(len(images))]
    *_, overview = save_pictures(out, images, captions, notes)
    print(f"{len(images)} pictures and {overview}")


def train(config: Path, workdir: Path) -> tuple[Path, Path]:
    """Train a model by a recipe. The same command goes on where an earlier one was stopped.

    python main.py train --config configs/shapes.py --workdir runs/shapes

    python main.py train --config configs/shapes.py --workdir runs/short --diffusion.steps 800

    Every value of the recipe is an option; with --config and --help they are all listed.

    Args:
        config: A recipe: a Python file that sets `config`.
        workdir: Folder for checkpoints, metrics, sample sheets and, at the end, the model.
    """
    return config, workdir


def run_train(arguments: list[str]) -> int:
    """Reads the recipe's own options once its file is known, then trains; 3 where stopped early."""
    check_near(arguments, "--config", "--workdir")
    wants_help = {"-h", "--help"} & set(arguments)
    has_config = any(text.split("=")[0] == "--config" for text in arguments)
    if wants_help and has_config:
        arguments = [*(a for a in arguments if a not in wants_help), "--workdir", "."]
    (config, workdir), rest = tyro.cli(
        train, prog="main.py train", args=arguments, return_unknown_args=True
    )
    from sdjax import training
    from sdjax.training.recipe import load_config, with_overrides

    rest = ["--help"] if wants_help else rest
    recipe = with_overrides(load_config(config), rest, prog=f"main.py train --config {config}")
    prepare_devices([run.batch_size for run in recipe.runs.values()])
    return 0 if training.train(recipe, workdir) else 3


def run_evaluate(arguments: list[str]) -> int:
    """Reads which evaluation is meant, and does it."""
    from sdjax import evaluation
    from sdjax.pipeline import StableDiffusion

    if arguments and not arguments[0].startswith("-"):
        names = [re.sub("(?<=.)(?=[A-Z])", "-", c.__name__).lower() for c in evaluation.EVALUATIONS]
        check_known("evaluation", arguments[0], names)
    # Without the prefix of `measure`, but with those of what lies in it: data.seed and so on.
    kinds = Annotated[Union[tuple(evaluation.EVALUATIONS)], tyro.conf.arg(name="")]

    def evaluate(measure: kinds, model: str = str(EMOJI)) -> None:
        """Measure a model; results go to a JSON file and a table, pictures to a sheet.

        python main.py evaluate shapes-accuracy --model runs/shapes/model

        python main.py evaluate nearest-neighbour --captions 40 --out runs/emoji/evaluation

        Args:
            measure: What is measured.
            model: A diffusers folder; where not given, the model that comes with the project.
        """
        prepare_devices()
        evaluation.run(measure, lambda: StableDiffusion.from_pretrained(model))

    tyro.cli(
        evaluate,
        prog="main.py evaluate",
        args=arguments,
        config=(tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitSubcommandPrefixes),
    )
    return 0


def convert(
    source: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    variant: str | None = None,
    revision: str | None = None,
    config: Path | None = None,
    prediction_type: Literal["epsilon", "v_prediction"] | None = None,
) -> None:
    """Turn a checkpoint into another layout: a diffusers folder or a single .safetensors file.

    python main.py convert model.ckpt folder

    python main.py convert folder model.safetensors --dtype float16

    Args:
        source: A diffusers folder, a .safetensors or .ckpt file, a part of a model, or a hub id.
        out: Where to write: a name that ends in .safetensors, else a folder. It must not exist.
        dtype: Of the weights; as they are where not given.
        variant: Which weights of a folder are read, such as fp16.
        revision: Of a hub id: a branch, tag or commit.
        config: A diffusers folder, of a model or of a part, whose configurations a single file
            has, if not the published.
        prediction_type: Of a single file; what its metadata or its kind say where not given.
    """
    from sdjax.pipeline.files import read_model, write_model

    if out.exists():
        raise SdjaxError(f"{out} exists already: remove it or choose another name")
    model = read_model(source, variant, revision, config, prediction_type)
    write_model(model, out, dtype)
    print(out)


def run_convert(arguments: list[str]) -> int:
    tyro.cli(convert, prog="main.py convert", args=arguments)
    return 0


def run_sample(arguments: list[str]) -> int:
    check_near(arguments, "--prompt")
    tyro.cli(sample, prog="main.py sample", args=arguments)
    return 0


COMMANDS = {
    "sample": (run_sample, "turn prompts into pictures"),
    "train": (run_train, "train a model by a recipe of configs/"),
    "evaluate": (run_evaluate, "measure a model"),
    "convert": (run_convert, "turn a checkpoint into another layout"),
}


def usage() -> str:
    """What `python main.py --help` prints."""
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "Diffusion in JAX.\n",
            *lines,
            '\n  python main.py sample --prompt "a smiling cat"',
            "  python main.py train --config configs/shapes.py --workdir runs/shapes",
            "  python main.py evaluate shapes-accuracy --model runs/shapes/model",
            "\nEvery command explains itself: python main.py sample --help",
        ]
    )


def check_known(kind: str, name: str, known) -> None:
    """SdjaxError, with the nearest of the known names, where `name` is none of them."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
        raise SdjaxError(f"no {kind} {name!r}; {hint}")


def check_near(arguments: list[str], *required: str) -> None:
    """SdjaxError where a required option is missing and one near it is given.

    Of other options tyro tells the near one, of these only that they are missing.
    """
    given = {text.split("=")[0] for text in arguments if text.startswith("--")}
    for option in required:
        near = difflib.get_close_matches(option, given, 1, cutoff=0.75)
        if option not in given and near:
            raise SdjaxError(f"no option {near[0]}; did you mean {option}?")


def show_warning(message, category, *place, **others) -> None:
    """One line, without the place in the code, which says nothing to who gives a command."""
    print(f"warning: {message}", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Runs a command; gives the exit status: 0 done, 2 wrong input, 3 training stopped early, with
    everything saved, 130 interrupted.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    try:
        check_known("command", name, COMMANDS)
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return COMMANDS[name][0](rest)
    except SdjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    memory.use_huge_pages()
    sys.exit(main(sys.argv[1:]))
