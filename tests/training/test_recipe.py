"""Recipes from start to finish, on networks of a few thousand parameters."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from sdjax.data import DataConfig
from sdjax.errors import SdjaxError
from sdjax.models import TextEncoderConfig, UNetConfig, VAEConfig
from sdjax.training import (
    AutoencoderRun,
    DenoisingConfig,
    LatentObjective,
    LatentRun,
    OptimizerConfig,
    PixelObjective,
    PixelRun,
    Recipe,
    ScheduleConfig,
    SheetConfig,
    kept_models,
    load_config,
    train,
    with_overrides,
)

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
RUN = {"steps": 4, "batch_size": 4, "log_every": 2, "checkpoint_every": 2, "sheet_every": 0,
       "optimizer": OptimizerConfig(warmup_steps=1)}
DATA = DataConfig(source="shapes", image_size=32)
LATENT = Recipe(
    data=DATA,
    examples=12,
    autoencoder=AutoencoderRun(**RUN, sheet_images=2, vae=VAEConfig(
        latent_channels=2, block_out_channels=(4, 4), norm_num_groups=2, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        mid_block_add_attention=False,
    )),
    diffusion=LatentRun(
        **RUN, vocab_size=600, sheet=SheetConfig(images=2, steps=2),
        denoising=DenoisingConfig(prediction="x_0"),
        unet=UNetConfig(
            sample_size=16, in_channels=2, out_channels=2, block_out_channels=(4,),
            layers_per_block=1, norm_num_groups=2, cross_attention_dim=8, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
            mid_block_type=None,
        ),
        text_encoder=TextEncoderConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=24, projection_dim=8,
        ),
    ),
)
PIXEL = PixelRun(
    **RUN, sheet=SheetConfig(images=4, steps=2, guidance_scale=1.0),
    unet=UNetConfig(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(4,),
        layers_per_block=1, norm_num_groups=2, cross_attention_dim=None, attention_head_dim=None,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
    ),
    denoising=DenoisingConfig(ScheduleConfig("linear", 1e-4, 0.02), prediction="epsilon"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent")
    assert train(LATENT, folder)
    return folder


def test_a_latent_recipe_ends_in_a_folder_that_makes_pictures(trained):
    from sdjax import StableDiffusion

    model = StableDiffusion.from_pretrained(trained / "model")
    images = model.generate("a red circle", steps=2, output="numpy")
    assert images.shape == (1, 32, 32, 3) and np.isfinite(images).all()
    assert model.guidance_scale == LATENT.diffusion.sheet.guidance_scale != 7.5
    scheduler = json.loads((trained / "model/scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "sample"
    config = json.loads((trained / "model/text_encoder/config.json").read_text())
    assert config["vocab_size"] == len(model.tokenizers[0])
    for run in ("autoencoder", "diffusion"):
        assert (trained / run / "sheets" / "0000004.png").exists()


def test_diffusers_loads_the_folder(trained):
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        trained / "model", safety_checker=None
    )
    assert pipeline.unet.config.cross_attention_dim == 8


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


def test_a_finished_recipe_changes_nothing(trained):
    before = {p: p.read_bytes() for p in (trained / "model").rglob("*") if p.is_file()}
    assert train(LATENT, trained)
    assert before == {p: p.read_bytes() for p in (trained / "model").rglob("*") if p.is_file()}


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
            text_encoder=_text_config(trained),
        ),
    )
    assert train(recipe, tmp_path)
    assert not (tmp_path / "latents.npz").exists()
    for name in ("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        given = (trained / "model" / name).read_bytes()
        assert (tmp_path / "model" / name).read_bytes() == given
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "model" / unet).read_bytes() != (trained / "model" / unet).read_bytes()


def _text_config(trained):
    return TextEncoderConfig.from_dict(
        json.loads((trained / "model/text_encoder/config.json").read_text())
    )


def test_a_pixel_recipe(tmp_path):
    assert train(Recipe(data=DATA, examples=8, diffusion=PIXEL), tmp_path)
    index = json.loads((tmp_path / "model/model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert (tmp_path / "diffusion/sheets/0000004.png").exists()


class Labelled:
    """A source of eight noise pictures in three classes."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        return {"image": image, "caption": "", "label": index % 3}


def test_classes_guidance_and_learned_variance(tmp_path, monkeypatch):
    # The module, which the package's function of the same name hides.
    module = importlib.import_module("sdjax.training.train")
    monkeypatch.setattr(module, "open_source", lambda data: Labelled())
    run = dataclasses.replace(
        PIXEL, class_dropout=0.5, learned_variance=True,
        unet=dataclasses.replace(PIXEL.unet, num_class_embeds=4, out_channels=6),
        sheet=SheetConfig(images=4, steps=2, guidance_scale=2.0, sampler="ddpm"),
    )
    assert train(Recipe(data=DATA, diffusion=run), tmp_path)
    fewer = dataclasses.replace(run, unet=dataclasses.replace(run.unet, num_class_embeds=3))
    with pytest.raises(SdjaxError, match="labels must be in 0 … 1, found 0 … 2"):
        train(Recipe(data=DATA, diffusion=fewer), tmp_path / "fewer")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_load(path):
    recipe = load_config(path)
    command = f"python main.py train --config configs/{path.name} --workdir runs/{path.stem}\n"
    assert command in path.read_text(encoding="utf-8")
    run = recipe.diffusion
    pixels = isinstance(run, PixelRun)
    objective = PixelObjective(run) if pixels else LatentObjective(run, recipe.autoencoder.vae)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    assert set(shapes) == ({"unet"} if pixels else {"unet", "text_encoder"})
    assert len(run.denoising.schedule.build()) == 1000


def test_options_of_the_command_line():
    recipe = with_overrides(
        LATENT, ["--diffusion.steps", "8", "--autoencoder.optimizer.learning-rate", "0.5"]
    )
    assert recipe.diffusion.steps == 8
    assert recipe.autoencoder.optimizer.learning_rate == 0.5
    assert recipe.diffusion.unet == LATENT.diffusion.unet
    pixel = with_overrides(Recipe(data=DATA, diffusion=PIXEL), ["--diffusion.batch-size", "16"])
    assert pixel.diffusion.batch_size == 16


def test_wrong_options_and_configs_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        with_overrides(LATENT, ["--diffusion.stepz", "8"])
    assert "--diffusion.steps" in capsys.readouterr().err
    with pytest.raises(SdjaxError, match="no config file .*found .*shapes.py"):
        load_config(CONFIGS[0].with_name("shape.py"))
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(SdjaxError, match="must set `config`"):
        load_config(tmp_path / "empty.py")


@pytest.mark.parametrize(("changes", "message"), [
    ({"autoencoder": None}, "either an autoencoder run or a pretrained folder"),
    ({"data": dataclasses.replace(DATA, image_size=64)}, "sample_size must be data.image_size / 2"),
    ({"diffusion": dataclasses.replace(LATENT.diffusion, train_text_encoder=False)},
     "frozen text encoder needs a pretrained folder"),
    ({"data": dataclasses.replace(DATA, flip=True)}, "data.flip cannot mirror cached latents"),
])
def test_recipes_that_do_not_fit_together(changes, message):
    with pytest.raises(SdjaxError, match=message):
        dataclasses.replace(LATENT, **changes)
