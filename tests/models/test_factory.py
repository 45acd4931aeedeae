"""Networks of the user's own: files, packages, and what goes wrong in them."""

import sys
from dataclasses import replace

import pytest
import torch

from edgecls.models import PreprocessOverride, open_classifier
from edgecls.models.factory import FactoryModel
from edgecls.runtime import InputError

FLAGS = PreprocessOverride(resize_px=40, crop_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
    def forward(self, x):
        return self.model(x)
"""


def write(folder, body, name="net.py"):
    (folder / name).write_text(NET + body)
    return str(folder / name)


def test_a_file(tmp_path):
    path = write(tmp_path, "make = Net")
    opened = open_classifier(f"{path}:make", override=FLAGS)
    assert opened.name == "net_make"
    assert len(opened.labels) == 6
    assert opened.checkpoint_sha256 is None
    assert opened.preprocess_source["mean"] == "--mean"
    assert opened.preprocess_source["interpolation"] == "default"
    assert not opened.source.training


def test_a_relative_file_and_its_neighbour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "", "edgecls_test_neighbour.py")
    (tmp_path / "main.py").write_text(
        "import edgecls_test_neighbour\ndef make():\n    return edgecls_test_neighbour.Net()"
    )
    before = list(sys.path)
    assert len(open_classifier("main.py:make", override=FLAGS).labels) == 6
    assert sys.path == before


def test_a_package_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "edgecls_test_package").mkdir()
    write(tmp_path / "edgecls_test_package", "class Zoo:\n    make = staticmethod(lambda: Net())")
    monkeypatch.chdir(tmp_path)
    assert open_classifier("edgecls_test_package.net:Zoo.make", override=FLAGS).name == "net_Zoo.make"


def test_a_checkpoint_whose_names_begin_like_a_wrapper(tmp_path):
    path = write(tmp_path, "make = Net")
    state = open_classifier(f"{path}:make", override=FLAGS).source.state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "net.pth")
    opened = open_classifier(f"{path}:make", checkpoint=tmp_path / "net.pth", override=FLAGS)
    assert set(opened.source.state_dict()) == set(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in opened.source.state_dict().items())


def test_preprocessing_like_timms_is_read(tmp_path):
    path = write(
        tmp_path,
        "def make():\n    net = Net()\n    net.default_cfg = dict(input_size=(3, 32, 32), crop_pct=0.8,"
        " mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), interpolation='bilinear', crop_mode='squash')\n    return net",
    )
    opened = open_classifier(f"{path}:make")
    assert (opened.preprocess.mode, opened.preprocess.resize_px, opened.preprocess.crop_px) == ("squash", 40, 32)
    assert opened.preprocess_source["mean"] == "default_cfg of net.py:make"


def test_what_leaves_this_machine_names_no_folders(tmp_path):
    opened = open_classifier(write(tmp_path, "make = Net") + ":make", override=FLAGS)
    assert opened.public_model == "net.py:make"
    (tmp_path / "vit.pt").touch()
    for model, public in {
        f"{tmp_path}/net.onnx": "net.onnx",
        "nets/net.safetensors": "net.safetensors",
        f"clip:{tmp_path}/vit.pt": "clip:vit.pt",
        "clip:ViT-B-32/laion2b_s34b_b79k": "clip:ViT-B-32/laion2b_s34b_b79k",
        "timm:hf-hub:somebody/net": "timm:hf-hub:somebody/net",
        "package.module:make": "package.module:make",
    }.items():
        assert replace(opened, model=model).public_model == public


def test_preprocessing_is_never_guessed(tmp_path):
    path = write(tmp_path, "make = Net")
    with pytest.raises(InputError, match="--resize --crop --mean --std"):
        open_classifier(f"{path}:make")


@pytest.mark.parametrize(
    ("body", "factory", "message"),
    [
        ("make = Net", "build", r"has no 'build'; it has .*Net"),
        ("make = Net", "", "names no factory"),
        ("make = Net()", "make", "is a Net, not a function"),
        ("make = 3", "make", "is a int, not a function"),
        ("def make(): return 'net'", "make", r"returned a str: it must return a torch\.nn\.Module"),
        ("def make(): return None", "make", "returned a NoneType"),
        ("def make(size): return Net()", "make", "must work without arguments"),
        ("def make(): raise KeyError('width')", "make", "KeyError: 'width'"),
        ("def make(): raise SystemExit(3)", "make", "SystemExit: 3"),
        ("import no_such_package_anywhere\nmake = Net", "make", "No module named 'no_such_package_anywhere'"),
        ("def make(:", "make", "SyntaxError"),
        ("class T(Net):\n    def forward(self, x): return (x, x)", "T", "returned a tuple, not a tensor of logits"),
        ("class T(Net):\n    def forward(self, x): return {'logits': x}", "T", "returned a dict"),
        ("class T(Net):\n    def forward(self, x): return x", "T", r"\[2, 3, 32, 32\] for two pictures"),
        ("class T(Net):\n    def forward(self, x): return x.sum((0, 1))", "T", r"\[32, 32\] for two pictures"),
        ("class T(Net):\n    def forward(self, x): return self.model(x).argmax(1, True)", "T", r"torch\.int64"),
        ("class T(Net):\n    def forward(self, x): raise ValueError('too small')", "T", "ValueError: too small"),
    ],
)
def test_what_goes_wrong_is_said(tmp_path, body, factory, message):
    path = write(tmp_path, body)
    with pytest.raises(InputError, match=message):
        open_classifier(f"{path}:{factory}", override=FLAGS)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere.py:make", r"there is no file nowhere\.py"),
        ("nowhere.py", "file.py:factory"),
        ("no_such_package.net:make", "No module named 'no_such_package'"),
        (":make", "names no factory"),
    ],
)
def test_places_that_do_not_exist(model, message):
    with pytest.raises(InputError, match=message):
        open_classifier(model, override=FLAGS)


def test_the_cause_is_kept(tmp_path):
    path = write(tmp_path, "def make(): raise KeyError('width')")
    with pytest.raises(InputError) as error:
        open_classifier(f"{path}:make", override=FLAGS)
    assert isinstance(error.value.__cause__, KeyError)


def test_one_output_is_no_classifier(tmp_path):
    path = write(tmp_path, "def make():\n    return nn.Sequential(Net(), nn.Linear(6, 1), nn.Sigmoid())\n")
    with pytest.raises(InputError, match=r"has one output.*torch\.cat"):
        open_classifier(f"{path}:make", override=FLAGS)


@pytest.mark.parametrize(
    ("how", "head"),
    [
        ("fc", ("fc",)),
        ("frozen", ("fc",)),
        ("scaled", ("fc",)),
        ("both", ("fc", "aside")),
        ("functional", ()),
    ],
)
def test_the_head_is_what_makes_the_logits_whatever_is_registered_last(tmp_path, how, head):
    path = write(
        tmp_path,
        f"""
class Fancy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.aside = nn.Linear(4, 6), nn.Linear(4, 6)
        self.scale, self.weight = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(6, 4))
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.unused = nn.Linear(4, 6)
        self.requires_grad_("{how}" != "frozen")
    def forward(self, x):
        x = self.body(x)
        return {{
            "fc": lambda: self.fc(x),
            "frozen": lambda: self.fc(x),
            "scaled": lambda: self.scale * self.fc(x).clone() + 1,
            "both": lambda: (self.fc(x) + self.aside(x)) / 2,
            "functional": lambda: nn.functional.linear(x, self.weight),
        }}["{how}"]()
""",
    )
    network = FactoryModel(f"{path}:Fancy").build(32)
    assert FactoryModel(f"{path}:Fancy").head(network, 32) == head
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 6)  # no hook is left


def test_a_distilled_network_has_two_heads(tmp_path):
    body = "import timm\ndef make(): return timm.create_model('deit_tiny_distilled_patch16_224', img_size=32, depth=1)"
    (tmp_path / "net.py").write_text(f"from edgecls.models import torchvision_operators\n{body}")
    architecture = FactoryModel(f"{tmp_path / 'net.py'}:make")
    assert architecture.head(architecture.build(32), 32) == ("head", "head_dist")
