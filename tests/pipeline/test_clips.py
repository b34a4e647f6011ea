"""Clips of motion modules, against diffusers' AnimateDiff pipelines."""

import re

import diffusers
import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdjax
from sdjax.pipeline.model.files import read_model, write_model
from tests.models.peers import randomised
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS, assert_close
from tests.pipeline.test_t2i_adapter import picture

SIZE = {"height": 24, "width": 32}
FRAMES, STEPS = 5, 4


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A function of a pipeline's U-Net: (motion modules of diffusers, their folder)."""
    made = {}

    def adapter(kind, unet):
        if kind not in made:
            torch.manual_seed(0)
            config = unet.config
            peer = diffusers.MotionAdapter(
                config.block_out_channels, config.layers_per_block, motion_num_attention_heads=4,
                motion_norm_num_groups=config.norm_num_groups, motion_max_seq_length=6,
            )  # fmt: skip
            folder = tmp_path_factory.mktemp("motion")
            with torch.no_grad():
                for parameter in randomised(peer).parameters():
                    parameter += 0.1 * torch.randn(parameter.shape)
            peer.save_pretrained(folder)
            made[kind] = peer, folder
        return made[kind]

    return adapter


@pytest.fixture(scope="module")
def moving(model, folder, adapters):
    """Our model with motion modules."""
    _, path = adapters("sd1", peers.load("sd1", folder).unet)
    model.load_motion(path)
    return model


def theirs(kind, folder, adapters, name="AnimateDiffPipeline", **parts):
    still = peers.load(kind, folder)
    adapter, _ = adapters(kind, still.unet)
    given = {**still.components, **parts, "motion_adapter": adapter}
    made = getattr(diffusers, name)
    kept = {key: part for key, part in given.items() if key in _parts(made)}
    return peers.quiet(made(**kept))


def _parts(pipeline):
    return pipeline.__init__.__code__.co_varnames


def clips_of(pipeline, prompt=PROMPTS[0], seed=7, **options):
    options = {"num_frames": FRAMES, "num_inference_steps": STEPS, "guidance_scale": 5.0, **options}
    generator = torch.Generator().manual_seed(seed)
    made = pipeline(prompt, generator=generator, output_type="pt", **SIZE, **options).frames
    return made.numpy().transpose(0, 1, 3, 4, 2)


def ours(model, prompt=PROMPTS[0], **options):
    options = {"frames": FRAMES, "steps": STEPS, "guidance_scale": 5.0, "seed": 7, **options}
    return model.generate(prompt, noise="torch", output="numpy", **SIZE, **options)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_a_clip_is_that_of_diffusers(moving, folder, adapters, sampler):
    pipeline = theirs("sd1", folder, adapters)
    if sampler == "euler_a":
        kind = diffusers.EulerAncestralDiscreteScheduler
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    assert_close(ours(moving, sampler=sampler), clips_of(pipeline))


def test_sdxl(folders, models, adapters):
    name, folder = "AnimateDiffSDXLPipeline", folders("sdxl")
    model, pipeline = models("sdxl"), theirs("sdxl", folder, adapters, name)
    # Diffusers leaves this one as it was drawn.
    size_and_crop = peers.load("sdxl", folder).unet.add_embedding.state_dict()
    pipeline.unet.add_embedding.load_state_dict(size_and_crop)
    model.load_motion(adapters("sdxl", None)[1])
    assert_close(ours(model), clips_of(pipeline))


@pytest.mark.parametrize("sampler", [None, pytest.param("euler_a", marks=pytest.mark.full)])
def test_a_clip_from_a_clip_is_that_of_diffusers(moving, folder, adapters, sampler):
    shown = [picture(seed) for seed in range(FRAMES)]
    pipeline = theirs("sd1", folder, adapters, "AnimateDiffVideoToVideoPipeline")
    if sampler is not None:
        kind = diffusers.EulerAncestralDiscreteScheduler
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(7)
    expected = pipeline(
        video=shown, prompt=PROMPTS[0], num_inference_steps=STEPS, guidance_scale=5.0, strength=0.6,
        generator=generator, output_type="pt", **SIZE,
    ).frames.numpy().transpose(0, 1, 3, 4, 2)  # fmt: skip
    made = ours(moving, image=shown, strength=0.6, sampler=sampler)
    assert_close(made, expected)
    with pytest.raises(sdjax.SdjaxError, match="image: a clip takes one for all frames or one a"):
        ours(moving, image=shown[:2])


