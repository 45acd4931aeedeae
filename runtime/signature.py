"""Ed25519 signatures: whoever holds the private key answers for a bundle.

What is signed are the bytes of `bundle.json`, which holds the digest of every other member. The signature stands in the
comment at the end of the archive, not in a member: without it the file is, byte for byte, what it was before it was
signed, so that `Bundle.sha256` and every report that names it stay valid; and one file still replaces one file.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecls.runtime.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_HEADER = b"edgecls.signature/1 "

COMMENT_BYTES = len(_HEADER) + 88
"""Length of the comment of a signed archive: the header and 64 bytes in base64."""


def comment_from_signature(signature: bytes) -> bytes:
    """What stands at the end of a signed archive."""
    return _HEADER + base64.b64encode(signature)


def signature_from_comment(comment: bytes) -> bytes:
    """The 64 bytes of the signature.

    Raises:
        ValueError: The comment is something else.
    """
    try:
        signature = base64.b64decode(comment.removeprefix(_HEADER), validate=True)
    except binascii.Error:
        signature = b""
    if len(signature) != 64 or comment != comment_from_signature(signature):
        raise ValueError("no signature")
    return signature


def sign(message: bytes, key: str | os.PathLike[str]) -> bytes:
    """Signs a message.

    Args:
        message: What is signed.
        key: PEM file of the private key, as `openssl genpkey -algorithm ed25519` writes it.

    Returns:
        64 bytes.

    Raises:
        InputError: The file is no such key, or is encrypted.
        MissingExtraError: cryptography is not installed.
    """
    private: Ed25519PrivateKey = _read_key(key, "private")
    return private.sign(message)


def is_signed(message: bytes, signature: bytes, key: str | os.PathLike[str]) -> bool:
    """Whether the holder of the private key has signed this message.

    Args:
        message: What was signed.
        signature: 64 bytes.
        key: PEM file of the public key, as `openssl pkey -in private.pem -pubout` writes it.

    Raises:
        InputError: The file is no such key.
        MissingExtraError: cryptography is not installed.
    """
    public: Ed25519PublicKey = _read_key(key, "public")
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _read_key(path: str | os.PathLike[str], kind: str) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtraError("sign", "a signature", str(error)) from error
    make = "openssl genpkey -algorithm ed25519 -out private.pem"
    if kind == "public":
        make = "openssl pkey -in private.pem -pubout -out public.pem"
    try:
        data = Path(path).read_bytes()
        if kind == "public":
            key: Any = serialization.load_pem_public_key(data)
        else:
            key = serialization.load_pem_private_key(data, password=None)
    except OSError as error:
        raise InputError(f"cannot read the key {os.fspath(path)}: {error.strerror or error}") from error
    except TypeError as error:  # a password would be needed
        raise InputError(
            f"the key {os.fspath(path)} is encrypted: decrypt it for the moment of signing, with openssl pkey -in"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{os.fspath(path)} holds no {kind} key in PEM. Make one: {make}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey if kind == "public" else ed25519.Ed25519PrivateKey):
        raise InputError(f"the key {os.fspath(path)} is a {type(key).__name__}, not Ed25519. Make one: {make}")
    return key
