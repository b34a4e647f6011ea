"""What `keep_freed_memory` promises, in a process of its own: it cannot be taken back."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from concurrent.futures import ThreadPoolExecutor
from sdjax.memory import keep_freed_memory
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26  # 16384 pages, more than glibc ever takes from its own heap unasked
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with ThreadPoolExecutor(1) as thread:  # as XLA does
    print(faults(), faults(), *(thread.submit(faults).result() for _ in range(2)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_large_arrays_come_back_without_page_faults():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    first, *later = map(int, run.stdout.split())
    assert first > 1000 and max(later) < 100
