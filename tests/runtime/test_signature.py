"""A device that was given a public key takes what was signed with the private one, and nothing else."""

import hashlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from bundles import write_bundle

from edgecls.runtime import Bundle, BundleError, InputError, MissingExtraError, load
from edgecls.runtime.bundle_writer import sign_bundle
from edgecls.runtime.signature import COMMENT_BYTES, comment_from_signature

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization", reason="cryptography is missing")
asymmetric = pytest.importorskip("cryptography.hazmat.primitives.asymmetric")
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def write_keys(folder, name, private=None, encryption=None):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = private or Ed25519PrivateKey.generate()
    paths = folder / f"{name}.pem", folder / f"{name}-public.pem"
    paths[0].write_bytes(private.private_bytes(PEM, PKCS8, encryption or serialization.NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(PEM, SPKI))
    return paths


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path, "ours")


@pytest.fixture
def path(tmp_path):
    return write_bundle(tmp_path / "net.edgecls", b"a graph", 32)


@pytest.fixture
def signed(path, keys):
    sign_bundle(path, keys[0])
    return path


def test_a_signed_bundle_is_the_same_bundle(path, keys):
    unsigned = path.read_bytes()
    before = Bundle(path)
    assert before.signature is None
    assert before.sha256 == hashlib.sha256(unsigned).hexdigest()
    sign_bundle(path, keys[0])
    after = Bundle(path, key=keys[1])
    assert path.read_bytes().startswith(unsigned[:-2])
    assert after.size_bytes == before.size_bytes + COMMENT_BYTES
    assert after.sha256 == before.sha256
    assert b"".join(after.unsigned()) == unsigned
    assert after.read("model.onnx") == b"a graph"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_second_signature_replaces_the_first(signed, keys, tmp_path):
    theirs = write_keys(tmp_path, "theirs")
    size = signed.stat().st_size
    sign_bundle(signed, theirs[0])
    assert signed.stat().st_size == size
    Bundle(signed, key=theirs[1])
    with pytest.raises(BundleError, match=r"not by .*ours-public.pem, or it was changed"):
        Bundle(signed, key=keys[1])


def test_what_was_not_signed_is_refused_before_its_record_is_looked_at(path, keys):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bundle.json", b"{")
    with pytest.raises(BundleError, match=r"not signed, and only what .*ours-public.pem has signed"):
        load(path, key=keys[1])


def test_another_record_under_a_signature_is_refused(signed, keys):
    stolen = signed.read_bytes()[-COMMENT_BYTES:]
    write_bundle(signed, b"another graph", 32)
    with zipfile.ZipFile(signed, "a") as archive:
        archive.comment = stolen
    with pytest.raises(BundleError, match="changed since it was signed"):
        load(signed, key=keys[1])


def test_other_bytes_under_a_signed_record_are_refused(signed, keys):
    data = signed.read_bytes()
    signed.write_bytes(data.replace(b"a graph", b"a grape"))
    with pytest.raises(BundleError, match=r"'model\.onnx' (has other bytes|is damaged)"):
        Bundle(signed, key=keys[1]).read("model.onnx")


def test_every_flipped_bit_of_a_signature_is_refused(signed, keys):
    data = signed.read_bytes()
    for place in range(len(data) - COMMENT_BYTES - 2, len(data)):
        signed.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(BundleError):
            Bundle(signed, key=keys[1])


@pytest.mark.parametrize(
    "comment", [b"hello", comment_from_signature(b"short"), comment_from_signature(bytes(64))[:-1], b"PK\5\6" * 27]
)
def test_another_comment_is_no_signature(path, comment):
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
    with pytest.raises(BundleError, match="is no signature|its end is missing"):
        Bundle(path)


def test_a_damaged_bundle_is_not_signed(path, keys):
    path.write_bytes(path.read_bytes().replace(b"a graph", b"a grape"))
    before = path.read_bytes()
    with pytest.raises(BundleError):
        sign_bundle(path, keys[0])
    assert path.read_bytes() == before


def test_signing_is_all_or_nothing(path, keys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    files = sorted(path.parent.iterdir())
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="cannot write"):
        sign_bundle(path, keys[0])
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == files


def test_keys_that_are_none(path, keys, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    private, public = keys
    curve = write_keys(tmp_path, "curve", generate_private_key(SECP256R1()))
    secret = write_keys(tmp_path, "secret", encryption=serialization.BestAvailableEncryption(b"word"))
    (tmp_path / "text.pem").write_text("no key")
    sign_bundle(path, private)
    for key, message in (
        (public, "holds no private key"),
        (curve[0], "not Ed25519. Make one: openssl genpkey"),
        (secret[0], "is encrypted"),
        (tmp_path / "text.pem", "holds no private key"),
        (tmp_path / "none.pem", "cannot read the key .*No such file"),
        (tmp_path, "cannot read the key"),
    ):
        with pytest.raises(InputError, match=message):
            sign_bundle(path, key)
    for key, message in ((private, "holds no public key"), (curve[1], "openssl pkey .* -pubout")):
        with pytest.raises(InputError, match=message):
            load(path, key=key)


def test_an_open_bundle_was_checked_where_it_was_opened(path, keys):
    with pytest.raises(InputError, match="is open already"):
        load(Bundle(path), key=keys[1])


def test_without_cryptography_the_extra_is_named(signed, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    for refused in (lambda: Bundle(signed, key=keys[1]), lambda: sign_bundle(signed, keys[0])):
        with pytest.raises(MissingExtraError, match=r"edgecls\[sign\]"):
            refused()
    assert Bundle(signed).read("model.onnx") == b"a graph"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed here")
def test_openssl_makes_the_keys_and_checks_the_signature(path, tmp_path):
    def openssl(*arguments):
        return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)

    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", private).returncode == 0
    assert openssl("pkey", "-in", private, "-pubout", "-out", public).returncode == 0
    sign_bundle(path, private)
    bundle = Bundle(path, key=public)
    (tmp_path / "record").write_bytes(bundle.record)
    (tmp_path / "signature").write_bytes(bundle.signature)
    options = ("-verify", "-pubin", "-inkey", public, "-rawin", "-in", tmp_path / "record")
    checked = openssl("pkeyutl", *options, "-sigfile", tmp_path / "signature")
    assert "Verified Successfully" in checked.stdout + checked.stderr
