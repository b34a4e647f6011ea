"""What a training step takes of devices that need not be there."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import absent
from sdjax.chips import CHIPS, least_seconds
from sdjax.data.source import in_shards
from sdjax.errors import SdjaxError
from sdjax.models.attention_kernels import compiling_for
from sdjax.parallel import Sharded
from sdjax.parallel.rules import FSDP, TENSOR, spec
from sdjax.pipeline.model.configurations import NETWORKS, configurations
from sdjax.training.adaptations import Networks
from sdjax.training.loop.config import RunConfig
from sdjax.training.loop.fit import optimizer_of, placed_by, step_of
from sdjax.training.loop.state import TrainState
from sdjax.training.objectives.latent import LatentObjective, LatentRun
from sdjax.training.objectives.latent_loss import IDS
from sdjax.training.objectives.molecules import MoleculeObjective, MoleculeRun
from sdjax.training.objectives.pixel import PixelObjective, PixelRun
from sdjax.training.objectives.tuning import empty_ids, tuned
from sdjax.weights.parts import VAE, TextEncoder, UNet, vae_shapes
from sdjax.weights.published import PUBLISHED
from sdjax.weights.quantized.rounding import quantized_shapes

Shape = jax.ShapeDtypeStruct


class Problem(NamedTuple):
    """A training without its weights and data."""

    objective: Any
    config: RunConfig
    frozen: dict
    """Shapes."""
    batch: dict
    """Shapes of one batch."""


class Estimate(NamedTuple):
    """What one update takes; bytes and operations are those of one device."""

    chip: str
    devices: int
    images: int
    """That an update averages over, on all devices."""
    parameters: int
    optimizer: int
    ema: int
    frozen: int
    data: int
    temporary: int | None
    """Activations, gradients and what else the compiler makes; None where none was asked."""
    flops: float
    accessed: float | None
    collectives: list[absent.Collective]
    """Of the compiled program; where there is none, those of `expected`."""

    @property
    def held(self) -> int:
        """Bytes that are there whatever happens."""
        return self.parameters + self.optimizer + self.ema + self.frozen + self.data

    @property
    def memory(self) -> int:
        """Bytes in all, as far as known."""
        return self.held + (self.temporary or 0)

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that an update takes at least, for each of what it needs."""
        found = least_seconds(self.chip, self.flops, self.accessed)
        if found:
            moved = sum(one.moved for one in self.collectives)
            found["links"] = moved / CHIPS[self.chip].links
        return found


def estimate(recipe, topology: str, compiled: bool = True) -> Estimate:
    """The estimate of a recipe's diffusion run on "v5e:2x4", "h100:8" or "cpu".

    TPUs: the step is compiled for them. "cpu": for this machine's devices. GPUs: no compiler is
    here without one, so that only sizes and operations are counted, the latter of the program
    before it is compiled, and so it is of TPUs where compiled is False. Raises SdjaxError for what
    is none of these, or cannot be planned.
    """
    name, devices, count, compiles = absent.place(topology, compiled)
    placement = recipe.placement
    problem = problem_of(recipe)
    config = problem.config
    optimizer = optimizer_of(problem.objective, config)
    state = jax.eval_shape(
        lambda key, frozen: TrainState.create(problem.objective.init(key, frozen), optimizer),
        jax.random.key(0), problem.frozen,
    )
    kept = getattr(problem.objective, "kept", None)
    frozen = jax.eval_shape(kept, problem.frozen) if kept else problem.frozen
    if compiles:
        place = Sharded.over(placement.fsdp, placement.tensor, devices)
        fsdp, tensor, groups = place.fsdp, place.tensor, place.groups
    else:
        place, tensor = Sharded.over(1, 1, devices), placement.tensor
        fsdp = count // tensor if placement.fsdp == -1 else placement.fsdp
        groups = count // tensor
        if not fsdp or count % (fsdp * tensor):
            raise SdjaxError(f"fsdp {fsdp} times tensor {tensor} must divide {count} devices")
    if config.batch_size % groups:
        raise SdjaxError(
            f"diffusion.batch_size {config.batch_size} cannot be split over {groups} devices: "
            f"choose a multiple of {groups}"
        )
    place = placed_by(config, place)
    step = step_of(problem.objective, optimizer, config, place)
    lead = (config.steps_per_call, config.accumulation)
    cut = place.data_cut(len(lead))
    batch = jax.tree.map(lambda x: Shape((*lead, *x.shape), x.dtype, sharding=cut), problem.batch)
    # Where nothing is compiled, attention is written out whole: a loop's body would count once.
    platform = "gpu" if not compiles else "cpu" if name == "cpu" else "tpu"
    with compiling_for(platform):
        program = step.lower(place.shapes(state), place.shapes(frozen), batch)
        if compiles:
            program = program.compile()
    work = program.cost_analysis()
    # The body of a loop over parts of an update is counted once.
    often = config.accumulation
    found = {
        part: _held(getattr(state, name), fsdp, tensor)
        for part, name in (("parameters", "params"), ("optimizer", "opt_state"), ("ema", "ema"))
    }
    found["ema"] = 0 if config.ema_on_host else found["ema"]
    return Estimate(
        name, count, config.images_per_step, **found, frozen=_held(frozen, fsdp, tensor),
        data=sum(_size(x) for x in jax.tree.leaves(batch)) // groups,
        temporary=program.memory_analysis().temp_size_in_bytes if compiles else None,
        flops=often * work["flops"] / (1 if compiles else count),
        accessed=often * work["bytes accessed"] if compiles else None,
        collectives=absent.collectives(program.as_text(), count) if compiles else expected(
            state.params, frozen, fsdp, tensor, groups, often
        ),
    )


