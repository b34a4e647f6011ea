"""`sdjax evaluate`: a model, or a folder of pictures, to figures."""

import re
from typing import Annotated, Union

import tyro

from .common import check_known, description, prepare_devices


def run(arguments: list[str], program: str) -> int:
    """Reads which evaluation is meant, and does it."""
    import sdjax
    from sdjax import evaluation

    if arguments and not arguments[0].startswith("-"):
        names = [re.sub("(?<=.)(?=[A-Z])", "-", c.__name__).lower() for c in evaluation.EVALUATIONS]
        check_known("evaluation", arguments[0], names)
    # Without the prefix of `measure`, but with those of what lies in it: data.seed and so on.
    kinds = Annotated[Union[tuple(evaluation.EVALUATIONS)], tyro.conf.arg(name="")]

    def evaluate(measure: kinds, model: str | None = None) -> None:
        """Measure a model; results go to a JSON file and a table, pictures to a sheet.

        sdjax evaluate shapes-accuracy --model runs/shapes/model

        sdjax evaluate nearest-neighbour --captions 40 --out runs/emoji/evaluation

        Args:
            measure: What is measured.
            model: A diffusers folder; where not given, the model that comes with the project.
        """
        prepare_devices()
        source = sdjax.EMOJI if model is None else model
        evaluation.run(
            measure, lambda: sdjax.StableDiffusion.from_pretrained(source), str(source)
        )

    tyro.cli(
        evaluate,
        prog=f"{program} evaluate",
        description=description(evaluate, program),
        args=arguments,
        config=(tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitSubcommandPrefixes),
    )
    return 0
