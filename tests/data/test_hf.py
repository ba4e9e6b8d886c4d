"""Parquet files of the hub and arrow files of ``save_to_disk``, written as the library `datasets` writes them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from genuine import listed, trains
from PIL import Image

from unlearnlab.data.hf import Hf
from unlearnlab.spec import InputError, build
from unlearnlab.store import Store

NAMES = ["ant", "bee", "cow"]
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def noise(seed: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "png") -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return held.getvalue()


def rows(seeds: range, image: str = "image", label: str = "label", named: bool = True, **columns: list[object]) -> pa.Table:
    """One row a seed, whose label is seed % 3, with the note of features that the hub's files bear."""
    pictures = pa.array([{"bytes": encoded(noise(seed)), "path": f"{seed}.png"} for seed in seeds], IMAGE)
    held = pa.table({image: pictures, label: pa.array([seed % 3 for seed in seeds], pa.int64()), **columns})
    features = {image: {"_type": "Image"}, label: {"names": NAMES, "_type": "ClassLabel"}}
    return held.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})} if named else None)


def parquet(path: Path, held: pa.Table, **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(held, path, **settings)
    return path


def to_disk(folder: Path, *shards: pa.Table) -> Path:
    """What Dataset.save_to_disk writes: shards as arrow streams, dataset_info.json and state.json."""
    folder.mkdir(parents=True)
    names = [f"data-{at:05}-of-{len(shards):05}.arrow" for at in range(len(shards))]
    for name, held in zip(names, shards, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, held.schema) as writer:
            writer.write_table(held, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_format_columns": None, "_format_kwargs": {}}
    (folder / "state.json").write_text(json.dumps({**state, "_format_type": None, "_output_all_columns": False, "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def snapshot(folder: Path) -> Path:
    """A repository of parquet files: seeds 0 to 8 in two shards for training, 9 to 11 for testing."""
    parquet(folder / "data" / "train-00000-of-00002.parquet", rows(range(5), age=[10 * seed for seed in range(5)]), row_group_size=2)
    parquet(folder / "data" / "train-00001-of-00002.parquet", rows(range(5, 9), age=[50, None, 70, 80]))
    parquet(folder / "data" / "test-00000-of-00001-0123456789abcdef.parquet", rows(range(9, 12), age=[90, 100, 110]))
    (folder / "README.md").write_text("---\n---\n")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    return folder


def check(images: object, seeds: range, trained: int) -> None:
    assert images.pixels[:].tolist() == [noise(seed).transpose(2, 0, 1).tolist() for seed in seeds]
    assert images.labels.tolist() == [seed % 3 for seed in seeds]
    assert images.ids.tolist() == list(range(len(seeds)))
    assert images.columns["split"].values.tolist() == [int(at >= trained) for at in range(len(seeds))]
    assert images.columns["class"].words == tuple(NAMES)
    assert images.classes == 3


def test_a_snapshot_of_parquet_files(tmp_path):
    folder = snapshot(tmp_path / "set")
    before = listed(folder)
    images = Hf(str(folder))(store=Store(tmp_path / "store"))
    check(images, range(12), 9)
    ages = images.columns["age"].values.tolist()
    assert ages[:6] + ages[7:] == [0, 10, 20, 30, 40, 50, 70, 80, 90, 100, 110]
    assert np.isnan(ages[6])
    assert listed(folder) == before


@pytest.mark.parametrize("names", [("validation-00000-of-00001", "data"), ("0000", "plain/validation"), ("validation", ".")])
def test_validation_counts_as_test_where_there_is_none(tmp_path, names):
    name, where = names
    parquet(tmp_path / where.replace("validation", "train") / f"{name.replace('validation', 'train')}.parquet", rows(range(6)))
    parquet(tmp_path / where / f"{name}.parquet", rows(range(6, 9)))
    check(Hf(str(tmp_path))(), range(9), 6)
    if where == "data":  # and is left out where there is one
        parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows(range(9, 11)))
        assert len(Hf(str(tmp_path))()) == 8


def test_one_file_is_all_for_training(tmp_path):
    path = parquet(tmp_path / "test.parquet", rows(range(6)))
    check(Hf(str(path))(), range(6), 6)
    assert build("dataset", str(path)) == Hf(str(path))


def test_what_save_to_disk_wrote(tmp_path):
    check(Hf(str(to_disk(tmp_path / "one", rows(range(5)), rows(range(5, 7)))))(), range(7), 7)
    both = tmp_path / "both"
    to_disk(both / "test", rows(range(6, 9)))
    to_disk(both / "train", rows(range(6)))
    (both / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    before = listed(both)
    check(Hf(str(both))(store=Store(tmp_path / "store")), range(9), 6)
    assert listed(both) == before


def test_names_and_types_of_columns(tmp_path):
    held = rows(range(6), "img", "fine_label", coarse_label=[0, 1] * 3, user=["x", None] * 3, score=[0.5] * 6, old=[True, False] * 3, box=[[1, 2]] * 6)
    parquet(tmp_path / "a.parquet", held)
    images = Hf(str(tmp_path / "a.parquet"))()
    assert set(images.columns) == {"class", "coarse_label", "user", "score", "old", "split"}
    assert images.columns["user"].words == ("", "x")
    assert images.columns["old"].values.tolist() == [1, 0] * 3
    images = Hf(str(tmp_path / "a.parquet"), label="coarse_label")()
    assert images.labels.tolist() == [0, 1] * 3
    assert images.columns["fine_label"].values.tolist() == [0, 1, 2] * 2


def test_labels_as_texts_and_images_as_bare_bytes(tmp_path):
    held = pa.table({"jpg": pa.array([encoded(noise(seed)) for seed in range(4)], pa.large_binary()), "labels": ["b", "a", "b", "c"]})
    images = Hf(str(parquet(tmp_path / "a.parquet", held)))()
    assert images.labels.tolist() == [1, 0, 1, 2]
    assert images.columns["class"].words == ("a", "b", "c")
    assert images.pixels[3].tolist() == noise(3).transpose(2, 0, 1).tolist()


def test_sizes_and_channels(tmp_path):
    smooth = np.full((30, 20, 3), (200, 60, 90), dtype=np.uint8)
    held = pa.table({"image": pa.array([{"bytes": encoded(smooth, "jpeg"), "path": None}], IMAGE), "label": [0]})
    path = parquet(tmp_path / "a.parquet", held)
    found = Hf(str(path), size=7)().pixels
    assert found.shape == (1, 3, 7, 7)
    assert np.abs(found[0, :, 3, 3].numpy().astype(int) - [200, 60, 90]).max() < 5
    assert Hf(str(path), size=7, channels=1)().pixels.shape == (1, 1, 7, 7)
    assert (Hf(str(path), channels=1).mean, Hf(str(path)).mean) == ((0.5,), (0.485, 0.456, 0.406))


def test_what_can_be_wrong(tmp_path):
    folder = tmp_path / "set"

    def fault(path: Path = folder, **settings: object) -> str:
        with pytest.raises(InputError) as error:
            Hf(str(path), **settings)(store=Store(tmp_path / "store"))
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix("dataset 'hf': ").replace(f"{tmp_path}/", "")

    intact = "; replace it with an intact copy"
    assert fault() == "there is no folder or file set; give as path what `hf download` or save_to_disk wrote"
    folder.mkdir()
    assert fault() == "set holds neither parquet files nor a state.json; expected what `hf download` or save_to_disk wrote: give that folder"
    snapshot(folder)
    shard = folder / "data" / "train-00001-of-00002.parquet"
    whole = shard.read_bytes()
    shard.unlink()
    assert fault() == "there is no file set/data/train-00001-of-00002…; expected all 2 parts: download the rest"
    shard.write_bytes(whole[:-20])
    assert fault().startswith("set/data/train-00001-of-00002.parquet is truncated or damaged (")
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert fault().startswith("set/data/train-00001-of-00002.parquet is truncated or damaged (")
    parquet(shard, rows(range(5, 9), label="lable"))
    assert fault().startswith("set/data/train-00001-of-00002.parquet has no column 'label' (its columns: image, lable), expected ")
    bad = rows(range(5, 9))
    for labels, what in (([0, 1, 3, 2], "has the label 3 in row 2, expected 0 to 2"), ([0, -1, 2, 2], "has the label -1 in row 1, expected 0 to 2")):
        parquet(shard, bad.set_column(1, "label", pa.array(labels)))
        assert fault() == f"set/data/train-00001-of-00002.parquet {what}{intact}"
    parquet(shard, bad.set_column(1, "label", pa.array([0, None, 1, 1])))
    assert fault() == f"set/data/train-00001-of-00002.parquet has no label in row 1, expected 0 to 2{intact}"
    for held, what in (
        ({"bytes": encoded(noise(1))[:60], "path": "1.png"}, "(row 3) is damaged: "),
        ({"bytes": b"text", "path": "1.png"}, "(row 3) is not a picture (4 bytes of another kind)"),
        ({"bytes": None, "path": "1.png"}, "holds only the path 1.png in row 3, expected the image itself"),
        (None, "holds no image in row 3, expected the image itself"),
        ({"bytes": encoded(noise(1, 4, 4)), "path": None}, "(row 3) has 4×4 pixels, but row 0 of set/data/train-00000-of-00002.parquet has 6×5; set size = 5"),
    ):
        pictures = [*bad.column("image").to_pylist()[:3], held]
        parquet(shard, bad.set_column(0, "image", pa.array(pictures, IMAGE)))
        expected = f"set/data/train-00001-of-00002.parquet {what}"
        assert fault()[: len(expected)] == expected
    shard.write_bytes(whole)
    assert fault(image="picture") == ("set/data/train-00000-of-00002.parquet has no column 'picture'; its columns are image, label, age: set image = …")
    assert fault(image="age").startswith("set/data/train-00000-of-00002.parquet has int64 in column 'age'; expected image files as bytes")
    assert fault(label="image").startswith("set/data/train-00000-of-00002.parquet has struct<bytes: binary, path: string> in column 'image'; expected whole")
    parquet(folder / "other" / "train-00000-of-00001.parquet", rows(range(3)))
    assert fault() == "set holds several data sets, in set/data and set/other; give one of these folders as path"

    one = parquet(tmp_path / "one.parquet", rows(range(0)))
    assert fault(one) == f"one.parquet has no rows, expected one for every image{intact}"
    parquet(one, rows(range(0, 6, 2), named=False).set_column(1, "label", pa.array([0, 2, 2])))
    assert "has no training image of class 1 (its labels go up to 2); " in fault(one)
    parquet(one, rows(range(2), named=False).set_column(1, "label", pa.array([0, -2])))
    assert f"has the label -2 in row 1 of one.parquet, expected classes counted from 0{intact}" in fault(one)


def test_what_can_be_wrong_with_what_save_to_disk_wrote(tmp_path):
    folder = to_disk(tmp_path / "one", rows(range(5)), rows(range(5, 9)))

    def fault() -> str:
        with pytest.raises(InputError) as error:
            Hf(str(folder))(store=Store(tmp_path / "store"))
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix("dataset 'hf': ").replace(f"{tmp_path}/", "")

    shard = folder / "data-00001-of-00002.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert fault().startswith("one/data-00001-of-00002.arrow is truncated or damaged (")
    shard.unlink()
    assert fault() == "one/state.json names data-00001-of-00002.arrow, but there is no file one/data-00001-of-00002.arrow; copy the whole folder again"
    shard.write_bytes(whole)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    assert fault() == "one/state.json chooses rows of the files beside it; expected the rows alone: call flatten_indices() and save again"
    (folder / "state.json").write_text("{")
    assert fault().startswith("one/state.json does not list the data files that save_to_disk wrote (JSONDecodeError: ")


def test_without_pyarrow(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", rows(range(3)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"^dataset 'hf' needs pyarrow, which is not installed; pip install 'unlearnlab\[hub\]'$"):
        Hf(str(path))()


def test_from_files_to_trained_weights(tmp_path):
    snapshot(tmp_path / "root" / "set")
    assert len(trains(Hf(str(tmp_path / "root" / "set")), tmp_path / "root", Store(tmp_path / "store"))) == 12
