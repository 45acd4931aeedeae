"""The reader trusts nothing: every way in which a bundle can be damaged or hostile is one `BundleError`."""

import hashlib
import os
import stat
import struct
import zipfile

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecls.runtime import Bundle, BundleError, EdgeclsError, InputError, load
from edgecls.runtime.bundle import MAX_MANIFEST_BYTES


def rewritten(path, change_record=lambda record: None, change_files=lambda files: None, compression=zipfile.ZIP_STORED):
    """Writes the bundle anew with its JSON and its members changed."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    record = msgspec.json.decode(files.pop("bundle.json"))
    change_record(record)
    change_files(files)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("bundle.json", msgspec.json.encode(record))
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def setting(*keys, value):
    def change(record):
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


def test_it_opens_and_knows_itself(bundle_path):
    bundle = Bundle(bundle_path)
    assert bundle.sha256 == hashlib.sha256(bundle_path.read_bytes()).hexdigest()
    assert bundle.size_bytes == bundle_path.stat().st_size
    assert bundle.manifest.target == "onnxruntime"
    with pytest.raises(BundleError, match="no member 'plan.json'"):
        bundle.read("plan.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("schema", value="edgecls.bundle/2"), "reads 'edgecls.bundle/1'. Upgrade"),
        (setting("labels", "names", value=["a"]), "another number of logits than there are labels"),
        (setting("golden", value=[]), "no golden samples"),
        (
            lambda record: record.update(
                preprocess={**record["preprocess"], "crop_px": 8192},
                padding={"top_px": 0, "left_px": 65, "bottom_px": 0, "right_px": 0, "value": [0, 0, 0]},
            ),
            "wider than 64 px",
        ),
        (lambda record: record.update(golden=record["golden"] * 9), "18 golden samples, more than 16"),
        (setting("artifact", value=[]), "no artifact"),
        (setting("artifact", value=["model.onnx", "model.onnx"]), "names a member twice"),
        (setting("artifact", value=["model.bin"]), "needs the member 'model.bin'"),
        (setting("golden_tolerance", value=0), "golden tolerance"),
        (setting("preprocess", "crop_px", value=10**9), "not valid"),
        (setting("preprocess", "std", value=[0, 0, 0]), "not valid"),
        (setting("precision", value="int4"), "not valid"),
        (setting("members", value={}), "needs the member"),
        (
            setting(
                "padding", value={"top_px": 10**9, "left_px": 0, "bottom_px": 0, "right_px": 0, "value": [0, 0, 0]}
            ),
            "negative or wider",
        ),
        (
            setting("padding", value={"top_px": 1, "left_px": 0, "bottom_px": 0, "right_px": 0, "value": [0, 0, 999]}),
            "not three bytes",
        ),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(bundle_path, change, message):
    with pytest.raises(BundleError, match=message):
        Bundle(rewritten(bundle_path, change))


def test_changed_bytes_are_found_when_they_are_read(bundle_path):
    def flip(files):
        files["model.onnx"] = bytes([files["model.onnx"][0] ^ 1]) + files["model.onnx"][1:]

    bundle = Bundle(rewritten(bundle_path, change_files=flip))
    with pytest.raises(BundleError, match=r"'model.onnx' has other bytes"):
        bundle.read("model.onnx")
    with pytest.raises(BundleError):
        load(bundle_path)


def test_members_that_the_record_does_not_know_are_refused(bundle_path):
    with pytest.raises(BundleError, match="holds 'extra', which bundle.json does not list"):
        Bundle(rewritten(bundle_path, change_files=lambda files: files.update(extra=b"x")))


def test_members_that_are_missing_or_of_another_size_are_refused(bundle_path):
    with pytest.raises(BundleError, match="lacks 'model.onnx'"):
        Bundle(rewritten(bundle_path, change_files=lambda files: files.pop("model.onnx")))


def test_another_size_is_refused(bundle_path):
    with pytest.raises(BundleError, match="bytes where bundle.json says otherwise"):
        Bundle(rewritten(bundle_path, change_files=lambda files: files.update({"model.onnx": b"short"})))


def test_compressed_members_are_refused(bundle_path):
    with pytest.raises(BundleError, match="compressed or encrypted"):
        Bundle(rewritten(bundle_path, compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/b/c", "golden\\x", "con trol", "é", ".hidden", "a/"])
def test_forbidden_names_are_refused(bundle_path, name):
    with zipfile.ZipFile(bundle_path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"")
    with pytest.raises(BundleError, match="forbidden name|which bundle.json does not list"):
        Bundle(bundle_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(bundle_path):
    with zipfile.ZipFile(bundle_path, "a") as archive:
        archive.writestr("model.onnx", b"other")
    with pytest.raises(BundleError, match="holds 'model.onnx' twice"):
        Bundle(bundle_path)


def test_too_many_members_are_refused(bundle_path):
    with zipfile.ZipFile(bundle_path, "a") as archive:
        for index in range(100):
            archive.writestr(f"m{index}", b"")
    with pytest.raises(BundleError, match="more than 64 members"):
        Bundle(bundle_path)


def test_a_long_directory_is_not_read(bundle_path):
    with zipfile.ZipFile(bundle_path, "a") as archive:
        for index in range(1500):
            archive.writestr(f"m{index}", b"")
    with pytest.raises(BundleError, match=r"its directory has \d+ bytes; at most 65536"):
        Bundle(bundle_path)


def with_end_of_64_bits(archive, directory_bytes=None, place=None):
    """The archive as it would end if it had many GB."""
    *_, entries, size, at, _ = struct.unpack("<4s4H2LH", archive[-22:])
    record = (b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size if directory_bytes is None else directory_bytes, at)
    place = len(archive) - 22 if place is None else place
    return b"".join(
        (
            archive[:-22],
            struct.pack("<4sQ2H2L4Q", *record),
            struct.pack("<4sLQL", b"PK\6\7", 0, place, 1),
            archive[-22:],
        )
    )


def test_an_archive_of_64_bits_is_read(bundle_path):
    whole = bundle_path.read_bytes()
    model = Bundle(bundle_path).read("model.onnx")
    bundle_path.write_bytes(with_end_of_64_bits(whole))
    assert Bundle(bundle_path).read("model.onnx") == model


def test_a_long_directory_of_64_bits_is_not_read(tmp_path):
    path = tmp_path / "sparse.edgecls"
    with open(path, "wb") as file:
        file.truncate((1 << 31) + 100)  # takes no room on the disk
        file.seek(0, os.SEEK_END)
        file.write(with_end_of_64_bits(b"PK\5\6" + bytes(18), directory_bytes=1 << 31, place=(1 << 31) + 100))
    with pytest.raises(BundleError, match="its directory has 2147483648 bytes; at most 65536"):
        Bundle(path)


def test_another_end_of_64_bits_is_not_looked_for(bundle_path):
    whole = bundle_path.read_bytes()
    for odd in (with_end_of_64_bits(whole, place=0), whole[:-22] + b"PK\6\7" + bytes(16) + whole[-22:]):
        bundle_path.write_bytes(odd)
        with pytest.raises(BundleError, match="its end of 64 bits is missing"):
            Bundle(bundle_path)


@pytest.mark.parametrize("behind", [b"x", bytes(22), b"PK\5\6", b"PK\5\6" + bytes(18)])
def test_nothing_stands_behind_the_end(bundle_path, behind):
    bundle_path.write_bytes(bundle_path.read_bytes() + behind)
    with pytest.raises(BundleError, match="not a whole zip archive|no bundle.json"):
        Bundle(bundle_path)


def test_a_size_past_the_end_is_refused(bundle_path):
    whole = bytearray(bundle_path.read_bytes())
    entry = whole.index(b"PK\1\2")
    for size in (entry + 20, entry + 24):
        whole[size : size + 4] = (len(whole) - 1).to_bytes(4, "little")
    bundle_path.write_bytes(whole)
    with pytest.raises(BundleError, match="not a whole zip archive"):
        Bundle(bundle_path)


def test_a_link_is_bytes_like_any_other(bundle_path):
    secret = bundle_path.with_name("secret")
    secret.write_bytes(b"secret")
    target = str(secret).encode()

    def link(record):
        record["members"]["model.onnx"] = {"sha256": hashlib.sha256(target).hexdigest(), "size_bytes": len(target)}

    rewritten(bundle_path, link, lambda files: files.pop("model.onnx"))
    entry = zipfile.ZipInfo("model.onnx")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(bundle_path, "a") as archive:
        archive.writestr(entry, target)
    assert Bundle(bundle_path).read("model.onnx") == target


def test_an_endless_record_is_not_read(tmp_path):
    path = tmp_path / "x.edgecls"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bundle.json", b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(BundleError, match="at most"):
        Bundle(path)


def test_a_deeply_nested_record_is_refused(tmp_path):
    path = tmp_path / "x.edgecls"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bundle.json", b'{"schema":"edgecls.bundle/1","x":' + b"[" * 100_000)
    with pytest.raises(BundleError, match="not valid"):
        Bundle(path)


def test_no_zip_and_no_bundle_are_told_apart(tmp_path):
    path = tmp_path / "x.edgecls"
    path.write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(BundleError, match="not a whole zip"):
        Bundle(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(BundleError, match="no bundle.json"):
        Bundle(path)


def test_a_missing_file_and_a_folder_are_the_users_input(tmp_path):
    for path in (tmp_path / "missing.edgecls", tmp_path):
        with pytest.raises(InputError, match="cannot read the bundle"):
            Bundle(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(keep=st.floats(0, 0.999))
def test_a_truncated_bundle_is_refused_wherever_it_ends(bundle_path, keep):
    whole = bundle_path.read_bytes()
    cut = bundle_path.with_suffix(".cut")
    cut.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(BundleError):
        Bundle(cut)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_flipped_byte_is_harmless_or_refused(bundle_path, data):
    whole = bytearray(bundle_path.read_bytes())
    original = Bundle(bundle_path)
    place = data.draw(st.one_of(st.integers(0, 200), st.integers(len(whole) - 900, len(whole) - 1)))
    whole[place] ^= data.draw(st.integers(1, 255))
    damaged = bundle_path.with_suffix(".damaged")
    damaged.write_bytes(whole)
    try:
        bundle = Bundle(damaged)
        read = {name: bundle.read(name) for name in bundle.manifest.members}
    except EdgeclsError:
        return
    assert read == {name: original.read(name) for name in original.manifest.members}


def test_a_bundle_that_may_not_be_read(bundle_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    bundle_path.chmod(0)
    with pytest.raises(InputError, match="cannot read the bundle"):
        Bundle(bundle_path)
