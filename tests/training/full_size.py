"""One LoRA step of a published architecture with random weights, in a process of its own.

    python -m tests.training.full_size sd15 256
    python -m tests.training.full_size sdxl 1024 compile

Prints one line of JSON: the loss and the process's peak memory in GB; with `compile`, nothing is
computed, and XLA's own figures of the compiled step are printed.
"""

import json
import resource
import sys
import time

import jax
import numpy as np

from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.parallel import replicate, shard_batch
from sdjax.text.vocabulary import clip_tokenizer
from sdjax.training import TrainState, TuningRun, adaptations, make_optimizer, make_step
from sdjax.training.objectives.tuning import empty_ids, tuned
from sdjax.training.recipes.base import base_model
from sdjax.weights.parts import VAE, TextEncoder, UNet
from sdjax.weights.published import published

RUN = TuningRun(adaptation=adaptations.LoRA(rank=4), steps=1, batch_size=1, remat=True,
                base_dtype="float32")


def shapes_of(name):
    """(networks, scheduler_config, parameters as shapes) of a published architecture."""
    configs, kinds = published(name), {"unet": (UNet, UNetConfig), "vae": (VAE, VAEConfig)}
    made = {}
    for part, config in configs.items():
        if part != "scheduler":
            kind, own = kinds.get(part, (TextEncoder, TextEncoderConfig))
            made[part] = kind(own.from_dict(config))
    encoders = {part: network for part, network in made.items() if part.startswith("text")}
    networks = adaptations.Networks(
        made["unet"], made["vae"], encoders, dict.fromkeys(encoders, clip_tokenizer()))
    params = {part: network.shapes(network.config) for part, network in made.items()}
    return networks, configs["scheduler"], params


def batch_of(networks, side):
    """A batch of one: latents, captions and, for SDXL, sizes."""
    random = np.random.default_rng(0)
    mean = random.normal(size=(1, side // 8, side // 8, 4)).astype(np.float32)
    batch = {"mean": mean, "std": np.zeros_like(mean)}
    for name, tokenizer in networks.tokenizers.items():
        batch["ids_2" if name.endswith("2") else "ids"] = tokenizer.encode(["a red cat"])
    if networks.unet.config.addition_embed_type:
        batch["time_ids"] = np.float32([[side, side, 0, 0, side, side]])
    return batch


def run(name, side):
    """One step carried out."""
    model = base_model(name)
    objective = tuned(RUN, adaptations.Networks.of(model), model.scheduler_config)
    frozen = {**model.params, **empty_ids(objective.networks)}
    optimizer = make_optimizer(RUN.optimizer, 1000, objective.rates)
    tree = objective.init(jax.random.key(0), frozen)
    state = replicate(TrainState.create(tree, optimizer))
    kept = {part: own for part, own in objective.kept(frozen).items() if part != "vae"}
    step = make_step(objective.loss, optimizer, RUN)
    batch = shard_batch(batch_of(objective.networks, side), (1, 1))
    state, metrics = step(state, kept, batch)
    return {"loss": float(metrics["loss"][0]), "grad_norm": float(metrics["grad_norm"][0])}


def compiled(name, side):
    """XLA's figures of the step's gradient, from shapes alone."""
    networks, scheduler, params = shapes_of(name)
    objective = tuned(RUN, networks, scheduler)
    ids = {n: jax.ShapeDtypeStruct(x.shape, x.dtype)
           for n, x in empty_ids(objective.networks).items()}
    frozen = {**params, **ids}
    tree = jax.eval_shape(objective.init, jax.random.key(0), frozen)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    gradient = jax.value_and_grad(objective.loss, has_aux=True)
    figures = jax.jit(gradient).lower(
        tree, objective.kept(frozen), batch_of(objective.networks, side), keys
    ).compile().memory_analysis()
    sizes = {"arguments": figures.argument_size_in_bytes, "temporary": figures.temp_size_in_bytes}
    count = sum(x.size for x in jax.tree.leaves(params["unet"]))
    return {"unet_parameters": count, **{f"{n}_GB": round(s / 1e9, 2) for n, s in sizes.items()}}


def main(name, side, *how):
    """Prints what comes of it."""
    begun = time.monotonic()
    found = (compiled if how else run)(name, int(side))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({**found, "peak_GB": round(peak, 2),
                      "seconds": round(time.monotonic() - begun, 1)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
