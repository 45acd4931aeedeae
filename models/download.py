"""Weights that a library would download: from its cache, from the network, or a clear word on which file to pass."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch

from edgecls.runtime.atomic_file import atomic_file
from edgecls.runtime.errors import InputError

_TIMEOUT_S = 10
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
"""torch's convention: the file name ends with the beginning of its sha256."""


def torch_hub_folder() -> Path:
    """Where torch keeps downloaded weights (`TORCH_HOME` moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch_weights(url: str, folder: Path, *, model: str) -> Path:
    """The file behind a URL, from `folder` or else downloaded into it and checked against the hash in its name.

    Raises:
        InputError: It is not there and cannot be fetched; the message names the file for `--checkpoint`.
    """
    name = Path(urlparse(url).path).name
    path = folder / name
    if path.is_file():
        return path
    expected = _HASH.search(name)
    digest = hashlib.sha256()
    with _network(model, name, url):
        answer = urllib.request.urlopen(_request(url), timeout=_TIMEOUT_S)
    with answer:
        _make_folder(folder)
        with atomic_file(path) as file:
            while True:
                with _network(model, name, url):
                    block = answer.read(1 << 20)
                if not block:
                    break
                digest.update(block)
                file.write(block)
            if expected and not digest.hexdigest().startswith(expected[1]):
                raise InputError(f"{url} arrived damaged (its sha256 does not begin with {expected[1]}): try again.")
    return path


def fetch_hub_weights(repository: str, filenames: tuple[str, ...], *, model: str) -> Path:
    """The first of `filenames` that a Hugging Face repository has, from its cache or the network.

    Args:
        repository: `owner/name`, perhaps with `@revision`.
        filenames: In the order of preference.
        model: As it was asked for; only for messages.

    Raises:
        InputError: None is there and none can be fetched; the message names the file for `--checkpoint`.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache

    repo_id, _, revision = repository.partition("@")
    for filename in filenames:
        cached = try_to_load_from_cache(repo_id, filename, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    url = hf_hub_url(repo_id, filenames[0], revision=revision or None)
    wanted = f"{filenames[0]} of {repo_id}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise unavailable(model, wanted, url, OSError("HF_HUB_OFFLINE is set"))
    for filename in filenames:
        url = hf_hub_url(repo_id, filename, revision=revision or None)
        try:
            # The client retries for minutes where there is no network; this asks once.
            urllib.request.urlopen(_request(url, "HEAD"), timeout=_TIMEOUT_S).close()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                continue
            raise unavailable(model, wanted, url, error) from error
        except OSError as error:
            raise unavailable(model, wanted, url, error) from error
        try:
            return Path(hf_hub_download(repo_id, filename, revision=revision or None))
        except Exception as error:  # the client has a family of its own for each of its transports
            raise unavailable(model, wanted, url, error) from error
    raise unavailable(model, wanted, url, OSError("the repository has no such file"))


@contextmanager
def _network(model: str, file: str, url: str) -> Iterator[None]:
    """Tells failures of the network, OSErrors all, from those of the disk."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise unavailable(model, file, url, error) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make torch's cache {folder} ({error.strerror}): set TORCH_HOME to another."
        ) from error


def unavailable(model: str, file: str, url: str, error: Exception) -> InputError:
    """The error for weights that are not here and cannot be fetched."""
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    return InputError(
        f"the library's weights for {model} are not on this machine and could not be fetched ({reason}). "
        f"Where there is a network, get {file} from {url} and pass it: --checkpoint FILE."
    )


def _request(url: str, method: str = "GET") -> urllib.request.Request:
    return urllib.request.Request(url, method=method, headers={"User-Agent": "edgecls"})
