"""``Images`` and ``Split``: ids that never change, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unlearnlab.data.images import PARTS, Images, Split
from unlearnlab.spec import InputError


def make(ids: list[int], classes: int = 3) -> Images:
    at = torch.tensor(ids, dtype=torch.int64)
    return Images(at.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), at % classes, at, classes)


def test_rows_take_and_without_keep_ids() -> None:
    held = make([4, 9, 2, 7])
    for found, ids in (
        (held.rows(torch.tensor([2, 0])), [2, 4]),
        (held.rows(held.labels == 1), [4, 7]),
        (held.take([7, 4]), [7, 4]),
        (held.take([]), []),
        (held.without([9, 7]), [4, 2]),
        (held.without([]), [4, 9, 2, 7]),
    ):
        assert found.ids.tolist() == ids
        assert found.pixels[:, 0, 0, 0].tolist() == ids
        assert found.labels.tolist() == [i % 3 for i in ids]
        assert len(found) == len(ids)
    assert Images.join([held.take([2]), held.take([9, 4])]).ids.tolist() == [2, 9, 4]


def test_true_labels_travel_along() -> None:
    held = make([0, 1, 2])
    assert not held.mislabelled.any()
    wrong = Images(held.pixels, torch.tensor([0, 2, 2]), held.ids, 3, held.labels)
    assert wrong.mislabelled.tolist() == [False, True, False]
    assert Images.join([wrong.rows(torch.tensor([1])), wrong.take([0])]).mislabelled.tolist() == [True, False]
    assert wrong.to("cpu").mislabelled.tolist() == wrong.mislabelled.tolist()
    assert wrong.take([1]).true_labels.tolist() == [1]


def test_the_fingerprint_is_of_the_content() -> None:
    held = make([0, 1, 2])
    others = [
        make([0, 2, 1]),
        make([0, 1]),
        make([0, 1, 2], classes=4),
        Images(held.pixels.float(), held.labels, held.ids, 3),
        Images(held.pixels.reshape(3, 1, 1, 4), held.labels, held.ids, 3),
        Images(held.pixels, held.labels.flip(0), held.ids, 3),
        Images(held.pixels, held.labels, held.ids, 3, held.labels.flip(0)),
        Images(held.pixels, held.labels, held.ids + 1, 3),
        Images(255 - held.pixels, held.labels, held.ids, 3),
    ]
    assert held.fingerprint == make([0, 1, 2]).fingerprint == held.rows(torch.arange(3)).fingerprint
    assert len({held.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1


def test_bad_images_are_refused_by_id() -> None:
    good = make([4, 9])
    pixels = good.pixels.float()
    pixels[1, 0, 0, 0] = float("nan")
    for bad, words in (
        (lambda: Images(pixels, good.labels, good.ids, 3), "image id 9 has pixels that are NaN or infinite"),
        (lambda: Images(good.pixels, torch.tensor([0, 3]), good.ids, 3), "image id 9 has label 3; expected 0 to 2"),
        (lambda: Images(good.pixels, torch.tensor([-1, 0]), good.ids, 3), "image id 4 has label -1"),
        (lambda: Images(good.pixels, good.labels, torch.tensor([4, 4]), 3), "ids must be unique"),
        (lambda: Images(good.pixels, good.labels[:1], good.ids, 3), "equally many: got 2, 1 and 2"),
        (lambda: Images(good.pixels.double(), good.labels, good.ids, 3), "uint8 or float32, got torch.float64"),
        (lambda: good.take([9, 5, 6]), r"id 5 is not among these 2 images \(2 such"),
        (lambda: good.take([9, 9]), "ids must be unique"),
        (lambda: Images.join([good, good]), "ids must be unique"),
    ):
        with pytest.raises(InputError, match=words):
            bad()


def split() -> Split:
    return Split(**{name: make([5 * at + 1, 5 * at]) for at, name in enumerate(PARTS)})


def test_split() -> None:
    one = split()
    one.check()
    assert one.train.ids.tolist() == [0, 1, 5, 6]
    assert one.fingerprint == split().fingerprint
    changed = [replace(one, **{name: make([99])}) for name in PARTS]
    assert len({one.fingerprint, *(other.fingerprint for other in changed)}) == 6
    with pytest.raises(InputError, match="image id 6 is in both the retain and the test set"):
        replace(one, test=make([6])).check()
    with pytest.raises(InputError, match="the forget set is empty: name at least one"):
        replace(one, forget=make([]))
    with pytest.raises(InputError, match="the retain set is empty: it would leave nothing"):
        replace(one, retain=make([]))
    replace(one, validation=make([]), control=make([]), test=make([])).check()
