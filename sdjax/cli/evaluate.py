"""`sdjax evaluate`: a model, or a folder of pictures, to figures."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Union

import tyro

from sdjax.words import WORDS

from .common import MODEL_WORDS, check_known, known_words, parsed, prepare_devices


def run(arguments: list[str], program: str) -> int:
    """Reads which evaluation is meant, and does it."""
    import sdjax
    from sdjax import evaluation
    from sdjax.pipeline.model.files import read_model
    from sdjax.pipeline.plans.request import Request
    from sdjax.pipeline.stable_diffusion import plan_for

    meant = list(evaluation.EVALUATIONS)
    if arguments and not arguments[0].startswith("-"):
        names = {re.sub("(?<=.)(?=[A-Z])", "-", c.__name__).lower(): c for c in meant}
        check_known("evaluation", arguments[0], names)
        meant = [names[arguments[0]]]
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
        if hasattr(measure, "load"):  # of a model of its own kind
            evaluation.run(measure, lambda: measure.load(model), model)
            return
        source = sdjax.EMOJI if model is None else model
        wanted = getattr(measure, "generation", evaluation.Generation())
        asked = Request("", **{**dataclasses.asdict(wanted), "batch_size": None})

        def load():
            found = read_model(source, config=config)
            # Before minutes go by with the weights.
            plan_for(found, asked, source, "float32")
            return sdjax.StableDiffusion.from_model(found, "float32", source)

        evaluation.run(measure, load, str(source))

    generation = [field.name for field in dataclasses.fields(evaluation.Generation)]
    ours = {field.name for kind in meant for field in dataclasses.fields(kind)}
    words = known_words(["model", "config", "out"], MODEL_WORDS)
    for word, name in {**WORDS, **dict(zip(generation, generation))}.items():
        if name in generation and word not in ours:
            words[word] = f"generation.{name}"
    ours |= {f"generation.{name}" for name in generation}
    cascading = (tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitSubcommandPrefixes)
    parsed(evaluate, arguments, program, words=words, ours=ours, config=cascading)
    return 0
