"""What `import edgecls.runtime` may load: a device installs the base dependencies and one engine."""

from __future__ import annotations

import subprocess
import sys

import pytest

ALLOWED = {"edgecls", "numpy", "PIL", "msgspec", "typing_extensions"}  # the last: msgspec takes it where it finds it
FOREIGN = """
import sys
sys.path = [entry for entry in sys.path if entry]
before = set(sys.modules)  # start-up hooks of the environment (editable installs) are not ours
import {module}
origins = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(origins - sys.stdlib_module_names))
"""


def foreign_packages(module: str) -> set[str]:
    """Top-level packages outside the standard library that importing a module loads, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN.format(module=module)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["runtime", "runtime.engines", "runtime.atomic_file"])
def test_runtime_loads_the_base_dependencies_only(module):
    extra = {package for package in foreign_packages(f"edgecls.{module}") - ALLOWED if not package.startswith("_")}
    assert extra == set()
