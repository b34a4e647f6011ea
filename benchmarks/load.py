"""Loading a full-size Stable Diffusion 1.5 from a folder of safetensors, against diffusers.

    python -m benchmarks.load

Random weights of the published shapes are written to a temporary folder (4.3 GB); both sides then
read it in float32 and in bfloat16, turn about. Time is of a call with the file in the page cache;
memory is the process's peak, in MiB and over the size of the parameters.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import Peer, compare, report

PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
BYTES = {"float32": 4, "bfloat16": 2}
WANTED_MEMORY = 1.2  # peak over the parameters in the target dtype


def write_model(folder: Path) -> None:
    """A random SD1.5 without safety checker, one tensor in memory at a time."""
    import sdjax
    from sdjax.pipeline.files import Model, write_model
    from sdjax.text.vocabulary import clip_tokenizer
    from sdjax.weights import infer, parts
    from sdjax.weights.checkpoint import Checkpoint, Part
    from sdjax.weights.names import state_from_params
    from sdjax.weights.tensors import LazyTensor

    unet = sdjax.UNetConfig(cross_attention_dim=768, sample_size=64)
    vae = sdjax.VAEConfig(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    text = sdjax.TextEncoderConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768
    )
    rng = np.random.default_rng(0)

    def part(config, shapes):
        state = {
            key: LazyTensor(
                tensor.shape,
                np.dtype(np.float32),
                lambda shape=tensor.shape: 0.02 * rng.standard_normal(shape, np.float32),
            )
            for key, tensor in state_from_params(shapes).items()
        }
        assert sum(int(np.prod(tensor.shape)) for tensor in state.values()) in PARAMETERS.values()
        return Part(config.to_dict(), state)

    checkpoint = Checkpoint(
        {
            "unet": part(unet, parts.unet_shapes(unet)),
            "vae": part(vae, parts.vae_shapes(vae)),
            "text_encoder": part(text, parts.text_shapes(text)),
        },
        scheduler=infer.scheduler_config("sd1", "epsilon"),
    )
    write_model(Model(checkpoint, {"text_encoder": clip_tokenizer()}), folder)


def build_ours(folder):
    """Tasks that load with sdjax."""
    import sdjax

    def load(dtype):
        sdjax.StableDiffusion.from_pretrained(folder, dtype=dtype)

    return {dtype: lambda dtype=dtype: load(dtype) for dtype in BYTES}


def build_diffusers(folder):
    """Tasks that load with PyTorch diffusers."""
    import diffusers
    import torch

    diffusers.utils.logging.disable_progress_bar()

    def load(dtype):
        diffusers.StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), safety_checker=None
        )

    return {dtype: lambda dtype=dtype: load(dtype) for dtype in BYTES}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        one_device = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
        peers = [
            Peer("sdjax", build_ours, one_device, folder=folder),
            Peer("diffusers", build_diffusers, {}, folder=folder),
        ]
        results = compare(peers, list(BYTES), rounds=options.rounds)
        for peer in peers:
            peer.close()
    total = sum(PARAMETERS.values())
    for dtype, size in BYTES.items():
        mib = total * size / 2**20
        for name, result in results[dtype].items():
            memory = result["memory_mib"]
            if memory:
                over = (memory["peak"] - memory["before"]) / mib
                result["memory_over_parameters"] = round(over, 3)
                wanted = f" (wanted ≤ {WANTED_MEMORY})" if name == "sdjax" else ""
                print(f"{dtype:>9} {name:>9}: {over:.2f} of the parameters' {mib:.0f} MiB{wanted}")
    settings = {"parameters": total, "rounds": options.rounds, "file": "float32 safetensors"}
    report(
        "load", "Loading Stable Diffusion 1.5", results, "diffusers", settings,
        save=not options.no_save,
    )


if __name__ == "__main__":
    main()