@pytest.mark.parametrize("inside", [True, False])
def test_a_whole_folder_is_read(folder, adapters, tmp_path, inside):
    """diffusers writes the modules inside the U-Net, and beside it."""
    pipeline = theirs("sd1", folder, adapters)
    pipeline.save_pretrained(tmp_path)
    moving = sdjax.StableDiffusion.from_pretrained(folder)
    moving.load_motion(adapters("sd1", None)[1])
    if not inside:
        sdjax_model = read_model(tmp_path)
        write_model(sdjax_model, tmp_path / "other")
        assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "other")) is type(pipeline)
        with pytest.raises(sdjax.SdjaxError, match="no place for motion modules: write a folder"):
            write_model(sdjax_model, tmp_path / "file.safetensors")
    read = sdjax.StableDiffusion.from_pretrained(tmp_path if inside else tmp_path / "other")
    jax.tree.map(np.testing.assert_array_equal, read.params, moving.params)
    assert read.motion == moving.motion and read.unet.config == moving.unet.config


@pytest.mark.full
def test_a_whole_folder_of_sdxl_is_read(folders, adapters, tmp_path):
    pipeline = theirs("sdxl", folders("sdxl"), adapters, "AnimateDiffSDXLPipeline")
    pipeline.save_pretrained(tmp_path)
    assert_close(ours(sdjax.StableDiffusion.from_pretrained(tmp_path)), clips_of(pipeline))


def test_pictures_are_as_before_and_modules_come_and_go(moving, folder, adapters, tmp_path):
    before = sdjax.StableDiffusion.from_pretrained(folder)
    options = {"steps": 2, "output": "numpy", "progress": False, **SIZE}
    still = before.generate(PROMPTS[0], **options)
    np.testing.assert_array_equal(moving.generate(PROMPTS[0], **options), still)
    moving.save_motion(tmp_path / "motion")
    again = diffusers.MotionAdapter.from_pretrained(tmp_path / "motion").state_dict()
    for key, tensor in adapters("sd1", None)[0].state_dict().items():
        assert torch.equal(again[key], tensor)
    moving.save_pretrained(tmp_path / "model")
    assert diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model").unet is not None
    before.load_motion(tmp_path / "motion")
    clip = before.generate(PROMPTS[0], frames=2, **options)
    assert clip.shape == (1, 2, 24, 32, 3)
    before.unload_motion()
    np.testing.assert_array_equal(before.generate(PROMPTS[0], **options), still)
    with pytest.raises(sdjax.SdjaxError, match="load them with load_motion"):
        before.generate(PROMPTS[0], frames=2)


def test_clips_of_a_batch_and_what_compiles(moving):
    batch = ours(moving, list(PROMPTS), seed=3)
    alone = ours(moving, PROMPTS[1], seed=4)
    np.testing.assert_allclose(batch[1], alone[0], atol=3e-5)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    ours(moving, PROMPTS[0], seed=9, steps=7, guidance_scale=2.0)
    assert compilations == []
    frames = moving.generate(PROMPTS[0], frames=FRAMES, steps=2, seed=5, progress=False, **SIZE)
    assert [len(clip) for clip in frames] == [FRAMES]
    assert frames[0][-1].size == (32, 24) and frames[0][0].info["seed"] == 5


def test_long_clips_are_seen_in_windows(moving):
    """A single step is linear in the predictions: their average is that of the windows' latents."""
    latents = np.random.default_rng(0).normal(size=(1, 8, 12, 16, 4)).astype(np.float32)
    options = {"steps": 1, "sampler": "ddim"}

    def made(latents, **more):
        return moving.generate(
            PROMPTS[0], frames=latents.shape[1], latents=latents, output="latents",
            guidance_scale=5.0, **SIZE, **options, **more,
        )  # fmt: skip

    whole = made(latents, frame_windows=(4, 2))
    total, count = np.zeros_like(latents), np.zeros((8, 1, 1, 1))
    for first in (0, 2, 4):
        part = slice(first, first + 4)
        total[:, part] += made(latents[:, part])
        count[part] += 1
    np.testing.assert_allclose(whole, total / count, atol=2e-5 * np.abs(whole).max())


def test_each_frame_has_its_control_picture(moving, folder, adapters, controlnet):
    shown = [picture(seed) for seed in range(FRAMES)]
    name = "AnimateDiffControlNetPipeline"
    pipeline = theirs("sd1", folder, adapters, name, controlnet=controlnet[0])
    expected = clips_of(pipeline, conditioning_frames=shown, controlnet_conditioning_scale=0.8)
    made = ours(moving, controls=[controlnet[1](shown, scale=0.8)])
    assert_close(made, expected)
    with pytest.raises(sdjax.SdjaxError, match="one for all frames or one a frame, 5, got 2"):
        ours(moving, controls=[controlnet[1](shown[:2])])


