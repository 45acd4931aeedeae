"""Files to state dicts: formats, wrappers, prefixes, and everything that is refused."""

import argparse
import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from edgecls.models.checkpoint import Checkpoint, read_checkpoint, recognise
from edgecls.runtime.errors import InputError


class Unsafe:
    """A class that no weights-only reader knows."""

    def __reduce__(self):
        return (print, ("executed",))


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        [
            ("conv.weight", torch.randn(4, 3, 3, 3, generator=generator)),
            ("fc.bias", torch.randn(5, generator=generator)),
        ]
    )


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


def assert_same(checkpoint, expected):
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensors[name], tensor)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin", ".ckpt", ".safetensors", ".pth.tar", ""])
@pytest.mark.parametrize("kind", ["torch", "torch-legacy", "safetensors"])
def test_format_is_told_by_content_whatever_the_suffix(tmp_path, kind, suffix):
    path = tmp_path / f"net{suffix}"
    if kind == "safetensors":
        save_file(dict(weights()), path)
    else:
        save(path, weights(), _use_new_zipfile_serialization=kind == "torch")
    assert recognise(path) == kind
    checkpoint = read_checkpoint(path)
    assert {name: tensor.tolist() for name, tensor in checkpoint.tensors.items()} == {
        name: tensor.tolist() for name, tensor in weights().items()
    }
    assert len(checkpoint.sha256) == 64


@pytest.mark.parametrize(
    "wrapper",
    ["state_dict", "model", "model_state_dict", "net", "model_ema", "state_dict_ema", "ema", "module", "params"],
)
def test_wrappers_are_opened(tmp_path, wrapper):
    path = save(tmp_path / "net.pth", {"epoch": 3, wrapper: weights(), "optimizer": {"state": {}, "param_groups": []}})
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint, weights())
    assert checkpoint.notes == ()


def test_wrappers_nest(tmp_path):
    path = save(tmp_path / "net.pth", {"model": {"state_dict": weights()}, "args": None})
    assert_same(read_checkpoint(path), weights())


@pytest.mark.parametrize(("plain", "ema"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averaged_weights_win_and_it_is_said(tmp_path, plain, ema):
    path = save(tmp_path / "net.pth", {plain: weights(0), ema: weights(1)})
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint, weights(1))
    assert len(checkpoint.notes) == 1
    assert ema in checkpoint.notes[0]
    assert plain in checkpoint.notes[0]


@pytest.mark.parametrize("ema", [{"decay": 0.9, "shadow_params": [torch.ones(2)]}, {"fc.bias": torch.ones(5)}])
def test_an_average_that_is_not_all_of_the_weights_does_not_win_and_it_is_said(tmp_path, ema):
    checkpoint = read_checkpoint(save(tmp_path / "net.pth", {"model": weights(), "ema": ema}))
    assert_same(checkpoint, weights())
    (note,) = checkpoint.notes
    assert "took 'model', for" in note
    assert "'ema'" in note


def test_an_average_needs_no_counters_and_no_good_weights_beside_it(tmp_path):
    plain = {f"module.{name}": t for name, t in weights(0).items()} | {"module.bn.num_batches_tracked": torch.ones(1)}
    for beside in (plain, {"width": 3}):
        checkpoint = read_checkpoint(save(tmp_path / "net.pth", {"model": beside, "ema": weights(1)}))
        assert_same(checkpoint, weights(1))
        assert len(checkpoint.notes) == 1


def test_an_absent_average_does_not_win(tmp_path):
    path = save(tmp_path / "net.pth", {"state_dict": weights(), "state_dict_ema": None})
    assert_same(read_checkpoint(path), weights())


def test_options_of_training_scripts_are_no_obstacle(tmp_path):
    path = save(tmp_path / "net.pth", {"state_dict": weights(), "args": argparse.Namespace(lr=0.1)})
    assert_same(read_checkpoint(path), weights())
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    "prefixes",
    [["module."], ["_orig_mod."], ["model."], ["module.", "_orig_mod."], ["model.", "_orig_mod.", "module."]],
)
def test_shared_prefixes_are_stripped_repeatedly(tmp_path, prefixes):
    prefix = "".join(prefixes)
    path = save(tmp_path / "net.pth", {prefix + name: tensor for name, tensor in weights().items()})
    assert_same(read_checkpoint(path).renamed(weights().keys()), weights())


