"""What the comparisons of networks with their PyTorch peers share."""

import gzip
import json
from pathlib import Path

import numpy as np
import torch

from sdjax.weights.names import params_from_state, state_from_params
from sdjax.weights.tensors import lazy

torch.set_num_threads(1)

MANIFEST = Path(__file__).with_name("state_dict_manifest.json.gz")


def manifest(model: str) -> dict[str, tuple[int, ...]]:
    """Every state-dict key of a published model with its PyTorch shape."""
    with gzip.open(MANIFEST) as file:
        return {key: tuple(shape) for key, shape in json.load(file)[model].items()}


def state_shapes(params) -> dict[str, tuple[int, ...]]:
    """PyTorch keys and shapes of a tree of arrays or `jax.ShapeDtypeStruct`."""
    return {key: tensor.shape for key, tensor in state_from_params(params).items()}


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module in evaluation mode, every parameter moved off its initial value.

    Zero biases and unit scales would hide a parameter that is not used.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def params_of(module: torch.nn.Module) -> dict:
    """The module's parameters as a tree of ours."""
    state = module.state_dict()
    return params_from_state({key: lazy(tensor.numpy()) for key, tensor in state.items()})


def nchw(array) -> torch.Tensor:
    """[B, H, W, C] to PyTorch's [B, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1)))


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    """PyTorch's [B, C, H, W] to [B, H, W, C]."""
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def relative_error(ours, theirs) -> float:
    """Largest difference over the largest magnitude."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
