"""What several commands share."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping

import tyro

from sdjax import memory
from sdjax.errors import SdjaxError
from sdjax.words import meant, plain


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


def check_words(arguments: list[str], ours: Iterable[str], words: Mapping[str, str]) -> None:
    """SdjaxError for an option of another program, which tells what it is called here.

    ours: names of this command's options. words: what others call them.
    """
    for argument in arguments:
        word = argument.partition("=")[0]
        if not re.match("--?[A-Za-z]", word) or plain(word) in ours or word in ("-h", "--help"):
            continue
        if told := meant(plain(word), ours, words, _option):
            raise SdjaxError(f"no option {word}: {told}")


def check_once(arguments: list[str]) -> None:
    """SdjaxError for an option that is given twice, of which the last alone would count."""
    given = set()
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if not name.startswith("--"):
            continue
        name = re.sub(r"(^--|\.)no-", r"\1", name)
        if name in given:
            raise SdjaxError(f"{name} is given twice: give it once")
        given.add(name)


def known_words(ours: Iterable[str], words: Mapping[str, str]) -> dict[str, str]:
    """Those words of other programs that are an option of a command here."""
    return {word: name for word, name in words.items() if re.match(r"[\w.]+", name)[0] in ours}


def parsed(
    command: Callable, arguments: list[str], program: str, *, words: Mapping[str, str],
    ours: Iterable[str] = (), several: Iterable[str] = (), required: Iterable[str] = (),
    name: str | None = None, **settings,
):  # fmt: skip
    """What `command` gives for these arguments of the command line.

    words: what other programs call its options, and what these are called here. ours: options
    beside its arguments. several: options that may be given several times. required: options that
    must be given. name: how it is called after the program, its own where None. settings: of tyro.
    """
    for option in several:
        arguments = joined(arguments, option)
    check_once(arguments)
    check_words(arguments, {*inspect.signature(command).parameters, *ours}, words)
    check_near(arguments, *required)
    return tyro.cli(
        command,
        prog=f"{program} {name or command.__name__}",
        description=description(command, program),
        args=arguments,
        **settings,
    )


MODEL_WORDS = {
    "ckpt": "model", "ckpt_path": "model", "checkpoint": "model", "model_id": "model",
    "pretrained_model_name_or_path": "model", "outdir": "out", "out_dir": "out", "output": "out",
    "output_dir": "out", "output_path": "out", "precision": "dtype", "torch_dtype": "dtype",
    "half": "dtype float16", "fp16": "dtype float16", "original_config": "config",
    "original_config_file": "config", "config_file": "config", "bs": "batch_size",
}  # fmt: skip
"""What other programs call options about files that several commands have."""


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
