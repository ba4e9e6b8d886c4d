"""MNIST and Fashion-MNIST, from idx files as released."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from genuine import trains

from unlearnlab.data.mnist import FashionMnist, Mnist
from unlearnlab.spec import InputError
from unlearnlab.store import Store

TRAIN, TEST = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5], [7, 2, 1]
DATASETS = [(Mnist(), "mnist", "MNIST"), (FashionMnist(), "fashion-mnist", "FashionMNIST")]
both = pytest.mark.parametrize(("dataset", "folder", "other"), DATASETS, ids=["mnist", "fashion_mnist"])


def idx(values: np.ndarray, magic: int | None = None) -> bytes:
    """Sizes as in the format: the highest byte first."""
    return struct.pack(f">{1 + values.ndim}I", magic or 0x00000800 + values.ndim, *values.shape) + values.tobytes()


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)


def labels(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


FILES = {
    "train-images-idx3-ubyte": idx(pixels(12, 1)),
    "train-labels-idx1-ubyte": idx(labels(TRAIN)),
    "t10k-images-idx3-ubyte": idx(pixels(3, 2)),
    "t10k-labels-idx1-ubyte": idx(labels(TEST)),
}


def write(folder: Path, *, zipped: bool = False, named: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, held in FILES.items():
        (folder / (f"{name}.gz" if zipped and named else name)).write_bytes(gzip.compress(held) if zipped else held)


@both
def test_ids_labels_pixels_and_split(tmp_path, dataset, folder, other):
    write(tmp_path / folder)
    images = dataset(tmp_path)
    assert (images.classes, images.pixels.shape, images.pixels.dtype) == (10, (15, 1, 28, 28), torch.uint8)
    assert images.ids.tolist() == list(range(15))
    assert images.labels.tolist() == TRAIN + TEST
    assert images.columns["split"].values.tolist() == [0] * 12 + [1] * 3
    for row, held in ((0, pixels(12, 1)[0]), (11, pixels(12, 1)[11]), (12, pixels(3, 2)[0]), (14, pixels(3, 2)[2])):
        assert images.pixels[row, 0].tolist() == held.tolist()


def test_the_header_is_read_as_the_format_says(tmp_path):
    write(tmp_path / "mnist")
    start = (tmp_path / "mnist/train-images-idx3-ubyte").read_bytes()[:16]
    assert start == bytes([0, 0, 8, 3, 0, 0, 0, 12, 0, 0, 0, 28, 0, 0, 0, 28])


def test_garments_have_names(tmp_path):
    write(tmp_path / "fashion-mnist")
    column = FashionMnist()(tmp_path).columns["class"]
    assert [column.words[at] for at in column.values[:4].tolist()] == ["Sandal", "T-shirt/top", "Coat", "Trouser"]


@both
@pytest.mark.parametrize("place", ["plain", "gz", "gz without the ending", "torchvision", "torchvision gz", "both in one folder"])
def test_plain_or_gzipped_here_or_as_torchvision_has_them(tmp_path, dataset, folder, other, place):
    write(tmp_path / "wanted" / folder)
    root = tmp_path / "root"
    write(root / (f"{other}/raw" if "torchvision" in place else folder), zipped="gz" in place, named="without" not in place)
    if place == "both in one folder":
        write(root / folder, zipped=True)
    assert dataset(root).fingerprint == dataset(tmp_path / "wanted").fingerprint


@both
def test_from_genuine_bytes_to_a_trained_step(tmp_path, dataset, folder, other):
    write(tmp_path / "data" / folder, zipped=True)
    images = trains(dataset, tmp_path / "data", Store(tmp_path / "store"))
    assert torch.equal(images.pixels[:], dataset(tmp_path / "data").pixels)


@both
def test_a_missing_file_says_what_to_place_where(tmp_path, dataset, folder, other):
    with pytest.raises(
        InputError, match=f"there is no file {tmp_path}/{folder}/train-images-idx3-ubyte; run 'unlearnlab fetch {folder.replace('-', '_')}', or put "
    ):
        dataset(tmp_path)
    write(tmp_path / f"{other}/raw", zipped=True)
    (tmp_path / f"{other}/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=f"there is no file {tmp_path}/{other}/raw/t10k-labels-idx1-ubyte; .* in {tmp_path}/{other}/raw "):
        dataset(tmp_path)


def test_files_of_two_folders_are_never_mixed(tmp_path):
    write(tmp_path / "mnist")
    write(tmp_path / "MNIST/raw")
    (tmp_path / "mnist/train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"there is no file .*/mnist/train-labels-idx1-ubyte"):
        Mnist()(tmp_path)


@pytest.mark.parametrize(
    ("file", "held", "said"),
    [
        ("t10k-labels-idx1-ubyte", idx(labels([7, 10, 1])), "gives image 1 the label 10, expected 0 to 9"),
        ("t10k-labels-idx1-ubyte", idx(labels([7, 2])), "has 2 labels, expected 3, as many as images in t10k-images-idx3-ubyte"),
        ("t10k-labels-idx1-ubyte", idx(labels([7, 2, 1, 3])), "has 4 labels, expected 3, as many as images"),
        ("t10k-labels-idx1-ubyte", FILES["t10k-images-idx3-ubyte"], r"starts with the bytes 00000803, expected 00000801 \(idx, bytes, 1 dimensions\)"),
        ("train-images-idx3-ubyte", FILES["train-labels-idx1-ubyte"], "starts with the bytes 00000801, expected 00000803"),
        ("train-images-idx3-ubyte", idx(pixels(12, 1), magic=0x00000D03), "starts with the bytes 00000d03, expected 00000803"),
        ("train-images-idx3-ubyte", idx(pixels(12, 1)[:, :27]), "has images of 27×28 pixels, expected 28×28"),
        ("train-images-idx3-ubyte", idx(pixels(12, 1))[:-1], r"is truncated: 9423 bytes, expected 9424 for 12×28×28 values"),
        ("train-images-idx3-ubyte", idx(pixels(12, 1))[:9], "is truncated: 9 bytes, expected a header of 16"),
        ("train-images-idx3-ubyte", idx(pixels(12, 1)) + b"\0", "goes on after its end: 9425 bytes, expected 9424"),
        ("train-images-idx3-ubyte", b"", r"starts with the bytes \(none\), expected 00000803"),
        ("train-images-idx3-ubyte", b"<!DOCTYPE html>\n404", "starts with the bytes 3c21444f, expected 00000803"),
        ("train-images-idx3-ubyte", struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"123", "is truncated: 19 bytes, expected 7922816"),
        ("train-images-idx3-ubyte", gzip.compress(FILES["train-images-idx3-ubyte"])[:-9], "is truncated or damaged: its .* bytes are no whole gzip file"),
        ("train-images-idx3-ubyte", gzip.compress(FILES["train-images-idx3-ubyte"])[:4000], "no whole gzip file"),
        ("train-images-idx3-ubyte", gzip.compress(FILES["train-images-idx3-ubyte"])[:-8] + b"12345678", r"no whole gzip file \(CRC check failed"),
        ("train-images-idx3-ubyte", b"\x1f\x8b" + b"\xff" * 50, "no whole gzip file"),
    ],
)
def test_a_truncated_damaged_or_mislabelled_file_is_named(tmp_path, file, held, said):
    root, store = tmp_path / "data", Store(tmp_path / "store")
    write(root / "mnist")
    (root / "mnist" / file).write_bytes(held)
    with pytest.raises(InputError, match=said) as caught:
        Mnist()(root, store)
    assert str(caught.value).startswith(f"dataset 'mnist': {root}/mnist/{file} ")
    assert "replace it with an intact copy" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.list() == []
