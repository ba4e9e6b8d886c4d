"""Public data sets by name: real downloads of tiny archives from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from genuine import listed

from unlearnlab.data import fetching
from unlearnlab.data.fetching import BY_HAND, DOWNLOADS, Download, fetch
from unlearnlab.spec import InputError, lookup, names

CIFAR100 = {f"cifar-100-python/{name}": f"the {name} of CIFAR".encode() for name in ("meta", "train", "test", "file.txt~")}
TINY = {f"tiny-imagenet-200/{name}": name.encode() for name in ("wnids.txt", "words.txt", "val/val_annotations.txt", "train/n01/images/a.JPEG")}


def tarred(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return held.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return held.getvalue()


class Server:
    """``files``: what is served, by path. ``asked``: every path asked for. ``short``: so many bytes fewer than announced. ``mute``: announces no length."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.short, self.mute = 0, False
        serves = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                serves.asked.append(self.path)
                held = serves.files.get(self.path)
                self.send_response(200 if held is not None else 404)
                if not serves.mute:
                    self.send_header("Content-Length", str(len(held or b"")))
                self.end_headers()
                self.wfile.write((held or b"")[: len(held or b"") - serves.short])

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    held = Server()
    yield held
    held.close()


@pytest.fixture
def offer(server: Server, monkeypatch: pytest.MonkeyPatch):
    """offer(name, contents): the server has these in place of the public files of that data set, with their checksums."""

    def start(name: str, *contents: bytes) -> None:
        items = []
        for item, content in zip(DOWNLOADS[name], contents, strict=True):
            server.files[f"/{item.name}"] = content
            items.append(Download((f"{server.url}/{item.name}",), hashlib.md5(content).hexdigest(), item.folders, item.unpacked))
        monkeypatch.setitem(DOWNLOADS, name, tuple(items))

    return start


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with files of the user's own."""
    folder = tmp_path / "data"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine/notes.txt").write_text("mine")
    return folder


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file() and path.parent.name != "mine"}


def silent(line: str) -> None:
    raise AssertionError(line)


def test_an_archive_is_downloaded_verified_and_unpacked(server, offer, root):
    before, told = listed(root), []
    archive = tarred(CIFAR100)
    offer("cifar100", archive)
    assert fetch("cifar100", root, lambda *numbers: told.append(numbers), say=silent) == root / "cifar-100-python"
    assert contents(root) == {**CIFAR100, "cifar-100-python.tar.gz": archive}
    assert told[-1] == (len(archive), len(archive))
    assert {name: fact for name, fact in listed(root).items() if name in before} == before
    assert sorted(path.name for path in root.iterdir()) == ["cifar-100-python", "cifar-100-python.tar.gz", "mine"]  # nothing temporary is left


def test_progress_is_told_in_pieces(server, offer, root):
    held, told = bytes(600_000), []
    offer("svhn", held, b"test")
    assert fetch("svhn", root, lambda *numbers: told.append(numbers)) == root / "svhn"
    assert told == [(262144, 600000), (524288, 600000), (600000, 600000), (4, 4)]
    server.mute, told[:] = True, []
    (root / "svhn/test_32x32.mat").unlink()
    fetch("svhn", root, lambda *numbers: told.append(numbers), say=lambda line: None)
    assert told == [(4, 4)]


def test_a_zip_is_unpacked_too(server, offer, root):
    offer("tiny_imagenet", zipped(TINY))
    assert fetch("tiny_imagenet", root, say=silent) == root / "tiny-imagenet-200"
    assert {name: held for name, held in contents(root).items() if name != "tiny-imagenet-200.zip"} == TINY


def test_what_is_unpacked_is_left_alone(server, offer, root):
    offer("cifar100", tarred(CIFAR100))
    fetch("cifar100", root)
    (root / "cifar-100-python.tar.gz").unlink()
    before, said = listed(root), []
    assert fetch("cifar100", root, say=said.append) == root / "cifar-100-python"
    assert said == [f"cifar100: already unpacked in {root}/cifar-100-python, nothing was changed"]
    assert listed(root) == before
    assert len(server.asked) == 1


