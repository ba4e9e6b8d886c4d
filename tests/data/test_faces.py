"""AgeDB and UTKFace, from files laid out and named as in their releases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from genuine import listed, trains
from PIL import Image

from unlearnlab.data.faces import AgeDb, UtkFace
from unlearnlab.data.mapped import Mapped
from unlearnlab.data.partition import Stratified
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack
from unlearnlab.store import Store
from unlearnlab.train import Recipe


def face(path: Path, seed: int, size: tuple[int, int] = (20, 20)) -> None:
    """One colour above, another below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), (10 * seed, 240 - 10 * seed, 60), dtype=np.uint8)
    pixels[size[1] // 2 :] = (250, 250, 20)
    Image.fromarray(pixels).save(path, quality=95)


def texts(images: object, column: str) -> list[str]:
    return [images.columns[column].words[i] for i in images.columns[column].values.tolist()]


# age, folder
PEOPLE = [(35, 0), (9, 1), (10, 2), (101, 3), (90, 0), (67, 9), (29, 4), (31, 5), (3, 6), (100, 0), (44, 7), (55, 8)]


def write_agedb(root: Path) -> Path:
    """AgeDB.csv as pandas writes it, more columns than are read, and faces of differing sizes."""
    lines = [",age,img_path,folder,gender\n"]
    for at, (age, folder) in enumerate(PEOPLE):
        name = f"AgeDB/{at}_SomeBody_{age}_f.jpg"
        face(root / "agedb" / name, at, (20 + at, 30))
        lines.append(f"{at},{age},data/{name},{folder},f\n")
    (root / "agedb" / "AgeDB.csv").write_text("".join(lines))
    return root / "agedb"


def test_agedb(tmp_path):
    folder = write_agedb(tmp_path)
    before = listed(folder)
    images = AgeDb(size=16)(tmp_path, Store(tmp_path / "store"))
    order = [at for at, (_, fold) in enumerate(PEOPLE) if fold] + [0, 4, 9]
    assert images.columns["age"].values.tolist() == [PEOPLE[at][0] for at in order]
    assert images.labels.tolist() == [min(PEOPLE[at][0], 99) // 10 for at in order]
    assert images.labels.tolist()[:3] == [0, 1, 9]
    assert images.columns["folder"].values.tolist() == [PEOPLE[at][1] for at in order]
    assert images.columns["split"].values.tolist() == [0] * 9 + [1] * 3
    assert images.classes == 10
    assert texts(images, "file")[-1] == "AgeDB/9_SomeBody_100_f.jpg"
    pixels = images.pixels[:].int()
    assert pixels.shape == (12, 3, 16, 16)
    for row, at in enumerate(order):
        assert (pixels[row, :, 3, 8] - torch.tensor([10 * at, 240 - 10 * at, 60])).abs().max() < 8
        assert (pixels[row, :, 13, 8] - torch.tensor([250, 250, 20])).abs().max() < 8
    assert listed(folder) == before
    assert AgeDb().size == 180


def test_what_can_be_wrong_with_agedb(tmp_path):
    def fault() -> str:
        with pytest.raises(InputError) as error:
            AgeDb(size=16)(tmp_path, Store(tmp_path / "store"))
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix("dataset 'agedb': ").replace(f"{tmp_path}/", "")

    assert fault().startswith("there is no file agedb/AgeDB.csv; put the published AgeDB.csv (columns age, img_path, folder) there, and the images beside it (")
    folder = write_agedb(tmp_path)
    table = folder / "AgeDB.csv"
    text = table.read_text()
    table.write_text(text.replace(",folder,", ",fold,"))
    assert fault().startswith("agedb/AgeDB.csv has no column 'folder' (its columns: , age, img_path, fold, gender), expected age, img_path and folder; ")
    table.write_text(text.replace(",67,", ",old,"))
    assert fault() == "agedb/AgeDB.csv has 'old' in line 7 (column 'age'), expected a whole number; replace it with an intact copy"
    table.write_text(text.replace("_f.jpg,9,", "_f.jpg,,"))
    assert fault().startswith("agedb/AgeDB.csv has '' in line 7 (column 'folder'), expected a whole number; ")
    table.write_text(text[:-12])
    assert fault().startswith("agedb/AgeDB.csv has 3 cells in line 13, expected 5 as in its first line; ")
    table.write_text(text)
    picture = folder / "AgeDB" / "11_SomeBody_55_f.jpg"
    whole = picture.read_bytes()
    picture.unlink()
    assert fault() == (
        "agedb/AgeDB.csv names in line 13 'data/AgeDB/11_SomeBody_55_f.jpg', but there is no file agedb/AgeDB/11_SomeBody_55_f.jpg; "
        "unpack the images there (the first five characters, 'data/', are stripped)"
    )
    picture.write_bytes(whole[:400])
    assert fault().startswith("agedb/AgeDB/11_SomeBody_55_f.jpg is ")
    picture.write_bytes(b"corrupt")
    assert fault().startswith("agedb/AgeDB/11_SomeBody_55_f.jpg is not a picture (7 bytes of another kind); ")


def test_agedb_from_files_to_trained_weights(tmp_path):
    write_agedb(tmp_path / "root")
    assert len(trains(AgeDb(size=16), tmp_path / "root", Store(tmp_path / "store"))) == 12


# the last four bear names that the release really has: a blank, a dot too few, gender or race left out
UTK = {
    "9_1_2_20170109142408075.jpg.chip.jpg": (9, 1, 2),
    "10_0_0_20161219203650636.jpg.chip.jpg": (10, 0, 0),
    "116_1_4_20170120134921760.jpg": (116, 1, 4),
    "24_0_1_20170116220224657 .jpg.chip.jpg": (24, 0, 1),
    "55_0_0_20170116232725357jpg.chip.jpg": (55, 0, 0),
    "61_3_20170109150557335.jpg.chip.jpg": (61, -1, -1),
    "53__0_20170116184028385.jpg.chip.jpg": (53, -1, 0),
}


def write_utkface(root: Path, names: object = tuple(UTK)) -> Path:
    for at, name in enumerate(names):
        face(root / "UTKFace" / name, at)
    (root / "UTKFace" / "notes.txt").write_text("not a face")
    return root / "UTKFace"


def test_utkface(tmp_path):
    folder = write_utkface(tmp_path)
    before = listed(folder)
    images = UtkFace(size=20)(tmp_path, Store(tmp_path / "store"))
    order = sorted(UTK)
    assert order[0] == "10_0_0_20161219203650636.jpg.chip.jpg"  # by name, whatever the listing says
    assert texts(images, "file") == order
    for k, column in enumerate(("age", "gender", "race")):
        assert images.columns[column].values.tolist() == [UTK[name][k] for name in order]
    assert images.labels.tolist() == [min(UTK[name][0] // 20, 4) for name in order]
    assert images.classes == 5
    assert images.columns["split"].values.tolist() == [0] * 7
    pixels = images.pixels[:].int()
    for row, name in enumerate(order):
        at = list(UTK).index(name)
        assert (pixels[row, :, 3, 8] - torch.tensor([10 * at, 240 - 10 * at, 60])).abs().max() < 8
    tens = UtkFace(bins="10_years", size=12)(tmp_path)
    assert tens.labels.tolist() == [min(UTK[name][0] // 10, 9) for name in order]
    assert (tens.classes, tens.pixels.shape) == (10, (7, 3, 12, 12))
    assert listed(folder) == before
    assert UtkFace().size == 200


@pytest.mark.parametrize("name", ["thirty_1_2_20170109142408075.jpg", "30.jpg", "30_1_2.jpg", "30_2_2_20170109142408075.jpg", "30_1_5_20170109142408075.jpg"])
def test_utkface_names(tmp_path, name):
    write_utkface(tmp_path, [*UTK, name])
    with pytest.raises(InputError) as error:
        UtkFace()(tmp_path)
    assert str(error.value) == (
        f"dataset 'utkface': {tmp_path}/UTKFace/{name} is not named as the release's files are; expected age_gender_race_date.jpg: rename or remove it"
    )


def test_what_else_can_be_wrong_with_utkface(tmp_path):
    with pytest.raises(InputError, match=r"^dataset 'utkface': there is no file \S*UTKFace/\*.jpg; unpack UTKFace.tar.gz, .* there "):
        UtkFace()(tmp_path)
    folder = write_utkface(tmp_path)
    picture = folder / "9_1_2_20170109142408075.jpg.chip.jpg"
    whole = picture.read_bytes()
    for held, what in ((whole[:400], "is damaged: "), (b"corrupt", "is not a picture")):
        picture.write_bytes(held)
        with pytest.raises(InputError, match=rf"^dataset 'utkface': {picture} {what}.*; replace it with an intact copy$"):
            UtkFace()(tmp_path, Store(tmp_path / "store"))


def test_utkface_from_files_to_trained_weights(tmp_path):
    names = [f"{5 + 9 * k}_{k % 2}_0_201701091424080{k:02}.jpg.chip.jpg" for k in range(12)]
    before = listed(write_utkface(tmp_path / "root", names))
    images = UtkFace(size=16)(tmp_path / "root", Store(tmp_path / "store"))
    assert isinstance(images.pixels, Mapped)
    parts = Stratified(train=8, held_out=2, test=2)(images, seed=0)
    start = Stack.init(SmallCnn()((3, 16, 16), images.classes, UtkFace.mean, UtkFace.std), (0, 1))
    trained = Recipe(epochs=1, batch=4)(start, parts.train)
    assert not trained.diverged
    for name, weights in trained.params.items():
        assert bool(torch.isfinite(weights).all())
        assert all(not torch.equal(weights[k], start.params[name][k]) for k in range(2)), name
    assert listed(tmp_path / "root" / "UTKFace") == before
