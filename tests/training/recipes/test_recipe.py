"""Recipes from start to finish, on networks of a few thousand parameters."""

import dataclasses
import importlib
import json
import re
import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from sdjax.checkpoints import Checkpoints
from sdjax.data.source import Source, open_source
from sdjax.errors import SdjaxError
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.text import Tokenizer
from sdjax.training import (
    LatentObjective,
    Lesson,
    PixelObjective,
    PixelRun,
    SheetConfig,
    TuningRun,
    kept_models,
    known_recipes,
    load_config,
    train,
    with_overrides,
)
from sdjax.training.loop import lock
from sdjax.training.loop.lock import locked
from sdjax.training.objectives.molecules import MoleculeObjective, MoleculeRun
from sdjax.training.recipes import export, material
from tests.training.small import DATA, LATENT, PIXEL, PIXELS

# The module, which the package's function of the same name hides.
module = importlib.import_module("sdjax.training.recipes.train")
CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent")
    assert train(LATENT, folder)
    return folder


def changed(config, **changes):
    """A copy of nested dataclasses; double underscores in a name lead into them."""
    inner = {}
    for path, value in changes.items():
        name, _, rest = path.partition("__")
        inner.setdefault(name, {})[rest] = value
    return dataclasses.replace(config, **{
        name: values[""] if "" in values else changed(getattr(config, name), **values)
        for name, values in inner.items()
    })


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_latent_recipe_ends_in_a_folder_that_makes_pictures(trained):
    from sdjax import StableDiffusion

    model = StableDiffusion.from_pretrained(trained / "model")
    images = model.generate("a red circle", steps=2, output="numpy")
    assert images.shape == (1, 32, 32, 3) and np.isfinite(images).all()
    assert model.guidance_scale == LATENT.diffusion.sheet.guidance_scale != 7.5
    source = open_source(LATENT.data)
    assert set(model.captions) == {source[i]["caption"] for i in range(LATENT.examples)}
    scheduler = json.loads((trained / "model/scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "sample"
    config = json.loads((trained / "model/text_encoder/config.json").read_text())
    assert config["vocab_size"] == len(model.tokenizers[0])
    for run in ("autoencoder", "diffusion"):
        assert (trained / run / "sheets" / "0000004.png").exists()


def test_diffusers_loads_and_draws_the_folder_by_its_general_entry_points(trained):
    """Of latents of eight channels, which are not those of an image beside four."""
    diffusers = pytest.importorskip("diffusers")  # not with the oldest versions

    for entry in (diffusers.DiffusionPipeline, diffusers.AutoPipelineForText2Image):
        pipeline = entry.from_pretrained(trained / "model")
        assert type(pipeline) is diffusers.StableDiffusionPipeline
        assert pipeline.unet.config.in_channels == pipeline.vae.config.latent_channels == 8
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline("a red circle", num_inference_steps=2, output_type="np").images
        assert images.shape == (1, 32, 32, 3) and np.isfinite(images).all()


def test_kept_checkpoints_are_models_too(trained, tmp_path):
    from sdjax import StableDiffusion

    kept = list(kept_models(LATENT, trained))
    assert [step for step, _, _ in kept] == [2, 4]
    assert 0 < kept[0][1] < kept[1][1]
    ours, exported = kept[-1][2], StableDiffusion.from_pretrained(trained / "model")
    jax.tree.map(np.testing.assert_array_equal, ours.params, exported.params)
    pictures = [
        model.generate("a red circle", steps=2, output="numpy") for model in (ours, exported)
    ]
    np.testing.assert_array_equal(*pictures)
    with pytest.raises(SdjaxError, match="has no checkpoints: train into"):
        next(kept_models(LATENT, tmp_path))


STOP = 1e-9  # minutes: a run stops after its first step


def test_an_interrupted_recipe_ends_as_an_uninterrupted_one(trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(material, "train_tokenizer", interrupt)
        train(LATENT, tmp_path)
    assert (tmp_path / "autoencoder/model").is_dir() and not (tmp_path / "tokenizer").exists()
    assert not train(changed(LATENT, diffusion__max_minutes=STOP), tmp_path)
    assert (tmp_path / "diffusion/checkpoints/1").is_dir() and not (tmp_path / "model").exists()
    assert train(LATENT, tmp_path)
    assert files(tmp_path / "model") == files(trained / "model")


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_a_curriculum_draws_the_captions_that_its_lessons_name(trained, tmp_path, monkeypatch):
    for part in ("autoencoder", "tokenizer"):
        shutil.copytree(trained / part, tmp_path / part)
    batches, draw = [], module.ArrayBatches.__next__

    def noted(self):
        batches.append(draw(self))
        return batches[-1]

    monkeypatch.setattr(module.ArrayBatches, "__next__", noted)
    curriculum = Lesson(8, "^a (small|large)", timestep_mean=2.0), Lesson(4, "^a medium")
    begun = changed(LATENT, diffusion__steps=6, diffusion__curriculum=curriculum,
                    diffusion__denoising__timesteps="logit_normal")
    assert train(begun, tmp_path)
    tokenizer = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    small, medium, large = (
        int(tokenizer.encode([f"a {size}"])[0, 2]) for size in ("small", "medium", "large")
    )
    sizes = [set(batch["ids"][:, 2].tolist()) for batch in batches]
    assert sizes[0] | sizes[1] <= {small, large}
    assert sizes[2] == {medium}
    assert {medium} < set.union(*sizes[3:6])  # then all captions
    unknown = changed(begun, diffusion__steps=9, diffusion__curriculum=(Lesson(9, "purple"),))
    with pytest.raises(SdjaxError, match="no caption matches the lesson's 'purple'"):
        train(unknown, tmp_path)


def test_a_finished_recipe_changes_nothing_and_tells_what_counts_no_more(trained, capsys):
    before = files(trained / "model")
    assert train(LATENT, trained)
    assert "changed" not in capsys.readouterr().out
    other = changed(LATENT, autoencoder__kl_weight=0.5, diffusion__vocab_size=700,
                    diffusion__caption_dropout=0.2)
    assert train(other, trained)
    assert before == files(trained / "model")
    vocabulary = "changed since: diffusion.vocab_size 600 -> 700"
    assert capsys.readouterr().out.splitlines() == [
        f"{trained}/autoencoder/model is finished and used as it is:",
        "changed since: autoencoder.kl_weight 1e-06 -> 0.5",
        f"{trained}/tokenizer is finished and used as it is:",
        vocabulary,
        "diffusion: all 4 steps are done already; more steps train it on",
        f"{trained}/diffusion is finished and used as it is:",
        "changed since: diffusion.caption_dropout 0.1 -> 0.2",
        vocabulary,
        f"finished: the model is in {trained}/model",
    ]


def test_a_work_folder_has_one_training_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(SdjaxError, match="another training is at work there"):
        train(PIXELS, tmp_path)


def test_a_model_that_was_not_trained_here_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(SdjaxError, match="model was not made by a training in .*move it away"):
        train(PIXELS, tmp_path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"autoencoder__batch_size": 3}, "autoencoder.batch_size 3 cannot be split over 2 devices"),
    ({"diffusion__optimizer__warmup_steps": 9}, "diffusion.optimizer.warmup_steps must be below"),
    ({"diffusion__sheet__sampler": "eulr"}, "unknown sampler 'eulr'"),
])
def test_settings_of_all_runs_are_checked_before_any_picture_is_read(changes, message, tmp_path):
    with pytest.raises(SdjaxError, match=message):
        train(changed(LATENT, data__source="folder:absent", **changes), tmp_path)


