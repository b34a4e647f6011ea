"""Which axis of a parameter is cut over which axis of the mesh, by its name."""

import re

import jax
from jax.sharding import PartitionSpec

FSDP, TENSOR = "fsdp", "tensor"

# Megatron's pairs (arXiv 1909.08053): what the first of two products gives, the second one takes,
# so that a pair sums over the devices once.
_RULES = (
    (r"(to_q|to_k|to_v|q_proj|k_proj|v_proj|net\.0/proj|fc1|conv1)/kernel$", -1),
    (r"(to_out\.0|out_proj|net\.2|fc2|conv2)/kernel$", -2),
)
"""(end of the name, axis that is cut over TENSOR); other parameters are not cut over it."""


def spec(name: str, shape: tuple[int, ...], fsdp: int, tensor: int) -> PartitionSpec:
    """How an array of a parameter's name and shape is cut.

    name: diffusers' names joined by "/", as "…/attn1/to_q/kernel"; whatever stands before, such as
      the optimizer's own names, makes no difference. fsdp, tensor: the sizes of these axes.

    The longest axis that is left and divides goes over FSDP. Scales and biases stay whole, and so
    does what divides nowhere.
    """
    axes: list[str | None] = [None] * len(shape)
    if len(shape) < 2:
        return PartitionSpec()
    for ending, axis in _RULES:
        if tensor > 1 and re.search(ending, name) and shape[axis] % tensor == 0:
            axes[axis] = TENSOR
    left = [axis for axis, used in enumerate(axes) if not used and shape[axis] % fsdp == 0]
    if fsdp > 1 and left:
        axes[max(left, key=lambda axis: shape[axis])] = FSDP
    return PartitionSpec(*axes)


def specs(tree, fsdp: int, tensor: int):
    """A tree of `spec` for a tree of arrays or shapes, whose names are its keys."""

    def of(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return spec(name, tuple(leaf.shape), fsdp, tensor)

    return jax.tree_util.tree_map_with_path(of, tree)
