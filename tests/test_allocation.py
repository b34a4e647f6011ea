"""In processes of their own, since the setting lasts for the life of one."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from sdjax.allocation import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not glibc")
# The barrier keeps a workspace of 64 MiB from being fused away.
program = jax.jit(lambda x: jax.lax.optimization_barrier(x + 1).sum())
x = jnp.ones(2**24)
program(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    program(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True)
    if done.returncode and "not glibc" in done.stderr:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_repeated_programs_ask_the_kernel_for_no_new_pages():
    assert faults("keep") < 0.1 * faults("default")
