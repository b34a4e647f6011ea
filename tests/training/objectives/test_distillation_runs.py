"""Distillations as runs: exact resume, what comes out, and what is refused."""

import dataclasses
import types

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import sdjax
from sdjax.data import DataConfig
from sdjax.errors import SdjaxError
from sdjax.pipeline.given.presets import PRESETS
from sdjax.pipeline.plans.request import Request
from sdjax.training import (
    DMD2,
    ECT,
    LCM,
    ArrayBatches,
    DenoisingConfig,
    OptimizerConfig,
    Progressive,
    Recipe,
    TuningRun,
    adaptations,
    fit,
    load_config,
    train,
)
from sdjax.training.loop.fit import Outcome
from sdjax.training.objectives.denoising import ScheduleConfig
from sdjax.training.objectives.distillation import Task
from sdjax.training.objectives.distilled import DistilledObjective
from sdjax.training.objectives.tuning import TuningSheet
from sdjax.training.recipes import tuning
from sdjax.training.recipes.material import Material
from sdjax.weights import parts
from sdjax.weights.parts import UNet
from sdjax.weights.tensors import read_safetensors
from tests.pipeline import peers
from tests.weights import small

METHODS = {
    "lcm": LCM(),
    "progressive": Progressive(start_steps=8, round_steps=2, guidance_steps=2,
                               guidance_scale=(2.0, 4.0)),
    "ect": ECT(double_every=2),
    "dmd2": DMD2(steps=2, student_every=2, gan_weight=0.1),
}
STEPS = 6


class Tiny(DistilledObjective):
    """The objective with a network of one layer, which compiles in no time."""

    def init(self, key, frozen=None):
        unet = {"mix": jax.random.normal(key, (3, 4)), "out": jnp.ones((4, 3))}
        config = types.SimpleNamespace(block_out_channels=(4,))
        beside = self.distillation.beside(
            key, {"unet": unet}, {"unet": unet}, types.SimpleNamespace(config=config))
        return {"student": {"unet": unet}, **beside}

    def kept(self, frozen):
        return frozen

    def rates(self, params):
        return jax.tree.map(lambda _: 1.0, params)

    @property
    def config(self):
        return self.within

    def loss(self, params, frozen, batch, keys):
        def said(tree, x, t):
            hidden = jnp.tanh(x @ tree["mix"] + t.reshape(-1, 1, 1, 1) / 1000)
            return hidden @ tree["out"], hidden

        state = {name: frozen[name] for name in self.given}
        task = Task(
            ScheduleConfig().build(), "epsilon", batch["x"], keys,
            lambda tree, x, t, scale: said(tree["unet"], x, t)[0],
            lambda x, t, scale: 0.9 * x, lambda tree, x, t, _: said(tree, x, t), state,
        )
        return self.distillation.loss(task, params)


@pytest.mark.parametrize("name", [
    "progressive", "dmd2",
    *(pytest.param(name, marks=pytest.mark.full) for name in ("lcm", "ect"))])
def test_an_interrupted_distillation_ends_as_an_uninterrupted_one(name, tmp_path):
    run = TuningRun(
        distillation=METHODS[name], steps=STEPS, batch_size=4, checkpoint_every=1, log_every=1,
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=1), ema_decay=0.8,
    )
    objective = Tiny(run, METHODS[name], None)
    random = np.random.default_rng(0)
    x = random.normal(size=(12, 4, 4, 3)).astype(np.float32)

    def go(folder, run):
        batches = ArrayBatches({"x": x}, run.batch_size, run.seed)
        return fit(objective, {}, batches, run, folder)

    whole = go(tmp_path / "whole", run)
    part = go(tmp_path / "parts", dataclasses.replace(run, max_minutes=1e-9))
    assert not part.finished and part.step == 1
    parts = go(tmp_path / "parts", run)
    assert whole.finished and parts.finished
    jax.tree.map(np.testing.assert_array_equal, whole.ema, parts.ema)
    begun = objective.init(jax.random.key(run.seed))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), begun, whole.ema)
    assert all(jax.tree.leaves(moved))


