"""Picture files to pixels: planes, turning, resizing, greys, and files that are no pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unlearnlab.data.digits import Digits
from unlearnlab.data.pictures import BLOCK, Decoder, Picture, number_classes
from unlearnlab.spec import InputError

DATASET = Digits()  # only its name is read


def ramp(height: int, width: int) -> np.ndarray:
    """RGB pixels that tell rows (red), columns (green) and planes apart."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([10 * rows, 100 + 10 * columns, np.full_like(rows, 7)], axis=-1).astype(np.uint8)


def saved(path: Path, pixels: np.ndarray, **settings: object) -> Picture:
    Image.fromarray(pixels).save(path, **settings)
    return Picture(path)


def test_planes_rows_and_columns_stay_in_order(tmp_path):
    pixels = ramp(3, 5)
    found = Decoder(DATASET)(saved(tmp_path / "a.png", pixels))
    assert found.dtype == np.uint8
    assert (found == pixels.transpose(2, 0, 1)).all()
    assert found[0, 2, 0] == 20
    assert found[1, 0, 4] == 140
    assert found[2].tolist() == [[7] * 5] * 3


def test_bytes_are_decoded_as_files_are(tmp_path):
    picture = saved(tmp_path / "a.png", ramp(3, 5))
    held = Picture(tmp_path / "set.parquet", 7, picture.file.read_bytes())
    assert (Decoder(DATASET)(held) == Decoder(DATASET)(picture)).all()


def test_jpeg_is_close(tmp_path):
    smooth = np.repeat(np.repeat(np.array([[[200, 30, 90], [10, 220, 40]]], dtype=np.uint8), 16, axis=0), 16, axis=1)
    found = Decoder(DATASET)(saved(tmp_path / "a.jpg", smooth, quality=95, subsampling=0))
    assert found.shape == (3, 16, 32)
    assert np.abs(found.astype(int) - smooth.transpose(2, 0, 1)).max() < 12


@pytest.mark.parametrize("channels", [1, 3])
def test_other_modes(tmp_path, channels):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    look = Decoder(DATASET, channels=channels)
    assert (look(saved(tmp_path / "l.png", grey)) == grey).all()  # every channel is the grey
    assert look(saved(tmp_path / "1.png", grey > 100))[0].tolist() == (255 * (grey > 100)).tolist()
    seen = Image.fromarray(np.dstack([ramp(3, 4), np.zeros((3, 4), np.uint8)]))
    seen.save(tmp_path / "rgba.png")  # wholly transparent, yet its colours count
    assert (look(Picture(tmp_path / "rgba.png")) == look(saved(tmp_path / "rgb.png", ramp(3, 4)))).all()
    palette = Image.fromarray(ramp(3, 4)).quantize(16)
    palette.save(tmp_path / "p.png", transparency=bytes(range(16)))
    palette.save(tmp_path / "q.png")
    assert (look(Picture(tmp_path / "p.png")) == look(Picture(tmp_path / "q.png"))).all()
    Image.fromarray(ramp(3, 4)).convert("CMYK").save(tmp_path / "c.jpg")
    assert look(Picture(tmp_path / "c.jpg")).shape == (channels, 3, 4)


def test_sixteen_bits_are_refused_rather_than_cut_off(tmp_path):
    picture = saved(tmp_path / "deep.png", np.full((3, 4), 40000, dtype=np.uint16))
    with pytest.raises(InputError, match=r"^dataset 'digits': \S*deep.png has pixels of more than 8 bits \(mode I;16\); .* convert the image to 8 bits$"):
        Decoder(DATASET)(picture)


def test_the_exif_note_turns_the_picture(tmp_path):
    note = Image.Exif()
    note[0x0112] = 6  # to be turned by 90° clockwise to be seen
    picture = saved(tmp_path / "turned.png", ramp(3, 5), exif=note)
    assert (Decoder(DATASET)(picture) == np.rot90(ramp(3, 5), -1).transpose(2, 0, 1)).all()


