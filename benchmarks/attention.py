"""Self-attention of Stable Diffusion 1.5's finest level: sdjax against PyTorch's SDPA, on the CPU.

4096 positions, 8 heads of 40, a guided batch of two, float32. The same arrays go to both; sdjax
splits the batch over an XLA device a core as its command line does, PyTorch has a thread a core.

    python -m benchmarks.attention
"""

import tyro

from benchmarks.common import Peer, compare, cores, report

WANTED = {"forward": 1.0, "both": 1.3}
WANTED_MIB = 100


def inputs(shape):
    """q, k, v and the gradient of the result, float32 [batch, length, heads, head_dim]."""
    import numpy as np

    return np.random.RandomState(0).standard_normal((4, *shape)).astype(np.float32)


def build_torch(shape, threads):
    """PyTorch's tasks; results are laid out as sdjax's."""
    import torch

    torch.set_num_threads(threads)
    *qkv, grad = (torch.from_numpy(x).transpose(1, 2).contiguous() for x in inputs(shape))
    attend = torch.nn.functional.scaled_dot_product_attention

    @torch.inference_mode()
    def forward():
        return attend(*qkv).transpose(1, 2).numpy()

    def both():
        leaves = [x.requires_grad_() for x in qkv]
        gradients = torch.autograd.grad(attend(*leaves), leaves, grad)
        return [g.transpose(1, 2).numpy() for g in gradients]

    return {"forward": forward, "both": both}


def build_sdjax(shape):
    """sdjax's tasks."""
    import jax
    import numpy as np

    from sdjax.models.attention import attention
    from sdjax.parallel import shard_batch

    *qkv, grad = shard_batch(list(inputs(shape)))
    run = jax.pmap(attention)
    differentiate = jax.pmap(lambda grad, *qkv: jax.vjp(attention, *qkv)[1](grad))

    def forward():
        return np.asarray(run(*qkv)).reshape(shape)

    def both():
        return [np.asarray(x).reshape(shape) for x in differentiate(grad, *qkv)]

    return {"forward": forward, "both": both}


def main(batch: int = 2, length: int = 4096, heads: int = 8, head_dim: int = 40, rounds: int = 15,
         save: bool = True):
    """Compare, print a table and write benchmarks/results/attention.json.

    Args:
        batch: a multiple of the cores. length: positions. heads: heads. head_dim: their width.
        rounds: turns of each peer.
        save: whether to write the file.
    """
    count, shape = cores(), (batch, length, heads, head_dim)
    environment = {"OMP_NUM_THREADS": str(count), "JAX_PLATFORMS": "cpu",
                   "JAX_NUM_CPU_DEVICES": str(count)}
    peers = [Peer("torch", build_torch, environment, shape=shape, threads=count),
             Peer("sdjax", build_sdjax, environment, shape=shape)]
    one, other = (peer.ask("value", "both") for peer in peers)
    error = max(float(abs(a - b).max() / abs(a).max()) for a, b in zip(one, other))
    if error > 1e-4:
        raise SystemExit(f"the peers disagree: relative error {error:.1e}")
    timed = compare(peers, list(WANTED), rounds)
    for peer in peers:
        peer.close()
    settings = {"shape": shape, "cores": count, "relative_error": error,
                "wanted_mib_of_a_call": WANTED_MIB}
    return report("attention", f"Attention, {list(shape)}, {count} cores", timed, "torch", settings,
                  WANTED, save)


if __name__ == "__main__":
    tyro.cli(main)
