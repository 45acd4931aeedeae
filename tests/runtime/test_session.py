import concurrent.futures
import io
import threading

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgecls.runtime import Bundle, BundleError, EngineError, InputError, MissingExtraError, UnsupportedError, cpu, load
from edgecls.runtime import session as session_module
from edgecls.runtime.bundle import Padding
from edgecls.runtime.bundle_writer import members_of, write_bundle
from edgecls.runtime.engines import engine_module, engine_names
from edgecls.runtime.session import Session, check_isa
from edgecls.runtime.verify import verify_bundle


@pytest.fixture
def session(bundle_path):
    with load(bundle_path, threads=1) as opened:
        yield opened


def picture(seed=0, size=(50, 40)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def encoded(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_picture_gives_the_same_answer(session, tmp_path):
    array = picture()
    data = encoded(array)
    path = tmp_path / "p.png"
    path.write_bytes(data)
    answers = [session.classify(p) for p in (array, data, path, str(path), Image.fromarray(array))]
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 5
    assert [p.score for p in answers[0]] == sorted((p.score for p in answers[0]), reverse=True)


def test_top_is_limited_to_the_classes_and_scores_are_probabilities(session):
    everything = session.classify(picture(), top=100)
    assert len(everything) == 7
    assert sum(p.score for p in everything) == pytest.approx(1)
    assert {p.label for p in everything} == {f"class {i}" for i in range(7)}
    with pytest.raises(InputError, match="at least 1"):
        session.classify(picture(), top=0)
    assert session.classify(picture(), top=np.int64(2)) == everything[:2]
    for top in (2.5, "a", None):
        for ask in (session.classify, session.classify_stream):
            with pytest.raises(InputError, match=f"top is {top!r}; it must be a whole number"):
                ask(picture(), top=top)


def test_a_batch_gives_what_single_pictures_give(session):
    pictures = [picture(seed, (40 + seed, 60)) for seed in range(4)]
    for one, many in zip((session.classify(p) for p in pictures), session.classify_batch(pictures), strict=True):
        assert [p.index for p in one] == [p.index for p in many]
        assert [p.score for p in one] == pytest.approx([p.score for p in many], abs=1e-5)
    assert session.classify_batch([]) == ()


def test_logits_are_refused_for_what_is_not_a_crop(session):
    good = np.zeros((2, 32, 32, 3), np.uint8)
    assert session.logits(good).shape == (2, 7)
    assert session.logits(good[0]).shape == (1, 7)
    np.testing.assert_array_equal(session.logits(good[:, ::-1, ::-1]), session.logits(good))
    for bad in (good.astype(np.float32), good[:, :31], good[..., :1], good[:0], np.zeros((1, 3, 32, 32), np.uint8)):
        with pytest.raises(InputError, match=r"takes uint8 \[batch, 32, 32, 3\]"):
            session.logits(bad)
    with pytest.raises(InputError, match="takes a numpy array, not a list"):
        session.logits(good.tolist())


def test_ranking_is_stable_among_equals(session):
    logits = np.asarray([0, 3, 3, 1, 3, 0, 0], np.float32)
    assert [p.index for p in session.rank(logits, top=4)] == [1, 2, 4, 3]
    assert [p.index for p in session.rank(logits, top=2)] == [1, 2]
    assert [p.index for p in session.rank(np.zeros(7, np.float32), top=3)] == [0, 1, 2]


def test_it_may_be_used_from_several_threads(session):
    pictures = [picture(seed) for seed in range(8)]
    expected = [session.classify(p) for p in pictures]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(session.classify, pictures)) == expected


def test_threads_that_come_and_go_share_few_buffers(session):
    expected = session.classify(picture())
    for _ in range(20):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(session.classify, picture()).result() == expected
    assert len(session._idle) == 1


def test_a_session_that_is_closed_in_use_answers_or_says_so(bundle_path):
    opened = load(bundle_path, threads=1)
    expected = opened.classify(picture())
    begun = threading.Barrier(5, timeout=60)

    def ask_for_ever():
        begun.wait()
        while True:
            assert opened.classify(picture()) == expected

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask_for_ever) for _ in range(4)]
        begun.wait()
        opened.close()
        for one in asked:
            with pytest.raises(EngineError, match="closed"):
                one.result(60)


def test_a_stream_answers_as_single_calls_do(session):
    pictures = [picture(seed, (40 + seed, 60)) for seed in range(9)]
    expected = [session.classify(one, top=2) for one in pictures]
    for workers, ahead in ((1, 1), (2, None), (3, 7)):
        assert list(session.classify_stream(iter(pictures), top=2, workers=workers, ahead=ahead)) == expected
    assert list(session.classify_stream([])) == []


