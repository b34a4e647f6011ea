"""`sdjax convert`: a checkpoint to another layout."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from sdjax.errors import SdjaxError
from sdjax.folders import check_local

from .common import MODEL_WORDS, known_words, parsed

_OPTIONS = ("dtype", "config")  # what other programs have words for


def convert(
    source: tyro.conf.Positional[str],
    out: tyro.conf.Positional[Path],
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    variant: str | None = None,
    revision: str | None = None,
    config: Path | None = None,
    prediction_type: Literal["epsilon", "v_prediction"] | None = None,
    quantize: Literal["int8", "fp8", "int4", "nf4", "bnb-nf4", "q8_0", "q4_0"] | None = None,
) -> None:
    """Turn a checkpoint into another layout: a diffusers folder or a single .safetensors or .gguf file.

    sdjax convert model.ckpt folder

    sdjax convert folder model.safetensors --dtype float16

    Args:
        source: A diffusers folder, a .safetensors, .gguf or .ckpt file, a part of a model, or a hub
            id.
        out: Where to write: a name that ends in .safetensors or .gguf, else a folder. It must not
            exist.
        dtype: Of the weights; as they are where not given. Weights of few bits become wide.
        variant: Which weights of a folder are read, such as fp16.
        revision: Of a hub id: a branch, tag or commit.
        config: A diffusers folder, of a model or of a part, whose configurations a single file
            has, if not the published.
        prediction_type: Of a single file; what its metadata or its kind say where not given.
        quantize: Writes large weights in few bits: a folder of int8, fp8, int4 or nf4 is for
            programs here, of bnb-nf4 for diffusers; a .safetensors file of fp8 is for ComfyUI, a
            .gguf file of q8_0 or q4_0 for stable-diffusion.cpp.
    """
    from sdjax.pipeline.model.files import read_model, write_model
    from sdjax.weights.quantized.states import check_format, widened

    check_local(out)
    check_format(quantize, out)
    if out.exists():
        raise SdjaxError(f"{out} exists already: remove it or choose another name")
    model = read_model(source, variant, revision, config, prediction_type)
    if dtype is not None:
        model = dataclasses.replace(model, checkpoint=widened(model.checkpoint))
    write_model(model, out, dtype, quantize=quantize)
    print(out)


def run(arguments: list[str], program: str) -> int:
    """Reads the options, and converts."""
    parsed(convert, arguments, program, words=known_words(_OPTIONS, MODEL_WORDS))
    return 0