def test_cifar20_is_cifar100(offer, root):
    assert DOWNLOADS["cifar20"] == DOWNLOADS["cifar100"]
    offer("cifar20", tarred(CIFAR100))
    assert fetch("cifar20", root) == root / "cifar-100-python"


def test_an_archive_that_is_there_is_not_downloaded_again(server, offer, root):
    archive, said = tarred(CIFAR100), []
    offer("cifar100", archive)
    (root / "cifar-100-python.tar.gz").write_bytes(archive)
    fetch("cifar100", root, say=said.append)
    assert server.asked == []
    assert contents(root) == {**CIFAR100, "cifar-100-python.tar.gz": archive}
    assert said == [f"cifar100: {root}/cifar-100-python.tar.gz is already there and has the right checksum, not downloaded again"]


def test_an_archive_of_another_content_is_named_and_left_alone(server, offer, root):
    offer("cifar100", tarred(CIFAR100))
    (root / "cifar-100-python.tar.gz").write_bytes(b"mine")
    before, found = listed(root), hashlib.md5(b"mine").hexdigest()
    with pytest.raises(
        InputError, match=f"cifar-100-python.tar.gz is there already, with the md5 checksum {found}, expected {DOWNLOADS['cifar100'][0].md5}; move it"
    ):
        fetch("cifar100", root)
    assert listed(root) == before
    assert server.asked == []


def test_what_is_half_unpacked_is_completed_and_nothing_overwritten(server, offer, root):
    offer("cifar100", tarred(CIFAR100))
    (root / "cifar-100-python").mkdir()
    (root / "cifar-100-python/train").write_bytes(CIFAR100["cifar-100-python/train"].upper())  # of the same size, and the user's
    (root / "cifar-100-python/more.txt").write_text("mine")
    before = listed(root)
    fetch("cifar100", root)
    after = listed(root)
    assert {name: after[name] for name in before} == before
    assert set(CIFAR100) < set(after)


def test_a_file_in_the_way_is_named_and_nothing_unpacked(server, offer, root):
    offer("cifar100", tarred(CIFAR100))
    (root / "cifar-100-python").mkdir()
    (root / "cifar-100-python/train").write_text("mine")
    with pytest.raises(InputError, match=r"cifar-100-python/train is there already, with 4 bytes, expected 18; nothing was unpacked: move it away"):
        fetch("cifar100", root)
    assert sorted(path.name for path in (root / "cifar-100-python").iterdir()) == ["train"]
    assert (root / "cifar-100-python/train").read_text() == "mine"


IDX = [gzip.compress(f"idx {number}".encode()) for number in range(4)]


def test_idx_files_need_no_unpacking(server, offer, root):
    offer("mnist", *IDX)
    assert fetch("mnist", root, say=silent) == root / "mnist"
    wanted = {f"mnist/{item.name}": held for item, held in zip(DOWNLOADS["mnist"], IDX, strict=True)}
    assert contents(root) == wanted
    said: list[str] = []
    assert fetch("mnist", root, say=said.append) == root / "mnist"
    assert len(server.asked) == len(said) == 4
    assert all("is already there and has the right checksum" in line for line in said)


def test_what_lies_where_torchvision_put_it_is_completed_there(server, offer, root):
    offer("fashion_mnist", *IDX)
    folder = root / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_text("unpacked")
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(IDX[1])
    said: list[str] = []
    assert fetch("fashion_mnist", root, say=said.append) == folder
    assert server.asked == ["/t10k-images-idx3-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte.gz",
    ]
    assert said[0] == f"fashion_mnist: {folder}/train-images-idx3-ubyte is already there, nothing was changed"


def test_svhn_in_the_root_itself(server, offer, root):
    offer("svhn", b"train", b"test")
    (root / "train_32x32.mat").write_bytes(b"train")
    assert fetch("svhn", root, say=lambda line: None) == root
    assert contents(root) == {"train_32x32.mat": b"train", "test_32x32.mat": b"test"}