def test_other_networks_are_refused_before_anything_changes(trained):
    times = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    wider = dataclasses.replace(LATENT.diffusion.unet, block_out_channels=(8,))
    other = dataclasses.replace(
        LATENT, diffusion=dataclasses.replace(LATENT.diffusion, unet=wider)
    )
    with pytest.raises(SdjaxError, match="this configuration float32.*: train into another folder"):
        train(other, trained)
    deeper = dataclasses.replace(LATENT.autoencoder.vae, layers_per_block=2)
    other = dataclasses.replace(
        LATENT, autoencoder=dataclasses.replace(LATENT.autoencoder, vae=deeper)
    )
    with pytest.raises(SdjaxError, match="finished and of another architecture"):
        train(other, trained)
    assert times == {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}


def test_given_autoencoder_frozen_text_encoder_and_pictures_from_the_loader(trained, tmp_path):
    recipe = dataclasses.replace(
        LATENT, autoencoder=None, pretrained=str(trained / "model"),
        diffusion=dataclasses.replace(
            LATENT.diffusion, train_text_encoder=False, cache_latents=False,
            # How fresh embeddings would begin is nothing to a finished encoder.
            text_encoder=dataclasses.replace(_text_config(trained), initializer_range=0.5),
        ),
    )
    assert train(recipe, tmp_path)
    assert not (tmp_path / "latents.npz").exists()
    for name in ("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        given = (trained / "model" / name).read_bytes()
        assert (tmp_path / "model" / name).read_bytes() == given
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "model" / unet).read_bytes() != (trained / "model" / unet).read_bytes()
    assert not train(changed(recipe, diffusion__max_minutes=STOP), tmp_path / "parts")
    assert train(recipe, tmp_path / "parts")
    assert files(tmp_path / "parts/model") == files(tmp_path / "model")
    wider = changed(recipe, diffusion__unet__in_channels=4, diffusion__unet__out_channels=4)
    with pytest.raises(SdjaxError, match="must be the autoencoder's latent_channels 8, got 4"):
        train(wider, tmp_path / "wider")


