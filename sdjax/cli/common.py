"""What several commands share."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping

from sdjax import memory
from sdjax.errors import SdjaxError
from sdjax.words import WORDS, meant, plain


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


def check_words(arguments: list[str], command: Callable, words: Mapping[str, str]) -> None:
    """SdjaxError for an option of another program, which tells what it is called here.

    words: what other programs call options of this command, beside `sdjax.words`.
    """
    ours = set(inspect.signature(command).parameters)
    for argument in arguments:
        word = argument.partition("=")[0]
        if not re.match("--?[A-Za-z]", word) or plain(word) in ours or word in ("-h", "--help"):
            continue
        if told := meant(plain(word), ours, {**WORDS, **words}, _option):
            raise SdjaxError(f"no option {word}: {told}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def joined(arguments: list[str], option: str) -> list[str]:
    """The arguments with the values of an option that is given several times in one place."""
    if sum(argument.split("=")[0] == option for argument in arguments) < 2:
        return arguments
    values, rest, taking = [], [], False
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == option:
            taking = argument == option
            values += [] if taking else [value]
        elif taking and not argument.startswith("--"):
            values.append(argument)
        else:
            taking = False
            rest.append(argument)
    return [option, *values, *rest]


def prepare_devices(batch_sizes=()) -> None:
    """One XLA device a core where the CPU computes, as far as they divide the sizes of batches
    that cannot be padded, and compiled programs kept between runs.
    """
    from sdjax import parallel

    memory.keep_freed_memory()
    parallel.use_cpu_devices(batch_sizes=batch_sizes)
    parallel.use_compile_cache()
