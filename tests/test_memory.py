"""What `keep_freed_memory` promises, in a process of its own: it cannot be taken back."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from sdjax.memory import keep_freed_memory
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26  # 16384 pages, more than glibc ever takes from its own heap unasked
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_large_arrays_come_back_without_page_faults():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    first, second = map(int, run.stdout.split())
    assert first > 1000 and second < 100


AGAIN = """
import os, sys
from sdjax.memory import use_huge_pages
print(os.getpid(), sys.argv[1], os.environ["GLIBC_TUNABLES"], flush=True)
use_huge_pages()
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_huge_pages_come_with_a_second_start():
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.check=0"}
    command = [sys.executable, "-c", AGAIN, "argument"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    first, second, last = run.stdout.splitlines()
    assert first.split()[:2] == second.split()[:2] and last == "done"
    assert second.endswith("glibc.malloc.check=0:glibc.malloc.hugetlb=1")
