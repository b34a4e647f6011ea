"""What several commands share."""

import difflib
import inspect
from collections.abc import Callable

from sdjax import memory
from sdjax.errors import SdjaxError


def description(command: Callable, program: str) -> str:
    """What a command's docstring says before its arguments, the program named as it was called."""
    return inspect.getdoc(command).split("\n\nArgs:")[0].replace("sdjax ", f"{program} ")


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


def prepare_devices(batch_sizes=()) -> None:
    """One XLA device a core where the CPU computes, as far as they divide the sizes of batches
    that cannot be padded, and compiled programs kept between runs.
    """
    from sdjax import parallel

    memory.keep_freed_memory()
    parallel.use_cpu_devices(batch_sizes=batch_sizes)
    parallel.use_compile_cache()
