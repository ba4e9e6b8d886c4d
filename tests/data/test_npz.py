"""Arrays in one .npz, as numpy writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from genuine import listed, trains

from unlearnlab.data import npz
from unlearnlab.data.npz import Npz
from unlearnlab.spec import InputError, build
from unlearnlab.store import Store

RGB = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
Y = np.array([0, 1, 2] * 4)


def written(path: Path, compressed: bool = False, **arrays: object) -> Npz:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return Npz(str(path))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("rows", [5, 1024])
def test_layouts_and_blocks(tmp_path, monkeypatch, compressed, rows):
    monkeypatch.setattr(npz, "_ROWS", rows)
    first, last = RGB.transpose(0, 3, 1, 2), RGB
    for name, given in {"first": first.copy(), "last": last, "columns": np.asfortranarray(last)}.items():
        images = written(tmp_path / f"{name}.npz", compressed, x=given, y=Y)()
        assert images.pixels.tolist() == first.tolist(), name
        assert images.labels.tolist() == Y.tolist()
        assert images.ids.tolist() == list(range(12))
        assert images.columns["split"].values.tolist() == [0] * 12
    grey = written(tmp_path / "grey.npz", compressed, images=RGB[..., 0].astype(">i8"), labels=Y.astype(np.uint8)[:, None])()
    assert grey.pixels.tolist() == RGB[:, None, :, :, 0].tolist()


def test_the_channels_axis_may_need_to_be_named(tmp_path):
    dataset = written(tmp_path / "a.npz", x=RGB[:, :3, :, :], y=Y)
    with pytest.raises(InputError, match=r"a.npz has images of shape \(12, 3, 5, 3\) in 'x': channels may come first or last; set layout = 'nchw' or 'nhwc'$"):
        dataset()
    assert Npz(dataset.path, layout="nhwc")().pixels.shape == (12, 3, 3, 5)
    assert Npz(dataset.path, layout="nchw")().pixels.tolist() == RGB[:, :3].tolist()
    dataset = written(tmp_path / "b.npz", x=RGB, y=Y)
    with pytest.raises(InputError, match=r"so that layout = 'nchw' means 6 channels; expected 1 or 3: choose the other layout$"):
        Npz(dataset.path, layout="nchw")()


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        (("x", "y", "x_test", "y_test"), "test"),
        (("x_train", "y_train", "x_test", "y_test"), "test"),
        (("train_images", "train_labels", "test_images", "test_labels"), "test"),
        (("train_images", "train_labels", "val_images", "val_labels"), "val"),
    ],
)
def test_training_images_come_first(tmp_path, names, held_out):
    x, y, x_test, y_test = names
    dataset = written(tmp_path / "a.npz", **{y_test: Y[9:], x_test: RGB[9:], y: Y[:9], x: RGB[:9]})
    images = dataset()
    assert images.pixels.tolist() == RGB.transpose(0, 3, 1, 2).tolist()
    assert images.columns["split"].values.tolist() == [0] * 9 + [1] * 3
    assert images.labels.tolist() == Y.tolist()


def test_as_medmnist_is_released(tmp_path):
    """Labels [n, 1], three parts; the validation part is left out beside a test part."""
    parts = {"train": 6, "val": 3, "test": 3}
    arrays, at = {}, 0
    for part, n in parts.items():
        arrays |= {f"{part}_images": RGB[at : at + n, :, :, 0], f"{part}_labels": Y[at : at + n, None].astype(np.uint8)}
        at += n
    images = written(tmp_path / "tinymnist.npz", True, **arrays)()
    assert images.pixels.tolist() == RGB[[0, 1, 2, 3, 4, 5, 9, 10, 11], None, :, :, 0].tolist()
    assert images.columns["split"].values.tolist() == [0] * 6 + [1] * 3


def test_other_arrays_become_columns(tmp_path):
    ages, users = np.linspace(0, 1, 12), np.array([f"user {k % 2}" for k in range(12)])
    images = written(tmp_path / "a.npz", x=RGB, y=Y, age=ages, user=users, old=ages > 0.5, names=np.array(["a", "b", "c"]), wide=RGB[:, :, 0, 0])()
    assert set(images.columns) == {"age", "user", "old", "split"}
    assert images.columns["age"].values.tolist() == ages.tolist()
    assert images.columns["user"].words == ("user 0", "user 1")
    assert images.columns["old"].values.tolist() == (ages > 0.5).astype(int).tolist()
    both = {"x_train": RGB[:9], "y_train": Y[:9], "x_test": RGB[9:], "y_test": Y[9:]}
    images = written(tmp_path / "b.npz", **both, age_train=ages[:9], age_test=ages[9:], test_kind=Y[9:], train_kind=Y[:9], half=Y[:9], whole=Y)()
    assert set(images.columns) == {"age", "kind", "whole", "split"}
    assert images.columns["age"].values.tolist() == ages.tolist()
    assert images.columns["kind"].values.tolist() == Y.tolist()
    both["x"], both["y"] = both.pop("x_train"), both.pop("y_train")
    images = written(tmp_path / "c.npz", **both, age=ages[:9], age_test=ages[9:])()
    assert images.columns["age"].values.tolist() == ages.tolist()


def test_labels_may_be_texts(tmp_path):
    images = written(tmp_path / "a.npz", x=RGB, y=np.array(["dog", "cat", "eel"] * 4))()
    assert images.labels.tolist() == [1, 0, 2] * 4
    assert [images.columns["class"].words[i] for i in images.columns["class"].values.tolist()] == ["dog", "cat", "eel"] * 4


def test_whole_numbers_of_another_type_are_welcome(tmp_path):
    assert written(tmp_path / "a.npz", x=RGB.astype(np.float32), y=Y)().pixels.tolist() == RGB.transpose(0, 3, 1, 2).tolist()


def test_a_name_that_ends_in_npz_is_a_path(tmp_path):
    assert build("dataset", "some/set.npz") == Npz("some/set.npz")


def test_what_can_be_wrong(tmp_path):
    path = tmp_path / "a.npz"

    def fault(**arrays: object) -> str:
        dataset = written(path, **arrays) if arrays else Npz(str(path))
        with pytest.raises(InputError) as error:
            dataset(store=Store(tmp_path / "store"))
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix("dataset 'npz': ").replace(str(path), "FILE")

    assert fault() == "there is no file FILE; write one with numpy.savez(path, x=pixels, y=labels)"
    need = "FILE needs exactly one array named"
    assert fault(arr_0=RGB, y=Y) == f"{need} x or images or pixels, got 0 (its arrays: arr_0, y); rename the arrays"
    assert fault(x=RGB, images=RGB, y=Y).startswith(f"{need} x or images or pixels, got 2 (")
    assert fault(x=RGB, y=Y, x_test=RGB).startswith(f"{need} y_test or labels_test, got 0 (")
    assert fault(x=RGB, y=Y[:-1]) == "FILE has 12 images in 'x', 11 labels in 'y'; expected as many"
    assert fault(x=RGB, y=Y.astype(float)) == "FILE has labels of float64 in 'y'; expected whole numbers (or texts): convert them to int64"
    assert fault(x=RGB, y=np.eye(12)) == "FILE has labels of shape (12, 12) in 'y'; expected one label an image, [n]"
    assert fault(x=RGB, y=np.array([None] * 12)).startswith("FILE has labels of object in 'y'; ")
    assert fault(x=RGB, y=Y - 1) == "FILE has the label -1 in image 0, expected classes counted from 0; replace it with an intact copy"
    assert fault(x=RGB, y=2 * Y).startswith("FILE has no training image of class 1 (its labels go up to 4); ")
    assert fault(x=RGB[:9], y=Y[:9], x_test=RGB[9:], y_test=Y[9:] + 1).startswith("FILE has no training image of class 3 ")
    assert fault(x=RGB[:9], y=Y[:9], x_test=RGB[9:, 1:], y_test=Y[9:]) == "FILE has images of (5, 5, 3) in 'x_test', of (6, 5, 3) in 'x'; expected one shape"
    assert fault(x=RGB[..., :2], y=Y) == "FILE has images of shape (12, 6, 5, 2) in 'x'; expected 1 or 3 channels, first or last"
    assert fault(x=RGB[0, 0, 0], y=Y) == "FILE has images of shape (3,) in 'x'; expected [n h w], [n h w c] or [n c h w]"
    assert fault(x=np.array(3), y=Y) == "FILE has images of shape () in 'x'; expected [n h w], [n h w c] or [n c h w]"
    assert fault(x=RGB[:0], y=Y[:0]) == "FILE has no image in 'x'; expected at least one"
    what = "expected whole numbers from 0 to 255: convert them to uint8, 0 to 255"
    assert fault(x=RGB / 255, y=Y).startswith("FILE has pixels of float64 in 'x' with values such as 0.")
    assert fault(x=RGB / 255, y=Y).endswith(what)
    assert fault(x=RGB.astype(int) - 128, y=Y).endswith(what)
    assert fault(x=RGB * np.float32(np.nan), y=Y) == f"FILE has pixels of float32 in 'x' with values such as nan; {what}"
    assert (
        fault(x=(RGB > 128).astype(float), y=Y) == "FILE has pixels of float64 in 'x', all 0 or 1; expected 0 to 255: multiply by 255 and convert them to uint8"
    )
    assert fault(x=RGB > 128, y=Y) == "FILE has pixels of bool in 'x'; expected uint8"

    whole = (written(path, True, x=RGB, y=Y), path.read_bytes())[1]
    path.write_bytes(whole[: len(whole) // 2])
    assert fault().startswith("FILE is no .npz archive, or is damaged (")
    path.write_bytes(b"")
    assert fault().startswith("FILE is no .npz archive, or is damaged (")
    for at in (len(whole) // 3, len(whole) // 2):
        broken = bytearray(whole)
        broken[at : at + 4] = bytes(x ^ 255 for x in broken[at : at + 4])
        path.write_bytes(bytes(broken))
        assert "damaged (" in fault() or "damaged in 'x' (" in fault()
    stored = (written(path, x=np.tile(RGB, (40, 1, 1, 1)), y=np.tile(Y, 40)), path.read_bytes())[1]
    broken = bytearray(stored)
    broken[20000] ^= 1  # one bit of a pixel: the checksum tells
    path.write_bytes(bytes(broken))
    assert fault() == "FILE is damaged in 'x' (Bad CRC-32 for file 'x.npy'); replace it with an intact copy"
    path.write_bytes(stored)
    before = listed(tmp_path)["a.npz"]
    assert len(Npz(str(path))(store=Store(tmp_path / "store"))) == 480
    assert listed(tmp_path)["a.npz"] == before


def test_from_files_to_trained_weights(tmp_path):
    (tmp_path / "root").mkdir()
    dataset = written(tmp_path / "root" / "a.npz", x_train=RGB, y_train=Y, x_test=RGB[:3], y_test=Y[:3])
    assert len(trains(dataset, tmp_path / "root", Store(tmp_path / "store"))) == 15
