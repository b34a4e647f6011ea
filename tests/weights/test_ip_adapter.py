"""Files of IP-Adapters: safetensors and PyTorch's, and what is refused."""

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdjax.errors import SdjaxError
from sdjax.weights.ip_adapter import read_ip_adapter
from tests.models.test_ip_adapter import KINDS, random_adapter


def flat(files):
    return {f"{part}.{key}": t for part, state in files.items() for key, t in state.items()}


def write(files, path):
    if path.suffix == ".safetensors":
        save_file(flat(files), path)
    else:
        torch.save(files, path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["ip-adapter.safetensors", "ip-adapter.bin"])
def test_what_is_read_is_what_was_written(kind, name, tmp_path):
    params, files = random_adapter(KINDS[kind])
    write(files, tmp_path / name)
    for source in (tmp_path, tmp_path / name):
        network, found = read_ip_adapter(source)
        assert network.config == KINDS[kind]
        jax.tree.map(np.testing.assert_array_equal, found, params)


def test_other_files_are_refused_by_what_they_are(tmp_path):
    _, files = random_adapter(KINDS["plain"])
    projection, layers = files["image_proj"], files["ip_adapter"]
    face = {"proj.0.weight": torch.ones(4, 4), "proj.2.weight": torch.ones(4, 4),
            "norm.weight": torch.ones(4)}  # fmt: skip
    for changed, message in (
        ({"image_proj": projection}, "no IP-Adapter was found"),
        ({"image_proj": face, "ip_adapter": layers}, "Face-ID.*, which is not supported"),
        (
            {"image_proj": projection, "ip_adapter": layers | {"1.to_k": torch.ones(1)}},
            r"1 unexpected \(ip_adapter.1.to_k\)",
        ),
        (
            {"image_proj": {"a": torch.ones(1)}, "ip_adapter": layers},
            "tensor image_proj.latents is missing: of no known layout",
        ),
        (
            {"image_proj": projection, "ip_adapter": {"2.to_k_ip.weight": torch.ones(1, 1)}},
            "must count 1, 3, 5",
        ),
    ):
        write(changed, tmp_path / "ip-adapter.safetensors")
        with pytest.raises(SdjaxError, match=f"ip-adapter.safetensors: .*{message}"):
            read_ip_adapter(tmp_path)
    write(files, tmp_path / "ip-adapter-plus.safetensors")
    with pytest.raises(SdjaxError, match="holds several IP-Adapters, name one"):
        read_ip_adapter(tmp_path)
    with pytest.raises(SdjaxError, match="no such file of an IP-Adapter"):
        read_ip_adapter(tmp_path / "none.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SdjaxError, match="holds no IP-Adapter"):
        read_ip_adapter(tmp_path / "empty")
