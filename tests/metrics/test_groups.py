"""Bands are disjoint, deterministic and honest about their size."""

from dataclasses import replace

import pytest
import torch
from simulated import study

from unlearnlab.metrics.accuracy import Accuracy
from unlearnlab.metrics.groups import bands, of_group
from unlearnlab.spec import InputError


def test_bands_by_rank_with_ties_by_id() -> None:
    scores, ids = torch.tensor([1.0, 0.0, 1.0, 1.0, 2.0, 0.0]), torch.tensor([5, 9, 1, 3, 0, 2])
    masks = bands(scores, ids)
    assert [mask.nonzero()[:, 0].tolist() for mask in masks.values()] == [[1, 5], [2, 3], [0, 4]]
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert all(torch.equal(bands(scores[order], ids[order])[name], mask[order]) for name, mask in masks.items())


def test_bands_by_cuts_and_means() -> None:
    eps = torch.tensor([0.0, 0.0, 1.0, 3.0])
    masks = bands(eps, torch.arange(4), ("low", "high"), [1.0])
    assert {name: float(eps[mask].mean()) for name, mask in masks.items()} == {"low": 0.0, "high": 2.0}
    with pytest.raises(InputError, match="expected 1 rising numbers"):
        bands(eps, torch.arange(4), ("low", "high"), [1.0, 0.5])


def test_unscored_examples_have_a_band_of_their_own() -> None:
    masks = bands(torch.tensor([torch.nan, 3.0, 1.0, torch.nan, 2.0]), torch.arange(5))
    assert {name: mask.nonzero()[:, 0].tolist() for name, mask in masks.items()} == {"low": [2], "middle": [4], "high": [1], "unscored": [0, 3]}


def test_metric_of_a_group() -> None:
    audit = study(4)
    found = of_group(Accuracy(), audit, "clean")
    assert (found.key, found.missing, found.n_examples) == ("group.label.clean.acc.forget", "not computed: 20 forget images, needs 30", 20)
    whole = replace(audit, groups={"all": torch.ones_like(audit.groups["clean"])})
    assert of_group(Accuracy(), whole, "all").value == Accuracy()(audit).value
