"""Which instruction set is found on which machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from edgecls.runtime import cpu


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be another machine."""

    def pretend(name: str, cpuinfo: str | None) -> None:
        def read_text(self: Path, **_: str) -> str:
            if cpuinfo is None:
                raise FileNotFoundError
            return cpuinfo

        monkeypatch.setattr(platform, "machine", lambda: name)
        monkeypatch.setattr(Path, "read_text", read_text)
        cpu.cpu_flags.cache_clear()
        cpu.cpu_isa.cache_clear()

    yield pretend
    cpu.cpu_flags.cache_clear()
    cpu.cpu_isa.cache_clear()


@pytest.mark.parametrize(
    ("name", "cpuinfo", "isa"),
    [
        ("x86_64", "processor : 0\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor : 1\nflags : fpu\n", "x86-vnni"),
        ("AMD64", "flags : sse2 avx_vnni", "x86-vnni"),
        ("x86_64", "flags : fpu avx2 avx512f", "x86"),
        ("x86_64", "", "x86"),
        ("x86_64", None, "x86"),
        ("i686", "flags : sse2", "x86"),
        ("aarch64", "Features : fp asimd asimddp", "arm64"),
        ("arm64", None, "arm64"),
        ("armv7l", "Features : neon", None),
        ("riscv64", None, None),
    ],
)
def test_isa(machine, name, cpuinfo, isa):
    machine(name, cpuinfo)
    assert cpu.cpu_isa() == isa


def test_flags(machine):
    machine("aarch64", "processor\t: 0\nmodel name : x\nFeatures\t: fp asimd\nFeatures : other\n")
    assert cpu.cpu_flags() == {"fp", "asimd"}
    machine("riscv64", None)
    assert cpu.cpu_flags() == frozenset()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_count_follows_the_affinity_mask():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu.cpu_count() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert cpu.cpu_count() == len(before)


def test_count_without_affinity_masks(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu.cpu_count() == 1
