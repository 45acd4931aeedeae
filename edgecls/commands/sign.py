"""`edgecls sign`: somebody answers for a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgecls.console import Console, quoted
from edgecls.options import output_options
from edgecls.parameter_types import INPUT_FILE


@click.command("sign", short_help="Sign a bundle with a private key.")
@click.argument("bundle", type=INPUT_FILE)
@click.option("--key", type=INPUT_FILE, metavar="FILE", required=True, help="Private Ed25519 key, PEM.")
@output_options
def command(console: Console, bundle: Path, key: Path) -> int:
    """Signs BUNDLE in its place, after checking every member's digest; its sha256 in reports stays what it is.

    `openssl genpkey -algorithm ed25519 -out private.pem` makes a key, and `openssl pkey -in private.pem -pubout
    -out public.pem` what the devices get.
    """
    from edgecls.runtime import Bundle
    from edgecls.runtime.bundle_writer import sign_bundle

    sign_bundle(bundle, key)
    console.result({"path": bundle, "sha256": Bundle(bundle).sha256, "key": key}, f"{bundle} is signed with {key}")
    console.next(f"edgecls verify {quoted(bundle)} --key PUBLIC.pem")
    return 0
