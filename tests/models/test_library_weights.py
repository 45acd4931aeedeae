"""Weights of the libraries: from the cache, from a server, and without a network."""

import hashlib
import http.server
import os
import threading
import urllib.request

import pytest
import torch

from edgecls.models import open_classifier, torchvision_operators  # noqa: F401
from edgecls.models.download import fetch_weights
from edgecls.runtime import InputError

import torchvision  # isort: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every request fails at once, as on a machine without a network; the caches are empty."""

    def refuse(request, timeout=None):
        assert timeout is not None
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def hub_home(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    return tmp_path / "huggingface"


def logits(module):
    with torch.no_grad():
        return module.eval()(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth"),
        ("timm:mobilenetv3_small_050", "model.safetensors of timm/mobilenetv3_small_050.lamb_in1k"),
        (
            "timm:vit_tiny_patch16_224",
            "https://huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main",
        ),
    ],
)
def test_without_a_network_the_error_names_the_file(torch_home, hub_home, model, file):
    before = dict(os.environ)
    with pytest.raises(InputError, match=r"no network in tests.*--checkpoint FILE") as error:
        open_classifier(model)
    assert file in str(error.value)
    assert dict(os.environ) == before


def test_a_network_of_timm_without_weights(torch_home, hub_home):
    with pytest.raises(InputError, match="timm has no trained weights for test_vit4"):
        open_classifier("timm:test_vit4")


def test_torchvisions_cache(torch_home):
    trained = torchvision.models.mobilenet_v3_small()
    path = torch_home / "mobilenet_v3_small-047dcff4.pth"
    torch.save(trained.state_dict(), path)
    opened = open_classifier("mobilenet_v3_small")
    assert torch.equal(logits(opened.source), logits(trained))
    assert opened.checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert opened.labels.names[1] == "goldfish"


def test_a_wrong_file_in_torchvisions_cache(torch_home):
    torch.save({"a": torch.ones(3)}, torch_home / "mobilenet_v3_small-047dcff4.pth")
    with pytest.raises(InputError, match="delete it"):
        open_classifier("mobilenet_v3_small")


def test_timms_cache(hub_home):
    import timm
    from safetensors.torch import save_file

    trained = timm.create_model("mobilenetv3_small_050")
    repository = hub_home / "models--timm--mobilenetv3_small_050.lamb_in1k"
    (repository / "snapshots" / "1").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1")
    save_file(trained.state_dict(), repository / "snapshots" / "1" / "model.safetensors")
    opened = open_classifier("timm:mobilenetv3_small_050")
    assert torch.equal(logits(opened.source), logits(trained))
    assert opened.labels.ids[1] == "n01443537"
    assert len(opened.checkpoint_sha256) == 64


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A file server; `content` is what it sends."""
    monkeypatch.undo()

    class Handler(http.server.BaseHTTPRequestHandler):
        content = b"weights"

        def do_GET(self):
            self.send_response(200 if self.content else 404)
            self.send_header("Content-Length", str(len(self.content) + (self.path == "/short")))
            self.end_headers()
            self.wfile.write(self.content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", Handler
        server.shutdown()
        thread.join()


def test_a_download_is_checked_kept_and_not_repeated(server, tmp_path):
    url, handler = server
    name = f"net-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    path = fetch_weights(f"{url}/{name}", tmp_path / "cache", model="net")
    assert path.read_bytes() == b"weights"
    handler.content = b"other"
    assert fetch_weights(f"{url}/{name}", tmp_path / "cache", model="net").read_bytes() == b"weights"


def test_a_damaged_or_absent_download_leaves_nothing(server, tmp_path):
    url, handler = server
    with pytest.raises(InputError, match="arrived damaged"):
        fetch_weights(f"{url}/net-00000000.pth", tmp_path / "cache", model="net")
    handler.content = b""
    with pytest.raises(InputError, match=r"could not be fetched .*404|Not Found"):
        fetch_weights(f"{url}/net.pth", tmp_path / "cache", model="net")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="TORCH_HOME"):
        fetch_weights(f"{server[0]}/net.pth", tmp_path / "file" / "cache", model="net")
