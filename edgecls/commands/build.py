"""`edgecls build`: finish a device-built engine here."""

from __future__ import annotations

from pathlib import Path

import click

from edgecls.console import Console, size_text
from edgecls.options import output_option, output_options
from edgecls.parameter_types import INPUT_FILE, size_bytes


@click.command("build", short_help="Finish a device-built engine here.")
@click.argument("bundle", type=INPUT_FILE)
@click.option("--max-batch", type=click.IntRange(min=1), metavar="N", help="Largest batch of the engine. [default: 32]")
@click.option(
    "--workspace", type=size_bytes, metavar="SIZE", help="Scratch memory on the GPU: 256MB, 1GB. [default: 1.07 GB]"
)
@output_option("The bundle with its engine; without it the engine goes to the cache folder.")
@output_options
def command(console: Console, bundle: Path, max_batch: int | None, workspace: int | None, output: Path | None) -> int:
    """Builds the engine of BUNDLE for this machine's GPU, unless the cache has it.

    Without -o the next load finds it in the cache folder. With -o a bundle is written that carries the engine and runs
    on machines with the same GPU, driver and TensorRT.
    """
    if output is None and (max_batch is not None or workspace is not None):
        raise click.UsageError(
            "--max-batch and --workspace need -o FILE: the engine that a load finds in the cache is the default one."
        )
    from edgecls.runtime import Bundle
    from edgecls.runtime.engine_build import BuildOptions, build_bundle

    default = BuildOptions()
    options = BuildOptions(
        max_batch=max_batch or default.max_batch, workspace_bytes=workspace or default.workspace_bytes
    )
    with console.work() as progress:
        result = build_bundle(Bundle(bundle), options, output, progress)
    passport = result.passport
    how = "taken from the cache" if result.cached else f"built in {result.seconds:.0f} s"
    text = (
        f"engine of {size_text(result.engine_bytes)} {how}\n"
        f"  for {passport.gpu}, compute capability {passport.compute_capability}, {passport.library} "
        f"{passport.library_version}, CUDA {passport.cuda_version}, driver {passport.driver_version or 'unknown'}\n"
        f"  batch 1 to {passport.max_batch}, {', '.join(passport.flags) or 'no flags'}"
    )
    console.result(result, f"{text}\n  {result.path}" if result.path else text)
    console.next(f"edgecls verify {result.path or bundle}")
    return 0
