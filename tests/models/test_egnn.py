"""EDM's network against a PyTorch one written from the equations, and its symmetries."""

import dataclasses

import jax
import numpy as np
import pytest

from sdjax.errors import SdjaxError
from sdjax.models import EGNN, EGNNConfig
from sdjax.models.egnn import sinusoids
from sdjax.weights.egnn import egnn_shapes
from sdjax.weights.names import params_from_state, state_from_params
from sdjax.weights.tensors import lazy

torch = pytest.importorskip("torch")
CONFIG = EGNNConfig(in_node_nf=6, hidden_nf=8, n_layers=3, inv_sublayers=2, norm_constant=0.5,
                    normalization_factor=2.0)
SIZES = np.array([5, 3, 1])
MASK = (np.arange(5) < SIZES[:, None])[..., None].astype(np.float32)


def layer(inputs, outputs, bias=True):
    return torch.nn.Linear(inputs, outputs, bias)


class Peer(torch.nn.Module):
    """Satorras et al. 2021, equations 3 to 6, with EDM's changes (arXiv 2203.17003, appendix B):
    one edge at a time, of one molecule without empty places.
    """

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.hidden_nf
        edges = 2 * width + (24 if config.sin_embedding else 2)
        self.embedding = layer(config.in_node_nf, width)
        self.embedding_out = layer(width, config.in_node_nf)
        silu = torch.nn.SiLU()
        for i in range(config.n_layers):
            block = torch.nn.Module()
            for j in range(config.inv_sublayers):
                gcl = torch.nn.Module()
                gcl.edge_mlp = torch.nn.Sequential(
                    layer(edges, width), silu, layer(width, width), silu)
                gcl.node_mlp = torch.nn.Sequential(
                    layer(2 * width, width), silu, layer(width, width))
                if config.attention:
                    gcl.att_mlp = torch.nn.Sequential(layer(width, 1), torch.nn.Sigmoid())
                block.add_module(f"gcl_{j}", gcl)
            block.gcl_equiv = torch.nn.Module()
            block.gcl_equiv.coord_mlp = torch.nn.Sequential(
                layer(edges, width), silu, layer(width, width), silu, layer(width, 1, False))
            self.add_module(f"e_block_{i}", block)

    def told(self, square):
        if not self.config.sin_embedding:
            return square[None]
        waves = 2 * np.pi * 4.0 ** torch.arange(6) / 15
        angles = torch.sqrt(square + 1e-8) * waves
        return torch.cat([torch.sin(angles), torch.cos(angles)])

    def forward(self, h, x):
        config, count = self.config, len(x)
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        start = {(i, j): self.told(((x[i] - x[j]) ** 2).sum()) for i, j in pairs}
        h = self.embedding(h)
        for number in range(config.n_layers):
            block = getattr(self, f"e_block_{number}")
            square = {(i, j): ((x[i] - x[j]) ** 2).sum() for i, j in pairs}
            known = {p: torch.cat([self.told(square[p]), start[p]]) for p in pairs}
            for j in range(config.inv_sublayers):
                gcl, total = getattr(block, f"gcl_{j}"), torch.zeros_like(h)
                for i, k in pairs:
                    message = gcl.edge_mlp(torch.cat([h[i], h[k], known[i, k]]))
                    if config.attention:
                        message = message * gcl.att_mlp(message)
                    total = total.index_add(0, torch.tensor([i]), message[None])
                total = total / config.normalization_factor
                h = h + gcl.node_mlp(torch.cat([h, total], 1))
            moved = torch.zeros_like(x)
            for i, k in pairs:
                size = block.gcl_equiv.coord_mlp(torch.cat([h[i], h[k], known[i, k]]))
                if config.tanh:
                    size = torch.tanh(size) * config.coords_range
                direction = (x[i] - x[k]) / (torch.sqrt(square[i, k] + 1e-8) + config.norm_constant)
                moved = moved.index_add(0, torch.tensor([i]), (direction * size)[None])
            x = x + moved / config.normalization_factor
        return self.embedding_out(h), x


def peer(config):
    torch.manual_seed(0)
    network = Peer(config)
    for name, weight in network.named_parameters():
        if name.endswith("coord_mlp.4.weight"):
            weight.data *= 0.1
    return network


def parameters(network):
    state = {key: lazy(value.numpy()) for key, value in network.state_dict().items()}
    return params_from_state(state, "float32", egnn_shapes(network.config))


@pytest.fixture(scope="module")
def ours():
    """(points, features, their parameters, the compiled network)."""
    random = np.random.default_rng(0)
    h = random.standard_normal((3, 5, 6)).astype(np.float32)
    x = (1.5 * random.standard_normal((3, 5, 3))).astype(np.float32)
    network = jax.jit(lambda params, h, x, mask: EGNN(CONFIG).apply({"params": params}, h, x, mask))
    return h, x, parameters(peer(CONFIG)), network