def test_an_unreadable_picture_of_a_stream_stands_in_its_place(session):
    pictures = [picture(0), b"no picture", picture(1), b"", picture(2)]
    one, error, two, empty, three = session.classify_stream(pictures, errors="yield")
    assert (one, two, three) == tuple(session.classify(picture(seed)) for seed in range(3))
    assert isinstance(error, InputError)
    assert "is not a JPEG" in str(error)
    assert "is empty" in str(empty)
    stream = session.classify_stream(pictures)
    assert next(stream) == one
    with pytest.raises(InputError, match="is not a JPEG"):
        next(stream)
    assert list(stream) == []


def test_the_error_of_a_picture_holds_nothing_of_it(session):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    (error,) = session.classify_stream([buffer.getvalue()[:900]], errors="yield")
    assert isinstance(error, InputError)
    while error is not None:
        assert error.__traceback__ is None
        error = error.__cause__ or error.__context__


def test_other_errors_of_a_stream_are_always_raised(session, bundle_path):
    def unplugged():
        yield picture()
        raise InputError("the camera was unplugged")

    stream = session.classify_stream(unplugged(), errors="yield")
    next(stream)
    with pytest.raises(InputError, match="unplugged"):
        next(stream)
    with load(bundle_path) as closed:
        stream = closed.classify_stream([picture()] * 3, errors="yield")
    with pytest.raises(EngineError, match="closed"):
        next(stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": 2.0}, "workers is 2.0"),
        ({"workers": 1025}, "workers is 1025; it must be at most 1024"),
        ({"ahead": -1}, "ahead is -1"),
        ({"errors": "ignore"}, "errors is 'ignore'; choose"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_at_once(session, options, message):
    with pytest.raises(InputError, match=message):
        session.classify_stream([picture()], **options)


def test_a_closed_session_says_so(bundle_path):
    with load(bundle_path) as session:
        pass
    with pytest.raises(EngineError, match="closed"):
        session.classify(picture())


@pytest.mark.parametrize("pixel_bytes", [3, 4])
@pytest.mark.parametrize("sides", [(1, 2, 0, 3), (0, 0, 0, 0)])
def test_the_border_is_written_around_the_crop(sides, pixel_bytes):
    top, left, bottom, right = sides
    crops = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    border = Padding(
        top_px=top, left_px=left, bottom_px=bottom, right_px=right, value=(10, 20, 30), pixel_bytes=pixel_bytes
    )
    expected = np.empty((3, 5 + top + bottom, 4 + left + right, 3), np.uint8)
    expected[:] = border.value
    expected[:, top : top + 5, left : left + 4] = crops
    for given in (crops, np.asfortranarray(crops)):
        padded = Session.pad(given, border)
        assert padded.shape == (*expected.shape[:3], pixel_bytes)
        assert padded.flags.c_contiguous
        np.testing.assert_array_equal(padded[..., :3], expected)


class Recorder:
    """An engine that keeps what it is given."""

    def __init__(self):
        self.seen = []
        self.addresses = set()

    def infer(self, images):
        self.seen.append(images.copy())
        self.addresses.add(images.ctypes.data)
        return np.zeros((len(images), 7), np.float32)

    def close(self):
        pass


@pytest.mark.parametrize("pixel_bytes", [3, 4])
def test_the_engine_sees_the_same_bytes_with_and_without_the_compiled_resize(session, pixel_bytes, monkeypatch):
    session.engine = Recorder()
    session._padding = Padding(
        top_px=1, left_px=2, bottom_px=3, right_px=4, value=(10, 20, 30), pixel_bytes=pixel_bytes
    )
    for switch in "1", "0":
        monkeypatch.setenv("EDGECLS_FAST", switch)
        session.classify(picture(1))
        session.classify_batch([picture(1)])
    assert len(session.engine.seen) == 4
    assert len(session.engine.addresses) == 1, "not the same buffer"
    for images in session.engine.seen:
        np.testing.assert_array_equal(images[..., :3], session.engine.seen[0][..., :3])


def test_an_engine_that_is_not_installed_is_named(bundle_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgecls\[onnxruntime\]'"):
        load(bundle_path)


def test_an_engine_that_this_edgecls_does_not_know_is_refused(bundle_path):
    bundle = Bundle(bundle_path)
    bundle.manifest = msgspec.structs.replace(bundle.manifest, target="abacus")
    with pytest.raises(BundleError, match=r"engine 'abacus', this edgecls knows onnxruntime, openvino"):
        load(bundle)
    with pytest.raises(InputError, match="no engine is called 'abacus'"):
        engine_module("abacus")
    assert {"onnxruntime", "openvino"} <= set(engine_names())


def test_threads_must_be_positive_and_not_too_many(bundle_path):
    for threads in (0, 2.0, "2", 1025, 3_000_000_000):
        with pytest.raises(InputError, match=f"threads is {threads!r}; it must be"):
            load(bundle_path, threads=threads)


def made_for(manifest, isa, activations):
    passport = msgspec.structs.replace(manifest.passport, isa=isa, activations=activations)
    return msgspec.structs.replace(manifest, precision="int8", passport=passport)


@pytest.mark.parametrize(
    ("isa", "activations", "here", "outcome"),
    [
        ("x86-vnni", "uint8", "x86-vnni", None),
        ("x86-vnni", "uint8", "arm64", None),
        ("x86-vnni", "uint8", "x86", UnsupportedError),
        ("x86", "uint8", "x86", None),
        ("x86", "uint8", "x86-vnni", None),
        ("x86", "uint8", "arm64", None),
        ("arm64", "int8", "arm64", None),
        ("arm64", "int8", "x86-vnni", UserWarning),
        ("arm64", "int8", "x86", UserWarning),
        ("arm64", "uint8", "x86", None),
        (None, None, "x86", None),
        ("x86-vnni", "uint8", None, None),
    ],
)
def test_the_instruction_set_is_compared_with_the_machine(bundle_parts, monkeypatch, isa, activations, here, outcome):
    for module in (cpu, session_module):
        monkeypatch.setattr(module, "cpu_isa", lambda: here)
    manifest = made_for(bundle_parts[0], isa, activations)
    if outcome is UnsupportedError:
        with pytest.raises(UnsupportedError, match="--isa x86"):
            check_isa(manifest)
    elif outcome is UserWarning:
        with pytest.warns(UserWarning, match="right here but slow"):
            check_isa(manifest)
    else:
        check_isa(manifest)


def test_integers_made_for_arm_are_refused_where_openvino_would_saturate_them(bundle_parts, monkeypatch):
    monkeypatch.setattr(cpu, "cpu_isa", lambda: "x86")
    manifest = msgspec.structs.replace(made_for(bundle_parts[0], "arm64", "uint8"), target="openvino")
    with pytest.raises(UnsupportedError, match="quantized for arm64.*--isa x86"):
        check_isa(manifest)


def test_golden_samples_pass_here_and_fail_when_something_changed(session):
    result = verify_bundle(session)
    assert result.passed
    assert all(sample.pixels_match for sample in result.samples)
    engine = session.engine
    original = engine.infer
    engine.infer = lambda images: original(images) + np.float32(1)
    changed = verify_bundle(session)
    assert not changed.passed
    assert all(sample.max_abs_difference == pytest.approx(1, abs=1e-4) for sample in changed.samples)
    engine.infer = lambda images: original(images) * np.float32("nan")
    assert not verify_bundle(session).passed


def test_other_pixels_fail_the_verification(session):
    session.preprocess = msgspec.structs.replace(session.preprocess, interpolation="bicubic")
    result = verify_bundle(session)
    assert not result.passed
    assert not any(sample.pixels_match for sample in result.samples)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"junk", "is not a JPEG, PNG"),
        (encoded(picture())[:-60], "is damaged"),
        (encoded(np.zeros((1100, 1000, 3), np.uint8)), "1100000 pixels, more than 1048576"),
        (b"BM" + bytes(60), "is a BMP picture; only png"),
    ],
    ids=["no picture", "cut", "large", "another format"],
)
def test_a_golden_sample_that_is_no_small_png_is_the_bundles_fault(bundle_parts, bundle_path, content, reason):
    manifest, files = bundle_parts
    files = {**files, manifest.golden[0].image: content}
    write_bundle(bundle_path, msgspec.structs.replace(manifest, members=members_of(files)), files)
    with (
        load(bundle_path, threads=1) as session,
        pytest.raises(BundleError, match=f"the golden sample 'golden/lying.png' of .* cannot be read: .*{reason}"),
    ):
        verify_bundle(session)


def test_a_graph_with_another_number_of_classes_is_a_bundle_error(session):
    session.engine.infer = lambda images: np.zeros((len(images), 3), np.float32)
    with pytest.raises(BundleError, match="labels are expected"):
        session.logits(np.zeros((32, 32, 3), np.uint8))