def test_a_prefix_that_the_model_has_itself_stays(tmp_path):
    path = save(tmp_path / "net.pth", {f"model.{name}": tensor for name, tensor in weights().items()})
    names = {f"model.{name}" for name in weights()}
    assert set(read_checkpoint(path).renamed(names).tensors) == names


def test_a_prefix_that_not_all_share_stays(tmp_path):
    path = save(tmp_path / "net.pth", {"module.a": torch.ones(1), "b": torch.ones(1)})
    assert set(read_checkpoint(path).renamed({"a"}).tensors) == {"module.a", "b"}


def test_counter_of_averaged_model_is_dropped(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 3))
    path = save(tmp_path / "net.pth", {"model_ema": averaged.state_dict()})
    assert list(read_checkpoint(path).renamed({"weight", "bias"}).tensors) == ["weight", "bias"]


def test_module_versions_follow_the_prefix(tmp_path):
    wrapped = nn.Sequential(OrderedDict(module=nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(2)))))
    path = save(tmp_path / "net.pth", wrapped.state_dict())
    renamed = read_checkpoint(path).renamed({"bn.weight"})
    assert renamed.metadata["bn"] == {"version": 2}


@given(st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "net."]), max_size=5))
def test_any_stack_of_prefixes_comes_off(prefixes):
    prefix = "".join(prefixes)
    tensors = {prefix + name: tensor for name, tensor in weights().items()}
    assert set(Checkpoint(None, "", tensors, None).renamed(weights().keys()).tensors) == set(weights())


def zip_bytes(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\0" * 600, "only zeros"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"\n  <html><body>404</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git lfs pull"),
        (b"\x1f\x8b\x08" + b"x" * 50, "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"hello, I am text", "neither torch.save nor safetensors"),
        (pickle.dumps({"a": 1}), "torch.save did not write"),
        (zip_bytes(arr_0="x"), "zip archive that torch.save did not write"),
        (zip_bytes(), "neither torch.save"),
        (b"PK\x03\x04garbage", "cut off or damaged"),
        ((30).to_bytes(8, "little") + b'{"a": nonsense}', "cut off or damaged"),
        (bytes.fromhex("80028a0a6cfc9c46f9206aa850192e"), "cut off or damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_checkpoint_is_called_by_its_name(tmp_path, content, message):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["torch", "torch-legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_cut_off_files_are_refused(tmp_path, kind, share):
    path = tmp_path / "net.pth"
    big = {"fc.weight": torch.ones(100, 100), **weights()}
    if kind == "safetensors":
        save_file(big, path)
    else:
        save(path, big, _use_new_zipfile_serialization=kind == "torch")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="cut off or damaged"):
        read_checkpoint(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="cannot read the checkpoint"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_need_code_are_refused_unread(tmp_path, capsys, zipped):
    path = save(tmp_path / "net.pth", {"state_dict": weights(), "x": Unsafe()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"needs Python code to load: print\.") as error:
        read_checkpoint(path)
    assert "state_dict()" in str(error.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_pickled_model_is_refused_with_the_remedy(tmp_path, zipped):
    path = save(tmp_path / "net.pth", nn.Sequential(nn.Linear(2, 2)), _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"whole pickled model.*torch\.nn\.modules.*state_dict\(\)"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
    with pytest.raises(InputError, match="TorchScript"):
        read_checkpoint(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, bad, dtype):
    damaged = weights()
    damaged["fc.bias"] = damaged["fc.bias"].to(dtype)
    damaged["fc.bias"][2] = bad
    with pytest.raises(InputError, match=r"'fc\.bias' holds NaN or infinity"):
        read_checkpoint(save(tmp_path / "net.pth", damaged))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.ones(3, dtype=torch.complex64),
        lambda: torch.eye(3).to_sparse(),
    ],
    ids=["quantized", "complex", "sparse"],
)
@pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning", "ignore:.*TypedStorage.*:UserWarning")
def test_weights_of_odd_kinds_are_refused_by_name(tmp_path, make):
    with pytest.raises(InputError, match="'odd'"):
        read_checkpoint(save(tmp_path / "net.pth", {**weights(), "odd": make()}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        (torch.ones(3), "holds a Tensor"),
        ({}, "only nothing"),
        ({"epoch": 3, "loss": 0.1}, "only 'epoch', 'loss'"),
        ({"a": torch.ones(2), "epoch": 3}, "mixes weights with something else, 'epoch'"),
        ({"encoder": {"a": torch.ones(2)}}, "only 'encoder'"),
    ],
)
def test_content_without_a_state_dict_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read_checkpoint(save(tmp_path / "net.pth", content))
