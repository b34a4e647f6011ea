"""EDM's equivariant network and its files: folders of one's own, and the authors' state dicts."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.models import egnn
from sdjax.weights import infer
from sdjax.weights.folder import STEMS
from sdjax.weights.kept_shapes import kept
from sdjax.weights.parts import Pretrained, read_alone
from sdjax.weights.single_file import read_file
from sdjax.weights.tensors import LazyTensor, State

PART = "egnn"
_PREFIXES = ("dynamics.egnn.", "egnn.")
_SCHEDULE = "gamma.gamma"
_BESIDE = (_SCHEDULE, "buffer")  # of the authors' files, beside the network


def egnn_state(state: Mapping[str, LazyTensor]) -> State:
    """The network's tensors under their names in it; SdjaxError where there are others."""
    found = {}
    for key, tensor in state.items():
        prefix = next((p for p in _PREFIXES if key.startswith(p)), "")
        if key not in _BESIDE:
            found[key.removeprefix(prefix)] = tensor
    if "embedding_out.weight" not in found or "e_block_0.gcl_equiv.coord_mlp.4.weight" not in found:
        raise SdjaxError(
            f"no EGNN was found among its {len(state)} tensors ({', '.join(sorted(state)[:3])}, …)"
        )
    others = [key for key in found if key.startswith(("gamma.", "gnn."))]
    if others:
        raise SdjaxError(
            f"it holds {others[0]}: a learned noise schedule or a network without equivariance, "
            "neither of which is read; models of a polynomial schedule and an EGNN are"
        )
    return found


def egnn_config(state: Mapping[str, LazyTensor]) -> dict:
    """The configuration as far as shapes tell it, with what EDM's model of QM9 has beside it."""
    state = egnn_state(state)
    hidden, inputs = state["embedding.weight"].shape
    edges = state["e_block_0.gcl_0.edge_mlp.0.weight"].shape[1] - 2 * hidden
    return {
        "in_node_nf": inputs,
        "hidden_nf": hidden,
        "n_layers": infer.count(state, r"e_block_(\d+)\."),
        "inv_sublayers": infer.count(state, r"e_block_0\.gcl_(\d+)\."),
        "attention": "e_block_0.gcl_0.att_mlp.0.weight" in state,
        "sin_embedding": edges > 2,
    }


def edm_betas(path: Path) -> list[float] | None:
    """β of each timestep of an authors' file, whose γ is −log(ᾱ/(1 − ᾱ)); None where there is none.
    """
    tensor = read_file(path)[0].get(_SCHEDULE)
    if tensor is None:
        return None
    signal = 1 / (1 + np.exp(np.asarray(tensor.load(), np.float64)))
    return (1 - signal / np.append(1.0, signal[:-1])).tolist()


@kept
def egnn_shapes(config: egnn.EGNNConfig) -> dict:
    """Shapes of an EGNN's parameters."""
    network = egnn.EGNN(config)
    h, x, mask = (jnp.zeros((1, 2, width)) for width in (config.in_node_nf, egnn.DIMENSIONS, 1))
    return jax.eval_shape(network.init, jax.random.key(0), h, x, mask)["params"]


class EGNN(Pretrained, egnn.EGNN):
    """EDM's network; see `sdjax.models.egnn.EGNN` for its inputs."""

    part, stem = PART, STEMS[0]
    config_class, shapes = egnn.EGNNConfig, staticmethod(egnn_shapes)

    @classmethod
    def read(cls, source, part, variant, revision, config):
        """The configuration and the state of a folder, a single file or a hub id."""
        return read_alone(source, part or PART, variant, revision, config, egnn_state, egnn_config)