def _text_config(trained):
    return TextEncoderConfig.from_dict(
        json.loads((trained / "model/text_encoder/config.json").read_text())
    )


LEARNED = {
    "precision": "bfloat16", "learned_variance": True, "unet__out_channels": 6,
    "denoising__schedule__name": "sigmoid", "sheet__sampler": "ddpm",
}


@pytest.mark.parametrize("changes", [{}, LEARNED], ids=["plain", "learned-variance"])
def test_a_pixel_recipe_ends_in_a_folder_that_diffusers_samples(tmp_path, changes):
    diffusers = pytest.importorskip("diffusers")  # not with the oldest versions

    run = changed(PIXEL, **changes)
    assert train(dataclasses.replace(PIXELS, diffusion=run), tmp_path)
    assert (tmp_path / "diffusion/sheets/0000004.png").exists()
    checkpoints = Checkpoints(tmp_path / "diffusion/checkpoints", read_only=True)
    kinds = {shape.partition("[")[0] for shape in checkpoints.notes(4)["arrays"].values()}
    checkpoints.close()
    assert kinds == {"float32", "int32"}  # whatever the networks compute in
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model")
    kind = diffusers.DDPMPipeline if changes else diffusers.DDIMPipeline
    assert type(pipeline) is kind and type(pipeline.unet) is diffusers.UNet2DModel
    np.testing.assert_allclose(
        pipeline.scheduler.betas, run.denoising.schedule.build().betas, rtol=1e-6
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 32, 32, 3) and np.isfinite(images).all()


