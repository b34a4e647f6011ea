"""Files of T2I-Adapters: diffusers' folders, and single files in diffusers' and the authors' names."""

import diffusers
import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sdjax
from sdjax.weights.t2i_adapter import T2IAdapter, adapter_config, adapter_state
from sdjax.weights.tensors import lazy
from tests.models.peers import nchw, nhwc, relative_error
from tests.models.test_t2i_adapter import PUBLISHED, SMALL, peer_of, picture


def check(source, expected, peer, **options):
    network, params = T2IAdapter.from_pretrained(source, **options)
    assert network.config == expected
    shown = picture(expected, 2, 2, 1)
    with torch.no_grad():
        theirs = peer(nchw(shown))
    for a, b in zip(network.apply({"params": params}, shown), theirs, strict=True):
        assert relative_error(a, nhwc(b)) <= 1e-5
    return network, params


def authors_names(state):
    """Keys as in the authors' files: blocks counted through, those of a light level in its body."""
    result = {}
    for key, tensor in state.items():
        path = key.removeprefix("adapter.").split(".")
        if path[0] == "body" and "adapter.body.0.out_conv.weight" in state:
            path[2] = path[2].replace("resnets", "body")
        elif path[0] == "body" and path[2] == "in_conv":
            path[1] = str(2 * int(path[1]))
        elif path[0] == "body":
            path[1:4] = [str(2 * int(path[1]) + int(path[3]))]
        result[".".join(path)] = tensor.contiguous() if not tensor.is_meta else tensor
    return result


def test_folders_both_ways(tmp_path):
    config = SMALL["xl"]
    peer = peer_of(config)
    peer.save_pretrained(tmp_path / "adapter")
    network, params = check(tmp_path, config, peer)  # of a pipeline
    network.save_pretrained(params, tmp_path / "ours")
    check(tmp_path / "adapter", config, type(peer).from_pretrained(tmp_path / "ours"))


@pytest.mark.parametrize("kind", ["full", "light"])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_files_of_the_authors(kind, ending, tmp_path):
    config = SMALL[kind]
    peer = peer_of(config)
    peer.save_pretrained(tmp_path / "folder")
    state, path = authors_names(peer.state_dict()), tmp_path / f"a.{ending}"
    assert len(state) == len(peer.state_dict())
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    check(path, config, peer, config=tmp_path / "folder")


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_of_published_files_are_inferred(name):
    config = PUBLISHED[name]
    with torch.device("meta"):
        state = diffusers.T2IAdapter.from_config(config.to_dict()).state_dict()
    for named in (state, authors_names(state)):
        found = adapter_state(
            {key: lazy(jax.ShapeDtypeStruct(tuple(t.shape), np.float32)) for key, t in named.items()}
        )
        assert set(found) == set(state)
        assert type(config).from_dict(adapter_config(found)) == config


def test_other_files_are_refused_by_what_they_are(tmp_path):
    for state, message in (
        ({"a": torch.ones(1)}, "no T2I-Adapter was found among its 1 tensors"),
        ({"style_embedding": torch.ones(1)}, "style adapter, which is not supported"),
        ({"body.0.block1.weight": torch.ones(1)}, "adapter.conv_in.weight is missing"),
    ):
        save_file(state, tmp_path / "a.safetensors")
        with pytest.raises(sdjax.SdjaxError, match=message):
            T2IAdapter.from_pretrained(tmp_path / "a.safetensors")
    peer = peer_of(SMALL["full"])
    peer.save_pretrained(tmp_path / "folder")
    state = authors_names(peer.state_dict()) | {"body.0.skep.bias": torch.ones(1)}
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(sdjax.SdjaxError, match="unexpected .adapter.body.0.resnets.0.skep.bias"):
        T2IAdapter.from_pretrained(tmp_path / "a.safetensors", config=tmp_path / "folder")
