"""HOG + SVM: trained by scikit-learn, exported like any other classifier, with scikit-learn's answers."""

import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from edgecls.export.job import export_bundle
from edgecls.models import PreprocessOverride, hog_svm, open_classifier
from edgecls.models.hog_svm import PREPROCESS, fit_svm, hog_features, train_hog_svm
from edgecls.runtime import ImageSet, InputError, Labels, MissingExtraError, UnsupportedError, load
from edgecls.runtime.progress import SilentProgress

TARGETS = ("onnxruntime", "openvino")
CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10.zip"
SILENT = SilentProgress()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """scikit-learn's digits 0 to 3 as PNG files: 30 of each to train, 25 to test."""
    root = tmp_path_factory.mktemp("digits")
    source = load_digits(n_class=4)
    for digit in range(4):
        images = source.images[source.target == digit]
        for part, chosen in (("train", images[:30]), ("test", images[30:55])):
            folder = root / part / f"digit {digit}"
            folder.mkdir(parents=True)
            for index, image in enumerate(chosen):
                Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """`train_hog_svm`, which also returns scikit-learn's machine."""
    machines = []

    def remember(*args, **kwargs):
        machines.append(fit_svm(*args, **kwargs))
        return machines[-1]

    def run(root, labels, kernel, **options):
        output = tmp_path_factory.mktemp("hog") / f"{kernel}.onnx"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hog_svm, "fit_svm", remember)
            pictures = ImageSet.from_folder(root, labels)
            result = train_hog_svm(pictures, labels, output=output, kernel=kernel, progress=SILENT, **options)
        return result, machines[-1][0]

    return run


def check_answers(file, machine, pictures, folder, targets=TARGETS):
    """Every bundle of a file says what scikit-learn says of every picture with a margin above 1e-4.

    The margin is that of the best logit to the next, which is that of their log probabilities.

    Returns:
        Accuracy.
    """
    paths = [pictures.root / image.path for image in pictures.images]
    crops = np.stack([PREPROCESS.pixels(path) for path in paths])
    features = np.stack([hog_features(crop) for crop in crops])
    expected, probabilities = machine.predict(features), machine.predict_proba(features)
    decisions = machine.decision_function(features)
    if decisions.ndim == 1:
        decisions = np.stack([0 * decisions, decisions], 1)
    best = np.sort(decisions, 1)
    sure = best[:, -1] - best[:, -2] > 1e-4
    assert sure.mean() > 0.99
    for target in targets:
        bundle = folder / f"{target}.edgecls"
        export_bundle(open_classifier(str(file)), target=target, precision="fp32", output=bundle)
        with load(bundle, threads=1) as session:
            logits = np.concatenate([session.logits(batch) for batch in np.array_split(crops, 10)])
            (prediction,) = session.classify(paths[0], top=1)
        assert (logits.argmax(1) == expected)[sure].all()
        scores = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(scores / scores.sum(1, keepdims=True), probabilities, atol=2e-5)
        assert prediction.label == session.bundle.manifest.labels.names[expected[0]]
        assert prediction.score == pytest.approx(probabilities[0].max(), abs=2e-5)
    return float((expected == [image.label for image in pictures.images]).mean())


@pytest.mark.parametrize(("kernel", "classes"), [("rbf", 4), ("linear", 4), ("rbf", 2), ("linear", 2)])
def test_bundles_answer_as_scikit_learn(digits, train, tmp_path, kernel, classes):
    for part in ("train", "test"):
        for digit in range(classes):
            name = f"digit {digit}"
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / name).symlink_to(digits / part / name)
    labels = Labels(names=tuple(f"digit {digit}" for digit in range(classes)))
    result, machine = train(tmp_path / "train", labels, kernel)
    accuracy = check_answers(result.path, machine, ImageSet.from_folder(tmp_path / "test", labels), tmp_path)
    assert accuracy > 0.9
    assert result.cv_accuracy > 0.9
    assert result.size_bytes == result.path.stat().st_size
    assert result.pictures == 30 * classes >= result.support_vectors
    assert (result.gamma is None) == (kernel == "linear")
    assert kernel == "rbf" or result.size_bytes < 200_000


def test_the_same_seed_gives_the_same_file(digits, train):
    labels = Labels(names=tuple(f"digit {digit}" for digit in range(4)))
    first, second = (train(digits / "train", labels, "linear", seed=5)[0].path.read_bytes() for _ in range(2))
    assert first == second


