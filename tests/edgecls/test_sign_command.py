"""`edgecls sign` and what `verify` and `inspect` make of it."""

import json

import pytest
from bundles import write_bundle

from edgecls import cli
from edgecls.runtime import Bundle

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519", reason="cryptography is missing")


@pytest.fixture
def keys(tmp_path):
    from cryptography.hazmat.primitives import serialization

    private = ed25519.Ed25519PrivateKey.generate()
    pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    paths = tmp_path / "private.pem", tmp_path / "public.pem"
    paths[0].write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(pem, public))
    return [str(path) for path in paths]


def test_sign_and_verify(bundle_path, keys, capfd):
    bundle, (private, public) = str(bundle_path), keys
    sha256 = Bundle(bundle).sha256
    assert cli.main(["verify", bundle, "--key", public]) == 6
    assert "is not signed" in capfd.readouterr().err
    assert cli.main(["sign", bundle, "--key", private, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sha256"] == sha256
    assert cli.main(["verify", bundle, "--key", public]) == 0
    assert f"{public} has signed it" in capfd.readouterr().out
    assert cli.main(["verify", bundle]) == 0
    assert "signed" not in capfd.readouterr().out
    assert cli.main(["inspect", bundle]) == 0
    assert "signed      yes" in capfd.readouterr().out
    assert cli.main(["sign", bundle, "--key", public]) == 2
    assert "no private key" in capfd.readouterr().err


def test_a_key_is_needed_to_sign(tmp_path, capfd):
    assert cli.main(["sign", str(write_bundle(tmp_path / "net.edgecls", b"a graph", 32))]) == 2
    assert "--key" in capfd.readouterr().err
