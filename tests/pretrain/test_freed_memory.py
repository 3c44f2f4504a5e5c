"""A large block that was freed is there for the next one, without pages that have to be made anew."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, torch
from pretrain.freed_memory import keep_freed_memory
kept = keep_freed_memory() if {keep} else True
for _ in range(20):
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10_000_000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_pages_of_freed_blocks_are_not_made_anew():
    faults = {}
    for keep in (False, True):
        program = [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)]
        kept, count = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()
        if kept == "False":
            pytest.skip("the C library is not glibc")
        faults[keep] = int(count)
    assert faults[True] < faults[False] / 4
