"""Tiny ImageNet and ImageNet-100, from files laid out as in their releases."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from genuine import listed, trains
from PIL import Image

from unlearnlab.data.imagenet import ImageNet100, TinyImageNet
from unlearnlab.spec import InputError
from unlearnlab.store import Store

# in the order of wnids.txt, which is not the sorted one
WNIDS = {"n02124075": "Egyptian cat", "n01443537": "goldfish, Carassius auratus", "n04067472": "reel"}
VAL = ["n04067472", "n01443537", "n02124075", "n01443537"]


def shade(seed: int, size: int = 64) -> Image.Image:
    """A picture of one colour with a white bar at the left, that JPEG keeps nearly as it is."""
    pixels = np.full((size, size, 3), (5 * seed, 255 - 5 * seed, 90), dtype=np.uint8)
    pixels[:, : size // 4] = 255
    return Image.fromarray(pixels)


def write_tiny(root: Path, each: int = 5) -> Path:
    base = root / "tiny-imagenet-200"
    base.mkdir(parents=True)
    (base / "wnids.txt").write_text("\n".join(WNIDS))
    lines = [f"{wnid}\t{words}\n" for wnid, words in {**WNIDS, "n00001740": "entity"}.items()]
    (base / "words.txt").write_text("".join(sorted(lines)))
    for at, wnid in enumerate(sorted(WNIDS)):
        folder = base / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for k in range(each):
            picture = shade(10 * at + k)
            (picture.convert("L") if k == 1 else picture).save(folder / f"{wnid}_{k}.JPEG", quality=95)
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    (base / "val" / "images").mkdir(parents=True)
    (base / "test" / "images").mkdir(parents=True)
    shade(0).save(base / "test" / "images" / "test_0.JPEG")
    for k in range(len(VAL)):
        shade(40 + k).save(base / "val" / "images" / f"val_{k}.JPEG", quality=95)
    (base / "val" / "val_annotations.txt").write_text("".join(f"val_{k}.JPEG\t{wnid}\t0\t32\t44\t62\n" for k, wnid in enumerate(VAL)))
    return base


def texts(images: object, column: str) -> list[str]:
    return [images.columns[column].words[i] for i in images.columns[column].values.tolist()]


def test_tiny_imagenet(tmp_path):
    base = write_tiny(tmp_path, each=11)
    before = listed(base)
    images = TinyImageNet()(tmp_path, Store(tmp_path / "store"))
    assert images.classes == 3
    assert images.ids.tolist() == list(range(37))
    assert images.labels.tolist() == [0] * 11 + [1] * 11 + [2] * 11 + [2, 0, 1, 0]  # classes in sorted order
    assert images.columns["split"].values.tolist() == [0] * 33 + [1] * 4
    names = [f"n01443537_{k}.JPEG" for k in (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9)]  # in the order of the names, all of them
    assert texts(images, "file")[:11] == [f"train/n01443537/images/{name}" for name in names]
    assert texts(images, "file")[-1] == "val/images/val_3.JPEG"
    assert texts(images, "wnid")[-4:] == VAL
    assert texts(images, "class")[-4:] == [WNIDS[wnid] for wnid in VAL]
    pixels = images.pixels[:].int()
    assert pixels.shape == (37, 3, 64, 64)
    for row, seed in ((0, 0), (2, 10), (10, 9), (32, 29), (33, 40), (36, 43)):  # the last of a part is there
        expected = np.asarray(shade(seed)).transpose(2, 0, 1).astype(int)
        assert np.abs(pixels[row].numpy() - expected)[:, :, [4, 40]].max() < 6
    assert (pixels[1, 0] == pixels[1, 2]).all()  # a grey one
    assert listed(base) == before


def test_what_can_be_wrong_with_tiny_imagenet(tmp_path):
    def fault() -> str:
        with pytest.raises(InputError) as error:
            TinyImageNet()(tmp_path, Store(tmp_path / "store"))
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix("dataset 'tiny_imagenet': ").replace(f"{tmp_path}/", "")

    assert fault().startswith("there is no file tiny-imagenet-200/wnids.txt; run 'unlearnlab fetch tiny_imagenet', or unpack http://cs231n")
    base = write_tiny(tmp_path)
    annotations = base / "val" / "val_annotations.txt"
    intact = annotations.read_text()
    annotations.unlink()
    assert fault().startswith("there is no file tiny-imagenet-200/val/val_annotations.txt; ")
    where = "tiny-imagenet-200/val/val_annotations.txt"
    annotations.write_text(intact.replace("n02124075", "n99999999"))
    assert fault().startswith(f"{where} has the unknown class 'n99999999' in line 3, expected a file name, a tab and one of the 3 classes of wnids.txt; ")
    annotations.write_text(intact + "val_4.JP")
    assert fault().startswith(f"{where} has 'val_4.JP' in line 5, expected ")
    annotations.write_text(intact + "val_4.JPEG\tn01443537\t0\t0\t1\t1\n")
    assert fault().startswith(f"{where} names in line 5 val_4.JPEG, but there is no file tiny-imagenet-200/val/images/val_4.JPEG; ")
    annotations.write_text(intact[: intact.index("val_3")])
    assert fault().startswith(f"{where} names 3 images, expected 4: it lacks val_3.JPEG; ")
    annotations.write_text(intact)

    last = base / "train" / "n04067472" / "images" / "n04067472_4.JPEG"
    whole = last.read_bytes()
    last.unlink()
    assert fault().startswith("tiny-imagenet-200/train/n04067472/images holds 4 images, expected 5 as in n01443537; ")
    last.write_bytes(whole[:-40])
    assert fault().startswith("tiny-imagenet-200/train/n04067472/images/n04067472_4.JPEG is damaged: image file is truncated")
    shade(0, 60).save(last)
    assert fault().startswith("tiny-imagenet-200/train/n04067472/images/n04067472_4.JPEG has 60×60 pixels, expected 64×64; ")
    last.write_bytes(whole)
    (base / "train" / "n07777777").mkdir()
    assert fault() == "tiny-imagenet-200/train/n07777777 is a class that tiny-imagenet-200/wnids.txt does not list; expected its 3 classes only"
    (base / "train" / "n07777777").rmdir()
    words = (base / "words.txt").read_text()
    (base / "words.txt").write_text(words.replace("n04067472", "n04067473"))
    assert fault().startswith("tiny-imagenet-200/words.txt has no words for n04067472, expected a line for each of the 3 classes; ")
    (base / "words.txt").write_text(words)
    (base / "wnids.txt").write_text("n04067472\nn04067472\n")
    assert fault().startswith("tiny-imagenet-200/wnids.txt lists 2 classes, 1 of them different, expected every class once; ")


def test_tiny_imagenet_from_files_to_trained_weights(tmp_path):
    write_tiny(tmp_path / "root")
    assert len(trains(TinyImageNet(), tmp_path / "root", Store(tmp_path / "store"))) == 19


# ---- ImageNet-100

NAMES = [f"class {k}, number {k}" for k in range(100)]


def write100(folder: Path, names: list[str] = NAMES, each: int = 3) -> Path:
    """Two shards of ``each`` training images and one of two for validation, 40 wide and 30 high or the other way round."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    train, last = range(2 * each), range(2 * each, 2 * each + 2)
    for name, seeds in {"train-00000-of-00002": train[:each], "train-00001-of-00002": train[each:], "validation-00000-of-00001": last}.items():
        held = []
        for seed in seeds:
            pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3) if seed % 2 else (40, 30, 3), dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "jpeg", quality=95)
            held.append({"bytes": stream.getvalue(), "path": None})
        image = pa.array(held, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        table = pa.table({"image": image, "label": pa.array([11 * seed % 100 for seed in seeds], pa.int64())})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "data" / f"{name}.parquet")
    return folder


