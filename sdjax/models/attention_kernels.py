"""The ways to compute attention that `sdjax.models.attention.attention` chooses from.

All take q [B, Lq, H, D] and k, v [B, Lk, H, D] and return [B, Lq, H, D] in q's dtype.
"""

import functools

import jax
import jax.numpy as jnp

CHUNK = 1024
SPLASH_BLOCK = 512
HIDDEN = jnp.finfo(jnp.float32).min

# JAX's own kind of context, so that what was traced for one platform is not reused for another.
_target = jax.make_user_context(default_value=None)


def platform():
    """The platform that programs traced now will run on: "cpu", "gpu" or "tpu"."""
    name = _target.value or jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def compiling_for(name):
    """A context in which programs are traced for platform `name`, whose devices may be absent."""
    return _target(name)


def whole(q, k, v, mask, causal, scale):
    """All scores at once: the fastest where they are few."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * scale
    if causal:
        visible = jnp.tri(q.shape[1], k.shape[1], dtype=bool)
        mask = visible if mask is None else mask & visible
    if mask is not None:
        scores = jnp.where(mask, scores, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v, preferred_element_type=jnp.float32)
    return out.astype(q.dtype)


def cudnn_accepts(q, k):
    """Whether cuDNN's fused attention takes these shapes on all GPUs of this machine."""
    try:
        capability = min(float(d.compute_capability) for d in jax.local_devices(backend="gpu"))
    except (RuntimeError, ValueError):  # no GPU in this machine, or AMD's, which say "gfx942"
        return False
    widest = 256 if capability >= 9.0 else 128
    half = q.dtype in (jnp.float16, jnp.bfloat16)
    return half and capability >= 8.0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= widest


def cudnn(q, k, v, causal, scale):
    """cuDNN's fused attention."""
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=causal, implementation="cudnn"
    )


def splash_accepts(q, k):
    """Whether the TPU kernel takes these lengths and is worth its start."""
    lengths = (q.shape[1], k.shape[1])
    return min(lengths) >= 4096 and not any(length % SPLASH_BLOCK for length in lengths)


def splash(q, k, v, causal, scale, interpret=False):
    """The block-wise Pallas kernel for TPUs that ships with JAX."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as tpu
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (q.shape[1], k.shape[1])
    mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    names = ("block_q", "block_kv", "block_kv_compute")
    names += ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    kernel = tpu.make_splash_mha(
        masks.MultiHeadMask([mask] * q.shape[2]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=tpu.BlockSizes(**dict.fromkeys(names, SPLASH_BLOCK)),
        interpret=interpret,
    )
    q, k, v = ((x.swapaxes(1, 2)) for x in (q * scale, k, v))
    return jax.vmap(kernel)(q, k, v).swapaxes(1, 2).astype(v.dtype)


def chunked(q, k, v, mask, causal, scale, together):
    """Softmax over whole rows of CHUNK queries; the backward pass computes the scores again.

    Only the logarithm of each row's sum is kept (arXiv 2205.14135). `together` handles all heads
    at a time; else one after the other, so that every product is a plain matrix product, which is
    what CPUs do best.
    """
    batch, length, heads, _ = q.shape
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], length, k.shape[1]))

    def head(arguments):
        index, q, k, v = arguments
        rows = None
        if mask is not None:
            rows = mask[index // heads % mask.shape[0], index % heads % mask.shape[1]]
        return _head(q, k, v, rows, causal, scale)

    flat = (x.swapaxes(1, 2).reshape(batch * heads, *x.shape[1::2]) for x in (q, k, v))
    arguments = (jnp.arange(batch * heads), *flat)
    out = jax.vmap(head)(arguments) if together else jax.lax.map(head, arguments)
    return out.reshape(batch, heads, length, -1).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _head(q, k, v, mask, causal, scale):
    """Attention of one head: q [Lq, D], k and v [Lk, D], mask [Lq, Lk] or None -> [Lq, D]."""
    return _head_forward(q, k, v, mask, causal, scale)[0]


def _head_forward(q, k, v, mask, causal, scale):
    def rows(start, q):
        scores = _scores(q, k, mask, start, causal, scale)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        out = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / total).astype(q.dtype), (top + jnp.log(total))[:, 0]

    out, log_sum = _over_chunks(rows, q)
    return out, (q, k, v, mask, out, log_sum)


def _head_backward(causal, scale, saved, grad):
    q, k, v, mask, out, log_sum = saved

    def rows(start, q, out, log_sum, grad):
        weights = jnp.exp(_scores(q, k, mask, start, causal, scale) - log_sum[:, None])
        inner = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), -1, keepdims=True)
        d_v = jnp.dot(weights.astype(v.dtype).T, grad, preferred_element_type=jnp.float32)
        d_weights = jnp.dot(grad, v.T, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - inner) * scale).astype(q.dtype)
        d_q = jnp.dot(d_scores, k, preferred_element_type=jnp.float32).astype(q.dtype)
        d_k = jnp.dot(d_scores.T, q, preferred_element_type=jnp.float32)
        return d_q, d_k, d_v

    d_q, d_k, d_v = _over_chunks(rows, q, out, log_sum, grad, sums=2)
    return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None


_head.defvjp(_head_forward, _head_backward)


def _scores(q, k, mask, start, causal, scale):
    scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32) * scale
    if causal:
        hidden = jnp.arange(k.shape[0]) > start + jnp.arange(q.shape[0])[:, None]
        scores = jnp.where(hidden, HIDDEN, scores)
    if mask is not None:
        visible = jax.lax.dynamic_slice_in_dim(mask, start, q.shape[0])
        scores = jnp.where(visible, scores, HIDDEN)
    return scores


def _over_chunks(rows, *arrays, sums=0):
    """rows(start, *chunks) over chunks of CHUNK along the first axis, one after the other.

    Results are joined along that axis, save the last `sums` of them, which are added up.
    """
    length = arrays[0].shape[0]
    count = length // CHUNK
    parts, joined = [], slice(None, -sums or None)
    if count:
        stacked = [x[: count * CHUNK].reshape(count, CHUNK, *x.shape[1:]) for x in arrays]

        def step(totals, chunk):
            results = rows(chunk[0], *chunk[1:])
            added = results[len(results) - sums :]
            return jax.tree.map(jnp.add, totals, added), results[joined]

        starts = jnp.arange(count) * CHUNK
        shapes = jax.eval_shape(rows, starts[0], *(x[0] for x in stacked))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[len(shapes) - sums :])
        totals, results = jax.lax.scan(step, zeros, (starts, *stacked))
        parts.append((*(r.reshape(-1, *r.shape[2:]) for r in results), *totals))
    if length % CHUNK:
        parts.append(rows(count * CHUNK, *(x[count * CHUNK :] for x in arrays)))
    if len(parts) == 1:
        return parts[0]
    width = len(parts[0]) - sums
    columns = list(zip(*parts, strict=True))
    return (*(jnp.concatenate(c) for c in columns[:width]), *(a + b for a, b in columns[width:]))