def expected(params, frozen, fsdp, tensor, groups, accumulation=1) -> list[absent.Collective]:
    """What devices tell each other in an update, by its mathematics.

    What is cut over fsdp is gathered for the forward pass and again for the backward pass, and its
    gradient is summed where it lies (ZeRO-3, arXiv 1910.02054); shares of the batch that hold the
    same part add their gradients up, as all do of what is not cut. Bytes are those of float32. What
    tensor shares out of activations is not counted.
    """
    cut = whole = read = 0
    for tree, trained in ((params, True), (frozen, False)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            axes, size = spec(name, leaf.shape, fsdp, tensor), _size(leaf)
            size //= tensor if TENSOR in axes else 1
            if FSDP in axes:
                read += size
                cut += size if trained else 0
            elif trained:
                whole += size
    wanted = [
        *[("all-gather", read, fsdp)] * 2 * accumulation,
        *[("reduce-scatter", cut, fsdp)] * accumulation,
        ("all-reduce", cut // fsdp, groups // fsdp),
        ("all-reduce", whole, groups),
    ]
    return [absent.Collective(*one) for one in wanted if one[1] and one[2] > 1]


def _size(leaf):
    return math.prod(leaf.shape) * leaf.dtype.itemsize if hasattr(leaf.dtype, "itemsize") else 0


def _held(tree, fsdp, tensor):
    """Bytes of a tree of parameters on each device."""
    total = 0
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = [axis for axis in spec(name, leaf.shape, fsdp, tensor) if axis]
        total += _size(leaf) // math.prod({"fsdp": fsdp, "tensor": tensor}[axis] for axis in axes)
    return total


def problem_of(recipe) -> Problem:
    """The problem that a recipe's diffusion run is."""
    run = recipe.diffusion
    if isinstance(run, PixelRun):
        size, channels = recipe.data.image_size, run.unet.in_channels
        batch = {"image": Shape((run.batch_size, size, size, channels), jnp.float32)}
        if run.classes:
            batch["label"] = Shape((run.batch_size,), jnp.int32)
        return Problem(PixelObjective(run), run, {}, batch)
    if isinstance(run, LatentRun):
        return _from_noise(recipe, run)
    if isinstance(run, MoleculeRun):
        return _of_molecules(run)
    if run is None:
        raise SdjaxError("plan is for the training of a denoising network, not of an autoencoder")
    return _on_model(recipe, run)


def _of_molecules(run):
    # No molecule of QM9 has more than two hydrogens a heavy atom and two: 29 for 9.
    points = 3 * run.max_heavy_atoms + 2 if run.hydrogens else run.max_heavy_atoms
    batch = {
        "x": Shape((run.batch_size, points, run.features.width), jnp.float32),
        "mask": Shape((run.batch_size, points, 1), jnp.float32),
    }
    if run.condition:
        batch["context"] = Shape((run.batch_size, 1), jnp.float32)
    return Problem(MoleculeObjective(run), run, {}, batch)


def _from_noise(recipe, run):
    if recipe.autoencoder is None:
        vae = VAE.from_pretrained(recipe.pretrained)[0].config
    else:
        vae = recipe.autoencoder.vae
    run = dataclasses.replace(run, text_encoder=dataclasses.replace(
        run.text_encoder, vocab_size=run.vocab_size, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    ))
    length = run.text_encoder.max_position_embeddings
    frozen = {"empty_ids": Shape((length,), jnp.int32)}
    if not run.train_text_encoder:
        frozen["text_encoder"] = TextEncoder.shapes(run.text_encoder)
    if not run.cache_latents:
        frozen["vae"] = vae_shapes(vae)
    batch = _pictures(run, vae, recipe.data.image_size, _cached(recipe))
    batch["ids"] = Shape((run.batch_size, length), jnp.int32)
    return Problem(LatentObjective(run, vae), run, frozen, batch)


def _on_model(recipe, run):
    source = recipe.model
    if source is None:
        raise SdjaxError(
            f"this recipe trains on top of a model: name it by --model, such as {PUBLISHED[0]}"
        )
    configs, tokenizers, scheduler = configurations(source)
    networks = Networks(
        UNet(configs["unet"]), VAE(configs["vae"]),
        {part: TextEncoder(configs[part]) for part in tokenizers}, tokenizers,
    )
    objective = tuned(run, networks, scheduler)
    dtype = jnp.dtype(run.base_dtype)
    base = {
        part: jax.tree.map(lambda leaf: Shape(leaf.shape, dtype), NETWORKS[part].shapes(config))
        for part, config in configs.items()
    }
    if run.quantize is not None:
        base = quantized_shapes(base, run.quantize)
    unet, vae = configs["unet"], configs["vae"]
    size = recipe.data.image_size or vae.downsampling * np.max(unet.sample_size)
    needs = objective.adaptation.needs
    batch = _pictures(run, vae, int(size), _cached(recipe) and "image" not in needs)
    for name in needs:
        kind = jnp.float32 if name == "control" else jnp.uint8
        batch[name] = Shape((run.batch_size, int(size), int(size), 3), kind)
    for part, tokenizer in tokenizers.items():
        batch[IDS[part]] = Shape((run.batch_size, tokenizer.max_length), jnp.int32)
    if unet.addition_embed_type == "text_time":
        batch["time_ids"] = Shape((run.batch_size, 6), jnp.float32)
    return Problem(objective, objective.config, {**base, **empty_ids(objective.networks)}, batch)


def _cached(recipe):
    """Whether batches have latents: those kept in memory, or encoded before."""
    if in_shards(recipe.data):
        return recipe.data.source.startswith("encoded:")
    return recipe.diffusion.cache_latents


def _pictures(run, vae, size, cached):
    if not cached:
        return {"image": Shape((run.batch_size, size, size, 3), jnp.uint8)}
    side = size // vae.downsampling
    latents = Shape((run.batch_size, side, side, vae.latent_channels), jnp.float32)
    return {"mean": latents, "std": latents}


def remedies(recipe, found: Estimate) -> list[str]:
    """What would lessen the memory, the cheapest first."""
    run, result = recipe.diffusion, []
    if not run.remat:
        result.append("--diffusion.remat True computes activations twice and keeps few of them")
    if run.batch_size > found.devices:
        result.append(
            f"--diffusion.batch_size {run.batch_size // 2} --diffusion.accumulation "
            f"{2 * run.accumulation} halves activations for the same update"
        )
    if recipe.placement.fsdp == 1 and found.devices > 1:
        part = (found.parameters + found.optimizer + found.ema + found.frozen) / 1e9
        result.append(
            f"--placement.fsdp -1 leaves {part / found.devices:.2f} of {part:.2f} GB of "
            "parameters, averages and optimizer on each device"
        )
    if not run.ema_on_host and run.steps_per_call == 1:
        result.append(
            f"--diffusion.ema-on-host saves {found.ema / 1e9:.2f} GB, for the time that averages "
            "take between hosts and devices; it needs placement.fsdp"
        )
    if run.optimizer.name == "adamw":
        result.append(
            f"--diffusion.optimizer.name adafactor --diffusion.optimizer.beta_1 0 saves about "
            f"{found.optimizer / 1e9:.2f} GB"
        )
    if found.frozen > found.parameters and getattr(run, "base_dtype", "") == "float32":
        result.append(
            f"--diffusion.base_dtype bfloat16 saves {found.frozen / 2e9:.2f} GB of what is frozen"
        )
    return result
