"""CIFAR-10, -100 and -20, from files as Python 2 wrote them for the release."""

from __future__ import annotations

import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch
from genuine import trains

from unlearnlab.data.cifar import Cifar10, Cifar20, Cifar100
from unlearnlab.spec import InputError, names
from unlearnlab.store import Store

LABELS10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE, COARSE = [f"fine{label}" for label in range(100)], [f"coarse{label}" for label in range(20)]
RECONSTRUCT = np.empty(0).__reduce__()[0]


class Python2(pickle._Pickler):
    """Writes pickles as Python 2 did: text and bytes alike as strings, NumPy's functions under the names of NumPy 1."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, held):
        raw = held.encode("latin1") if isinstance(held, str) else held
        self.write((b"U" + len(raw).to_bytes(1, "little") if len(raw) < 256 else b"T" + len(raw).to_bytes(4, "little")) + raw)
        self.memoize(held)

    dispatch[str] = dispatch[bytes] = save_string

    def reducer_override(self, held):
        if isinstance(held, np.dtype):  # NumPy 1 wrote 0 and 1, which NumPy 2.4 warns of
            return np.dtype, (held.str[1:], 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented

    def save_global(self, held, name=None):
        if held is RECONSTRUCT:
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(held)
        else:
            super().save_global(held, name)


def write(path: Path, held: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2(file, protocol=2).dump(held)


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def batch10(number: int, n: int = 4) -> dict[str, object]:
    labels = [(3 * number + row) % 10 for row in range(n)]
    return {"batch_label": f"training batch {number} of 5", "labels": labels, "data": pixels(n, number), "filenames": [f"x_{row}.png" for row in range(n)]}


def write10(root: Path) -> Path:
    folder = root / "cifar-10-batches-py"
    for number in range(1, 6):
        write(folder / f"data_batch_{number}", batch10(number))
    write(folder / "test_batch", batch10(6, n=5))
    write(folder / "batches.meta", {"num_cases_per_batch": 10000, "label_names": LABELS10, "num_vis": 3072})
    return folder


def batch100(seed: int, fine: list[int]) -> dict[str, object]:
    return {"data": pixels(len(fine), seed), "batch_label": "b", "fine_labels": fine, "coarse_labels": [label // 5 for label in fine], "filenames": []}


def write100(root: Path) -> Path:
    folder = root / "cifar-100-python"
    write(folder / "train", batch100(1, [69, 0, 99, 51, 2, 40, 71, 69, 5, 69, 7, 8]))
    write(folder / "test", batch100(2, [99, 69, 1]))
    write(folder / "meta", {"fine_label_names": FINE, "coarse_label_names": COARSE})
    return folder


def words(images, name: str) -> list[str]:
    column = images.columns[name]
    return [column.words[at] for at in column.values.tolist()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write10(folder)
    write100(folder)
    return folder


def test_the_fixtures_are_what_python_2_wrote(root):
    ops = [(op.name, argument) for op, argument, _ in pickletools.genops((root / "cifar-10-batches-py/data_batch_1").read_bytes())]
    kinds = {name for name, _ in ops}
    assert ops[0] == ("PROTO", 2)
    assert "BINSTRING" in kinds
    assert not [name for name in kinds if "UNICODE" in name or "BYTES" in name]
    assert [argument for name, argument in ops if name == "GLOBAL"] == ["numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"]
    held = pickle.loads((root / "cifar-100-python/meta").read_bytes(), encoding="bytes")
    assert list(held) == [b"fine_label_names", b"coarse_label_names"]


def test_cifar10(root):
    images = Cifar10()(root)
    assert (len(images), images.classes, images.pixels.shape, images.pixels.dtype) == (25, 10, (25, 3, 32, 32), torch.uint8)
    assert images.ids.tolist() == list(range(25))
    wanted = [label for number in range(1, 6) for label in batch10(number)["labels"]] + batch10(6, n=5)["labels"]
    assert images.labels.tolist() == wanted
    assert words(images, "class") == [LABELS10[label] for label in wanted]
    assert words(images, "split") == ["train"] * 20 + ["test"] * 5


def test_planes_are_red_green_blue_and_each_is_row_by_row(root):
    folder = root / "cifar-10-batches-py"
    row = np.concatenate([np.full(1024, 200), np.repeat(np.arange(32), 32), np.tile(np.arange(32), 32) + 100]).astype(np.uint8)
    write(folder / "test_batch", {"data": np.stack([row[::-1], row]), "labels": [0, 9]})
    last = Cifar10()(root).pixels[-1]
    red, green, blue = last
    assert (red == 200).all()
    assert green[:, 0].tolist() == list(range(32))  # the line
    assert (green == green[:, :1]).all()
    assert blue[0].tolist() == list(range(100, 132))  # the column
    assert (blue == blue[:1]).all()


def test_every_pixel_of_the_first_and_of_the_last_image(root):
    images = Cifar10()(root)
    assert images.pixels[0].flatten().tolist() == pixels(4, 1)[0].tolist()
    assert images.pixels[24].flatten().tolist() == pixels(5, 6)[4].tolist()
    assert images.labels[24] == (3 * 6 + 4) % 10


def test_cifar100_and_cifar20(root):
    fine = [69, 0, 99, 51, 2, 40, 71, 69, 5, 69, 7, 8, 99, 69, 1]
    hundred, twenty = Cifar100()(root), Cifar20()(root)
    assert (hundred.classes, twenty.classes) == (100, 20)
    assert hundred.labels.tolist() == fine
    assert twenty.labels.tolist() == hundred.columns["coarse_label"].values.tolist() == [label // 5 for label in fine]
    assert words(hundred, "class") == words(twenty, "fine") == [FINE[label] for label in fine]
    assert words(hundred, "coarse") == words(twenty, "class") == [COARSE[label // 5] for label in fine]
    assert twenty.columns["fine_label"].values.tolist() == fine
    assert hundred.ids.tolist() == twenty.ids.tolist() == list(range(15))
    assert words(hundred, "split") == ["train"] * 12 + ["test"] * 3
    assert torch.equal(hundred.pixels, twenty.pixels)
    assert hundred.pixels[14].flatten().tolist() == pixels(3, 2)[2].tolist()


@pytest.mark.parametrize("protocol", [2, 4])
def test_subsets_that_python_3_wrote_are_read_too(root, protocol):
    held = batch10(1)
    (root / "cifar-10-batches-py/data_batch_1").write_bytes(pickle.dumps({**held, "labels": np.array(held["labels"])}, protocol))
    assert Cifar10()(root).pixels[0].flatten().tolist() == pixels(4, 1)[0].tolist()


@pytest.mark.parametrize("dataset", [Cifar10(), Cifar100(), Cifar20()], ids=["cifar10", "cifar100", "cifar20"])
def test_from_genuine_bytes_to_a_trained_step(root, tmp_path, dataset):
    images = trains(dataset, root, Store(tmp_path / "store"))
    assert torch.equal(images.pixels[:], dataset(root).pixels)


@pytest.mark.parametrize("file", ["data_batch_5", "test_batch", "batches.meta"])
def test_a_missing_file_says_what_to_place_where(root, file):
    (root / "cifar-10-batches-py" / file).unlink()
    with pytest.raises(InputError, match=file) as caught:
        Cifar10()(root)
    assert f"there is no file {root}/cifar-10-batches-py/{file}" in str(caught.value)
    assert f"unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in {root}" in str(caught.value)


def test_without_any_file_cifar20_names_what_it_shares_with_cifar100(tmp_path):
    with pytest.raises(
        InputError, match=r"dataset 'cifar20': there is no file .*cifar-100-python/train; run 'unlearnlab fetch cifar20', or unpack .*cifar-100-python"
    ):
        Cifar20()(tmp_path)


def spoil(held: dict[str, object], **other: object) -> dict[str, object]:
    return {key: value for key, value in {**held, **other}.items() if value is not None}


@pytest.mark.parametrize(
    ("file", "held", "said"),
    [
        ("data_batch_2", spoil(batch10(2), labels=[1, 2, 10, 3]), "gives image 2 the label 10 under 'labels', expected 0 to 9"),
        ("data_batch_2", spoil(batch10(2), labels=[1, 2, -1, 3]), "gives image 2 the label -1 under 'labels', expected 0 to 9"),
        ("test_batch", spoil(batch10(2), labels=[1, 2, 3]), "has 3 labels under 'labels', expected 4, as many as images"),
        ("test_batch", spoil(batch10(2), labels=["1", "2", "3", "4"]), "has no list of whole numbers under 'labels'"),
        ("data_batch_1", spoil(batch10(2), labels=None), r"its keys: batch_label, data, filenames\), expected one label an image"),
        ("data_batch_1", spoil(batch10(2), data=None), "has under 'data' NoneType, expected uint8 "),
        ("data_batch_1", spoil(batch10(2), data=pixels(4, 1)[:, :-1]), r"has under 'data' uint8 \[4, 3071\], expected uint8 \[n, 3072\]"),
        ("data_batch_1", spoil(batch10(2), data=pixels(4, 1).reshape(4, 3, 32, 32)), r"has under 'data' uint8 \[4, 3, 32, 32\]"),
        ("data_batch_1", [1, 2], "holds a list, expected a dict"),
        ("batches.meta", {"label_names": LABELS10[:9]}, "has 9 names under 'label_names', expected 10"),
        ("batches.meta", {"num_vis": 3072}, "has no list of names under 'label_names', expected 10"),
    ],
)
def test_a_mislabelled_file_is_named(root, file, held, said):
    write(root / "cifar-10-batches-py" / file, held)
    with pytest.raises(InputError, match=said) as caught:
        Cifar10()(root)
    assert str(caught.value).startswith(f"dataset 'cifar10': {root}/cifar-10-batches-py/{file} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value", "said"), [("fine_labels", 100, "expected 0 to 99"), ("coarse_labels", 20, "expected 0 to 19")])
@pytest.mark.parametrize("dataset", [Cifar100(), Cifar20()])
def test_both_kinds_of_labels_of_cifar100_are_checked(root, dataset, key, value, said):
    held = batch100(1, [1, 2, 3])
    held[key][2] = value
    write(root / "cifar-100-python/train", held)
    with pytest.raises(InputError, match=f"train gives image 2 the label {value} under '{key}', {said}"):
        dataset(root)


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_a_truncated_file_is_named(root, tmp_path, keep):
    path = root / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes()[:keep])
    for store in (None, Store(tmp_path / "store")):
        with pytest.raises(InputError, match=f"data_batch_3 is truncated or damaged: its {path.stat().st_size} bytes are no whole pickle") as caught:
            Cifar10()(root, store)
        assert "replace it with an intact copy" in str(caught.value)
    assert store.list() == []


def test_garbage_is_one_clear_error_whatever_it_makes_of_the_unpickler(root):
    path = root / "cifar-10-batches-py/data_batch_3"
    whole, chance = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):  # the data lie in the middle, what is between them at both ends
        spoiled = bytearray(whole)
        for at in (*chance.integers(0, 120, 2), *chance.integers(len(whole) - 300, len(whole), 2)):
            spoiled[at] = chance.integers(0, 256)
        path.write_bytes(spoiled)
        try:
            Cifar10()(root)
        except InputError as error:
            assert "data_batch_3 " in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
    path.write_bytes(b"<!DOCTYPE html>\n<html>404</html>")
    with pytest.raises(InputError, match="data_batch_3 is truncated or damaged"):
        Cifar10()(root)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "called"),
    [(os.mkdir, "posix.mkdir"), (eval, "builtins.eval"), (os.system, "posix.system"), (np.load, "numpy.load"), (getattr, "builtins.getattr")],
)
def test_a_malicious_pickle_runs_nothing(root, tmp_path, monkeypatch, protocol, function, called):
    monkeypatch.chdir(tmp_path)
    here = {os.mkdir: "ran", eval: "__import__('os').mkdir('ran')", os.system: "mkdir ran", np.load: "ran", getattr: "ran"}[function]
    path = root / "cifar-10-batches-py/data_batch_1"
    path.write_bytes(pickle.dumps({**batch10(1), "labels": Evil(function, here)}, protocol))
    with pytest.raises(InputError) as caught:
        Cifar10()(root)
    assert str(path) in str(caught.value)
    if protocol < 5:  # protocol 5 writes arrays in a way that no release used, which is refused first
        said = called.replace("builtins", "__builtin__") if protocol <= 2 else called
        assert f"asks for {said}, expected nothing but NumPy arrays; none of it was run" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_cannot_change_what_it_is_given(root):
    """Opcode BUILD sets attributes of whatever was loaded, functions included."""
    path = root / "cifar-10-batches-py/batches.meta"
    for name in (b"numpy\ndtype", b"numpy\nndarray", b"numpy.core.multiarray\n_reconstruct", b"_codecs\nencode"):
        path.write_bytes(b"\x80\x02c" + name + b"\nN}U\x04evilK\x01s\x86b.")
        with pytest.raises(InputError, match=r"batches.meta "):
            Cifar10()(root)
    assert not [held for held in (np.dtype, np.ndarray, RECONSTRUCT) if hasattr(held, "evil")]


def test_they_are_listed():
    assert {"cifar10", "cifar100", "cifar20"} <= set(names("dataset"))
