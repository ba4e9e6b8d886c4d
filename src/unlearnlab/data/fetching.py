"""Download a public data set, verify its checksum and unpack it where its source looks for it. Needs nothing but Python.

Nothing that lies below the data root is ever overwritten or deleted.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from unlearnlab.data.published import SCORES, score_place
from unlearnlab.spec import InputError, suggest

TIMEOUT = 10.0  # seconds without a byte

Tell = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Download:
    """One file of a data set. ``urls``: mirrors, tried in order; ``md5``: as published with it; ``unpacked``: what an archive must leave behind.

    ``folders``: where the source reads it, the first by preference; all files of a data set lie in the same one.
    """

    urls: tuple[str, ...]
    md5: str
    folders: tuple[str, ...] = (".",)
    unpacked: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.urls[0].rpartition("/")[2]


def _cifar(archive: str, md5: str, *unpacked: str) -> tuple[Download, ...]:
    return (Download((f"https://www.cs.toronto.edu/~kriz/{archive}",), md5, unpacked=unpacked),)


def _mnist(name: str, md5: str) -> Download:
    mirrors = "https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"
    return Download(tuple(f"{mirror}/{name}" for mirror in mirrors), md5, ("mnist", "MNIST/raw"))


def _fashion(name: str, md5: str) -> Download:
    mirrors = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    )
    return Download(tuple(f"{mirror}/{name}" for mirror in mirrors), md5, ("fashion-mnist", "FashionMNIST/raw"))


def _svhn(name: str, md5: str) -> Download:
    return Download((f"http://ufldl.stanford.edu/housenumbers/{name}",), md5, ("svhn", "."))


_CIFAR10 = (f"cifar-10-batches-py/{name}" for name in ("batches.meta", *(f"data_batch_{number}" for number in range(1, 6)), "test_batch"))
_CIFAR100 = _cifar("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", *(f"cifar-100-python/{name}" for name in ("meta", "train", "test")))

DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "cifar10": _cifar("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", *_CIFAR10),
    "cifar100": _CIFAR100,
    "cifar20": _CIFAR100,
    "svhn": (_svhn("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"), _svhn("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3")),
    "mnist": (
        _mnist("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        _mnist("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        _mnist("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        _mnist("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion_mnist": (
        _fashion("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        _fashion("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        _fashion("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        _fashion("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "tiny_imagenet": (
        Download(
            ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            "90528d7ca1a48142e341f4ef8d21d0de",
            unpacked=("tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/words.txt", "tiny-imagenet-200/val/val_annotations.txt"),
        ),
    ),
}

_OWN = "is your own data: nothing need be fetched, name its path in the study"
BY_HAND: dict[str, str] = {
    **dict.fromkeys(("digits", "digits_pairs"), "comes with scikit-learn: nothing need be fetched"),
    "imagenet100": "is not fetched from here: run 'hf download clane9/imagenet-100 --repo-type dataset --local-dir {root}/imagenet-100' (parquet files)",
    "agedb": "is given out by its authors on request: put AgeDB.csv and the images in {root}/agedb",
    "utkface": "is given out by its authors (https://susanqq.github.io/UTKFace): unpack the aligned and cropped faces in {root}/UTKFace",
    "fwp_logits": "is published nowhere that their page says: make it by their scripts/train_retain.ipynb and scripts/create_logits.ipynb, put"
    " logits_retain.npy, metrics.csv and APPROACH/logits_unlearn.npy in {root}/fwp, and run 'unlearnlab attack {root}/fwp APPROACH'",
    **dict.fromkeys(("image_folder", "npz", "csv", "hf"), _OWN),
}
_PLACES = {"imagenet100": "imagenet-100", "agedb": "agedb/AgeDB.csv", "utkface": "UTKFace", "fwp_logits": "fwp/logits_retain.npy"}  # of those by hand


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


def fetch(name: str, root: str | Path, tell: Tell = lambda done, total: None, say: Callable[[str], None] = _to_stderr) -> Path:
    """Have a public data set below the root; returns its folder. ``tell`` is told of bytes, ``say`` given a line about what is there already.

    Raises ``InputError`` where there is no network, a checksum is wrong, a file of another content is in the way, or the data
    set is not to be had this way; each says what to place where by hand.
    """
    root = Path(root).expanduser()
    if name in _PLACES and (root / _PLACES[name]).exists():
        say(f"{name}: {root / _PLACES[name]} is already there; whether it is whole is checked when a study reads it")
        return root / _PLACES[name]
    if name in BY_HAND:
        raise InputError(f"data set '{name}' {BY_HAND[name].format(root=root)}")
    if name not in DOWNLOADS:
        known = f"(can be fetched: {', '.join(sorted(DOWNLOADS))}; score files: {', '.join(SCORES)}; by hand: {', '.join(_PLACES)})"
        raise InputError(f"data set '{name}' is no public data set that is known here{suggest(name, [*DOWNLOADS, *BY_HAND, *SCORES])} {known}")
    try:
        items = DOWNLOADS[name]
        folder = next((folder for folder in items[0].folders if any(_there(root / folder, item) for item in items)), items[0].folders[0])
        return [_have(name, item, root, root / folder, tell, say) for item in items].pop()
    except OSError as error:
        raise InputError(f"fetch {name}: cannot write {error.filename or root}: {error.strerror or error}; choose another folder with --data-root") from error


def overview(root: Path) -> list[str]:
    """All that ``fetch`` knows, and whether it is below the root."""
    fetched = {name: _found(root, items) for name, items in sorted(DOWNLOADS.items())}
    by_hand = {name: root / place for name, place in _PLACES.items()}
    scores = {name: score_place(name, root) for name in SCORES}
    kinds: dict[str, Mapping[str, Path | None]] = {"a data set; get it": fetched, "by hand; how": by_hand, "a file of scores; where it is published": scores}
    lines = [f"below {root}:"]
    for kind, places in kinds.items():
        for name, place in places.items():
            state = f"is there: {place}" if place is not None and place.exists() else f"is not there ({kind}: unlearnlab fetch {name})"
            lines.append(f"  {name:<25} {state}")
    return [*lines, "digits comes with scikit-learn; image_folder, npz, csv and hf are your own data, named by their path in a study"]


def _found(root: Path, items: tuple[Download, ...]) -> Path | None:
    """The folder in which a source would find all files of a data set."""
    unpacked = [root / path for item in items for path in item.unpacked]
    if unpacked:
        return unpacked[0].parent if all(path.is_file() for path in unpacked) else None
    return next((root / folder for folder in items[0].folders if all(_there(root / folder, item) for item in items)), None)


def _there(folder: Path, item: Download) -> Path | None:
    """The file, where it is in the folder; one that was packed alone may have been unpacked."""
    return next((file for file in (folder / item.name, folder / item.name.removesuffix(".gz")) if file.is_file()), None)


def _have(name: str, item: Download, root: Path, folder: Path, tell: Tell, say: Callable[[str], None]) -> Path:
    """One file, downloaded and unpacked unless it is there; returns the folder in which the source reads it."""
    ready = [root / path for path in item.unpacked]
    if ready and all(path.is_file() for path in ready):
        say(f"{name}: already unpacked in {ready[0].parent}, nothing was changed")
        return ready[0].parent
    file = _there(folder, item) or folder / item.name
    if not file.exists():
        _download(name, item, file, tell)
    elif file.name != item.name:  # its checksum was never published
        say(f"{name}: {file} is already there, nothing was changed")
    elif (found := _md5(file)) != item.md5:
        raise InputError(f"fetch {name}: {file} is there already, with the md5 checksum {found}, expected {item.md5}; move it away, and run this again")
    else:
        say(f"{name}: {file} is already there and has the right checksum, not downloaded again")
    if not ready:
        return folder
    _unpack(name, item, file, root)
    return ready[0].parent


def _md5(file: Path) -> str:
    with file.open("rb") as held:
        return hashlib.file_digest(held, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(name: str, item: Download, file: Path, tell: Tell) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part, faults = file.with_name(f"{file.name}.part"), []
    try:
        for url in item.urls:
            fault = _receive(url, part, item.md5, tell)
            if not fault:
                os.replace(part, file)
                return
            faults.append(f"{url} {fault}")
    finally:
        part.unlink(missing_ok=True)
    raise InputError(f"fetch {name}: {'; '.join(faults)}; try again, or place {item.name} (md5 checksum {item.md5}) at {file} by hand and run this again")


def _receive(url: str, part: Path, md5: str, tell: Tell) -> str:
    """Download to ``part``; returns what went wrong, if anything. Faults of the disk are raised."""
    found, done, total = hashlib.md5(usedforsecurity=False), 0, 0
    with part.open("wb") as kept:
        try:
            for piece, total in _pieces(url):
                kept.write(piece)
                found.update(piece)
                done += len(piece)
                if total:
                    tell(done, total)
        except _NetworkError as error:
            return f"broke off after {done} bytes ({error})" if done else f"could not be reached ({error})"
        kept.flush()
        os.fsync(kept.fileno())
    if done < total:
        return f"broke off after {done} of {total} bytes"
    if found.hexdigest() != md5:
        return f"gave {done} bytes with the md5 checksum {found.hexdigest()}, expected {md5}"
    if not total:
        tell(done, done)
    return ""


class _NetworkError(Exception):
    """What went wrong between here and there, apart from what goes wrong with the disk."""


def _pieces(url: str) -> Iterator[tuple[bytes, int]]:
    """A file in pieces, each with the size of the whole (0: the server does not say)."""
    try:
        with urlopen(url, timeout=TIMEOUT) as reply:
            total = int(reply.headers.get("Content-Length") or 0)
            while piece := reply.read(1 << 18):
                yield piece, total
    except HTTPError as error:
        error.close()
        raise _NetworkError(f"{error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise _NetworkError(str(error.reason if isinstance(error, URLError) else error) or type(error).__name__) from error


def _unpack(name: str, item: Download, archive: Path, root: Path) -> None:
    """Unpack beside the root's other files, then move each file into its place, what tells that all is there last."""
    with tempfile.TemporaryDirectory(prefix=f".{archive.name}-", dir=root) as held:
        _extract(name, archive, Path(held), root)
        found = {file.relative_to(held).as_posix(): file for file in sorted(Path(held).rglob("*")) if file.is_file() and not file.is_symlink()}
        lacking = next((path for path in item.unpacked if path not in found), None)
        if lacking is not None:
            raise InputError(f"fetch {name}: {archive} does not hold {lacking}; nothing was unpacked: replace it with an intact copy")
        for path, file in found.items():
            place = root / path
            if place.exists() and place.stat().st_size != file.stat().st_size:
                sizes = f"{place.stat().st_size} bytes, expected {file.stat().st_size}"
                raise InputError(f"fetch {name}: {place} is there already, with {sizes}; nothing was unpacked: move it away, and run this again")
        for path in sorted(found, key=lambda path: path in item.unpacked):
            if not (root / path).exists():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                os.rename(found[path], root / path)


def _extract(name: str, archive: Path, folder: Path, root: Path) -> None:
    def outside(member: str) -> InputError:
        return InputError(f"fetch {name}: {archive} holds '{member}', which would land outside {root}; nothing was unpacked: do not trust this archive")

    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                for member in zipped.namelist():
                    path = PurePosixPath(member.replace("\\", "/"))
                    if path.is_absolute() or ".." in path.parts or ":" in member:
                        raise outside(member)  # extractall would quietly put it elsewhere
                zipped.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise outside(error.tarinfo.name) from error
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"fetch {name}: {archive} is truncated or damaged ({error}); nothing was unpacked: move it away, and run this again") from error
