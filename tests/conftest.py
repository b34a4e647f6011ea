"""Settings that every test shares: two CPU devices, one thread for each peer, no network."""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    JAX_NUM_CPU_DEVICES="2",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# XLA:CPU can crash when a long process reads programs that it compiled before.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
