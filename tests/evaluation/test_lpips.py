"""LPIPS against its published network in PyTorch, narrow, from files as they are shared."""

import jax
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.evaluation.lpips import BLOCKS, lpips_features, read_lpips

WIDTHS = (4, 5, 6, 7, 8)


def layers():
    """(name in torchvision's file, layer) of a narrow VGG16's convolutions and LPIPS' layers."""
    torch.manual_seed(0)
    before, vgg, linear = 3, {}, {}
    for i, (block, width) in enumerate(zip(BLOCKS, WIDTHS)):
        for number in block:
            vgg[number] = torch.nn.Conv2d(before, width, 3, padding=1)
            before = width
        linear[i] = torch.rand(1, width, 1, 1)
    return vgg, linear


VGG, LINEAR = layers()


def lpips(first, second):
    """Zhang et al. 2018: unit-length features, squared differences by weights, spatial means."""
    def features(x):
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450])[:, None, None]
        for i, block in enumerate(BLOCKS):
            x = torch.nn.functional.max_pool2d(x, 2) if i else x
            for number in block:
                x = torch.relu(VGG[number](x))
            yield x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-10)

    return sum(
        ((a - b) ** 2 * LINEAR[i]).sum(1).mean((1, 2))
        for i, (a, b) in enumerate(zip(features(first), features(second)))
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """torchvision's and LPIPS' file, and the lpips package's whole network."""
    folder = tmp_path_factory.mktemp("lpips")
    own = {f"lin{i}.model.1.weight": w for i, w in LINEAR.items()}
    vgg = {f"features.{n}.{k}": p for n, c in VGG.items() for k, p in c.state_dict().items()}
    torch.save({**vgg, "classifier.0.weight": torch.zeros(2, 2)}, folder / "vgg16.pth")
    torch.save(own, folder / "vgg.pth")
    whole = {f"net.slice1.{n}.{k}": p for n, c in VGG.items() for k, p in c.state_dict().items()}
    shift = {"scaling_layer.shift": torch.zeros(1)}
    torch.save({**whole, **own, **shift}, folder / "lpips.pth")
    return folder


def test_the_distance_is_pytorchs_from_either_kind_of_file(files):
    random = np.random.default_rng(0)
    first, second = random.uniform(-1, 1, (2, 3, 33, 47, 3)).astype(np.float32)
    wanted = lpips(*(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in (first, second)))
    params = read_lpips(f"{files}/vgg16.pth,{files}/vgg.pth")
    features = jax.jit(lpips_features)
    pairs = list(zip(features(params, first), features(params, second)))
    found = sum(((a - b) ** 2).mean((1, 2, 3)) for a, b in pairs)
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-5)
    again = read_lpips(f"{files}/lpips.pth")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_what_is_missing_or_unknown_is_told(files, tmp_path):
    with pytest.raises(SdjaxError, match="lacks lin0.kernel.*two separated by a comma"):
        read_lpips(f"{files}/vgg16.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(SdjaxError, match="'conv1.weight', which is neither"):
        read_lpips(f"{tmp_path}/other.pth")
    with pytest.raises(SdjaxError, match="at least 16x16, got 20x15"):
        lpips_features({}, np.zeros((1, 15, 20, 3)))
