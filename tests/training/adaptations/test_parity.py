"""Each adaptation of each family against PyTorch: loss, gradients and ten updates."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import sdjax
from sdjax.pipeline.compiled import arrays, coding
from sdjax.training import OptimizerConfig, TuningRun, adaptations, make_optimizer
from sdjax.training.loop.step import image_keys
from sdjax.training.objectives.tuning import empty_ids, tuned
from sdjax.weights.names import state_from_params
from tests.pipeline import peers as pipelines
from tests.training.adaptations.peers import Peer, to_torch

BATCH, SIDE = 2, 8
RATE = 1e-3
FULL = adaptations.Full(text_encoder=True)
LORA = adaptations.LoRA(rank=3, alpha=2.0, text_encoder=True)
CONV = adaptations.LoRA(rank=3, alpha=2.0, conv_rank=2, conv_alpha=1.5)
DORA = adaptations.LoRA(rank=2, alpha=4.0, targets=("transformers", "convolutions"), dora=True)
WORD = adaptations.LearnedWord(word="<new>", initial="red", vectors=3)
CONTROL = adaptations.ControlNet()
CASES = [
    *((kind, name) for kind in ("sd1", "sd2", "sdxl")
      for name in ("full", "lora", "word", "control")),
    ("sd1", "conv"), ("sd1", "dora"), ("sd1", "inpaint"), ("sd1", "edit"), ("sdxl", "dora"),
    ("refiner", "lora"), ("sd1", "nf4 lora"), ("sd1", "int8 dora"), ("sdxl", "int4 lora"),
]
QUICK = [("sd1", "nf4 lora"), ("sd1", "word"), ("sd1", "dora"), ("sdxl", "lora")]
MARKED = [case if case in QUICK else pytest.param(*case, marks=pytest.mark.full) for case in CASES]
VALUES = {
    "full": FULL, "lora": LORA, "conv": CONV, "dora": DORA, "word": WORD, "control": CONTROL,
    "inpaint": adaptations.Inpaint(), "edit": adaptations.InstructPix2Pix(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """kind -> the folder of its random pipeline, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = pipelines.make(kind, tmp_path_factory.mktemp(kind) / "model")
        return made[kind]

    return of


def noise_like(tree, seed):
    """A tree with something random added, so that no gradient is zero for want of a start."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + 0.05 * random.normal(size=x.shape).astype(np.float32), tree
    )


def batch_for(objective, model):
    random = np.random.default_rng(1)
    tokenizers = objective.networks.tokenizers
    texts = ["a large <new> circle", "a blue square"]
    unet, factor = model.unet.config, model.vae.config.downsampling

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    batch = {"mean": normal(BATCH, SIDE, SIDE, 4)}
    batch["std"] = np.zeros_like(batch["mean"])
    for name, tokenizer in tokenizers.items():
        batch["ids" if name == "text_encoder" else "ids_2"] = tokenizer.encode(texts)
    if unet.addition_embed_type == "text_time":
        count = 6 if "text_encoder" in tokenizers else 5  # the refiner's
        batch["time_ids"] = random.integers(0, 64, (BATCH, count)).astype(np.float32)
    pictures = np.clip(normal(BATCH, factor * SIDE, factor * SIDE, 3), -1, 1)
    needs = objective.adaptation.needs
    return batch | {name: (pictures + 1) / 2 if name == "control" else pictures for name in needs}


def channels_of(name, peer, batch, given):
    """What stands beside x, by PyTorch's autoencoder, with the masks and noise that ours draws."""
    vae = peer.parts["vae"]
    if name == "edit":
        latents = vae.encode(to_torch(batch["original"])).latent_dist.mode()
        lost = np.asarray(given.channels).reshape(BATCH, -1).any(1)
        return latents * torch.from_numpy(lost.astype(np.float32)).reshape(-1, 1, 1, 1)
    keys = image_keys(0, 0, 0, BATCH)
    masks = jax.vmap(lambda key: adaptations.random_mask(
        VALUES[name].masks, jax.random.fold_in(key, 100), batch["image"].shape[1:3]))(keys)
    mask = torch.from_numpy(np.array(masks))[:, None]
    posterior = vae.encode(to_torch(batch["image"]) * (mask < 0.5)).latent_dist
    noise = jax.vmap(lambda key: jax.random.normal(
        jax.random.fold_in(key, 101), (SIDE, SIDE, 4)))(keys)
    latents = (posterior.mean + posterior.std * to_torch(noise)) * vae.config.scaling_factor
    small = torch.nn.functional.interpolate(mask, size=(SIDE, SIDE))
    return torch.cat([small, latents], dim=1)


