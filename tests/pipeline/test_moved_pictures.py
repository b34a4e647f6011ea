"""Clips of a picture: Stable Video Diffusion against diffusers' pipeline, and its files."""

import re

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

import sdjax
from sdjax.pipeline.given.first_frame import antialiased, for_clip
from tests.models.peers import randomised
from tests.models.test_spatio_temporal import CODER, NET, without_class
from tests.pipeline.peers import assert_close, quiet
from tests.pipeline.test_t2i_adapter import picture

SIZE, FRAMES, STEPS = {"height": 16, "width": 24}, 3, 3
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "projection_dim": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 224, "patch_size": 56, "hidden_act": "gelu",
}  # fmt: skip
SMALL = {**without_class(NET), "transformer_layers_per_block": 1}
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0, "steps_offset": 1,
    "timestep_spacing": "leading", "timestep_type": "continuous", "use_karras_sigmas": True,
}  # fmt: skip


def whole():
    """diffusers' pipeline with small random networks."""
    torch.manual_seed(0)
    made = diffusers.StableVideoDiffusionPipeline(
        vae=randomised(diffusers.AutoencoderKLTemporalDecoder(**without_class(CODER))),
        image_encoder=randomised(
            transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION))
        ),
        unet=randomised(diffusers.UNetSpatioTemporalConditionModel(**SMALL)),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULER),
        feature_extractor=transformers.CLIPImageProcessor(),
    )
    return quiet(made)


@pytest.fixture(scope="module")
def pipeline():
    return whole()


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("svd")
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return sdjax.StableDiffusion.from_pretrained(folder)


def clips_of(pipeline, image, seed=7, **options):
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": STEPS, "decode_chunk_size": 2, **SIZE, **options}
    made = pipeline(image, generator=generator, output_type="pt", **options).frames
    return made.numpy().transpose(0, 1, 3, 4, 2)


def ours(model, image, **options):
    options = {"steps": STEPS, "seed": 7, "noise": "torch", "output": "numpy", **SIZE, **options}
    options = {"vae_frames": 2, **options}
    return model.generate(image=image, **options)


def test_clips_are_those_of_diffusers_and_nothing_compiles_anew(model, pipeline):
    shown = [picture(3), picture(4)]
    made = ours(model, shown)
    for i, clip in enumerate(made):
        assert_close(clip[None], clips_of(pipeline, shown[i], seed=7 + i))
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    told = {"fps": 12, "motion_bucket": 30, "noise_augmentation": 0.3}
    other = ours(model, shown, guidance_scale=5.0, first_guidance_scale=2.0, **told)
    (first, _) = ours(model, shown, output="pil")
    assert compilations == []
    expected = clips_of(
        pipeline, shown[0], max_guidance_scale=5.0, min_guidance_scale=2.0, fps=12,
        motion_bucket_id=30, noise_aug_strength=0.3,
    )  # fmt: skip
    assert_close(other[:1], expected)
    assert np.abs(other - made).max() > 0.05
    assert len(first) == FRAMES and first[0].size == (24, 16) and first[0].info["seed"] == 7
    np.testing.assert_allclose(np.asarray(first[2]), (made[0, 2] + 1) * 127.5, atol=0.6)


@pytest.mark.full
def test_without_guidance_and_with_more_frames(model, pipeline):
    shown = picture(4)
    made = ours(model, shown, guidance_scale=1, frames=4, vae_frames=None)
    theirs = {"max_guidance_scale": 1.0, "num_frames": 4, "decode_chunk_size": 4}
    assert_close(made, clips_of(pipeline, shown, **theirs))


def test_a_folder_of_ours_is_theirs(model, pipeline, tmp_path):
    model.save_pretrained(tmp_path)
    again = quiet(diffusers.StableVideoDiffusionPipeline.from_pretrained(tmp_path))
    for name in ("unet", "vae", "image_encoder"):
        state = getattr(again, name).state_dict()
        for key, tensor in getattr(pipeline, name).state_dict().items():
            assert torch.equal(state[key], tensor), key
    shown = picture(3)
    np.testing.assert_allclose(clips_of(again, shown), clips_of(pipeline, shown), atol=1e-5)
    assert sdjax.StableDiffusion.from_pretrained(tmp_path).guidance_scale == 3
    with pytest.raises(sdjax.SdjaxError, match="is not written as a single file: write a folder"):
        model.save_single_file(tmp_path / "file.safetensors")


RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip


def theirs_of_unet(key):
    """The authors' key of a U-Net of two levels with one block each."""
    for pair in (
        ("conv_in.", "input_blocks.0.0."), ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."), ("add_embedding.linear_1.", "label_emb.0.0."),
        ("add_embedding.linear_2.", "label_emb.0.2."), ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."), ("down_blocks.0.downsamplers.0.conv.", "input_blocks.2.0.op."),
        ("up_blocks.0.upsamplers.0.conv.", "output_blocks.1.1.conv."),
    ):  # fmt: skip
        if key.startswith(pair[0]):
            return key.replace(*pair)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", key)
    key = key.replace("mid_block.attentions.0", "middle_block.1")
    parts = {"resnets": 0, "attentions": 1}
    key = re.sub(r"down_blocks\.(\d)\.(\w+)\.0\.",
                 lambda m: f"input_blocks.{2 * int(m[1]) + 1}.{parts[m[2]]}.", key)  # fmt: skip
    key = re.sub(r"up_blocks\.(\d)\.(\w+)\.(\d)\.",
                 lambda m: f"output_blocks.{2 * int(m[1]) + int(m[3])}.{parts[m[2]]}.", key)  # fmt: skip
    key = key.replace("temporal_transformer_blocks", "time_stack")
    key = key.replace("time_pos_embed.linear_1", "time_pos_embed.0")
    key = key.replace("time_pos_embed.linear_2", "time_pos_embed.2")
    if "_res_block." in key:
        head, tail = key.replace("temporal_res_block.", "time_stack.").rsplit(".", 1)
        head = head.replace("spatial_res_block.", "")
        for ours, theirs in RESNET:
            head = re.sub(rf"\.{ours}$", f".{theirs}", head)
        key = f"{head}.{tail}"
    return key