@pytest.mark.filterwarnings("ignore:Attribute `prob:FutureWarning")  # that skl2onnx reads and scikit-learn 1.11 drops
@pytest.mark.parametrize("classes", [2, 5])
def test_decisions_are_those_of_skl2onnx(classes):
    """The decision values that we write as matrix products are those of the operators that skl2onnx writes."""
    from skl2onnx import to_onnx
    from sklearn.pipeline import make_pipeline

    rng = np.random.default_rng(0)
    targets = np.arange(60) % classes
    features = rng.normal(size=(60, 12)) + targets[:, None] * rng.normal(size=12)
    svc = SVC(gamma=0.05, decision_function_shape="ovo")
    machine = make_pipeline(StandardScaler(), svc).fit(features, targets)
    proto = to_onnx(
        machine, features[:1].astype(np.float32), options={id(machine): {"zipmap": False, "raw_scores": True}}
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"X": features.astype(np.float32)})[1]
    distances = np.square(machine[0].transform(features)[:, None] - svc.support_vectors_).sum(2)
    ours = np.exp(-0.05 * distances) @ hog_svm._pairwise(svc).T + svc.intercept_
    expected = machine.decision_function(features).reshape(ours.shape)
    np.testing.assert_allclose(ours, expected, atol=1e-9)
    np.testing.assert_allclose(theirs[:, : ours.shape[1]], ours, atol=1e-4)


@pytest.fixture(scope="module")
def file(digits, train):
    labels = Labels(names=tuple(f"digit {digit}" for digit in range(4)))
    return train(digits / "train", labels, "linear")[0].path


def test_the_file_says_what_it_needs(file):
    opened = open_classifier(str(file))
    assert opened.preprocess == PREPROCESS
    assert opened.labels.names == ("digit 0", "digit 1", "digit 2", "digit 3")
    assert opened.preprocess_source["mean"] == "the metadata of the file of weights"
    assert opened.notes == ()


def test_resizing_and_names_may_be_overridden(file):
    override = PreprocessOverride(mode="shorter", resize_px=72, crop_px=64)
    opened = open_classifier(str(file), override=override, labels=Labels(names=tuple("abcd")))
    assert (opened.preprocess.mode, opened.preprocess.resize_px, opened.labels.names[3]) == ("shorter", 72, "d")


@pytest.mark.parametrize(
    ("override", "flag"),
    [
        (PreprocessOverride(crop_px=56), "--crop"),
        (PreprocessOverride(mean=(0.5, 0.5, 0.5)), "--mean"),
        (PreprocessOverride(std=(0.5, 0.5, 0.5)), "--std"),
        (PreprocessOverride(colour="bgr"), "--colour"),
    ],
)
def test_what_the_graph_takes_may_not_be_overridden(file, override, flag):
    with pytest.raises(InputError, match=f"was trained with {flag} .*: leave {flag} out"):
        open_classifier(str(file), override=override)


def test_damaged_cards_are_refused(file, tmp_path):
    model = onnx.load(file)
    path = tmp_path / "damaged.onnx"
    entry = model.metadata_props[0]
    whole = entry.value
    entry.value = whole.replace('"digit 3"', '"digit 3","digit 4"')
    onnx.save(model, path)
    with pytest.raises(InputError, match="names 5 classes but answers 4"):
        open_classifier(str(path))
    entry.value = whole[:-4]
    onnx.save(model, path)
    with pytest.raises(InputError, match="describes itself in a way"):
        open_classifier(str(path))


@pytest.mark.parametrize(("target", "precision"), [(target, "int8") for target in TARGETS] + [("tensorrt", "fp16")])
def test_arithmetic_that_loses_gradients_is_refused(file, digits, tmp_path, target, precision):
    with pytest.raises(UnsupportedError, match=f"{precision} is refused .*Export it as fp32"):
        export_bundle(
            open_classifier(str(file)),
            target=target,
            precision=precision,
            output=tmp_path / "no.edgecls",
            calibration=ImageSet.from_folder(digits / "train"),
        )


def test_half_size_weights_are_fine(file, digits, tmp_path):
    answers = []
    for precision in ("fp32", "fp16"):
        bundle = tmp_path / f"{precision}.edgecls"
        export_bundle(open_classifier(str(file)), target="openvino", precision=precision, output=bundle)
        with load(bundle) as session:
            answers.append(
                session.logits(np.stack([PREPROCESS.pixels(p) for p in sorted(digits.glob("test/*/1*.png"))]))
            )
    np.testing.assert_allclose(answers[0], answers[1], atol=5e-3)


