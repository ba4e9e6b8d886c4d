"""Folders of images, a folder a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from genuine import listed, trains
from PIL import Image

from unlearnlab.data.image_folder import ImageFolder
from unlearnlab.spec import InputError, build
from unlearnlab.store import Store


def put(path: Path, red: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 100, 200)).save(path)


def flat(base: Path) -> Path:
    """Three classes of which 'b' has its files in an order that is not that of the names."""
    for at, name in enumerate(["c/1.png", "a/2.PNG", "a/10.bmp", "b/z.jpg", "b/a.jpeg", "b/m.webp"]):
        put(base / name, 40 * at)
    (base / "a" / "notes.txt").write_text("not an image")
    (base / "a" / ".hidden.png").write_text("nor this")
    (base / ".cache" / "deep").mkdir(parents=True)
    (base / "readme.md").write_text("hello")
    return base


def parted(base: Path, held_out: str = "test") -> Path:
    for at, name in enumerate([f"{label}/{k}.png" for label in ("cat", "dog") for k in range(8)]):
        put(base / "train" / name, 10 * at)
    for at, name in enumerate(["dog/0.png", "cat/0.png", "cat/1.png"]):
        put(base / held_out / name, 200 + at)
    return base


def test_classes_and_files_in_the_order_of_their_names(tmp_path):
    base = flat(tmp_path / "pets")
    before = listed(base)
    images = ImageFolder(str(base))(store=Store(tmp_path / "store"))
    file = images.columns["file"]
    assert [file.words[i] for i in file.values.tolist()] == ["a/10.bmp", "a/2.PNG", "b/a.jpeg", "b/m.webp", "b/z.jpg", "c/1.png"]
    assert images.ids.tolist() == list(range(6))
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert images.columns["class"].words == ("a", "b", "c")
    assert images.columns["split"].values.tolist() == [0] * 6
    seen = images.pixels[:]
    assert seen.shape == (6, 3, 8, 8)
    assert seen[[0, 1, 5], :, 3, 3].tolist() == [[80, 100, 200], [40, 100, 200], [0, 100, 200]]
    assert (seen[2, :, 3, 3].int() - torch.tensor([160, 100, 200])).abs().max() < 5
    assert listed(base) == before


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_training_images_come_first(tmp_path, held_out):
    base = parted(tmp_path / "pets", held_out)
    images = ImageFolder(str(base))()
    assert images.columns["split"].values.tolist() == [0] * 16 + [1] * 3
    assert images.labels.tolist() == [0] * 8 + [1] * 8 + [0, 0, 1]
    assert images.pixels[:, 0, 0, 0].tolist() == [10 * at for at in range(16)] + [201, 202, 200]
    assert images.columns["file"].words[int(images.columns["file"].values[-1])] == f"{held_out}/dog/0.png"


def test_val_is_left_out_beside_test(tmp_path):
    base = parted(parted(tmp_path / "pets"), "val")
    put(base / "val" / "unheard of" / "0.png", 0)
    assert len(ImageFolder(str(base))()) == 19


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train/0.png", "bus/0.png", "val/0.png"):
        put(tmp_path / name, 0)
    assert ImageFolder(str(tmp_path))().columns["class"].words == ("bus", "train", "val")


def test_relative_to_the_current_folder_and_to_home(tmp_path, monkeypatch):
    parted(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(ImageFolder("pets")(tmp_path / "elsewhere")) == len(ImageFolder("~/pets")()) == 19
    assert build("dataset", "~/pets") == ImageFolder("~/pets")


def test_sizes_and_channels(tmp_path):
    put(tmp_path / "a" / "0.png", 0, (8, 6))
    put(tmp_path / "b" / "0.png", 0, (9, 9))
    with pytest.raises(InputError) as error:
        ImageFolder(str(tmp_path))()
    assert str(error.value) == (
        f"dataset 'image_folder': {tmp_path}/b/0.png has 9×9 pixels, but {tmp_path}/a/0.png has 6×8; set size = 6 (or another) to resize all to one square"
    )
    assert ImageFolder(str(tmp_path), size=5)().pixels.shape == (2, 3, 5, 5)
    grey = ImageFolder(str(tmp_path), size=5, channels=1)
    assert grey().pixels.shape == (2, 1, 5, 5)
    assert (grey.mean, grey.std) == ((0.5,), (0.5,))
    assert ImageFolder(str(tmp_path)).mean == (0.485, 0.456, 0.406)


def test_a_change_of_the_files_is_seen(tmp_path):
    base, store = parted(tmp_path / "pets"), Store(tmp_path / "store")
    first = ImageFolder(str(base))(store=store)
    assert ImageFolder(str(base))(store=store).fingerprint == first.fingerprint
    put(base / "train" / "cat" / "9.png", 9)
    assert len(ImageFolder(str(base))(store=store)) == 20


def test_what_can_be_wrong(tmp_path):
    def fault(base: Path) -> str:
        with pytest.raises(InputError) as error:
            ImageFolder(str(base))(store=Store(tmp_path / "store"))
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix("dataset 'image_folder': ")

    base = tmp_path / "none"
    assert fault(base) == f"there is no folder {base}; give as path a folder that holds a folder of images for every class"
    base.mkdir()
    assert fault(base) == f"{base} holds no class folder; expected {base}/CLASS/*.jpg (or .png …), a folder for every class"
    (base / "a").mkdir()
    (base / "a" / "notes.txt").touch()
    assert fault(base).startswith(f"{base}/a holds no image; expected at least one .bmp/.jpeg/.jpg/")
    put(base / "stray.png", 0)
    assert fault(base) == f"{base}/stray.png lies in no class folder; expected {base}/CLASS/stray.png: move it into one"

    base = parted(tmp_path / "new")
    put(base / "test" / "eel" / "0.png", 0)
    assert fault(base) == f"{base}/test/eel is a class that {base}/train lacks; expected the same class folders in both"

    put(tmp_path / "deep" / "a" / "b" / "0.png", 0)
    assert fault(tmp_path / "deep").startswith(f"the class folder {tmp_path}/deep/a holds the folder b; expected ")

    base = parted(tmp_path / "broken")
    whole = (base / "train" / "dog" / "7.png").read_bytes()
    (base / "train" / "dog" / "7.png").write_bytes(whole[:40])
    assert fault(base).startswith(f"{base}/train/dog/7.png is ")
    assert fault(base).endswith("; replace it with an intact copy")
    (base / "train" / "dog" / "7.png").write_text("<html>")
    assert fault(base) == f"{base}/train/dog/7.png is not a picture (6 bytes of another kind); replace it with an intact copy"
    (base / "train" / "dog" / "7.png").write_bytes(whole)
    assert len(ImageFolder(str(base))(store=Store(tmp_path / "store"))) == 19


def test_from_files_to_trained_weights(tmp_path):
    base = parted(tmp_path / "root" / "pets")
    images = trains(ImageFolder(str(base)), tmp_path / "root", Store(tmp_path / "store"))
    assert np.unique(images.labels).tolist() == [0, 1]