def test_the_student_becomes_the_teacher_at_the_end_of_a_round():
    method = Progressive(start_steps=8, round_steps=3, guidance_steps=2, guidance_scale=(2.0, 2.0))
    run = TuningRun(distillation=method, steps=8, optimizer=OptimizerConfig(warmup_steps=0))
    optimizer = method.optimizer(run, None)
    tree = {"unet": {"kernel": jnp.ones((2, 2))}}
    params = {"student": tree, **method.beside(None, tree, None, None)}
    mean = jax.tree.map(lambda x: 3 * x, params)
    state = sdjax.training.TrainState.create(params, optimizer).replace(ema=mean)
    used = jax.tree.map(lambda x: x + 1, state.opt_state)
    for step in range(9):
        found = method.begin(run, state.replace(step=jnp.int32(step), opt_state=used), optimizer)
        anew = step in (2, 5, 8)
        assert (found.params["teacher"]["unet"]["kernel"] == (3 if anew else 1)).all(), step
        assert (found.params["student"]["unet"]["kernel"] == (3 if anew else 1)).all(), step
        count = jax.tree.leaves(found.opt_state)[0]
        assert (count == 0).all() if anew else (count > 0).all()
    gradient = jax.tree.map(jnp.ones_like, params)
    change, _ = optimizer.update(gradient, state.opt_state, params)
    assert not change["teacher"]["unet"]["kernel"].any()
    assert change["student"]["unet"]["kernel"].all()


