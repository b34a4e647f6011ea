"""Loading a full-size Stable Diffusion 1.5 from a folder of safetensors, against diffusers.

    python -m benchmarks.load

A model of the published shapes is written to a temporary folder (4.3 GB); both sides then read it
in float32 and in bfloat16, turn about, from the page cache, until every parameter is in memory:
diffusers maps a float32 file as it is, so a number of each of its pages is looked at.

The times are those of later loads in a process. The first of a fresh process is told apart, for
with sdjax it traces the parameters' shapes, which later ones find; imports count with neither.
Memory is what that first load adds at its peak to what the imports took, mapped pages included,
over the size of the parameters: later loads take what earlier ones have freed.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmarks.common import Peer, compare, report

PARAMETERS = 859_520_964 + 83_653_863 + 123_060_480  # U-Net, autoencoder, text encoder
BYTES = {"float32": 4, "bfloat16": 2}
WANTED_MEMORY = 1.2  # peak over the parameters in the target dtype
PAGE = 4096  # bytes
# Changes to the published configurations; "tiny" is for a try of the program itself.
SIZES = {
    "full": {"unet": {}, "vae": {}, "text_encoder": {}},
    "tiny": {
        "unet": {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 64},
        "vae": {"block_out_channels": (32, 32, 64, 64)},
        "text_encoder": {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1,
                         "num_hidden_layers": 2, "projection_dim": 64},
    },
}  # fmt: skip


def write_model(folder: Path, size: str) -> int:
    """Writes an SD1.5 without safety checker, a tensor at a time; returns its parameters' number.

    Every tensor repeats the same million random numbers: drawing a thousand times as many takes
    longer than all that is measured here.
    """
    import sdjax
    from sdjax.pipeline.model.files import Model, write_model
    from sdjax.text.vocabulary import clip_tokenizer
    from sdjax.weights import infer, parts
    from sdjax.weights.checkpoint import Checkpoint, Part
    from sdjax.weights.names import state_from_params
    from sdjax.weights.tensors import LazyTensor

    unet = {"cross_attention_dim": 768, "sample_size": 64}
    vae = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
    }
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
            "projection_dim": 768}  # fmt: skip
    changes = SIZES[size]
    unet = sdjax.UNetConfig(**{**unet, **changes["unet"]})
    vae = sdjax.VAEConfig(**{**vae, **changes["vae"]})
    text = sdjax.TextEncoderConfig(**{**text, **changes["text_encoder"]})
    numbers = 0.02 * np.random.default_rng(0).standard_normal(2**20, np.float32)

    def part(config, shapes):
        state = {
            key: LazyTensor(
                tensor.shape,
                numbers.dtype,
                lambda shape=tensor.shape: np.resize(numbers, shape),
            )
            for key, tensor in state_from_params(shapes).items()
        }
        return Part(config.to_dict(), state)

    made = {
        "unet": part(unet, parts.unet_shapes(unet)),
        "vae": part(vae, parts.vae_shapes(vae)),
        "text_encoder": part(text, parts.text_shapes(text)),
    }
    checkpoint = Checkpoint(made, scheduler=infer.scheduler_config("sd1", "epsilon"))
    write_model(Model(checkpoint, {"text_encoder": clip_tokenizer()}), folder)
    os.sync()  # or the system goes on writing while the first side is timed
    return sum(int(np.prod(t.shape)) for part in made.values() for t in part.state.values())


def build_ours(folder):
    """Tasks that load with sdjax."""
    import jax

    import sdjax

    assert sdjax.StableDiffusion and jax.devices()  # imported and started before a load

    def load(dtype):
        jax.block_until_ready(sdjax.StableDiffusion.from_pretrained(folder, dtype=dtype).params)

    return {dtype: lambda dtype=dtype: load(dtype) for dtype in BYTES}


def build_diffusers(folder):
    """Tasks that load with PyTorch diffusers."""
    import diffusers
    import torch

    diffusers.utils.logging.disable_progress_bar()
    assert diffusers.StableDiffusionPipeline  # imported before a load

    def load(dtype):
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), safety_checker=None
        )
        with torch.no_grad():
            for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
                for parameter in part.parameters():
                    parameter.flatten()[:: PAGE // parameter.element_size()].sum()

    return {dtype: lambda dtype=dtype: load(dtype) for dtype in BYTES}


def main(size: Literal["full", "tiny"] = "full", rounds: int = 3, save: bool = True):
    """Writes the model, measures, prints and writes the results."""
    with tempfile.TemporaryDirectory() as folder:
        total = write_model(Path(folder), size)
        assert size != "full" or total == PARAMETERS
        one_device = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        sides = {"sdjax": (build_ours, one_device), "diffusers": (build_diffusers, {})}
        peers = [Peer(name, *side, folder=folder) for name, side in sides.items()]
        results = compare(peers, list(BYTES), rounds=rounds)
        for peer in peers:
            peer.close()
        for dtype in BYTES:
            for name, side in sides.items():
                fresh = Peer(name, *side, folder=folder)
                start, result = time.perf_counter(), results[dtype][name]
                result["memory_mib"] = fresh.ask("memory", dtype)
                result["first_s"] = time.perf_counter() - start
                fresh.close()
    for dtype, width in BYTES.items():
        mib = total * width / 2**20
        for name, result in results[dtype].items():
            memory = result["memory_mib"]
            if memory:
                over = (memory["peak"] - memory["before"]) / mib
                result["memory_over_parameters"] = round(over, 3)
                wanted = f" (wanted ≤ {WANTED_MEMORY})" if name == "sdjax" else ""
                print(f"{dtype:>9} {name:>9}: {over:.2f} of the parameters' {mib:.0f} MiB{wanted}")
            print(f"{dtype:>9} {name:>9}: {result['first_s']:.2f} s the first load of a process")
    settings = {
        "parameters": total, "rounds": rounds, "size": size, "file": "float32 safetensors",
    }  # fmt: skip
    report("load", "Loading Stable Diffusion 1.5", results, "diffusers", settings, save=save)


if __name__ == "__main__":
    tyro.cli(main)
