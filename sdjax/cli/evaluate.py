"""`sdjax evaluate`: a model, or a folder of pictures, to figures."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Union

import tyro

from .common import check_known, description, prepare_devices


def run(arguments: list[str], program: str) -> int:
    """Reads which evaluation is meant, and does it."""
    import sdjax
    from sdjax import evaluation
    from sdjax.pipeline.files import read_model
    from sdjax.pipeline.request import Request
    from sdjax.pipeline.stable_diffusion import plan_for

    if arguments and not arguments[0].startswith("-"):
        names = [re.sub("(?<=.)(?=[A-Z])", "-", c.__name__).lower() for c in evaluation.EVALUATIONS]
        check_known("evaluation", arguments[0], names)
    # Without the prefix of `measure`, but with those of what lies in it: data.seed and so on.
    kinds = Annotated[Union[tuple(evaluation.EVALUATIONS)], tyro.conf.arg(name="")]

    def evaluate(measure: kinds, model: str | None = None, config: Path | None = None) -> None:
        """Measure a model; results go to a JSON file and a table, pictures to a sheet.

        sdjax evaluate shapes-accuracy --model runs/shapes/model

        sdjax evaluate nearest-neighbour --captions 40 --out runs/emoji/evaluation

        Args:
            measure: What is measured.
            model: A diffusers folder, a .safetensors or .ckpt file, or a hub id; where not given,
                the model that comes with the project.
            config: Of a single file, if its networks are of other sizes than the published: a
                diffusers folder of the same sizes, such as the one it was made from.
        """
        prepare_devices()
        source = sdjax.EMOJI if model is None else model
        wanted = getattr(measure, "generation", evaluation.Generation())
        asked = Request("", **{**dataclasses.asdict(wanted), "batch_size": None})

        def load():
            found = read_model(source, config=config)
            # Before minutes go by with the weights.
            plan_for(found, asked, source)
            return sdjax.StableDiffusion.from_model(found, "float32", source)

        evaluation.run(measure, load, str(source))

    tyro.cli(
        evaluate,
        prog=f"{program} evaluate",
        description=description(evaluate, program),
        args=arguments,
        config=(tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitSubcommandPrefixes),
    )
    return 0
