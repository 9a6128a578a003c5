"""Memory that a step gives back and takes again costs no page faults."""

import resource
import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from rave_tools.training.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(1 << 24)  # 64 MB, every page written
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
plain = faults()
kept = keep_freed_memory()
for _ in range(3):
    faults()  # the heap finds its size
print(kept, plain, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_is_freed_is_kept_for_the_next_step():
    found = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True).stdout.split()
    if found[0] == "False":
        pytest.skip("this C library has no mallopt")
    pages = 5 * (1 << 26) // resource.getpagesize()
    assert int(found[2]) < pages / 100
    assert int(found[1]) > 10 * int(found[2])
