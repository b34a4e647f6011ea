"""The command line: `sdjax …`, `python -m sdjax …` and `python main.py …` are the same.

A command is a file here with a function `run(arguments, program)` that gives the exit status.
What is heavy is imported inside functions, so that help is quick.
"""

import importlib
import os
import sys
import warnings

from sdjax import memory
from sdjax.errors import SdjaxError
from sdjax.version import __version__

from .common import check_known

COMMANDS = {
    "sample": "turn prompts into pictures",
    "captions": "list what a model was trained to draw",
    "train": "train a model by a recipe of configs/",
    "data": "compute latents and embedded captions once, for training",
    "plan": "tell what a training takes of devices that need not be there",
    "evaluate": "measure a model",
    "augment": "make labelled pictures from labelled pictures",
    "draw": "make pictures for networks that steer: edges, poses",
    "convert": "turn a checkpoint into another layout",
    "export": "turn a model into programs for phones and other runtimes",
}
"""Name -> what it does; the name is also that of its file."""


def usage(program: str) -> str:
    """What `--help` prints."""
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "Diffusion in JAX.\n",
            *lines,
            f'\n  {program} sample --prompt "grinning cat"',
            f"  {program} train --config configs/shapes.py --workdir runs/shapes",
            f"  {program} evaluate shapes-accuracy --model runs/shapes/model",
            f"\nEvery command explains itself: {program} sample --help",
            f"The version: {program} --version",
        ]
    )


def main(arguments: list[str], program: str = "sdjax") -> int:
    """Runs a command; gives the exit status: 0 done, 2 wrong input, 3 training stopped early, with
    everything saved, 130 interrupted.

    program: how the help calls it.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(program))
        return 0
    if arguments[0] == "--version":
        print(f"sdjax {__version__}")
        return 0
    name, *rest = arguments
    try:
        check_known("command", name, COMMANDS)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return importlib.import_module(f"{__name__}.{name}").run(rest, program)
    except SdjaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run(program: str = "sdjax") -> None:
    """`main` with the arguments of this process, which then ends."""
    memory.use_huge_pages()
    try:
        try:
            status = main(sys.argv[1:], program)
        except SystemExit as stop:
            status = stop.code
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough, as in `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _show_warning(message, category, *place, **others) -> None:
    """One line, without the place in the code, which says nothing to who gives a command."""
    print(f"warning: {message}", file=sys.stderr)