def test_the_student_of_dmd2_moves_at_every_so_many_updates():
    method = DMD2(student_every=3)
    run = TuningRun(distillation=method, steps=9, optimizer=OptimizerConfig(warmup_steps=0))
    optimizer = method.optimizer(run, None)
    params = {"student": {"k": jnp.ones((2, 2))}, "fake": {"k": jnp.ones((2, 2))}}
    state = optimizer.init(params)
    for step in range(7):
        change, state = optimizer.update(params, state, params)
        assert change["student"]["k"].any() == (step % 3 == 0)
        assert change["fake"]["k"].all()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline whose U-Net has one level."""
    whole, folder = small.random_pipeline(), tmp_path_factory.mktemp("model")
    config = sdjax.UNetConfig.from_dict({
        **small.UNET_SD1, "block_out_channels": [8], "mid_block_type": None,
        "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]})
    whole.unet = UNet(config)
    whole.params["unet"] = small.random_params(parts.unet_shapes(config))
    whole.save_pretrained(folder)
    return folder


def recipe(model, distillation, adaptation=None, **options):
    run = {
        "steps": 2, "batch_size": 2, "log_every": 1, "checkpoint_every": 2, "sheet_every": 0,
        "optimizer": OptimizerConfig(warmup_steps=0, learning_rate=1e-3), "ema_decay": 0.5,
        "sheet": TuningSheet(images=2, steps=2), **options,
    }
    return Recipe(
        data=DataConfig(source="shapes", image_size=32), examples=4, model=str(model),
        diffusion=TuningRun(adaptation=adaptation or adaptations.Full(),
                            distillation=distillation, **run),
    )


RUNS = {
    "lcm": (LCM(scale_embedding=8), "LCMScheduler", 11.0),
    "progressive": (Progressive(start_steps=8, round_steps=1), "DDIMScheduler", 1.0),
    "ect": (ECT(), "LCMScheduler", 1.0),
    "dmd2": (DMD2(steps=2, student_every=2, gan_weight=0.1), "LCMScheduler", 1.0),
}


def check_result(model, folder, name):
    """What a run of RUNS leaves is read here and by diffusers, and says how it is sampled."""
    method, scheduler, scale = RUNS[name]
    student = sdjax.StableDiffusion.from_pretrained(folder / "model")
    assert student.scheduler_config["_class_name"] == scheduler
    assert student.guidance_scale == scale
    assert student.planned(Request("red apple")).steps == {"lcm": 4}.get(name, 2)
    width = method.scale_embedding or None
    assert student.unet.config.time_cond_proj_dim == width
    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder / "model/unet")
    assert theirs.config.time_cond_proj_dim == width
    scheduler = getattr(diffusers, scheduler).from_pretrained(folder / "model/scheduler")
    for steps in (1, 2):
        scheduler.set_timesteps(steps)
        table = sdjax.sampler_from_config(student.scheduler_config, steps)
        np.testing.assert_array_equal(table.timesteps[:steps], scheduler.timesteps)
    return student, theirs


@pytest.mark.parametrize("name", RUNS)
def test_the_result_says_how_it_is_sampled(model, tmp_path, name, monkeypatch):
    asked, teacher = recipe(model, RUNS[name][0]), sdjax.StableDiffusion.from_pretrained(model)
    wanted = jax.tree.map(np.asarray, teacher.params["unet"])
    arrays = {"caption": np.array(["red apple"] * 2), "mean": np.zeros((2, 16, 16, 4)),
              "std": np.zeros((2, 16, 16, 4))}
    monkeypatch.setattr(tuning.Tuning, "sets", lambda *_: ([arrays], []))

    def untrained(objective, frozen, batches, run, name, sheet, validation):
        params = objective.init(jax.random.key(0), frozen)
        return Outcome(jax.tree.map(np.asarray, params), run.steps, True, 0.0)

    stage = tuning.Tuning(asked, tmp_path, teacher, Material(asked, tmp_path))
    assert stage.go(untrained)
    student, _ = check_result(model, tmp_path, name)
    found = dict(student.params["unet"])
    if RUNS[name][0].scale_embedding:  # of nothing, so that it begins as its teacher
        found["time_embedding"] = dict(found["time_embedding"])
        assert not found["time_embedding"].pop("cond_proj")["kernel"].any()
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.full
@pytest.mark.parametrize("name", RUNS)
def test_a_trained_result_is_sampled_in_few_steps_by_itself_and_by_diffusers(model, tmp_path, name):
    assert train(recipe(model, RUNS[name][0]), tmp_path)
    student, _ = check_result(model, tmp_path, name)
    before = sdjax.StableDiffusion.from_pretrained(model)
    assert np.any(np.asarray(before.params["unet"]["conv_in"]["kernel"])
                  != np.asarray(student.params["unet"]["conv_in"]["kernel"]))
    steps = student.planned(Request("red apple")).steps
    found = student.generate(
        ["red apple"], seed=7, noise="torch", output="numpy", progress=False)
    theirs = peers.quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model"))
    wanted = peers.images(
        theirs, ["red apple"], num_inference_steps=steps, guidance_scale=student.guidance_scale,
        generator=[torch.Generator().manual_seed(7)])
    peers.assert_close(found, wanted)


@pytest.mark.full
def test_a_lora_by_lcm_is_used_by_its_preset(model, tmp_path):
    lora = adaptations.LoRA(rank=2, targets=("attn2.to_k",))
    assert train(recipe(model, LCM(target="online"), lora, ema_decay=0.0), tmp_path)
    state, metadata = read_safetensors(tmp_path / "lora.safetensors")
    assert metadata["ss_network_dim"] == "2"
    assert any(np.any(tensor.load()) for key, tensor in state.items() if "lora_up" in key)
    sd = sdjax.StableDiffusion.from_pretrained(model)
    sd.load_lora(tmp_path / "lora.safetensors")
    images = sd.generate(["red apple"], preset="lcm-lora", output="numpy", progress=False)
    assert images.shape[0] == 1 and PRESETS["lcm-lora"].steps == 4


@pytest.mark.parametrize(("method", "options", "message"), [
    (LCM(), {"adaptation": adaptations.Full(text_encoder=True)}, "trains the U-Net alone"),
    (LCM(), {"adaptation": adaptations.ControlNet()}, "trains the U-Net alone"),
    (LCM(scale_embedding=8), {"adaptation": adaptations.LoRA(rank=1)}, "needs the adaptation Full"),
    (LCM(), {"denoising": DenoisingConfig(None, None, noise_offset=0.1)}, "leave denoising"),
])
def test_what_does_not_go_together_is_told_first(model, tmp_path, method, options, message):
    with pytest.raises(SdjaxError, match=message):
        train(recipe(model, method, **options), tmp_path)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: LCM(guidance_scale=(3.0, 2.0)), "two numbers from 1 on"),
    (lambda: LCM(scale_embedding=3), "must be even"),
    (lambda: Progressive(start_steps=12), "power of two"),
    (lambda: TuningRun(distillation=Progressive(round_steps=10), steps=25), "times round_steps 10"),
    (lambda: TuningRun(distillation=LCM(), masks="masks"), "takes no prior, masks"),
    (lambda: DMD2(lowest=0.9, highest=0.1), "parts of the schedule"),
    (lambda: ECT(q=1.0), "q must be above 1"),
])
def test_settings_that_are_none_are_refused(make, message):
    with pytest.raises(SdjaxError, match=message):
        make()


@pytest.mark.parametrize("name", ["lcm", "lcm_lora", "progressive", "dmd2"])
def test_recipes_are_read(name):
    run = load_config(name).diffusion
    assert run.distillation is not None and run.sheet.steps == 4
