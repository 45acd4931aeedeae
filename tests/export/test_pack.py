import io
import zipfile

import msgspec
import pytest
from PIL import Image

from edgecls.export.pack import golden_pictures
from edgecls.runtime import Bundle, InputError
from edgecls.runtime.bundle_writer import members_of, write_bundle


def test_golden_pictures_are_drawn_the_same_every_time_and_lie_both_ways():
    first, second = golden_pictures(), golden_pictures()
    assert first == second
    sizes = [Image.open(io.BytesIO(data)).size for data in first.values()]
    assert any(w > h for w, h in sizes)
    assert any(h > w for w, h in sizes)


def test_equal_inputs_give_equal_files(bundle_parts, tmp_path):
    manifest, files = bundle_parts
    for name in ("a", "b"):
        write_bundle(tmp_path / f"{name}.edgecls", manifest, files)
    assert (tmp_path / "a.edgecls").read_bytes() == (tmp_path / "b.edgecls").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.edgecls") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_members_are_stored_and_what_is_written_is_read(bundle_parts, tmp_path):
    manifest, files = bundle_parts
    path = tmp_path / "x.edgecls"
    write_bundle(path, manifest, files)
    with zipfile.ZipFile(path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    bundle = Bundle(path)
    assert bundle.manifest == manifest
    assert {name: bundle.read(name) for name in files} == files
    assert manifest.members == members_of(files)
    assert msgspec.json.decode(zipfile.ZipFile(path).read("bundle.json"))["schema"] == "edgecls.bundle/1"


def test_a_missing_folder_is_refused(bundle_parts, tmp_path):
    manifest, files = bundle_parts
    with pytest.raises(InputError, match="no such folder|No such file"):
        write_bundle(tmp_path / "nowhere" / "x.edgecls", manifest, files)
