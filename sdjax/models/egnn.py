"""EDM's equivariant graph network (arXiv 2102.09844, 2203.17003), all points with all others.

Points turned, moved or mirrored turn, move or mirror what comes out, and another order of the
points is that of the result. Parameters have the published names.
"""

import dataclasses
import math
from typing import Callable

import flax.linen as nn
import jax.numpy as jnp

from sdjax.errors import SdjaxError, check_at_least
from sdjax.models.config_fields import known_fields
from sdjax.models.layers import Dense, zeros_init
from sdjax.models.remat import rematted

CLASS = "EGNN"
DIMENSIONS = 3
WIDTH = 16
LONGEST, SHORTEST, BASE = 15.0, 15.0 / 2000, 4  # wavelengths of a distance's sinusoids
# torch.nn.Linear's own: both weight and bias even in ±1/√inputs.
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class EGNNConfig:
    """Fields of EDM's EGNN with the values of its model of QM9."""

    in_node_nf: int = 7
    """Features of a point, the time and what is known of the whole among them."""
    hidden_nf: int = 256
    n_layers: int = 9
    inv_sublayers: int = 1
    """Exchanges of features in a layer, before the points are moved."""
    attention: bool = True
    """Whether a message is weighted by a number of its own."""
    tanh: bool = True
    """Whether a layer moves a point by at most coords_range for each other point."""
    coords_range: float = 15.0
    norm_constant: float = 1.0
    """Added to a distance that a difference is divided by."""
    normalization_factor: float = 1.0
    """What sums over points are divided by."""
    aggregation_method: str = "sum"
    """Of what comes from the other points: sum, as in all published models."""
    sin_embedding: bool = False
    """Whether distances are given as sinusoids."""

    def __post_init__(self):
        check_at_least(1, self, "in_node_nf", "hidden_nf", "n_layers", "inv_sublayers")
        if self.aggregation_method != "sum":
            raise SdjaxError(
                "aggregation_method must be sum, as others depend on how far a batch is filled up: "
                f"got {self.aggregation_method!r}"
            )
        if not self.normalization_factor > 0:
            raise SdjaxError(
                f"normalization_factor must be above 0, got {self.normalization_factor}"
            )

    @classmethod
    def from_dict(cls, config) -> "EGNNConfig":
        """Reads a config.json given as a dict; SdjaxError for what is not known."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**known_fields(config, names, CLASS))

    def to_dict(self):
        """A config.json."""
        return {"_class_name": CLASS, **dataclasses.asdict(self)}


class FirstLayer(nn.Module):
    """y = weight·x + bias. The weight of what is called an embedding is kept as in files,
    [features, in].
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        def drawn(key, shape, dtype):
            return _kernel_init(key, shape[::-1], dtype).T

        shape = (self.features, x.shape[-1])
        weight = self.param("embedding", drawn, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", zeros_init, (self.features,), jnp.float32)
        return (x.astype(self.dtype) @ weight.T + bias).astype(self.dtype)


class PairDense(nn.Module):
    """A Dense over (h_i, h_j, what is known of the pair) for all pairs [B, N, N, features].

    Its kernel [2C + D, features] is applied part by part, so that nothing of width 2C is made for
    each pair.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h, pairs):
        width, extra = h.shape[-1], pairs.shape[-1]
        shape = (2 * width + extra, self.features)
        kernel = self.param("kernel", _kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", zeros_init, (self.features,), jnp.float32).astype(self.dtype)
        own, other, known = jnp.split(kernel, [width, 2 * width])
        there = (h @ own + bias)[:, :, None] + (h @ other)[:, None]
        # Filled up to a width that CPUs multiply well: a sum of two products costs more, above all
        # its gradient, which XLA fuses with all that leads to it.
        wide = -(-extra // WIDTH) * WIDTH - extra
        pairs = jnp.pad(pairs, [(0, 0)] * 3 + [(0, wide)])
        return there + pairs @ jnp.pad(known, [(0, wide), (0, 0)])


class Exchange(nn.Module):
    """EDM's GCL: messages m_ij of pairs, weighted, summed at i, and added to its features."""

    config: EGNNConfig
    dtype: jnp.dtype

    def setup(self):
        width, own = self.config.hidden_nf, {"dtype": self.dtype, "kernel_init": _kernel_init}
        self.first = PairDense(width, self.dtype, name="edge_mlp.0")
        self.second = Dense(width, name="edge_mlp.2", **own)
        if self.config.attention:
            self.weight = Dense(1, name="att_mlp.0", **own)
        self.node_first = Dense(width, name="node_mlp.0", **own)
        self.node_second = Dense(width, name="node_mlp.2", **own)

    def __call__(self, h, pairs, mask, pair_mask):
        message = nn.silu(self.second(nn.silu(self.first(h, pairs))))
        counts = pair_mask
        if self.config.attention:
            counts = counts * nn.sigmoid(self.weight(message))
        summed = (message * counts).sum(2) / self.config.normalization_factor
        update = self.node_second(nn.silu(self.node_first(jnp.concatenate([h, summed], -1))))
        return (h + update) * mask


class Move(nn.Module):
    """EDM's EquivariantUpdate: points moved along the differences to all others."""

    config: EGNNConfig
    dtype: jnp.dtype

    def setup(self):
        width, own = self.config.hidden_nf, {"dtype": self.dtype}
        self.first = PairDense(width, self.dtype, name="coord_mlp.0")
        self.second = Dense(width, name="coord_mlp.2", kernel_init=_kernel_init, **own)
        # Xavier's with a gain of 0.001, of a variance a million times less.
        small = nn.initializers.variance_scaling(1e-6, "fan_avg", "uniform")
        self.last = Dense(1, use_bias=False, name="coord_mlp.4", kernel_init=small, **own)

    def __call__(self, h, x, difference, pairs, mask, pair_mask):
        size = self.last(nn.silu(self.second(nn.silu(self.first(h, pairs))))).astype(x.dtype)
        if self.config.tanh:
            size = jnp.tanh(size) * self.config.coords_range
        moved = (difference * size * pair_mask.astype(x.dtype)).sum(2)
        return (x + moved / self.config.normalization_factor) * mask.astype(x.dtype)


class Layer(nn.Module):
    """EDM's EquivariantBlock: exchanges of features, then a move."""

    config: EGNNConfig
    dtype: jnp.dtype

    def setup(self):
        count = range(self.config.inv_sublayers)
        self.exchanges = [Exchange(self.config, self.dtype, name=f"gcl_{i}") for i in count]
        self.move = Move(self.config, self.dtype, name="gcl_equiv")

    def __call__(self, h, x, first_squares, mask, pair_mask):
        squares, difference = differences(x, self.config.norm_constant)
        pairs = jnp.concatenate([self.told(squares), first_squares], -1).astype(self.dtype)
        for exchange in self.exchanges:
            h = exchange(h, pairs, mask, pair_mask)
        return h, self.move(h, x, difference, pairs, mask, pair_mask)

    @property
    def told(self) -> Callable:
        """What a network is told of squared distances."""
        return sinusoids if self.config.sin_embedding else lambda squares: squares


class EGNN(nn.Module):
    """Points and their features to points and features, in `dtype`; the points are always float32.

    remat: recompute each layer in the backward pass, see `rematted`.
    """

    config: EGNNConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(self, h, x, mask):
        """h [B, N, in_node_nf], x [B, N, 3], mask [B, N, 1], 1 for a point and 0 for none.

        Returns (features [B, N, in_node_nf] float32, points [B, N, 3] float32), 0 where there is no
        point. What stands there of h and x does not matter, nor does how many there are.
        """
        config, layer = self.config, rematted(Layer, self.remat)
        mask = mask.astype(self.dtype)
        x, h = x.astype(jnp.float32) * mask, h * mask
        others = 1 - jnp.eye(x.shape[1], dtype=self.dtype)[..., None]
        pair_mask = mask[:, :, None] * mask[:, None] * others
        first = differences(x, 1.0)[0]
        first = sinusoids(first) if config.sin_embedding else first
        h = FirstLayer(config.hidden_nf, self.dtype, name="embedding")(h)
        for i in range(config.n_layers):
            h, x = layer(config, self.dtype, name=f"e_block_{i}")(h, x, first, mask, pair_mask)
        last = Dense(config.in_node_nf, dtype=jnp.float32, kernel_init=_kernel_init,
                     name="embedding_out")
        return last(h.astype(jnp.float32)) * mask.astype(jnp.float32), x


def differences(x, constant):
    """Of points: (squared distances [B, N, N, 1], (x_i − x_j)/(distance + constant) [B, N, N, 3])."""
    difference = x[:, :, None] - x[:, None]
    squares = (difference**2).sum(-1, keepdims=True)
    return squares, difference / (jnp.sqrt(squares + 1e-8) + constant)


def sinusoids(squares):
    """Sines and cosines of distances [..., 1], float [..., 12], through which no gradient goes."""
    count = int(math.log(LONGEST / SHORTEST, BASE)) + 1
    angles = jnp.sqrt(squares + 1e-8) * (2 * math.pi * BASE ** jnp.arange(count) / LONGEST)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)

