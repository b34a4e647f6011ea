"""Motion modules trained: against PyTorch, and as a recipe from start to finish."""

import dataclasses
import json

import diffusers
import jax
import numpy as np
import pytest
import torch

import sdjax
from sdjax import evaluation
from sdjax.data import DataConfig
from sdjax.data.moving import moving_captions
from sdjax.errors import SdjaxError
from sdjax.training import (
    OptimizerConfig,
    Recipe,
    TuningRun,
    adaptations,
    load_config,
    train,
)
from sdjax.training.loop.step import image_keys
from sdjax.training.objectives.denoising import noised
from sdjax.training.objectives.tuning import TuningSheet, empty_ids, tuned
from sdjax.weights.names import state_from_params
from tests.pipeline import peers as pipelines
from tests.training.small import LATENT, small_model

FRAMES = 3
MOTION = adaptations.Motion(heads=2, positions=4)


def test_loss_and_gradients_are_pytorchs(tmp_path):
    folder = pipelines.make("sd1", tmp_path / "model")
    model = sdjax.StableDiffusion.from_pretrained(folder)
    config = TuningRun(adaptation=MOTION, steps=1)
    objective = tuned(config, adaptations.Networks.of(model), model.scheduler_config)
    base = {k: jax.tree.map(np.asarray, v) for k, v in model.params.items()}
    frozen = {**base, **empty_ids(objective.networks)}
    random = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda x: x + 0.05 * random.normal(size=x.shape).astype(np.float32),
        objective.init(jax.random.key(0), frozen),
    )
    mean = random.normal(size=(2, FRAMES, 8, 8, 4)).astype(np.float32)
    ids = objective.networks.tokenizers["text_encoder"].encode(["a large circle", "a blue square"])
    batch = {"mean": mean, "std": np.zeros_like(mean), "ids": ids}
    keys = image_keys(0, 0, 0, 2)
    (loss, _), gradient = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(
        tree, objective.kept(frozen), batch, keys
    )
    drawn = noised(objective.config.denoising, objective.schedule,
                   mean * model.vae.config.scaling_factor, keys)  # fmt: skip

    peer = pipelines.load("sd1", folder)
    settings = objective.adaptation.config.to_dict()
    adapter = diffusers.MotionAdapter.from_config(settings)
    network = diffusers.UNetMotionModel.from_unet2d(peer.unet, adapter).eval()
    values = {key: torch.from_numpy(np.array(t.load()))
              for key, t in state_from_params(tree["motion"]).items()}  # fmt: skip
    parameters = {k: p for k, p in network.named_parameters() if "motion_modules" in k}
    assert set(values) == set(parameters)
    missing = network.load_state_dict(values, strict=False).unexpected_keys
    assert not missing

    def clip(array):
        return torch.from_numpy(np.array(array).transpose(0, 4, 1, 2, 3).copy())

    context = peer.text_encoder(torch.from_numpy(np.array(ids)).long())[0]
    predicted = network(
        clip(drawn.x_t), torch.from_numpy(np.array(drawn.t)).long(),
        context.repeat_interleave(FRAMES, 0),
    ).sample  # fmt: skip
    wanted = ((predicted - clip(drawn.noise)) ** 2).mean()
    wanted.backward()
    assert float(loss) == pytest.approx(wanted.item(), rel=1e-5)
    found = {key: t.load() for key, t in state_from_params(gradient["motion"]).items()}
    whole = np.sqrt(sum(float((p.grad**2).sum()) for p in parameters.values()))
    for key, parameter in parameters.items():
        expected = parameter.grad.numpy()
        error = np.linalg.norm(found[key] - expected)
        assert error <= 1e-4 * max(np.linalg.norm(expected), 1e-5 * whole), key


