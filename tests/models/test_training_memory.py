import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")

_FREES_128_MB = """
import ctypes, os, platform
from edgecls.models.training_memory import keep_freed_memory

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

{before}
malloc, free, memset = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free, ctypes.memset
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before, size = resident_bytes(), 1 << 27
block = malloc(size)
memset(block, 1, size)
free(block)
print((resident_bytes() - before) / size, platform.libc_ver()[0])
"""


@pytest.mark.parametrize(("before", "kept"), [("", False), ("keep_freed_memory()", True)])
def test_freed_memory_stays_with_a_training(before, kept):
    command = [sys.executable, "-c", _FREES_128_MB.format(before=before)]
    share, libc = subprocess.check_output(command, text=True).split(maxsplit=1)
    if libc.strip() != "glibc":
        pytest.skip("mallopt is glibc's")
    assert float(share) > 0.9 if kept else float(share) < 0.1