def test_a_network_that_diffusers_lacks_is_told(tmp_path):
    run = changed(PIXEL, unet__down_block_types=("ConvNextDownBlock2D",),
                  unet__up_block_types=("ConvNextUpBlock2D",))
    shapes = jax.eval_shape(PixelObjective(run).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    with pytest.warns(UserWarning, match="diffusers has no U-Net of these blocks"):
        export.export_pixel(tmp_path / "model", run, params, "float32")
    assert "diffusers" not in json.loads((tmp_path / "model/model_index.json").read_text())["unet"]


class Labelled:
    """A source of eight noise pictures in three classes."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        return {"image": image, "caption": "", "label": index % 3}


def test_classes_guidance_and_learned_variance(tmp_path, monkeypatch):
    source = Source(Labelled(), 32, require_captions=False)
    monkeypatch.setattr(material, "open_source", lambda data, *_: source)
    run = dataclasses.replace(
        PIXEL, class_dropout=0.5, learned_variance=True,
        unet=dataclasses.replace(PIXEL.unet, num_class_embeds=4, out_channels=6),
        sheet=SheetConfig(images=4, steps=2, guidance_scale=2.0, sampler="ddpm"),
    )
    recipe = dataclasses.replace(PIXELS, diffusion=run)
    assert train(recipe, tmp_path)
    as_it_goes = changed(recipe, diffusion__cache_images=False)
    for other in (recipe, as_it_goes):
        with pytest.raises(SdjaxError, match="labels must be in 0 … 1, found . … 2"):
            train(changed(other, diffusion__unet__num_class_embeds=3), tmp_path / "fewer")
    monkeypatch.undo()
    for other in (recipe, as_it_goes):
        with pytest.raises(SdjaxError, match="needs data with labels, this source has none"):
            train(other, tmp_path / "shapes")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_load(path):
    recipe = load_config(path)
    run = recipe.diffusion
    model = " --model (MODEL|runs/shapes/model)" if run is None or isinstance(run, TuningRun) else ""
    model = "" if recipe.base else model
    command = f"python main.py train --config configs/{path.name}{model} --workdir runs/{path.stem}"
    assert re.search(command, " ".join(path.read_text("utf-8").replace("\\\n", " ").split()))
    if model or recipe.base:
        return
    levels = 1000
    if isinstance(run, MoleculeRun):
        objective, trained, levels = MoleculeObjective(run), {"egnn"}, 1001
    elif isinstance(run, PixelRun):
        objective, trained = PixelObjective(run), {"unet"}
    else:
        objective = LatentObjective(run, recipe.autoencoder.vae)
        trained = {"unet", "text_encoder"}
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    assert set(shapes) == trained
    assert len(run.denoising.schedule.build()) == levels


def test_recipes_are_found_by_name(tmp_path, monkeypatch):
    assert known_recipes() == {path.stem: path for path in CONFIGS}
    monkeypatch.chdir(tmp_path)
    assert load_config("shapes") == load_config(CONFIGS[0].with_name("shapes.py"))
    with pytest.raises(SdjaxError, match="there are autoencoder_gan, .*, shapes_pairs, .*; did you"):
        load_config("shape")
    with pytest.raises(SdjaxError, match="no recipe configs/shapes.py, .*did you mean shapes?"):
        load_config("configs/shapes.py")
    (tmp_path / "mine.py").write_text("from tests.training.small import PIXELS as config")
    with pytest.raises(SdjaxError, match="there are .*shapes, shapes_pairs, .*mine.py$"):
        load_config("other.py")
    assert load_config("mine.py") == PIXELS


def test_options_of_the_command_line():
    recipe = with_overrides(
        LATENT, ["--diffusion.steps", "8", "--autoencoder.optimizer.learning-rate", "0.5"]
    )
    assert recipe.diffusion.steps == 8
    assert recipe.autoencoder.optimizer.learning_rate == 0.5
    assert recipe.diffusion.unet == LATENT.diffusion.unet
    pixel = with_overrides(PIXELS, ["--diffusion.batch-size", "16"])
    assert pixel.diffusion.batch_size == 16


def test_other_pictures_than_the_recipe_s_are_shown_with_their_own_captions():
    recipe = changed(LATENT, diffusion__sheet__prompts=("a red circle",))

    def prompts(*arguments):
        return with_overrides(recipe, arguments).diffusion.sheet.prompts

    other = ["--data.source", "folder:pictures"]
    assert prompts("--diffusion.steps", "8", "--data.seed", "3") == ("a red circle",)
    assert prompts(*other) == prompts("--data.objects=two") == ()
    assert prompts(*other, "--diffusion.sheet.prompts", "a fox", "an owl") == ("a fox", "an owl")
    assert prompts(*other, "--diffusion.sheet.prompts", "a red circle") == ("a red circle",)
    assert with_overrides(PIXELS, other).data.source == "folder:pictures"


def test_wrong_options_and_configs_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        with_overrides(LATENT, ["--diffusion.stepz", "8"])
    assert "--diffusion.steps" in capsys.readouterr().err
    with pytest.raises(SdjaxError, match="no recipe .*did you mean .*configs/shapes.py"):
        load_config(CONFIGS[0].with_name("shape.py"))
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(SdjaxError, match="must set `config`"):
        load_config(tmp_path / "empty.py")
    (tmp_path / "typo.py").write_text("\nimport sdjax.trainin")
    with pytest.raises(SdjaxError, match=r"typo.py does not run: line 2: ModuleNotFoundError: "):
        load_config(tmp_path / "typo.py")
    (tmp_path / "half.py").write_text("config = (")
    with pytest.raises(SdjaxError, match=r"half.py does not run: SyntaxError: .*line 1"):
        load_config(tmp_path / "half.py")


@pytest.mark.parametrize(("changes", "message"), [
    ({"autoencoder": None}, "either an autoencoder run or a pretrained folder"),
    ({"data": dataclasses.replace(DATA, image_size=64)}, "sample_size must be data.image_size / 2"),
    ({"diffusion": dataclasses.replace(LATENT.diffusion, train_text_encoder=False)},
     "frozen text encoder needs a pretrained folder"),
    ({"data": dataclasses.replace(DATA, flip=True)}, "data.flip cannot mirror cached latents"),
    ({"examples": 0}, "shapes has no end: set examples"),
    ({"diffusion__curriculum": (Lesson(4, "red"),), "diffusion__cache_latents": False},
     "a curriculum needs cache_latents"),
    ({"diffusion__curriculum": (Lesson(4, timestep_mean=2.0),)},
     "a lesson's timestep_mean shifts logit_normal timesteps, not uniform"),
    ({"export_dtype": "int8"}, "export_dtype must be one of float32, float16, bfloat16"),
])
def test_recipes_that_do_not_fit_together(changes, message):
    with pytest.raises(SdjaxError, match=message):
        changed(LATENT, **changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"optimizer__learning_rate": -1.0}, "learning_rate must be above 0, got -1.0"),
    ({"optimizer__clip_norm": -1.0}, "clip_norm must be at least 0, got -1.0"),
    ({"optimizer__name": "adam"}, "name must be one of adamw, adafactor, lion, .*, got 'adam'"),
    ({"denoising__schedule__name": "sigmoidal"}, "name must be one of linear, .* sigmoid, .*got"),
    ({"sheet__steps": 0}, "steps must be at least 1"),
    ({"keep_every": 3}, "keep_every .3. must be a multiple of checkpoint_every .2."),
    ({"keep_every": 2, "steps_per_call": 4}, "and that one of steps_per_call .4."),
])
def test_settings_of_a_run_that_cannot_be(changes, message):
    with pytest.raises(SdjaxError, match=message):
        changed(PIXEL, **changes)


def test_the_shipped_model_has_the_networks_of_its_recipe():
    recipe = load_config(CONFIGS[0].with_name("emoji.py"))
    run, folder = recipe.diffusion, Path(__file__).parents[3] / "sdjax/assets/emoji"
    unet, vae, text = (
        kind.from_dict(json.loads((folder / part / "config.json").read_text()))
        for kind, part in [
            (UNetConfig, "unet"), (VAEConfig, "vae"), (TextEncoderConfig, "text_encoder")
        ]
    )
    assert unet == run.unet and vae == changed(recipe.autoencoder.vae, scaling_factor=1.0)
    assert text.vocab_size <= run.vocab_size
    tokens = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    assert text == changed(run.text_encoder, **{name: getattr(text, name) for name in tokens})
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert export.scheduler_config(run.denoising, clip_sample=False).items() <= scheduler.items()


def test_the_lock_where_the_system_is_windows(tmp_path, monkeypatch):
    """A stand-in for msvcrt, whose lock of a byte raises where another process holds it."""
    held = []

    def locking(descriptor, mode, size):
        assert mode == "at once" and size == 1
        if held:
            raise PermissionError(13, "Permission denied")
        held.append(descriptor)

    stand_in = types.SimpleNamespace(locking=locking, LK_NBLCK="at once")
    monkeypatch.setattr(lock, "msvcrt", stand_in, raising=False)
    monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path), pytest.raises(SdjaxError, match="another training is at work there"):
        with locked(tmp_path):
            pass