def test_a_wrong_checksum_leaves_nothing(server, offer, root):
    offer("cifar100", tarred(CIFAR100))
    server.files["/cifar-100-python.tar.gz"], before = b"<html>sign in first</html>", listed(root)
    found = hashlib.md5(b"<html>sign in first</html>").hexdigest()
    with pytest.raises(InputError, match=f"gave 26 bytes with the md5 checksum {found}, expected {DOWNLOADS['cifar100'][0].md5}") as caught:
        fetch("cifar100", root)
    assert f"place cifar-100-python.tar.gz (md5 checksum {DOWNLOADS['cifar100'][0].md5}) at {root}/cifar-100-python.tar.gz by hand" in str(caught.value)
    assert listed(root) == before
    assert not list(root.rglob("*.part"))


@pytest.mark.parametrize("mute", [False, True])
def test_a_download_that_breaks_off_leaves_nothing(server, offer, root, mute):
    archive = tarred(CIFAR100)
    offer("cifar100", archive)
    server.short, server.mute, before = 10, mute, listed(root)
    size = len(archive)
    said = f"gave {size - 10} bytes with the md5 checksum " if mute else rf"cifar-100-python.tar.gz broke off after {size - 10} (of {size} )?bytes"
    with pytest.raises(InputError, match=said):
        fetch("cifar100", root)
    assert listed(root) == before


def test_an_unknown_address_is_an_error_at_once(server, offer, root):
    offer("cifar100", tarred(CIFAR100))
    server.files.clear()
    with pytest.raises(InputError, match=f"fetch cifar100: {server.url}/cifar-100-python.tar.gz could not be reached \\(404 Not Found\\); try again, or place"):
        fetch("cifar100", root)
    assert contents(root) == {}