def authors_state(state, first=False):
    """Motion modules under the authors' names, with their buffers of positions."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"(motion_modules\.\d)\.", r"\1.temporal_transformer.", key)
        for i in (0, 1):
            key = key.replace(f".attn{i + 1}.", f".attention_blocks.{i}.")
            key = key.replace(f".norm{i + 1}.", f".norms.{i}.")
        key = key.replace(".norm3.", ".ff_norm.")
        if key.endswith("pos_embed.pe"):
            if first:
                tensor = torch.zeros(1, 24, tensor.shape[-1])
            for i in (0, 1):
                renamed[key.replace("pos_embed", f"attention_blocks.{i}.pos_encoder")] = tensor + 0
        else:
            renamed[key] = tensor
    return renamed


@pytest.mark.parametrize("first", [False, True])
def test_the_authors_files_are_read(folder, adapters, tmp_path, first):
    model = sdjax.StableDiffusion.from_pretrained(folder)
    peer, path = adapters("sd1", peers.load("sd1", folder).unet)
    file = tmp_path / "mm.safetensors"
    save_file(authors_state(peer.state_dict(), first), file)
    model.load_motion(file)
    assert model.motion.motion_num_attention_heads == 8  # published ones', which no file says
    assert model.motion.motion_max_seq_length == (24 if first else 6)
    assert not model.motion.motion_norm_over_frames
    assert model.motion.unet_norm_over_frames == first
    assert model.clip_scheduler["beta_schedule"] == "linear"
    # Saved here they stay the authors'.
    model.save_motion(tmp_path / "saved")
    kept = model.motion
    model.load_motion(tmp_path / "saved")
    assert model.motion == kept and model.clip_scheduler["beta_schedule"] == "linear"
    model.load_motion(tmp_path / "saved", like="diffusers")
    assert model.motion.motion_norm_over_frames and not model.motion.unet_norm_over_frames
    model.load_motion(file, like="diffusers")
    assert model.motion.motion_norm_over_frames and not model.motion.unet_norm_over_frames
    kept = model.params["unet"]
    model.load_motion(path)
    jax.tree.map(np.testing.assert_array_equal, kept, model.params["unet"])


def test_a_lora_of_motion(moving, folder, adapters, tmp_path):
    pipeline = theirs("sd1", folder, adapters)
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=2, init_lora_weights=False,
                             target_modules=r".*motion_modules.*\.(to_q|to_v)")  # fmt: skip
    pipeline.unet.add_adapter(config)
    pipeline.save_lora_weights(
        tmp_path, unet_lora_layers=peft.get_peft_model_state_dict(pipeline.unet)
    )
    name = moving.load_lora(tmp_path)
    made = ours(moving)
    moving.unload(name)
    assert_close(made, clips_of(pipeline))
    fresh = sdjax.StableDiffusion.from_pretrained(folder)
    with pytest.raises(sdjax.SdjaxError, match="of motion modules, for clips: load those"):
        fresh.load_lora(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 7}, "know 6 positions, got a clip of 7 frames"),
        ({"frames": 9, "frame_windows": (8, 4)}, "know 6 positions, got a clip of 8 frames"),
        ({"frames": None, "frame_windows": 4}, "frame_windows is for clips"),
        ({"hires": 2}, "a clip takes no hires yet"),
        ({"frame_windows": (4, 4)}, "the overlap must be less than the side 4"),
    ],
)
def test_what_does_not_fit_is_refused(moving, options, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        ours(moving, **options)


def test_files_that_are_none_are_refused(moving, models, adapters, folder, tmp_path):
    peer, path = adapters("sd1", None)
    state = {"other.weight": torch.zeros(2), **peer.state_dict()}
    save_file(state, tmp_path / "more.safetensors")
    with pytest.raises(sdjax.SdjaxError, match="1 tensors beside motion modules, which are not"):
        moving.load_motion(tmp_path / "more.safetensors")
    save_file({"other.weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    with pytest.raises(sdjax.SdjaxError, match="no motion modules were found among its 1 tensors"):
        moving.load_motion(tmp_path / "none.safetensors")
    with pytest.raises(sdjax.SdjaxError, match="for a U-Net of another family"):
        models("sdxl_levels").load_motion(path)
