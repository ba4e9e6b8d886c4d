"""Images listed in a CSV file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from genuine import listed, trains
from PIL import Image

from unlearnlab.data.csv_table import CsvTable
from unlearnlab.spec import InputError
from unlearnlab.store import Store


def table(home: Path, text: str, **settings: object) -> CsvTable:
    """The file list.csv, and a picture for each of a.png to h.png that is not there yet."""
    (home / "pictures").mkdir(parents=True, exist_ok=True)
    for at, letter in enumerate("abcdefgh"):
        path = home / "pictures" / f"{letter}.png"
        if not path.exists():
            Image.new("RGB", (6, 4), (10 * at, 100, 200)).save(path)
    (home / "list.csv").write_text(text, encoding="utf-8")
    return CsvTable(str(home / "list.csv"), **settings)


FULL = """image,label,split,age,height,name,code
pictures/c.png,dog,test,30,1.5,"Ada, Countess",x1
pictures/a.png,cat,train,40,2,Bob,
pictures/b.png,dog,train,-3,0.25,Žofie,x3
pictures/d.png,cat,test,0,1e2,,x4
"""


def test_training_images_come_first_and_columns_keep_their_kind(tmp_path):
    images = table(tmp_path, FULL)()
    columns = images.columns
    assert columns["split"].values.tolist() == [0, 0, 1, 1]
    assert images.pixels[:, :, 3, 5].tolist() == [[0, 100, 200], [10, 100, 200], [20, 100, 200], [30, 100, 200]]
    assert images.pixels.shape == (4, 3, 4, 6)
    assert images.labels.tolist() == [0, 1, 1, 0]
    assert columns["class"].words == ("cat", "dog")
    assert [columns["file"].words[i] for i in columns["file"].values.tolist()] == [f"pictures/{letter}.png" for letter in "abcd"]
    assert columns["age"].values.tolist() == [40, -3, 30, 0]
    assert columns["height"].values.tolist() == [2, 0.25, 1.5, 100]
    assert [columns["name"].words[i] for i in columns["name"].values.tolist()] == ["Bob", "Žofie", "Ada, Countess", ""]
    assert [columns["code"].words[i] for i in columns["code"].values.tolist()] == ["", "x3", "x1", "x4"]


def test_names_of_columns_and_the_folder(tmp_path):
    text = "picture,kind,part,target\nc.png,1,val,9\na.png,0,train,8\nb.png,1,Train,7\n"
    images = table(tmp_path, text, image="picture", label="kind", split="part", folder="pictures", size=5, channels=1)()
    assert images.pixels.shape == (3, 1, 5, 5)
    assert images.labels.tolist() == [0, 1, 1]
    assert images.columns["target"].values.tolist() == [8, 7, 9]
    assert images.columns["split"].values.tolist() == [0, 0, 1]
    assert "class" not in images.columns
    for header in ("image,label", "path,class", "file,target", "img_path,label"):
        assert len(table(tmp_path, f"{header}\npictures/a.png,0\n")()) == 1


def test_as_spreadsheets_and_pandas_write_it(tmp_path):
    """A mark before the first name, other line ends, an unnamed column of row numbers, classes as 1.0, blank lines."""
    images = table(tmp_path, "\ufeff,image,label\r\n0, pictures/a.png ,0.0\r\n\r\n1,pictures/b.png,1.0\r\n")()
    assert images.labels.tolist() == [0, 1]
    assert set(images.columns) == {"file", "split"}


def test_val_is_left_out_beside_test(tmp_path):
    rows = [("a", "train"), ("b", "val"), ("c", "test")]
    images = table(tmp_path, "image,label,split\n" + "".join(f"pictures/{name}.png,0,{split}\n" for name, split in rows))()
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 20]


def test_what_can_be_wrong(tmp_path):
    def fault(text: str, **settings: object) -> str:
        dataset = table(tmp_path, text, **settings)
        with pytest.raises(InputError) as error:
            dataset(store=Store(tmp_path / "store"))
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix("dataset 'csv': ").replace(f"{tmp_path}/", "")

    with pytest.raises(InputError, match=r"there is no file \S*none.csv; give as path a CSV file with a column of image paths and one of labels$"):
        CsvTable(str(tmp_path / "none.csv"))()
    intact = "; replace it with an intact copy"
    assert fault("") == f"list.csv has no rows, expected a line of column names and a line for every image{intact}"
    assert fault("image,label\n").startswith("list.csv has no rows, ")
    assert fault("image,label\npictures/a.png,0\npictures/b.png\n") == f"list.csv has 1 cells in line 3, expected 2 as in its first line{intact}"
    assert fault('image,label\npictures/a.png,"0\n').startswith("list.csv is no CSV file in UTF-8 (")
    assert fault("image,image\na,b\n") == "list.csv has two columns 'image'; expected every name once"
    assert fault("image;label\na;b\n") == "list.csv has no column image or path or file or img_path; its columns are image;label: set image = …"
    assert fault("image,lable\npictures/a.png,b\n", label="label") == (
        "list.csv has no column 'label'; did you mean 'lable'?; its columns are image, lable: set label = …"
    )
    assert fault("image,label\nmissing.png,b\n") == "list.csv names in line 2 'missing.png', but there is no file missing.png; put it there, or set folder"
    assert fault("image,label\n,b\n").startswith("list.csv names in line 2 '', but ")
    assert fault("image,label\npictures/a.png,b\npictures/b.png,b\npictures/a.png,c\n") == (
        "list.csv names pictures/a.png in line 2 and again in line 4; expected every image once"
    )
    assert fault("image,label\npictures/a.png,b\npictures/b.png,\n") == "list.csv has no label in line 3 (column 'label'); expected one for every image"
    assert fault("image,label\npictures/a.png,0\npictures/b.png,-1\n") == f"list.csv has the label -1 in line 3, expected classes counted from 0{intact}"
    assert fault("image,label\npictures/a.png,0\npictures/b.png,7\n").startswith("list.csv has no training image of class 1 (its labels go up to 7); ")
    assert fault("image,label\npictures/a.png,0\npictures/b.png,0.5\n") == (
        "list.csv has the label 0.5 in line 3 (column 'label'); expected a class, counted from 0 or a name: sort the images into classes first"
    )
    assert fault("image,label,split\npictures/a.png,0,train\npictures/b.png,0,exam\n") == (
        "list.csv has 'exam' in line 3 (column 'split'); expected train, test or val"
    )
    assert fault("image,label,split\npictures/a.png,0,test\n").startswith("list.csv has no row of the split train ")
    assert fault("image,label,split\npictures/a.png,x,train\npictures/b.png,y,test\n").startswith("list.csv has no training image of class 'y'; ")
    for gap in ("", "nan", "NA", "None"):
        assert fault(f"image,label,age\npictures/a.png,0,3\npictures/b.png,0,{gap}\n") == (
            "list.csv has no number in line 3 (column 'age'); expected one for every image: fill it in, or leave the column out"
        )
    (tmp_path / "list.csv").write_bytes(b"image,label\npictures/\xe9.png,0\n")
    with pytest.raises(InputError, match=r"list.csv is no CSV file in UTF-8 \('utf-8' codec"):
        CsvTable(str(tmp_path / "list.csv"))()

    whole = (tmp_path / "pictures" / "b.png").read_bytes()
    (tmp_path / "pictures" / "b.png").write_bytes(whole[:-30])
    assert fault(FULL).startswith("pictures/b.png is damaged: ")
    (tmp_path / "pictures" / "b.png").write_bytes(whole)
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "d.png")
    assert fault(FULL) == "pictures/d.png has 9×9 pixels, but pictures/a.png has 4×6; set size = 4 (or another) to resize all to one square"


def test_from_files_to_trained_weights(tmp_path):
    (tmp_path / "root" / "pictures").mkdir(parents=True)
    letters = "abcdefghijklmnopqrst"
    for at, letter in enumerate(letters):
        noise = np.random.default_rng(at).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "root" / "pictures" / f"{letter}.png")
    rows = [f"pictures/{letter}.png,{'xy'[at % 2]},{'test' if at > 15 else 'train'},{at}\n" for at, letter in enumerate(letters)]
    dataset = table(tmp_path / "root", "image,label,split,age\n" + "".join(rows))
    before = listed(tmp_path / "root")
    images = trains(dataset, tmp_path / "root", Store(tmp_path / "store"))
    assert images.columns["age"].values.tolist() == list(range(20))
    assert listed(tmp_path / "root") == before