def test_without_network_the_error_comes_at_once_and_says_what_to_place_where(root, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        port = taken.getsockname()[1]
        urls = f"http://127.0.0.1:{port}/a.tar.gz", f"http://127.0.0.1:{port}/mirror/a.tar.gz"
        monkeypatch.setitem(DOWNLOADS, "cifar10", (Download(urls, "0" * 32, unpacked=("a/b",)),))
        started = time.monotonic()
        with pytest.raises(InputError) as caught:
            fetch("cifar10", root)
        assert time.monotonic() - started < 5
    said = str(caught.value)
    assert f"{urls[0]} could not be reached ([Errno 111] Connection refused)" in said
    assert f"{urls[1]} could not be reached" in said
    assert said.endswith(f"try again, or place a.tar.gz (md5 checksum {'0' * 32}) at {root}/a.tar.gz by hand and run this again")
    assert "\n" not in said
    assert contents(root) == {}


def test_a_silent_server_is_given_up(root, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setitem(DOWNLOADS, "cifar10", (Download((f"http://127.0.0.1:{deaf.getsockname()[1]}/a.tar.gz",), "0" * 32, unpacked=("a/b",)),))
        with pytest.raises(InputError, match=r"could not be reached \(timed out\)"):
            fetch("cifar10", root)


def test_the_next_mirror_is_tried(server, root, monkeypatch):
    archive = tarred(CIFAR100)
    server.files = {"/first/x.tar.gz": b"broken", "/third/x.tar.gz": archive}
    urls = tuple(f"{server.url}/{place}/x.tar.gz" for place in ("first", "second", "third"))
    monkeypatch.setitem(DOWNLOADS, "cifar100", (Download(urls, hashlib.md5(archive).hexdigest(), unpacked=tuple(CIFAR100)),))
    assert fetch("cifar100", root) == root / "cifar-100-python"
    assert server.asked == ["/first/x.tar.gz", "/second/x.tar.gz", "/third/x.tar.gz"]


@pytest.mark.parametrize("evil", ["../evil", "cifar-100-python/../../evil"])
def test_a_tar_that_would_write_outside_is_refused(server, offer, root, tmp_path, evil):
    offer("cifar100", tarred({**CIFAR100, evil: b"evil"}))
    with pytest.raises(InputError, match=f"holds '{evil}', which would land outside {root}; nothing was unpacked: do not trust"):
        fetch("cifar100", root)
    assert not list(tmp_path.rglob("*evil*"))
    assert sorted(path.name for path in root.iterdir()) == ["cifar-100-python.tar.gz", "mine"]


def test_a_tar_with_a_link_to_elsewhere_is_refused(server, offer, root, tmp_path):
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as tar:
        link = tarfile.TarInfo("cifar-100-python")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        member = tarfile.TarInfo("cifar-100-python/evil")
        tar.addfile(member, io.BytesIO(b""))
    offer("cifar100", held.getvalue())
    with pytest.raises(InputError, match="would land outside"):
        fetch("cifar100", root)
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("evil", ["../evil", "tiny-imagenet-200/../../evil", "/tmp/evil", "..\\evil", "C:/evil"])
def test_a_zip_that_would_write_outside_is_refused(server, offer, root, tmp_path, evil):
    offer("tiny_imagenet", zipped({**TINY, evil: b"evil"}))
    with pytest.raises(InputError, match=f"holds '{re.escape(evil)}', which would land outside"):
        fetch("tiny_imagenet", root)
    assert not list(tmp_path.rglob("*evil*"))
    assert sorted(path.name for path in root.iterdir()) == ["mine", "tiny-imagenet-200.zip"]


@pytest.mark.parametrize(("name", "held"), [("cifar100", tarred(CIFAR100)[:-20]), ("cifar100", b"no tar"), ("tiny_imagenet", zipped(TINY)[:-20])])
def test_a_damaged_archive_is_named(offer, root, name, held):
    """Its checksum is right here: what was published may be damaged."""
    offer(name, held)
    with pytest.raises(InputError, match=f"{DOWNLOADS[name][0].name} is truncated or damaged"):
        fetch(name, root)
    assert sorted(path.name for path in root.iterdir()) == sorted(["mine", DOWNLOADS[name][0].name])


def test_an_archive_of_something_else_is_named(offer, root):
    offer("cifar100", tarred({"cifar-100-python/meta": b"", "cifar-100-python/train": b""}))
    with pytest.raises(InputError, match=r"cifar-100-python.tar.gz does not hold cifar-100-python/test; nothing was unpacked"):
        fetch("cifar100", root)
    assert not (root / "cifar-100-python").exists()


def test_the_root_is_made_where_it_lacks_and_named_where_it_cannot_be(offer, tmp_path):
    offer("cifar100", tarred(CIFAR100))
    assert fetch("cifar100", tmp_path / "a/b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"fetch cifar100: cannot write {tmp_path}/file.*: Not a directory; choose another folder with --data-root"):
        fetch("cifar100", tmp_path / "file/below")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digits", "comes with scikit-learn: nothing need be fetched"),
        ("imagenet100", "hf download clane9/imagenet-100 .* --local-dir ROOT/imagenet-100"),
        ("agedb", "by its authors on request: put AgeDB.csv and the images in ROOT/agedb"),
        ("utkface", "unpack the aligned and cropped faces in ROOT/UTKFace"),
        *((name, "is your own data: nothing need be fetched") for name in ("image_folder", "npz", "csv", "hf")),
        (
            "cifar1000",
            r"is no public data set that is known here; did you mean 'cifar100'\? \(can be fetched: cifar10, cifar100, cifar20, fashion_mnist",
        ),
        ("", "data set '' is no public data set"),
    ],
)
def test_what_cannot_be_fetched_says_how_to_get_it(root, name, said):
    with pytest.raises(InputError, match=said.replace("ROOT", str(root))) as caught:
        fetch(name, root)
    assert "\n" not in str(caught.value)
    assert contents(root) == {}


def test_every_data_set_is_known():
    ours = {name for name in names("dataset") if lookup("dataset", name).__module__.startswith("unlearnlab.")}
    assert ours <= set(DOWNLOADS) | set(BY_HAND)


def test_the_table():
    for items in DOWNLOADS.values():
        for item in items:
            assert re.fullmatch(r"[0-9a-f]{32}", item.md5)
            assert len({url.rpartition("/")[2] for url in item.urls}) == 1
            assert all(url.startswith(("http://", "https://")) for url in item.urls)
            assert bool(item.unpacked) == item.name.endswith((".tar.gz", ".zip"))


def test_torch_is_not_needed():
    code = "import sys, unlearnlab.data.fetching; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
