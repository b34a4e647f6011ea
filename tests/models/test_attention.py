"""Every way to compute attention against the definition, values and gradients."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax.models import attention_kernels as kernels
from sdjax.models.attention import Attention, attention, linear_attention
from tests.models.peers import relative_error


def inputs(length, keys, heads=2, head_dim=8, batch=2, seed=0):
    generator = np.random.default_rng(seed)
    shapes = [(batch, length, heads, head_dim)] + 2 * [(batch, keys, heads, head_dim)]
    return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]


def definition(q, k, v, mask=None, causal=False, scale=None):
    """PyTorch's attention in float64, with its gradients for the cotangent cos(output)."""
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (q, k, v)]
    if causal:
        mask = np.tri(q.shape[1], k.shape[1], dtype=bool) & (True if mask is None else mask)
    mask = None if mask is None else torch.tensor(mask)
    heads_first = [x.transpose(1, 2) for x in tensors]
    out = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=mask, scale=scale
    ).transpose(1, 2)
    torch.sin(out).sum().backward()
    return out.detach().numpy(), [x.grad.numpy() for x in tensors]


def check(function, arrays, expected, tolerance=1e-5):
    out = jax.jit(function)(*arrays)
    assert relative_error(out, expected[0]) < tolerance
    loss = jax.jit(jax.grad(lambda *a: jnp.sin(function(*a)).sum(), argnums=(0, 1, 2)))
    for gradient, reference in zip(loss(*arrays), expected[1], strict=True):
        assert relative_error(gradient, reference) < tolerance


@pytest.mark.parametrize("lengths", [(64, 64), (64, 24), (1, 3), (1100, 1000), (2100, 1024)])
def test_attention_is_the_definition(lengths):
    arrays = inputs(*lengths)
    check(attention, arrays, definition(*arrays))


@pytest.mark.parametrize("length", [40, 1100])
def test_causal_masked_and_scaled(length):
    arrays = inputs(length, length)
    mask = np.random.default_rng(1).random((2, 1, length, length)) < 0.7
    mask |= np.eye(length, dtype=bool)
    options = {"causal": True, "mask": mask, "scale": 0.7}
    check(lambda *a: attention(*a, **options), arrays, definition(*arrays, **options))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("options", [{}, {"causal": True}])
def test_chunks_equal_the_definition(monkeypatch, together, options):
    monkeypatch.setattr(kernels, "CHUNK", 32)
    arrays = inputs(80, 48 if not options else 80)

    def run(q, k, v):
        return kernels.chunked(q, k, v, None, bool(options), 8**-0.5, together)

    check(run, arrays, definition(*arrays, **options))


def test_tpu_kernel_equals_the_definition(monkeypatch):
    monkeypatch.setattr(kernels, "SPLASH_BLOCK", 128)
    q, k, v = inputs(256, 256, heads=2, head_dim=64, batch=1)

    def run(q, k, v):
        return kernels.splash(q, k, v, False, 64**-0.5, interpret=True)

    check(run, (q, k, v), definition(q, k, v), tolerance=2e-5)


@pytest.mark.parametrize(("length", "accepted"), [(4096, True), (4000, False), (1024, False)])
def test_tpu_kernel_is_for_long_whole_blocks(length, accepted):
    q = jax.ShapeDtypeStruct((1, length, 8, 64), jnp.bfloat16)
    assert kernels.splash_accepts(q, q) == accepted


@pytest.mark.parametrize(
    ("found", "head_dim", "accepted"),
    [(("9.0", "10.3"), 256, True), (("9.0", "8.6"), 256, False), (("8.6",), 128, True),
     (("8.6",), 100, False), (("7.5",), 64, False), (("gfx942",), 64, False), (None, 64, False)],
)  # fmt: skip
def test_cudnn_is_for_gpus_that_have_it(monkeypatch, found, head_dim, accepted):
    """found: the compute capability of each GPU, None for a machine without any."""

    def local_devices(backend):
        if found is None:
            raise RuntimeError(f"Unknown backend {backend}")
        return [types.SimpleNamespace(compute_capability=one) for one in found]

    monkeypatch.setattr(jax, "local_devices", local_devices)
    q = jax.ShapeDtypeStruct((1, 4096, 2, head_dim), jnp.bfloat16)
    assert kernels.cudnn_accepts(q, q) == accepted
    if not accepted:
        with kernels.compiling_for("rocm"):
            assert jax.eval_shape(attention, q, q, q) == q


def test_target_platform_can_be_another():
    q = jax.ShapeDtypeStruct((1, 4096, 2, 64), jnp.bfloat16)
    for target, has_kernel in (("cpu", False), ("tpu", True), ("cpu", False)):
        with kernels.compiling_for(target):
            assert kernels.platform() == target
            assert ("pallas_call" in str(jax.make_jaxpr(attention)(q, q, q))) == has_kernel
    assert kernels.platform() == "cpu"


def test_no_score_matrix_of_a_long_sequence_is_whole():
    q = jax.ShapeDtypeStruct((1, 4096, 2, 40), jnp.float32)

    def train(q, k, v):
        return jax.grad(lambda q: attention(q, k, v).sum())(q)

    for function, limit in ((attention, 60e6), (train, 110e6)):
        memory = jax.jit(function).lower(q, q, q).compile().memory_analysis()
        assert memory.temp_size_in_bytes < limit


def test_half_precision_keeps_its_dtype_and_comes_close():
    arrays = inputs(1100, 1000)
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    out = attention(*half)
    assert out.dtype == jnp.bfloat16
    assert relative_error(out.astype(jnp.float32), definition(*arrays)[0]) < 0.02


def test_large_scores_do_not_overflow():
    q, k, v = inputs(1100, 1000)
    for length in (50, 1100):
        out = attention(100 * q[:, :length], 100 * k, v)
        assert np.isfinite(out).all()


def test_linear_attention_equals_torch():
    q, k, v = inputs(30, 20)
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (q, k, v)]
    weights = torch.einsum(
        "bqhd,bkhd->bhqk", tensors[0].softmax(-1) * 8**-0.5, tensors[1].softmax(1)
    )
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, tensors[2])
    assert relative_error(linear_attention(q, k, v), expected) < 1e-5


def test_module_takes_images_and_adds_its_input():
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 16)).astype(np.float32)
    module = Attention(2, 8, qkv_bias=True, norm_groups=4, residual=True)
    params = module.init(jax.random.key(0), x)
    assert set(params["params"]) == {"group_norm", "to_q", "to_k", "to_v", "to_out.0"}
    assert np.array_equal(module.apply(params, x), x)
    changed = jax.tree.map(lambda p: p + 0.1, params)
    assert module.apply(changed, x).shape == x.shape
    assert not np.allclose(module.apply(changed, x), x)
