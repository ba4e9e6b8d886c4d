"""SVHN, from .mat files as MATLAB wrote them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from genuine import trains
from scipy.io import savemat

from unlearnlab.data.svhn import Svhn
from unlearnlab.spec import InputError, key
from unlearnlab.store import Store

TRAIN, EXTRA, TEST = [10, 1, 2, 3, 9, 10, 5, 6, 7, 8, 1, 4], [2, 10, 3], [10, 9, 8, 1, 5]


def pixels(n: int, seed: int) -> np.ndarray:
    """[32 32 3 n]: line, column, channel, image."""
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)


def write(path: Path, labels: object, held: np.ndarray | None, **other: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"X": held, "y": None if labels is None else np.array(labels, dtype=np.uint8)[:, None], **other}
    savemat(path, {name: array for name, array in arrays.items() if array is not None}, do_compression=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, labels, seed in (("train", TRAIN, 1), ("extra", EXTRA, 2), ("test", TEST, 3)):
        write(folder / f"svhn/{name}_32x32.mat", labels, pixels(len(labels), seed))
    return folder


def test_ids_labels_and_split(root):
    images = Svhn()(root)
    assert (images.classes, images.pixels.shape, images.pixels.dtype) == (10, (17, 3, 32, 32), torch.uint8)
    assert images.ids.tolist() == list(range(17))
    assert images.labels.tolist() == [label % 10 for label in TRAIN + TEST]  # the release's 10 is the digit 0
    assert images.labels[0] == 0
    assert images.columns["split"].values.tolist() == [0] * 12 + [1] * 5


def test_every_pixel_is_in_its_place(root):
    images = Svhn()(root)
    for row, held, at in ((0, pixels(12, 1), 0), (11, pixels(12, 1), 11), (16, pixels(5, 3), 4)):
        for channel in range(3):
            assert images.pixels[row, channel].tolist() == held[:, :, channel, at].tolist()


def test_extra_images_come_after_the_training_images(root):
    images, without = Svhn(extra=True)(root), Svhn()(root)
    assert images.labels.tolist() == [label % 10 for label in TRAIN + EXTRA + TEST]
    assert images.columns["split"].values.tolist() == [0] * 15 + [1] * 5
    assert images.pixels[14].tolist() == pixels(3, 2)[..., 2].transpose(2, 0, 1).tolist()
    assert torch.equal(images.pixels[15:], without.pixels[12:])
    assert key(Svhn(extra=True)) != key(Svhn())


def test_pixels_come_in_blocks(root, monkeypatch):
    whole = Svhn()(root).pixels
    monkeypatch.setattr("unlearnlab.data.svhn._ROWS", 5)
    release = Svhn().read(Svhn().files(root))
    assert [len(block) for block in release.blocks()] == [5, 5, 2, 5]
    assert torch.equal(Svhn()(root).pixels, whole)


def test_a_single_image_whose_last_dimension_matlab_drops(root):
    held = pixels(1, 9)
    write(root / "svhn/test_32x32.mat", [7], held[..., 0])
    images = Svhn()(root)
    assert images.labels[-1] == 7
    assert images.pixels[12].tolist() == held[..., 0].transpose(2, 0, 1).tolist()


def test_the_files_may_lie_in_the_root_itself(root):
    wanted = Svhn()(root)
    for path in sorted((root / "svhn").iterdir()):
        path.rename(root / path.name)
    (root / "svhn").rmdir()
    assert Svhn()(root).fingerprint == wanted.fingerprint
    (root / "test_32x32.mat").unlink()
    with pytest.raises(InputError, match=f"there is no file {root}/test_32x32.mat"):
        Svhn()(root)


@pytest.mark.parametrize("dataset", [Svhn(), Svhn(extra=True)], ids=["svhn", "extra"])
def test_from_genuine_bytes_to_a_trained_step(root, tmp_path, dataset):
    images = trains(dataset, root, Store(tmp_path / "store"))
    assert torch.equal(images.pixels[:], dataset(root).pixels)


def test_a_missing_file_says_what_to_place_where(root, tmp_path):
    (root / "svhn/extra_32x32.mat").unlink()
    assert len(Svhn()(root)) == 17
    with pytest.raises(InputError, match=f"there is no file {root}/svhn/extra_32x32.mat; put train_32x32.mat, extra_32x32.mat, test_32x32.mat of http://ufldl"):
        Svhn(extra=True)(root)
    with pytest.raises(InputError, match=r"there is no file .*/svhn/train_32x32.mat; run 'unlearnlab fetch svhn', or put train_32x32.mat, test"):
        Svhn()(tmp_path)


@pytest.mark.parametrize(
    ("labels", "held", "other", "said"),
    [
        ([1, 2, 11], pixels(3, 1), {}, r"gives image 2 the label 11, expected 1 to 10 \(10 is the digit 0\)"),
        ([1, 0, 3], pixels(3, 1), {}, "gives image 1 the label 0, expected 1 to 10"),
        (None, pixels(2, 1), {"y": np.array([[1.0], [1.5]])}, "gives image 1 the label 1.5, expected 1 to 10"),
        ([1, 2], pixels(3, 1), {}, r"has labels y of \[2, 1\], expected \[3, 1\], as many as images"),
        ([1, 2, 3], pixels(3, 1).astype(np.float64), {}, r"has under X double \[32, 32, 3, 3\], expected uint8 \[32, 32, 3, n\]"),
        ([1, 2, 3], pixels(3, 1).transpose(3, 0, 1, 2), {}, r"has under X uint8 \[3, 32, 32, 3\], expected"),
        (None, pixels(3, 1), {}, r"holds X, expected X \(images\) and y \(labels\)"),
        (None, None, {"pictures": pixels(3, 1), "digits": np.ones((3, 1))}, "holds digits and pictures, expected X"),
    ],
)
def test_a_mislabelled_file_is_named(root, labels, held, other, said):
    write(root / "svhn/test_32x32.mat", labels, held, **other)
    with pytest.raises(InputError, match=said) as caught:
        Svhn()(root)
    assert str(caught.value).startswith(f"dataset 'svhn': {root}/svhn/test_32x32.mat ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 60, 127, 128, 140, 5000, -60, -20, -1])
def test_a_truncated_file_is_named(root, tmp_path, keep):
    path = root / "svhn/train_32x32.mat"
    path.write_bytes(path.read_bytes()[:keep])
    store = Store(tmp_path / "store")
    with pytest.raises(InputError, match=r"svhn/train_32x32.mat is truncated or "):
        Svhn()(root, store)
    assert store.list() == []


def test_a_damaged_file_is_named(root, tmp_path):
    path, store = root / "svhn/train_32x32.mat", Store(tmp_path / "store")
    whole, chance = path.read_bytes(), np.random.default_rng(0)
    for at in (130, 2000, *chance.integers(128, len(whole), 100)):  # before 128, free text
        spoiled = bytearray(whole)
        spoiled[at] ^= 0xFF
        path.write_bytes(spoiled)
        with pytest.raises(InputError, match=r"svhn/train_32x32.mat "):
            Svhn()(root, store)
    path.write_bytes(b"<!DOCTYPE html>\n<html>404</html>" * 20)
    with pytest.raises(InputError, match=r"train_32x32.mat is truncated or damaged") as caught:
        Svhn()(root, store)
    assert "\n" not in str(caught.value)
    assert store.list() == []
