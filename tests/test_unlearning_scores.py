"""``unlearn`` with scores: methods that divide the forget set, on models and data of one's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toy import Toy, same
from unlearnlab.contract import Context, Scores
from unlearnlab.data.images import Images, Split
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.original import Original
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.methods.rum import Rum
from unlearnlab.refine import ByScore, Shuffle
from unlearnlab.spec import InputError
from unlearnlab.unlearning import unlearn

EACH = (Original(), FineTune(epochs=1, batch=16), RandomLabel(epochs=1, batch=16))
TABLE = {
    "name": "rum",
    "refine": "by_score",
    "each": ["original", {"name": "finetune", "epochs": 1, "batch": 16}, {"name": "random_label", "epochs": 1, "batch": 16}],
}
VALUES = [0.9, 0.5, 0.1, 0.8, 0.4, 0.2]


@pytest.fixture(scope="module")
def split(toy: Toy) -> Split:
    """Six images to forget, with ids that are no positions."""
    train = Images.join([toy.split.forget, toy.split.retain])
    train = replace(train, ids=train.ids + 700)
    return replace(toy.split, forget=train.rows(torch.arange(6)), retain=train.rows(torch.arange(6, 60)))


@pytest.fixture
def own(toy: Toy) -> nn.Module:
    return toy.stack.member(1)


def state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


def by_hand(toy: Toy, split: Split, method: Rum, scores: Scores | None = None) -> dict[str, Tensor]:
    """What the method makes of member 1 when called itself."""
    ctx = Context((0,), toy.recipe, scores={} if scores is None else {"memorisation": scores})
    after = method(toy.stack.rows([1]), split, ctx)
    return {name: tensor[0] for name, tensor in after.params.items()}


def test_rum_by_score_in_a_few_lines(toy: Toy, split: Split, own: nn.Module) -> None:
    forget, retain = split.forget, split.retain
    expected = by_hand(toy, split, Rum(ByScore(), EACH), Scores("memorisation", forget.ids, torch.tensor(VALUES, dtype=torch.float64)))
    everywhere = Scores("memorisation", torch.arange(750, 650, -1), torch.linspace(0, 1, 100, dtype=torch.float64))
    everywhere.values[everywhere.rows(forget.ids)] = torch.tensor(VALUES, dtype=torch.float64)
    for scores in (everywhere, VALUES, np.array(VALUES, dtype=np.float32), torch.tensor(VALUES, dtype=torch.float16)):
        after = unlearn(own, forget=forget, retain=retain, method=TABLE, scores={"memorisation": scores})
        assert same(dict(after.named_parameters()), expected)
    beside = unlearn(own, forget=forget, retain=retain, method="rum", refine="by_score", each=EACH, scores={"memorisation": VALUES})
    assert same(dict(beside.named_parameters()), expected)
    pairs = {name: (part.pixels, part.labels) for name, part in (("forget", forget), ("retain", retain))}
    assert same(dict(unlearn(own, **pairs, method=TABLE, scores={"memorisation": VALUES}).named_parameters()), expected)  # ids are positions
    turned = unlearn(own, forget=forget, retain=retain, method=TABLE, scores={"memorisation": VALUES[::-1]})
    assert not same(dict(turned.named_parameters()), expected)


def test_images_without_a_score_form_a_group(split: Split, own: nn.Module) -> None:
    some = [*VALUES[:5], float("nan")]
    with pytest.raises(InputError, match=r"makes 4 \(low, mid, high, unscored\)"):
        unlearn(own, forget=split.forget, retain=split.retain, method=TABLE, scores={"memorisation": some})
    unlearn(own, forget=split.forget, retain=split.retain, method=Rum(ByScore(), EACH[1:2]), scores={"memorisation": some})


def test_what_needs_no_score_is_given_none(toy: Toy, split: Split, own: nn.Module) -> None:
    method = Rum(Shuffle(), EACH)
    after = unlearn(own, forget=split.forget, retain=split.retain, method=method)
    assert same(dict(after.named_parameters()), by_hand(toy, split, method))
    assert same(state(unlearn(own, forget=split.forget, retain=split.retain, method=method, scores={"memorisation": VALUES})), state(after))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "method 'rum' needs scores: pass scores={'memorisation': one number for each forget image, high = memorised}"),
        (VALUES, "scores must be a table of them by name, got list: pass scores={'memorisation':"),
        ({}, "method 'rum' needs the score 'memorisation', and scores names none"),
        ({"memorization": VALUES}, "needs the score 'memorisation', and scores names memorization: pass it under that name"),
        ({"memorisation": VALUES[:5]}, "scores['memorisation'] have the shape [5] and the type torch.float32; expected one number for each of the 6 images"),
        ({"memorisation": [VALUES]}, "scores['memorisation'] have the shape [1, 6]"),
        ({"memorisation": [True] * 6}, "scores['memorisation'] have the shape [6] and the type torch.bool"),
        ({"memorisation": 0.5}, "scores['memorisation'] must be a tensor or a NumPy array, got float"),
        ({"memorisation": Scores("memorisation", torch.arange(700, 705), torch.zeros(5, dtype=torch.float64))}, "image id 705 has no score 'memorisation'"),
    ],
)
def test_wrong_scores_are_told_in_one_line(scores: Any, message: str, split: Split, own: nn.Module) -> None:
    with pytest.raises(InputError) as told:
        unlearn(own, forget=split.forget, retain=split.retain, method=TABLE, scores=scores)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_scores_by_id_are_refused_for_data_without_ids(split: Split, own: nn.Module) -> None:
    """Their ids would be taken for positions, and the wrong images called memorised."""
    pairs = {name: (part.pixels, part.labels) for name, part in (("forget", split.forget), ("retain", split.retain))}
    scores = Scores("memorisation", torch.arange(60), torch.linspace(0, 1, 60, dtype=torch.float64))
    with pytest.raises(InputError, match="go by image id, and these data bear none: pass Images, or one number for each forget image"):
        unlearn(own, **pairs, method=TABLE, scores={"memorisation": scores})
