"""The identity of a data set's options: the same wherever a folder lies, another for others."""

import shutil

from isnet_jax.data.identity import identity


def test_a_folder_is_known_by_what_is_in_it(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "train").mkdir(parents=True)
    (here / "train" / "a.png").write_bytes(b"12")
    (here / ".cache").write_bytes(b"1")

    def of(folder, **more):
        return identity({"source": "image_folder", "folder": str(folder), "size": (4, 4), **more})

    first = of(here)
    assert first["folder"]["files"] == 1 and first["size"] == [4, 4]
    assert first["source"] == "image_folder"
    shutil.copytree(here, there)
    (there / ".cache").unlink()
    assert of(there) == first
    # Another option, size, name or number of files is another data set; so is one that is gone.
    assert of(there, classes=("a",)) != first
    (there / "train" / "a.png").write_bytes(b"123")
    assert of(there) != first
    (there / "train" / "a.png").write_bytes(b"12")
    (there / "train" / "b.png").write_bytes(b"")
    assert of(there)["folder"]["files"] == 2
    assert of(tmp_path / "gone")["folder"] == str(tmp_path / "gone")
    one = identity(str(here / "train" / "a.png"))
    assert one["files"] == 1 and one != first["folder"]