def test_imagenet100(tmp_path):
    folder = write100(tmp_path / "imagenet-100")
    before = listed(folder)
    images = ImageNet100(size=30, view=24)(tmp_path, Store(tmp_path / "store"))
    assert images.pixels.shape == (8, 3, 30, 30)
    assert images.classes == 100
    assert images.labels.tolist() == [0, 11, 22, 33, 44, 55, 66, 77]
    assert images.columns["split"].values.tolist() == [0] * 6 + [1] * 2
    assert texts(images, "class")[-1] == "class 77, number 77"
    # the shorter side is 30 already, so that the middle of the picture is what is kept, to the bit
    held = pq.read_table(folder / "data" / "validation-00000-of-00001.parquet").column("image").to_pylist()[1]["bytes"]
    assert images.pixels[7].tolist() == np.asarray(Image.open(io.BytesIO(held)))[:, 5:35].transpose(2, 0, 1).tolist()
    assert listed(folder) == before
    assert (ImageNet100().size, ImageNet100().view) == (160, 128)
    assert ImageNet100(size=15, view=15)(tmp_path).pixels.shape == (8, 3, 15, 15)


def test_what_can_be_wrong_with_imagenet100(tmp_path):
    def fault() -> str:
        with pytest.raises(InputError) as error:
            ImageNet100(size=8, view=8)(tmp_path, Store(tmp_path / "store"))
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix("dataset 'imagenet100': ").replace(f"{tmp_path}/", "")

    with pytest.raises(InputError, match=r"^dataset 'imagenet100': view = 200 is more than size = 160; expected at most as much$"):
        ImageNet100(view=200)
    download = "hf download clane9/imagenet-100 --repo-type dataset --local-dir imagenet-100"
    assert fault().startswith(f"there is no file imagenet-100/data/train-*.parquet; {download}")
    folder = write100(tmp_path / "imagenet-100")
    validation, shard = folder / "data" / "validation-00000-of-00001.parquet", folder / "data" / "train-00001-of-00002.parquet"
    held = validation.read_bytes()
    validation.unlink()
    assert fault().startswith(f"there is no file imagenet-100/data/validation-*.parquet; {download}")
    validation.write_bytes(held)
    whole = shard.read_bytes()
    shard.unlink()
    assert fault() == "there is no file imagenet-100/data/train-00001-of-00002…; expected all 2 parts: download the rest"
    shard.write_bytes(whole[:500])
    assert fault().startswith("imagenet-100/data/train-00001-of-00002.parquet is truncated or damaged (")
    write100(folder, NAMES[:90])
    assert fault().startswith("imagenet-100/data/train-00000-of-00002.parquet names 90 classes, expected 100; ")
    write100(folder)
    table = pq.read_table(shard)
    pq.write_table(table.set_column(1, "label", pa.array([1, 2, 100])), shard)
    assert fault().startswith("imagenet-100/data/train-00001-of-00002.parquet has the label 100 in row 2, expected 0 to 99; ")


def test_imagenet100_from_files_to_trained_weights(tmp_path):
    write100(tmp_path / "root" / "imagenet-100", each=9)
    trains(ImageNet100(size=16, view=16), tmp_path / "root", Store(tmp_path / "store"))