class TestRefusals:
    LABELS = Labels(names=("digit 0", "digit 1", "digit 2", "digit 3"))

    def attempt(self, root, labels=LABELS, name="model.onnx", output=None, **options):
        pictures = ImageSet.from_folder(root, labels)
        target = output or root / name
        with pytest.raises(InputError) as caught:
            train_hog_svm(pictures, labels, output=target, progress=SILENT, **options)
        assert not target.exists()
        return str(caught.value)

    @pytest.fixture
    def root(self, digits, tmp_path):
        for digit in range(4):
            (tmp_path / f"digit {digit}").mkdir()
            for index in range(4):
                picture = digits / "train" / f"digit {digit}" / f"{index}.png"
                (tmp_path / f"digit {digit}" / picture.name).write_bytes(picture.read_bytes())
        return tmp_path

    def test_another_suffix(self, root):
        assert "call the output model.onnx" in self.attempt(root, name="model.safetensors")

    def test_one_fold(self, root):
        assert "1 folds" in self.attempt(root, folds=1)

    def test_one_class(self, root, digits):
        assert "one class" in self.attempt(digits / "train" / "digit 0", Labels(names=("zero",)))

    def test_a_class_with_too_few(self, root):
        for index in (0, 1):
            (root / "digit 2" / f"{index}.png").unlink()
        assert "needs 3 pictures of each class; there are fewer of 'digit 2' (2)" in self.attempt(root)

    def test_a_class_with_none(self, root):
        assert "'digit 4' (0)" in self.attempt(root, Labels(names=(*self.LABELS.names, "digit 4")))

    def test_no_classes(self, root):
        assert "pictures without a class" in self.attempt(root / "digit 0")

    def test_too_many(self, root, monkeypatch):
        monkeypatch.setattr(hog_svm, "MAX_PICTURES", 15)
        assert "16 pictures" in (message := self.attempt(root))
        assert "pass --limit 15" in message

    @pytest.mark.parametrize(("limit", "remedy"), [(6 * 15, "pass --limit 15"), (6 * 11, "leave classes out")])
    def test_too_many_decisions_between_two_classes(self, root, monkeypatch, limit, remedy):
        monkeypatch.setattr(hog_svm, "MAX_DECISIONS", limit)
        monkeypatch.setattr(hog_svm, "hog_features", lambda _: pytest.fail("too late"))
        assert "16 pictures of 4 classes make 6 decisions" in (message := self.attempt(root))
        assert remedy in message

    def test_broken_pictures(self, root):
        (root / "digit 1" / "0.png").write_bytes(b"\x89PNG no picture")
        message = self.attempt(root)
        assert "1 of 16 pictures" in message
        assert "0.png" in message

    def test_a_missing_package(self, root, monkeypatch):
        monkeypatch.setitem(sys.modules, "skimage", None)
        pictures = ImageSet.from_folder(root, self.LABELS)
        with pytest.raises(MissingExtraError, match=r"skimage is not installed.*edgecls\[hog-svm\]"):
            train_hog_svm(pictures, self.LABELS, output=root / "model.onnx", progress=SILENT)

    def test_a_fold_without_anything_to_see(self, root):
        for index, path in enumerate(sorted(root.glob("*/*.png"))[1:]):
            Image.new("L", (8, 8), index).save(path)
        assert "cross-validation in 3 folds finds nothing to learn" in self.attempt(root)

    def test_all_the_same(self, root):
        for index, path in enumerate(sorted(root.glob("*/*.png"))):
            Image.new("L", (8, 8), index).save(path)
        assert "look the same" in self.attempt(root)


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.exists(), reason="the CIFAR-10 archive is not here")
@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_cifar10(train, tmp_path, kernel):
    """100 pictures of each class to train, 50 to test."""
    with zipfile.ZipFile(CIFAR10) as archive:
        taken = {}
        for name in sorted(archive.namelist()):
            part, _, suffix = name.rpartition("/")
            limit = 100 if "/train/" in name else 50
            if suffix.endswith(".jpg") and taken.setdefault(part, 0) < limit:
                taken[part] += 1
                archive.extract(name, tmp_path)
    root = tmp_path / "cifar10"
    labels = Labels(names=tuple(sorted(folder.name for folder in (root / "train").iterdir())))
    result, machine = train(root / "train", labels, kernel)
    assert check_answers(result.path, machine, ImageSet.from_folder(root / "test", labels), tmp_path) > 0.35