def theirs_of_vae(key):
    key = key.replace("decoder.time_conv_out.", "decoder.conv_out.time_mix_conv.")
    key = re.sub(r"up_blocks\.(\d)\.", lambda m: f"up.{1 - int(m[1])}.", key)
    key = re.sub(r"down_blocks\.(\d)\.", r"down.\1.", key).replace("samplers.0.", "sample.")
    key = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
    key = key.replace("resnets.", "block.").replace("mid_block.attentions.0.", "mid.attn_1.")
    for ours, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
                         ("to_out.0", "proj_out")):  # fmt: skip
        key = key.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    if ".temporal_res_block." in key:
        for ours, theirs in RESNET:
            key = key.replace(f".temporal_res_block.{ours}.", f".time_stack.{theirs}.")
    key = key.replace("spatial_res_block.", "").replace("time_mixer.", "")
    return key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def theirs_of_vision(state):
    made, fused = {}, {}
    for key, tensor in state.items():
        key = key.removeprefix("vision_model.")
        if key == "visual_projection.weight":
            made["proj"] = tensor.T.contiguous()
            continue
        for ours, theirs in (
            ("embeddings.class_embedding", "class_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("embeddings.patch_embedding", "conv1"), ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"), ("encoder.layers", "transformer.resblocks"),
            ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ("self_attn.out_proj", "attn.out_proj"),
        ):  # fmt: skip
            key = key.replace(ours, theirs)
        if match := re.fullmatch(r"(.*)self_attn\.([qkv])_proj\.(weight|bias)", key):
            fused.setdefault(f"{match[1]}attn.in_proj_{match[3]}", {})[match[2]] = tensor
        else:
            made[key] = tensor
    return made | {key: torch.cat([parts[name] for name in "qkv"]) for key, parts in fused.items()}


def test_the_authors_file_is_read(model, pipeline, folder, tmp_path):
    state = {f"model.diffusion_model.{theirs_of_unet(k)}": t
             for k, t in pipeline.unet.state_dict().items()}  # fmt: skip
    state |= {f"first_stage_model.{theirs_of_vae(k)}": t
              for k, t in pipeline.vae.state_dict().items()}  # fmt: skip
    vision = theirs_of_vision(pipeline.image_encoder.state_dict())
    state |= {f"conditioner.embedders.0.open_clip.model.visual.{k}": t for k, t in vision.items()}
    assert any(".time_stack.0.norm_in." in key for key in state)
    state["conditioner.embedders.3.encoder.other"] = torch.zeros(2)
    file = tmp_path / "svd.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
    read = sdjax.StableDiffusion.from_single_file(file, config=folder)
    jax.tree.map(np.testing.assert_array_equal, read.params, model.params)
    assert read.unet.config == model.unet.config and read.vae.config == model.vae.config


@pytest.mark.full
def test_what_shapes_tell_of_a_published_file():
    from sdjax.models.unet_config import UNetConfig
    from sdjax.weights import infer
    from sdjax.weights.names import state_from_params
    from sdjax.weights.parts import unet_shapes

    published = UNetConfig.from_dict(
        {"_class_name": NET["_class_name"], "sample_size": 96, "num_frames": 14}
    )
    state = state_from_params(unet_shapes(published))
    assert UNetConfig.from_dict(infer.unet_config(state)) == published
    assert infer.scheduler_config("svd", "v_prediction").items() >= SCHEDULER.items()


def test_the_picture_for_clip_is_that_of_diffusers():
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs

    for given, wanted in ((301, 224), (90, 224), (700, 224)):
        x = np.random.RandomState(0).rand(1, 1, given, 64)
        resized = theirs._resize_with_antialiasing(torch.from_numpy(x), (wanted, 64))[0, 0].numpy()
        made = antialiased(given, wanted) @ x[0, 0] @ antialiased(64, 64).T
        np.testing.assert_allclose(made, resized, atol=2e-6)
    grey = for_clip(Image.new("RGB", (40, 30), (128, 128, 128)), 20)
    np.testing.assert_allclose(grey, grey[:1, :1] + np.zeros_like(grey), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": None, "prompt": ""}, "moves a picture and needs image=: image is missing"),
        ({"image": None}, "prompt must be text, or a list of texts, got None"),
        ({"prompt": "a cat"}, "moves a picture and reads no prompt: leave prompt out"),
        ({"negative_prompt": "x"}, "moves a picture and takes no negative_prompt"),
        ({"strength": 0.5}, "moves a picture as a whole: it takes no strength"),
        ({"frame_windows": 2}, "takes no frame_windows"),
        ({"hires": 2}, "a clip takes no hires yet: leave hires out"),
        ({"clip_skip": 1}, "takes no clip_skip"),
        ({"image_guidance_scale": 2}, "is for models that edit a picture"),
    ],
)
def test_what_does_not_fit_is_refused(model, options, message):
    with pytest.raises(sdjax.SdjaxError, match=message):
        model.generate(**{"image": picture(1), "steps": 2, **SIZE, **options})


def test_what_it_is_not_is_refused(model, tmp_path):
    with pytest.raises(sdjax.SdjaxError, match="makes clips by itself: it takes no motion modules"):
        model.load_motion(tmp_path)