def test_resizing_to_a_square_and_cropping_the_middle(tmp_path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20, 0] = 250  # the middle third is red
    picture = saved(tmp_path / "wide.png", wide)
    squeezed = Decoder(DATASET, size=9)(picture)
    assert squeezed.shape == (3, 9, 9)
    assert squeezed[0, 4].tolist()[::4] == [0, 250, 0]
    middle = Decoder(DATASET, size=10, crop=True)(picture)
    assert middle.tolist() == wide[:, 10:20].transpose(2, 0, 1).tolist()
    tall = saved(tmp_path / "tall.png", wide.transpose(1, 0, 2))
    assert Decoder(DATASET, size=10, crop=True)(tall).tolist() == middle.tolist()
    assert Decoder(DATASET, size=7, crop=True)(saved(tmp_path / "odd.png", ramp(11, 13))).shape == (3, 7, 7)


def test_shrinking_averages(tmp_path):
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = Decoder(DATASET, channels=1, size=8)(saved(tmp_path / "checks.png", checks))
    assert abs(found[0, 2:6, 2:6].astype(float) - 127.5).max() < 3


def test_blocks_keep_the_order_and_the_last_picture(tmp_path):
    data = []
    for value in range(BLOCK + 3):
        held = io.BytesIO()
        Image.new("L", (2, 2), value % 251).save(held, "png")
        data.append(Picture(tmp_path / "many", value, held.getvalue()))
    look = Decoder(DATASET, channels=1)
    blocks = list(look.blocks(iter(data), look.shape(data[0])))
    assert [block.shape for block in blocks] == [(BLOCK, 1, 2, 2), (3, 1, 2, 2)]
    assert np.concatenate(blocks)[:, 0, 1, 1].tolist() == [value % 251 for value in range(BLOCK + 3)]


def test_pictures_of_two_sizes(tmp_path):
    pictures = [saved(tmp_path / "a.png", ramp(4, 6)), saved(tmp_path / "b.png", ramp(3, 6))]
    look = Decoder(DATASET)
    with pytest.raises(InputError) as error:
        list(look.blocks(pictures, look.shape(pictures[0])))
    assert str(error.value) == (
        f"dataset 'digits': {tmp_path}/b.png has 3×6 pixels, but {tmp_path}/a.png has 4×6; set size = 4 (or another) to resize all to one square"
    )
    look = Decoder(DATASET, side=6)
    with pytest.raises(InputError, match=r"a.png has 4×6 pixels, expected 6×6; replace it with an intact copy$"):
        list(look.blocks(pictures, look.shape(pictures[0])))


def test_files_that_are_no_pictures(tmp_path):
    whole = saved(tmp_path / "whole.jpg", np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).file.read_bytes()
    png = saved(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).file.read_bytes()
    broken = bytearray(png)
    broken[60:80] = bytes(20)
    cases = {
        "cut.jpg": (whole[: len(whole) // 2], "is damaged: image file is truncated"),
        "cut.png": (png[: len(png) // 2], "is damaged: "),
        "broken.png": (bytes(broken), "is damaged: "),
        "text.jpg": (b"not at all", "is not a picture (10 bytes of another kind)"),
        "empty.png": (b"", "is an empty file, not a picture"),
    }
    for name, (held, what) in cases.items():
        (tmp_path / name).write_bytes(held)
        for picture, where in ((Picture(tmp_path / name), f"{tmp_path / name} "), (Picture(tmp_path / "set", 3, held), f"{tmp_path}/set (row 3) ")):
            with pytest.raises(InputError) as error:
                Decoder(DATASET)(picture)
            assert str(error.value).startswith(f"dataset 'digits': {where}{what}")
            assert str(error.value).endswith("; replace it with an intact copy")
            assert "\n" not in str(error.value)


def test_numbering_classes():
    test = [False, False, False, True]
    path = Path("list.csv")
    numbers, names = number_classes(DATASET, path, ["b", "a", "c", "b"], test)
    assert (numbers.tolist(), names) == ([1, 0, 2, 1], ["a", "b", "c"])
    numbers, names = number_classes(DATASET, path, [2, 0, 1, 2], test)
    assert (numbers.tolist(), names) == ([2, 0, 1, 2], [])
    for labels, what in (
        ([0, 1, -3, 1], "has the label -3 in image 2, expected classes counted from 0"),
        ([0, 1, 3, 1], r"has no training image of class 2 \(its labels go up to 3\); expected some of every class"),
        (["a", "a", "b", "new"], "has no training image of class 'new'; expected some of every class"),
    ):
        with pytest.raises(InputError, match=f"^dataset 'digits': list.csv {what}"):
            number_classes(DATASET, path, labels, test)
