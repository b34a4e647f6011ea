"""Files of CLIP's picture encoder: transformers' folders, a whole CLIP, a safety checker, files."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file

import sdjax
from sdjax.weights.clip_vision import vision_config
from sdjax.weights.tensors import lazy
from tests.models.peers import nchw, randomised, relative_error
from tests.models.test_clip_vision import FULL, SMALL, peer_of, pictures

WIDE = {"hidden_size": 1024, "intermediate_size": 16, "num_hidden_layers": 1, "patch_size": 10,
        "image_size": 20, "num_attention_heads": 16, "projection_dim": 8}  # fmt: skip
PROJECTED = ("CLIPVisionModelWithProjection",)


def small(**changes):
    fields = {**SMALL.to_dict(), **changes}
    return type(SMALL).from_dict(fields)


def apply(encoder, params, size=20):
    return jax.jit(encoder.apply)({"params": params}, pictures(size))


def check(source, peer, **options):
    """What is read from `source` computes what `peer` does."""
    encoder, params = sdjax.CLIPVision.from_pretrained(source, **options)
    with torch.no_grad():
        theirs = peer(nchw(pictures()), output_hidden_states=True)
    ours = apply(encoder, params)
    assert relative_error(ours.hidden_states[-2], theirs.hidden_states[-2]) <= 1e-5
    pooled = theirs.image_embeds if encoder.config.projected else theirs.pooler_output
    assert relative_error(ours.pooled, pooled) <= 1e-5
    return encoder, params


@pytest.mark.parametrize("kind", ["CLIPVisionModel", *PROJECTED])
def test_folders_both_ways(kind, tmp_path):
    peer = peer_of(small(architectures=[kind]))
    peer.save_pretrained(tmp_path / "image_encoder")
    encoder, params = check(tmp_path, peer)  # of a pipeline, or of IP-Adapter's repository
    encoder.save_pretrained(params, tmp_path / "ours")
    check(tmp_path / "ours", getattr(transformers, kind).from_pretrained(tmp_path / "ours"))


def test_older_prefixes_are_the_same(tmp_path):
    """transformers before 5 had `vision_model.` in either class, and a buffer of positions."""
    peer = peer_of(SMALL)
    state = {f"vision_model.{key}": t.contiguous() for key, t in peer.state_dict().items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    check(tmp_path, peer)


def test_a_whole_clip_and_a_safety_checker_hold_one(tmp_path):
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "vocab_size": 9}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config=SMALL.to_dict(),
        projection_dim=SMALL.projection_dim,
        attn_implementation="eager",
    )
    for kind in (transformers.CLIPModel, StableDiffusionSafetyChecker):
        torch.manual_seed(0)
        whole = randomised(kind(config))
        whole.save_pretrained(tmp_path / kind.__name__)
        peer = peer_of(small(architectures=PROJECTED))
        vision = whole.vision_model
        peer.vision_model.load_state_dict(vision.state_dict())
        peer.visual_projection.load_state_dict(whole.visual_projection.state_dict())
        check(tmp_path / kind.__name__, peer)


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_single_files_of_published_shapes(layout, tmp_path):
    peer = peer_of(small(**WIDE, architectures=PROJECTED))
    state = {key: tensor.contiguous() for key, tensor in peer.state_dict().items()}
    if layout == "open_clip":
        state = open_clip_names(state) | {"logit_scale": torch.ones(())}
    save_file(state, tmp_path / "clip.safetensors")
    encoder, _ = check(tmp_path / "clip.safetensors", peer)
    assert encoder.config == small(**WIDE, architectures=PROJECTED)


def open_clip_names(state):
    """The visual tower of open_clip: q, k and v in one matrix, the projection transposed."""
    bare = {key.removeprefix("vision_model."): tensor for key, tensor in state.items()}
    result = {
        "visual.class_embedding": bare["embeddings.class_embedding"],
        "visual.positional_embedding": bare["embeddings.position_embedding.weight"],
        "visual.conv1.weight": bare["embeddings.patch_embedding.weight"],
        "visual.proj": bare["visual_projection.weight"].T.contiguous(),
    }
    layer, block = "encoder.layers.0", "visual.transformer.resblocks.0"
    for leaf in ("weight", "bias"):
        parts = [bare[f"{layer}.self_attn.{name}_proj.{leaf}"] for name in "qkv"]
        result[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
        for theirs, ours in (
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ):
            result[f"{block}.{theirs}.{leaf}"] = bare[f"{layer}.{ours}.{leaf}"]
        result[f"visual.ln_pre.{leaf}"] = bare[f"pre_layrnorm.{leaf}"]
        result[f"visual.ln_post.{leaf}"] = bare[f"post_layernorm.{leaf}"]
    return result


@pytest.mark.parametrize("name", FULL)
def test_configurations_of_published_files_are_inferred(name):
    config, _ = FULL[name]
    shapes = {
        "embeddings.patch_embedding.weight": (config.hidden_size, 3, 14, 14),
        "embeddings.position_embedding.weight": (257, config.hidden_size),
        "visual_projection.weight": (config.projection_dim, config.hidden_size),
        **{
            f"encoder.layers.{i}.mlp.fc1.weight": (config.intermediate_size, config.hidden_size)
            for i in range(config.num_hidden_layers)
        },
    }
    state = {key: lazy(np.broadcast_to(np.float32(0), shape)) for key, shape in shapes.items()}
    assert type(config).from_dict(vision_config(state)) == config


def test_other_files_are_refused_by_what_they_lack(tmp_path):
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(sdjax.SdjaxError, match="a.safetensors: no CLIP picture encoder was found"):
        sdjax.CLIPVision.from_pretrained(tmp_path / "a.safetensors")
    peer = peer_of(small(architectures=PROJECTED))
    peer.save_pretrained(tmp_path / "small")
    file = tmp_path / "small" / "model.safetensors"
    with pytest.raises(sdjax.SdjaxError, match="width 32 needs its config.json as `config`"):
        sdjax.CLIPVision.from_pretrained(file)
    check(file, peer, config=tmp_path / "small")
    with pytest.raises(sdjax.SdjaxError, match="config is for single files"):
        sdjax.CLIPVision.from_pretrained(tmp_path / "small", config=tmp_path / "small")
    state = {key: t.contiguous() for key, t in peer.state_dict().items()} | {"b": torch.ones(1)}
    save_file(state, file)
    with pytest.raises(sdjax.SdjaxError, match=r"1 unexpected \(vision_model.b\)"):
        sdjax.CLIPVision.from_pretrained(tmp_path / "small")
