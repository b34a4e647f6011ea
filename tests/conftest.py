"""What every test shares: two CPU devices, one thread for each peer, no network."""

import gc
import os
import sys

os.environ.update(
    JAX_PLATFORMS="cpu",
    JAX_NUM_CPU_DEVICES="2",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The tests measure what is compiled, so nothing comes from an earlier run.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# Most of the time goes to compiling programs that run once, on small arrays: a third as long so.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import jax  # noqa: E402  after its settings
import pytest  # noqa: E402


def pytest_collection_modifyitems(items):
    """Training first: its files take longest, and would end alone, on one core."""
    items.sort(key=lambda item: "training" not in item.path.parts)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Let go of a file's compiled programs: each takes memory maps, of which Linux gives a process
    65,530, and XLA crashes where it gets no more.
    """
    yield
    jax.clear_caches()
    if sizes := sys.modules.get("sdjax.pipeline.compiled.sizes"):
        sizes.compiled.cache_clear()
    gc.collect()