RUN = {
    "steps": 2, "batch_size": 2, "log_every": 2, "checkpoint_every": 2, "sheet_every": 2,
    "optimizer": OptimizerConfig(warmup_steps=1, learning_rate=1e-2), "ema_decay": 0.0,
    "sheet": TuningSheet(images=2, steps=2, guidance_scale=1.0),
}  # fmt: skip
DATA = DataConfig(source="moving", image_size=32, frames=FRAMES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "model"
    small_model(moving_captions(40)).save_pretrained(folder)
    return folder


def recipe(adaptation=MOTION, data=DATA, **options):
    return Recipe(
        data=data, examples=4, diffusion=TuningRun(adaptation=adaptation, **RUN), **options
    )


def test_a_recipe_from_start_to_finish_and_its_evaluation(model, tmp_path, recwarn):
    assert train(recipe(model=str(model)), tmp_path / "run")
    assert (tmp_path / "run/diffusion/sheets").exists() or list((tmp_path / "run").rglob("*.png"))
    motion = tmp_path / "run/motion"
    peer = diffusers.MotionAdapter.from_pretrained(motion)
    assert peer.config.motion_max_seq_length == 4
    moving = sdjax.StableDiffusion.from_pretrained(model)
    moving.load_motion(motion)
    assert not [w for w in recwarn if "betas" in str(w.message)]
    assert np.abs(moving.params["unet"]["down_blocks.0"]["motion_modules.0"]["proj_out"]["kernel"]
                  ).max() > 0  # fmt: skip
    config = evaluation.Moving(
        motion=str(motion), captions=2, frames=FRAMES, out=str(tmp_path / "figures"),
        generation=evaluation.Generation(steps=2, guidance_scale=1.0, batch_size=2),
    )  # fmt: skip
    results = evaluation.run(config, lambda: moving, str(model))
    written = json.loads((tmp_path / "figures/moving.json").read_text())
    assert written == json.loads(json.dumps(results))
    for split in ("train", "heldout"):
        assert (tmp_path / f"figures/moving_{split}.png").exists()
        assert results[split]["clips"]["clips"] == 2
        assert "all" in results[split]["frames"]["accuracy"]
    moving.unload_motion()
    with pytest.raises(SdjaxError, match="name its motion modules by --motion"):
        evaluation.run(dataclasses.replace(config, motion=None), lambda: moving, str(model))


@pytest.mark.full
def test_the_model_of_pictures_is_trained_first(tmp_path):
    (tmp_path / "pictures.py").write_text(
        "from dataclasses import replace\nfrom sdjax.data import DataConfig\n"
        "from tests.training.small import LATENT\n"
        'data = DataConfig(source="moving", image_size=32, frames=1)\n'
        "config = replace(LATENT, data=data)\n"
    )
    asked = recipe(base=str(tmp_path / "pictures.py"))
    assert train(asked, tmp_path / "run")
    made = sdjax.StableDiffusion.from_pretrained(tmp_path / "run/base/model")
    made.load_motion(tmp_path / "run/motion")
    caption = moving_captions(1)[0]
    assert len(made.generate(caption, frames=2, steps=2, progress=False)[0]) == 2
    assert train(asked, tmp_path / "run")  # finished already


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adaptation": adaptations.LoRA(rank=1)}, "LoRA learns from pictures, data.source moving"),
        ({"data": dataclasses.replace(DATA, frames=1)}, "Motion learns from clips, data.source mov"),
        ({"adaptation": adaptations.Motion(heads=3)}, "heads 3 must divide the U-Net's widths"),
        ({"adaptation": adaptations.Motion(heads=2, positions=2)}, "know 2 positions, got a clip"),
    ],
)
def test_what_does_not_fit_is_refused(model, tmp_path, change, message):
    with pytest.raises(SdjaxError, match=message):
        train(recipe(model=str(model), **change), tmp_path / "run")


def test_recipes_that_cannot_be():
    with pytest.raises(SdjaxError, match="training from noise takes pictures: set data.frames"):
        dataclasses.replace(LATENT, data=DATA)
    with pytest.raises(SdjaxError, match="base is for a TuningRun"):
        dataclasses.replace(LATENT, base="shapes")
    made = load_config("configs/moving_shapes.py")
    assert made.base == "moving_frames" and load_config("moving_frames").data.frames == 1