def flat(tree):
    """Arrays of a tree in PyTorch's layout, by the names that a `Peer` has."""
    return {
        f"{part}.{key}" if key else part: tensor.load()
        for part, own in tree.items()
        for key, tensor in (state_from_params(own) if isinstance(own, dict) else
                            {"": state_from_params({"x": own})["x"]}).items()
    }


@pytest.mark.parametrize("kind, name", MARKED)
def test_loss_gradients_and_ten_updates_are_pytorchs(kind, name, folder):
    few, _, name = name.rpartition(" ")
    model = sdjax.StableDiffusion.from_pretrained(folder(kind), quantize=few or None)
    optimizer = OptimizerConfig(learning_rate=RATE, schedule="constant", warmup_steps=0,
                                clip_norm=0.0, beta_2=0.999, epsilon=1e-6)
    config = TuningRun(adaptation=VALUES[name], steps=10, optimizer=optimizer)
    objective = tuned(config, adaptations.Networks.of(model), model.scheduler_config)
    base = {k: jax.tree.map(np.asarray, v) for k, v in model.params.items()}
    frozen = {**base, **empty_ids(objective.networks)}
    tree = noise_like(objective.init(jax.random.key(0), frozen), 0)
    batch, keys = batch_for(objective, model), image_keys(0, 0, 0, BATCH)

    peer = Peer(pipelines.load(kind, folder(kind)))
    if few:
        peer.take(model.params)
    channels = None
    if name in ("lora", "conv", "dora"):
        adaptation = VALUES[name]
        peer.train_lora(tree, adaptation.rank, adaptation.alpha, dora=adaptation.dora,
                        conv=(2, 1.5) if name == "conv" else None)
    elif name == "word":
        peer.train_words(tree)
    elif name == "control":
        hint = model.vae.config.downsampling.bit_length()
        network = diffusers.ControlNetModel.from_unet(
            peer.parts["unet"], conditioning_embedding_out_channels=(16, 32, 96, 256)[:hint])
        assert {k.removeprefix("controlnet.") for k in flat(tree)} == set(network.state_dict())
        peer.train_controlnet(tree, network)
    else:
        if name in ("inpaint", "edit"):
            width = objective.networks.unet.config.in_channels
            peer.parts["unet"].conv_in = torch.nn.Conv2d(
                width, peer.parts["unet"].conv_in.out_channels, 3, padding=1)
            given = objective.adaptation.conditions(
                batch, lambda x: coding.pixels_to_moments(
                    arrays.Coder(model.vae), base["vae"], jnp.asarray(x)), keys)
            channels = channels_of(name, peer, batch, given)
            np.testing.assert_allclose(
                np.asarray(given.channels).transpose(0, 3, 1, 2), channels.detach(), atol=2e-5)
        peer.train_all(tree)

    chain = make_optimizer(optimizer, 10, objective.rates)

    @jax.jit
    def update(tree, state, frozen, batch):
        (loss, _), gradient = jax.value_and_grad(objective.loss, has_aux=True)(
            tree, frozen, batch, keys)
        change, state = chain.update(gradient, state, tree)
        return optax.apply_updates(tree, change), state, loss, gradient

    theirs = torch.optim.AdamW([
        {"params": [p for p in peer.trained.values() if p.ndim > 1 and p.squeeze().ndim > 1 or
                    p.ndim == 2], "weight_decay": 0.01},
        {"params": [p for p in peer.trained.values() if not (
            p.ndim > 1 and p.squeeze().ndim > 1 or p.ndim == 2)], "weight_decay": 0.0},
    ], lr=RATE, betas=(0.9, 0.999), eps=1e-6)
    kept, state = objective.kept(frozen), chain.init(tree)
    for step in range(10):
        theirs.zero_grad()
        wanted = peer.loss(objective, batch, keys, channels)
        wanted.backward()
        for parameter in peer.trained.values():  # SDXL leaves out the text encoders' last layers
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        tree, state, loss, gradient = update(tree, state, kept, batch)
        assert loss == pytest.approx(wanted.item(), rel=1e-5 if step == 0 else 1e-4)
        if step == 0:
            found = flat(gradient)
            assert set(found) == set(peer.trained)
            whole = np.sqrt(sum(float((p.grad**2).sum()) for p in peer.trained.values()))
            for key, parameter in peer.trained.items():
                expected = parameter.grad.numpy()
                error = np.linalg.norm(found[key].reshape(expected.shape) - expected)
                # A bias of keys changes no attention: its gradient is nothing but rounding.
                assert error <= 1e-4 * max(np.linalg.norm(expected), 1e-5 * whole), key
        theirs.step()
    for key, parameter in peer.trained.items():
        expected = parameter.detach().numpy()
        error = np.linalg.norm(flat(tree)[key].reshape(expected.shape) - expected)
        if not key.endswith("k_proj.bias"):
            assert error <= 1e-4 * np.linalg.norm(expected), key
