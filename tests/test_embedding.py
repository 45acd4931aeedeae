"""Every program of docs/embedding.md runs as it stands there."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecls.runtime import load

PAGE = Path(__file__).parents[1] / "docs" / "embedding.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

PICAMERA2 = '''
"""A camera that sees one picture, blue first, in lines with gaps, as the real one hands them over."""
import sys
import numpy as np
from PIL import Image

class Picamera2:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        print("closed", file=sys.stderr)

    def create_video_configuration(self, main):
        assert main == {"size": (640, 480), "format": "RGB888"}
        return main

    def configure(self, configuration):
        self.size = configuration["size"]

    def start(self):
        rgb = np.asarray(Image.open("photo.jpg").resize(self.size))
        self.lines = np.zeros((rgb.shape[0], rgb.shape[1] + 16, 3), np.uint8)
        self.lines[:, :-16] = rgb[..., ::-1]

    def capture_array(self, name):
        assert name == "main"
        return self.lines[:, :-16]
'''

FLASK = '''
"""As much of Flask as the page uses."""
import json as json_module

class request:
    @staticmethod
    def get_data():
        return request.data

def jsonify(*arguments, **fields):
    return json_module.dumps(fields or arguments[0])

class Flask:
    def __init__(self, name):
        self.config, self.views = {}, {}

    def post(self, path):
        return lambda view: self.views.setdefault(path, view)

    def test_client(self):
        return Client(self)

class Client:
    def __init__(self, app):
        self.app = app

    def post(self, path, data):
        request.data = data
        answer = self.app.views[path]()
        self.text, self.status_code = answer if isinstance(answer, tuple) else (answer, 200)
        return self

    def get_json(self):
        return json_module.loads(self.text)
'''


def program(name: str) -> str:
    (found,) = (code for _, code in BLOCKS if code.startswith(f"# {name}\n"))
    return found


@pytest.fixture
def folder(bundle_path, tmp_path):
    """What the programs find around them: the bundle, pictures, a camera, Flask."""
    bundle_path.rename(tmp_path / "net.edgecls")
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST)
        image.save(tmp_path / "pictures" / f"{index}.jpg")
    shutil.copy(tmp_path / "pictures" / "0.jpg", tmp_path / "photo.jpg")
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "picamera2.py").write_text(PICAMERA2)
    if importlib.util.find_spec("flask") is None:
        (tmp_path / "modules" / "flask.py").write_text(FLASK)
    for name in ("camera.py", "serve.py"):
        (tmp_path / name).write_text(program(name))
    return tmp_path


@pytest.fixture
def environment(folder):
    paths = [str(folder / "modules"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def run(folder, environment):
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def best(folder):
    """The best class of `photo.jpg` as a file, and as the camera sees it."""
    with load(folder / "net.edgecls", threads=1) as session:
        camera = Image.open(folder / "photo.jpg").resize((640, 480))
        return session.classify(folder / "photo.jpg")[0], session.classify(camera)[0]


def test_the_page_has_the_blocks_that_are_tested_here():
    names = [kind if code[:2] != "# " else code.splitlines()[0] for kind, code in BLOCKS]
    service = "# /etc/systemd/system/edgecls-camera.service"
    assert names == ["python", "python", "# camera.py", service, "# serve.py", "python"]


def test_snippets(folder, run, best):
    frame, stream, processes = (code for kind, code in BLOCKS if kind == "python" and not code.startswith("# "))
    for name, code in ("frame.py", frame), ("stream.py", stream), ("processes.py", processes):
        (folder / name).write_text(code)
    assert len(run("frame.py").splitlines()) == 3
    lines = run("stream.py").splitlines()
    assert [line.split()[0] for line in lines] == ["0.jpg", "1.jpg", "1.png", "2.jpg"]
    assert lines[0] == f"0.jpg {best[0].label}"
    assert "is not a JPEG" in lines[2]
    assert run("processes.py") == f"{[best[0].label] * 4}\n"


def test_the_camera_loop_ends_when_it_is_told_to(folder, environment, best):
    command = [sys.executable, "camera.py", "net.edgecls"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "closed\n")
    assert set(lines) == {f"{best[1].label} {best[1].score:.2f}\n"}


REQUESTS = """
import sys
sys.path.insert(0, "")
from serve import create_app
client = create_app().test_client()
for data in (open("photo.jpg", "rb").read(), b"no picture", b""):
    answer = client.post("/classify", data=data)
    print(answer.status_code, answer.get_json())
"""


def test_the_endpoint(run, best):
    good, bad, empty = run("-c", REQUESTS).splitlines()
    assert good.startswith("200 [{")
    assert f"'label': '{best[0].label}'" in good
    assert bad.startswith("400 {'error': '<10 bytes> is not a JPEG")
    assert empty.startswith("400 {'error': '<0 bytes> is empty")


def test_the_service(folder, run, environment, tmp_path):
    service = next(code for kind, code in BLOCKS if kind == "ini")
    for there, here in (
        ("/opt/edgecls/bin/edgecls", f"{sys.executable} -m edgecls"),
        ("/opt/edgecls/bin/python", sys.executable),
        ("/opt/edgecls", str(folder)),
    ):
        service = service.replace(there, here)
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(service)
    assert "passed" in run(*shlex.split(unit["Service"]["ExecStartPre"])[1:])
    assert shlex.split(unit["Service"]["ExecStart"])[1:] == [f"{folder}/camera.py", f"{folder}/net.edgecls"]
    if shutil.which("systemd-analyze") is None:
        pytest.skip("the commands ran; systemd-analyze, which checks the other lines, is not installed")
    path = tmp_path / "edgecls-camera.service"
    path.write_text(service)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True)
    assert path.name not in done.stderr, done.stderr
