"""`edgecls targets`: what this machine can run, and how to get the rest."""

from __future__ import annotations

from typing import Any

import click

from edgecls.console import Console, table_text
from edgecls.options import output_options


@click.command("targets", short_help="What this machine can run, and how to get the rest.")
@output_options
def command(console: Console) -> int:
    """Lists the targets that edgecls knows: which engines are installed here, and which bundles can be made here."""
    from edgecls.runtime import fast
    from edgecls.runtime.cpu import cpu_count, cpu_isa
    from edgecls.runtime.engines import engine_module, engine_names

    targets: list[dict[str, Any]] = []
    rows = []
    for name in engine_names():
        engine = engine_module(name)
        version, precisions = engine.version(), _precisions(name)
        targets.append({"target": name, "version": version, "extra": engine.PACKAGE, "precisions": precisions})
        install: str = getattr(engine, "INSTALL", f"pip install 'edgecls[{engine.PACKAGE}]'")
        runs = version or install
        rows.append((name, runs, ", ".join(precisions) if precisions else "pip install 'edgecls[export]'"))
    libraries = fast.versions()
    machine = {"isa": cpu_isa(), "cpus": cpu_count(), **libraries}
    text = f"{machine['cpus']} CPUs, instruction set {machine['isa'] or 'unknown'}\n"
    text += f"resize by {libraries['resize']}, JPEG by {libraries['jpeg']}\n\n"
    text += table_text(("target", "runs bundles", "makes bundles"), rows)
    console.result({"machine": machine, "targets": targets}, text)
    return 0


def _precisions(name: str) -> tuple[str, ...] | None:
    """What can be exported here; None where the packages of the extra `export` are not installed."""
    try:
        from edgecls.export.targets import target_module

        return target_module(name).PRECISIONS
    except ModuleNotFoundError:
        return None