@pytest.mark.parametrize("change", [
    {}, {"attention": False, "tanh": False, "inv_sublayers": 1, "sin_embedding": True},
])
def test_the_numbers_are_those_of_the_equations(ours, change):
    h, x, *_ = ours
    config = dataclasses.replace(CONFIG, **change)
    theirs = peer(config)
    found = EGNN(config).apply({"params": parameters(theirs)}, h, x, MASK)
    for i, size in enumerate(SIZES):
        with torch.no_grad():
            wanted = theirs(torch.tensor(h[i, :size]), torch.tensor(x[i, :size]))
        for part, own in zip(found, wanted):
            scale = max(1, float(own.abs().max()))
            np.testing.assert_allclose(part[i, :size] / scale, own / scale, atol=1e-5)
            assert not np.asarray(part[i, size:]).any()


def test_gradients_are_those_of_the_equations(ours):
    h, x, params, _ = ours
    theirs, size = peer(CONFIG), SIZES[1]

    def loss(params):
        features, points = EGNN(CONFIG).apply({"params": params}, h[1:2], x[1:2], MASK[1:2])
        return (features**2).sum() + (points**2).sum()

    found = state_from_params(jax.jit(jax.grad(loss))(params))
    features, points = theirs(torch.tensor(h[1, :size]), torch.tensor(x[1, :size]))
    ((features**2).sum() + (points**2).sum()).backward()
    for name, weight in theirs.named_parameters():
        wanted = weight.grad.numpy()
        np.testing.assert_allclose(
            found[name].load(), wanted, atol=2e-5 * max(1, np.abs(wanted).max()), err_msg=name)


def test_names_and_layouts_are_the_published_ones(ours):
    *_, params, _ = ours
    state = state_from_params(params)
    theirs = peer(CONFIG).state_dict()
    assert {key: tensor.shape for key, tensor in state.items()} == {
        key: tuple(value.shape) for key, value in theirs.items()}
    for key, tensor in state.items():
        np.testing.assert_array_equal(tensor.load(), theirs[key].numpy())


def turned(seed=0):
    """A rotation with a reflection."""
    found, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return (found * -np.sign(np.linalg.det(found))).astype(np.float32)


def test_turned_and_moved_points_turn_and_move_the_result(ours):
    h, x, params, network = ours
    features, points = network(params, h, x, MASK)
    turn, move = turned(), np.array([0.5, -1.0, 0.25], np.float32)
    other_features, other = network(params, h, x @ turn + move, MASK)
    np.testing.assert_allclose(other_features, features, atol=2e-5)
    np.testing.assert_allclose(other, (points @ turn + move) * MASK, atol=2e-5)


def test_another_order_is_that_of_the_result(ours):
    h, x, params, network = ours
    features, points = network(params, h, x, MASK)
    order = np.array([3, 0, 4, 1, 2])
    others = network(params, h[:, order], x[:, order], MASK[:, order])
    np.testing.assert_allclose(others[0], features[:, order], atol=2e-6)
    np.testing.assert_allclose(others[1], points[:, order], atol=2e-6)


def test_what_is_masked_does_not_matter(ours):
    """Neither what stands there, nor how many empty places there are."""
    h, x, params, network = ours
    found = network(params, h, x, MASK)
    filled = network(params, np.where(MASK, h, 7.0), np.where(MASK, x, -3.0), MASK)
    for one, other in zip(found, filled):
        np.testing.assert_array_equal(one, other)
    h, x = h[1:2, :3], x[1:2, :3]
    alone = EGNN(CONFIG).apply({"params": params}, h, x, MASK[1:2, :3])
    for one, other in zip(found, alone):
        np.testing.assert_allclose(one[1:2, :3], other, atol=2e-6)


def test_gradients_are_finite_where_points_meet(ours):
    h, x, params, _ = ours
    gradient = jax.grad(lambda x: EGNN(CONFIG).apply({"params": params}, h, x, MASK)[1].sum())
    assert np.isfinite(gradient(np.zeros_like(x))).all()


def test_sinusoids_are_those_of_the_wavelengths():
    angles = 2 * np.pi * 2.0 * 4.0 ** np.arange(6) / 15
    wanted = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(sinusoids(np.float32([4.0])), wanted, atol=2e-4)


@pytest.mark.parametrize(("fields", "said"), [
    ({"aggregation_method": "mean"}, "must be sum"), ({"n_layers": 0}, "n_layers"),
    ({"normalization_factor": 0.0}, "above 0"), ({"widths": 3}, "unknown field widths"),
])
def test_what_is_no_configuration(fields, said):
    with pytest.raises(SdjaxError, match=said):
        EGNNConfig.from_dict(fields)
