"""From a release to ``Images``: converted once, mapped from then on, equal to the same images in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from genuine import listed

from unlearnlab.data.disk import find_mapped, load_images, save_images
from unlearnlab.data.images import Images
from unlearnlab.data.mapped import Mapped
from unlearnlab.data.source import Release, data_root, load, need
from unlearnlab.spec import InputError, _registry, spec
from unlearnlab.store import Store

N = 20


@spec("dataset", "test_tiles")
class Tiles:
    """Twenty images of 2×3 pixels: every file holds a label and the pixels of an image; the last six are for testing."""

    mean: ClassVar[tuple[float, ...]] = (0.0,)
    std: ClassVar[tuple[float, ...]] = (1.0,)

    shift: int = 0

    def files(self, root: Path) -> Sequence[Path]:
        return need("test_tiles", root, [f"tiles/{row}.bin" for row in range(N)], "ask for them")

    def read(self, files: Sequence[Path]) -> Release:
        held = np.stack([np.frombuffer(path.read_bytes(), np.uint8) for path in files])
        labels, pixels = held[:, 0] + self.shift, held[:, 1:].reshape(-1, 1, 2, 3)
        columns = {"name": [path.stem for path in files], "age": [row * 1.5 for row in range(N)], "user": np.arange(N) % 3}
        return Release((1, 2, 3), labels, [row >= 14 for row in range(N)], 4, lambda: (pixels[at : at + 7] for at in range(0, N, 7)), columns)

    def __call__(self, root: Path | None = None, store: Store | None = None) -> Images:
        return load(self, root, store)


del _registry["dataset"]["test_tiles"]  # other tests go through all data sets


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data/tiles"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (N, 6), dtype=np.uint8)
    for row in range(N):
        (folder / f"{row}.bin").write_bytes(bytes([row % 3]) + pixels[row].tobytes())
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def both(root: Path, store: Store) -> tuple[Images, Images]:
    """In memory and mapped."""
    return Tiles()(root), Tiles()(root, store)


def equal(a: Images, b: Images) -> None:
    assert torch.equal(a.pixels[:], b.pixels[:])
    assert a.classes == b.classes
    for name in ("labels", "ids", "true_labels", "triggered"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert list(a.columns) == list(b.columns)
    for name, column in a.columns.items():
        assert torch.equal(column.values, b.columns[name].values), name
        assert column.words == b.columns[name].words


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Any, files: Sequence[Path]) -> Release:
        raise AssertionError("converted again")

    monkeypatch.setattr(Tiles, "read", read)


def test_in_memory_and_mapped_are_equal(both):
    whole, mapped = both
    assert isinstance(whole.pixels, torch.Tensor)
    assert isinstance(mapped.pixels, Mapped)
    equal(whole, mapped)
    assert whole.ids.tolist() == list(range(N))
    assert (mapped.pixels.shape, mapped.pixels.dtype, mapped.pixels.device, len(mapped.pixels)) == ((N, 1, 2, 3), torch.uint8, torch.device("cpu"), N)


def test_columns_are_numbers_or_words(both):
    columns = both[1].columns
    assert sorted(columns) == ["age", "name", "split", "user"]
    assert columns["age"].values.dtype == torch.float64
    assert columns["age"].values[3] == 4.5
    assert columns["user"].values.tolist() == [row % 3 for row in range(N)]
    assert [columns["name"].words[at] for at in columns["name"].values.tolist()] == [str(row) for row in range(N)]
    assert columns["split"].words == ("train", "test")
    assert columns["split"].values.tolist() == [0] * 14 + [1] * 6


def test_it_is_converted_once(root, store, monkeypatch):
    first = Tiles()(root, store)
    no_reading(monkeypatch)
    again = Tiles()(root, Store(store.root))
    equal(first, again)
    assert again.fingerprint == first.fingerprint
    assert len(store.list("images")) == 1
    with pytest.raises(AssertionError, match="converted again"):  # another setting is another data set
        Tiles(shift=1)(root, store)


def test_a_moved_folder_is_not_converted_again(root, store, monkeypatch):
    first = Tiles()(root, store)
    no_reading(monkeypatch)
    assert Tiles()(root.rename(root.with_name("elsewhere")), store).fingerprint == first.fingerprint


def test_a_touched_file_is_converted_anew_and_its_content_has_the_same_fingerprint(root, store, monkeypatch):
    first = Tiles()(root, store)
    os.utime(root / "tiles/4.bin", ns=(1, 1))
    again = Tiles()(root, store)
    assert len(store.list("images")) == 2
    assert again.fingerprint == first.fingerprint
    no_reading(monkeypatch)
    os.utime(root / "tiles/4.bin", ns=(2, 2))
    with pytest.raises(AssertionError, match="converted again"):
        Tiles()(root, store)


@pytest.mark.parametrize("at", [0, 1, -1])
def test_another_content_has_another_fingerprint(root, store, at):
    first = Tiles()(root, store)
    path = root / "tiles/19.bin"
    held = bytearray(path.read_bytes())
    held[at] = 2 if at == 0 and held[at] != 2 else held[at] ^ 3
    path.write_bytes(held)
    again = Tiles()(root, store)
    assert again.fingerprint != first.fingerprint
    assert Tiles()(root).fingerprint != first.fingerprint
    assert again.pixels.name == first.pixels.name if at == 0 else again.pixels.name != first.pixels.name
    equal(again, Tiles()(root))


def test_nothing_in_the_users_folder_changes(root, store):
    before, folder = listed(root), root.stat().st_mtime_ns
    images = Tiles()(root, store)
    images.pixels.whole[0] = 0  # mapped for reading: what a program writes stays in its memory
    Tiles()(root)
    assert listed(root) == before
    assert root.stat().st_mtime_ns == folder
    equal(Tiles()(root, store), Tiles()(root))
    assert store.get("images", store.list("images")[0].key)


def test_damaged_pixels_in_the_store_are_made_again(root, tmp_path):
    said: list[str] = []
    store = Store(tmp_path / "store", say=said.append)
    Tiles()(root, store)
    [row] = store.list("images")
    file = store.root / "images" / row.key / "pixels.npy"
    file.write_bytes(file.read_bytes()[:-1])
    equal(Tiles()(root, store), Tiles()(root))
    assert any("damaged" in line for line in said)


INDICES = {
    "mask": torch.arange(N) % 2 == 0,
    "indices": torch.tensor([19, 0, 7, 3]),
    "none": torch.tensor([], dtype=torch.int64),
    "all": torch.arange(N),
    "backwards": torch.arange(N).flip(0),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_rows_of_both(both, index):
    whole, mapped = (images.rows(index) for images in both)
    assert isinstance(mapped.pixels, Mapped)
    equal(whole, mapped)
    equal(whole.rows(torch.arange(len(whole)).flip(0)), mapped.rows(torch.arange(len(mapped)).flip(0)))


@pytest.mark.parametrize("index", [3, slice(2, 9), slice(None), torch.tensor(5), torch.tensor([[1, 2], [3, 1]]), torch.arange(N) > 15], ids=str)
def test_indexing_gives_what_a_tensor_gives(both, index):
    whole, mapped = both
    assert torch.equal(mapped.pixels[index], whole.pixels[index])


def test_take_without_and_to(both):
    whole, mapped = both
    equal(whole.take([5, 2]), mapped.take([5, 2]))
    equal(whole.without([5, 2]), mapped.without([5, 2]))
    equal(whole.to("cpu"), mapped.to("cpu"))


def test_joining_parts_of_the_same_data_set_stays_mapped(both):
    parts = [torch.tensor([4, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([19, 0, 1])]
    whole, mapped = (Images.join([images.rows(part) for part in parts]) for images in both)
    assert isinstance(mapped.pixels, Mapped)
    equal(whole, mapped)


def test_joining_with_others_gives_a_tensor(both, root, store):
    whole, mapped = both
    (root / "tiles/0.bin").write_bytes(b"\x01_other")
    other = Tiles()(root, store)
    for late in (other.rows(torch.arange(10, N)), whole.rows(torch.arange(10, N))):
        joined = Images.join([mapped.rows(torch.arange(10)), late])
        assert isinstance(joined.pixels, torch.Tensor)
        equal(joined, whole)


def test_fingerprints_tell_what_pixels_tell(both):
    _, mapped = both
    some = mapped.rows(torch.tensor([1, 2, 3]))
    assert some.fingerprint == mapped.rows(torch.tensor([0, 1, 2, 3])).without([0]).fingerprint
    others = [mapped, some, mapped.rows(torch.tensor([1, 3, 2])), replace(some, labels=1 - some.labels.clamp(max=1)), replace(some, classes=5)]
    assert len({images.fingerprint for images in others}) == len(others)


def test_other_pixels_are_laid_over_and_the_disk_stays(both, root, store):
    whole, mapped = both
    rows, painted = torch.tensor([2, 19]), torch.full((2, 1, 2, 3), 7, dtype=torch.uint8)
    laid = replace(mapped, pixels=mapped.pixels.putting(rows, painted))
    plain = whole.pixels.clone()
    plain[rows] = painted
    expected = replace(whole, pixels=plain.clone())
    equal(laid, expected)
    equal(mapped, whole)
    assert laid.fingerprint != mapped.fingerprint
    # once more, over one of the same rows, through rows and joins
    again = laid.pixels.putting(torch.tensor([19, 0]), painted + 1)
    plain[torch.tensor([19, 0])] = 8
    assert torch.equal(again[:], plain)
    index = torch.tensor([19, 1, 2, 0, 18])
    assert torch.equal(again.select(index)[:], plain[index])
    joined = Mapped.join([again.select(torch.tensor([19, 1])), mapped.pixels.select(torch.tensor([2])), laid.pixels.select(torch.tensor([2, 0]))])
    assert isinstance(joined, Mapped)
    assert torch.equal(joined[:], torch.cat([plain[[19, 1]], whole.pixels[[2]], expected.pixels[[2, 0]]]))
    equal(Tiles()(root, store), whole)


def test_parts_are_stored_as_rows_and_found_again(both, store, tmp_path):
    _, mapped = both
    part = mapped.rows(torch.tensor([3, 1, 15]))
    laid = replace(part, pixels=part.pixels.putting(torch.tensor([1]), torch.zeros((1, 1, 2, 3), dtype=torch.uint8)))
    save_images(tmp_path / "part", laid)
    equal(load_images(tmp_path / "part", store), laid)
    assert load_images(tmp_path / "part", store).fingerprint == laid.fingerprint
    assert find_mapped(store, mapped.pixels.name)
    with pytest.raises(FileNotFoundError):
        load_images(tmp_path / "part", Store(tmp_path / "another"))


def test_a_fault_in_the_middle_leaves_nothing_in_the_store(root, store, monkeypatch):
    whole = Tiles().read(Tiles().files(root))

    def blocks():
        yield next(iter(whole.blocks()))
        raise InputError("the second file is damaged")

    monkeypatch.setattr(Tiles, "read", lambda self, files: replace(whole, blocks=blocks))
    with pytest.raises(InputError, match="the second file is damaged"):
        Tiles()(root, store)
    assert store.list() == []
    assert not list((store.root / "images").glob("*.tmp*"))


def test_a_data_set_without_a_single_image(root, store, monkeypatch):
    nothing = Release((1, 2, 3), [], [], 4, lambda: [np.zeros((0, 1, 2, 3), np.uint8)])
    monkeypatch.setattr(Tiles, "read", lambda self, files: nothing)
    for kept in (None, store):
        with pytest.raises(InputError, match=r"tiles/0.bin holds no image, nor does any other file of this data set; expected at least one"):
            Tiles()(root, kept)


def test_labels_outside_the_classes_are_refused_before_anything_is_kept(root, store):
    for kept in (None, store):
        with pytest.raises(InputError, match="image id 2 has label 4; expected 0 to 3"):
            Tiles(shift=2)(root, kept)
    assert store.list() == []


def test_a_missing_file_names_the_folder_and_how_to_choose_it(root):
    (root / "tiles/7.bin").unlink()
    with pytest.raises(InputError) as caught:
        Tiles()(root)
    assert str(caught.value) == (
        f"dataset 'test_tiles': there is no file {root}/tiles/7.bin; ask for them (--data-root or $UNLEARNLAB_DATA names the folder, now {root})"
    )


def test_where_data_sets_lie(monkeypatch, root):
    monkeypatch.delenv("UNLEARNLAB_DATA", raising=False)
    assert data_root() == Path("data")
    monkeypatch.setenv("UNLEARNLAB_DATA", str(root))
    assert data_root() == root
    assert data_root("other") == Path("other")
    assert len(Tiles()()) == N
