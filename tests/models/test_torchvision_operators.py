"""torchvision imports wherever our module came first, and ours does nothing where it is not needed."""

import subprocess
import sys
import textwrap


def run(code):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchvision_and_timm_import_and_classify_after_it():
    out = run(
        """
        from edgecls.models import torchvision_operators
        import torchvision, timm, torch
        assert hasattr(torch.ops.torchvision, "nms")
        print(torchvision.models.mobilenet_v3_small().eval()(torch.zeros(1, 3, 32, 32)).shape)
        """
    )
    assert "[1, 1000]" in out


def test_it_declares_nothing_where_the_operators_exist():
    run(
        """
        import torch
        declared = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            declared.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
        from edgecls.models import torchvision_operators
        assert torchvision_operators.DECLARED is None
        """
    )


def test_it_declares_nothing_where_the_library_loads():
    run(
        """
        import torch
        declared = torch.library.Library("torchvision", "FRAGMENT")
        def load(path):  # as if the compiled library fitted
            assert path.endswith((".so", ".pyd"))
            declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.ops.load_library = load
        from edgecls.models import torchvision_operators
        assert torchvision_operators.DECLARED is None
        """
    )


def test_it_needs_no_torchvision():
    run(
        """
        import importlib.util
        importlib.util.find_spec = lambda name: None
        from edgecls.models import torchvision_operators
        """
    )


def test_the_package_itself_loads_no_framework_and_names_the_extra():
    out = run(
        """
        import sys
        from edgecls.models import open_classifier
        from edgecls.runtime import MissingExtraError
        print([name for name in ("torch", "timm", "torchvision", "onnx") if name in sys.modules])
        sys.modules["torch"] = None  # as if it were not installed
        try:
            open_classifier("resnet18")
        except MissingExtraError as error:
            print(error)
        """
    )
    assert out.startswith("[]\n")
    assert "pip install 'edgecls[export]'" in out
