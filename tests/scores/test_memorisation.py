"""Memorisation and influence: by hand, against the plain loops, and on real digits with wrong labels."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearnlab.attribution import observe_subsets, subsets
from unlearnlab.contract import EnsembleScore
from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import PARTS, Images
from unlearnlab.nets.mlp import Mlp
from unlearnlab.outputs import Outputs
from unlearnlab.scores import memorisation
from unlearnlab.scores.memorisation import Memorisation, Memorised, estimate_influence, estimate_memorisation
from unlearnlab.scores.npz import read_npz, write_npz
from unlearnlab.spec import InputError, build, to_dict
from unlearnlab.stack import Stack
from unlearnlab.train import Recipe

MODELS = 64


def chance(models: int, n: int, share: float = 0.7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Who is right and who was trained on what, by lot; every image its own share of right answers."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(models, n, generator=g) < torch.rand(n, generator=g), torch.rand(models, n, generator=g) < share


def seen_by(right: Tensor, member: Tensor, tested: Tensor, classes: int = 3) -> Outputs:
    """Outputs of models that are right where told, on training images, two validation images and test images; ids are not positions."""
    models, n, t = len(right), right.shape[1], tested.shape[1]
    labels = torch.arange(n + 2 + t) % classes
    correct = torch.cat([right, torch.zeros(models, 2, dtype=torch.bool), tested], 1)
    predicted = torch.where(correct, labels, (labels + 1) % classes)
    part = torch.tensor([PARTS.index("retain")] * n + [PARTS.index("validation")] * 2 + [PARTS.index("test")] * t)
    held = torch.cat([member, torch.zeros(models, 2 + t, dtype=torch.bool)], 1)
    ids = 1000 - 3 * torch.arange(n + 2 + t)
    return Outputs(torch.nn.functional.one_hot(predicted, classes).float(), held, labels, ids, part, tuple(range(models)))


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal numbers, and NaN in the same places."""
    return np.array_equal(a.numpy(), b.numpy(), equal_nan=True)


# -- by hand ---------------------------------------------------------------------------------------


def test_an_example_worked_out_by_hand() -> None:
    """Four models, four images: known only to those that were trained on it, known to all, learnt by half, and always trained on."""
    member = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]]).bool()
    correct = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0]]).bool()
    found = estimate_memorisation(correct, member)
    assert found.values[:3].tolist() == pytest.approx([1, 0, 1 / 3])
    assert found.n_in.tolist() == [2, 3, 3, 4]
    assert found.n_out.tolist() == [2, 1, 1, 0]
    assert found.stderr[:3].tolist() == pytest.approx([0, 0, math.sqrt(1 / 3 * 2 / 3 / 3)])
    assert math.isnan(found.values[3])  # not 0: nobody tells what models that were not trained on it would say
    assert math.isnan(found.stderr[3])
    # on two test images of which the first is known to models 0 and 2, the second to model 3
    answered = torch.tensor([[1, 0], [0, 0], [1, 0], [0, 1]]).bool()
    spread = estimate_influence(answered, member)
    expected = [[1 / 2 - 1 / 2, 0 - 1 / 2], [1 / 3 - 1, 1 / 3 - 0], [2 / 3 - 0, 0 - 1]]
    assert spread[:3].flatten().tolist() == pytest.approx([value for row in expected for value in row], abs=1e-6)
    assert bool(spread[3].isnan().all())


@pytest.mark.parametrize(("models", "n", "t"), [(9, 7, 5), (2, 1, 3), (40, 23, 31), (3, 5, 0)])
def test_the_plain_loops_say_the_same(models: int, n: int, t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "ENTRIES", 50)  # several pieces
    correct, member = chance(models, n, seed=models)
    answered, _ = chance(models, t, seed=models + 1)
    found, spread = estimate_memorisation(correct, member), estimate_influence(answered, member)
    assert spread.shape == (n, t)
    assert spread.dtype == torch.float32
    for i in range(n):
        inside, outside = [k for k in range(models) if member[k, i]], [k for k in range(models) if not member[k, i]]
        assert (int(found.n_in[i]), int(found.n_out[i])) == (len(inside), len(outside))
        if not inside or not outside:
            assert math.isnan(found.values[i])
            assert bool(spread[i].isnan().all())
            continue
        a, b = (sum(bool(correct[k, i]) for k in side) / len(side) for side in (inside, outside))
        assert float(found.values[i]) == pytest.approx(a - b, abs=1e-12)
        assert float(found.stderr[i]) == pytest.approx(math.sqrt(a * (1 - a) / len(inside) + b * (1 - b) / len(outside)), abs=1e-12)
        for j in range(t):
            a, b = (sum(bool(answered[k, j]) for k in side) / len(side) for side in (inside, outside))
            assert float(spread[i, j]) == pytest.approx(a - b, abs=1e-6)


def test_the_influence_of_an_image_on_its_double_is_its_memorisation() -> None:
    correct, member = chance(50, 30)
    double = torch.randperm(30, generator=torch.Generator().manual_seed(3))[:12]
    spread = estimate_influence(correct[:, double], member)
    own = spread[double, torch.arange(12)]
    assert torch.allclose(own.double(), estimate_memorisation(correct, member).values[double], atol=1e-6)
    assert not torch.allclose(spread[(double + 1) % 30, torch.arange(12)], own, atol=0.05)  # which no other image's is


def test_order_does_not_matter() -> None:
    """Models may come in any order; images take their scores along."""
    correct, member = chance(20, 15)
    found, g = estimate_memorisation(correct, member), torch.Generator().manual_seed(1)
    models, images = torch.randperm(20, generator=g), torch.randperm(15, generator=g)
    again = estimate_memorisation(correct[models][:, images], member[models][:, images])
    assert torch.equal(again.values, found.values[images])
    assert torch.equal(again.stderr, found.stderr[images])
    assert torch.equal(estimate_influence(correct[models], member[models][:, images]), estimate_influence(correct, member)[images])


def test_arrays_of_any_make_and_what_is_refused() -> None:
    correct, member = chance(6, 4)
    found = estimate_memorisation(correct, member)
    for cast in (lambda held: held.numpy(), lambda held: held.numpy().astype(np.float32), lambda held: held.to(torch.uint8)):
        again = estimate_memorisation(cast(correct), cast(member))
        assert alike(again.values, found.values)
        assert alike(estimate_influence(cast(correct), cast(member)), estimate_influence(correct, member))
    for wrong, message in [
        ((correct[:5], member), "correct is 5 models × 4 images and member 6 models × 4 images; expected the same models and images"),
        ((correct[:, :3], member), "correct is 6 models × 3 images"),
        ((correct[0], member), r"correct has the shape \[4\]; expected \[models, images\]"),
        ((correct * 0.5, member), "correct must say yes or no"),
        ((correct, member.double() + 1), "member must say yes or no"),
    ]:
        with pytest.raises(InputError, match=message):
            estimate_memorisation(*wrong)
    with pytest.raises(InputError, match="expected the same models in both"):
        estimate_influence(correct[:5], member)


# -- as a score ------------------------------------------------------------------------------------


def test_the_score_is_read_off_outputs_by_part_and_id(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(memorisation, "ENTRIES", 200)  # several pieces of models
    right, member = chance(12, 9)
    member[:, 4] = True
    tested, _ = chance(12, 5, seed=8)
    score, seen = Memorisation(models=12, influence=True), seen_by(right, member, tested)
    assert isinstance(score, EnsembleScore)
    assert build("score", to_dict(score)) == score
    found, expected = score(seen), estimate_memorisation(right, member)
    assert (found.name, found.scale) == ("memorisation", "memorisation")
    assert found.ids.tolist() == [1000 - 3 * i for i in range(9)]
    assert alike(found.values, expected.values)
    assert math.isnan(found.values[4])
    for name in ("stderr", "n_in", "n_out", "right_in", "right_out"):
        assert alike(found.beside[name], getattr(expected, name))
    assert alike(found.beside["influence"], estimate_influence(tested, member))
    write_npz(tmp_path / "scores.npz", found)
    again = read_npz(tmp_path / "scores.npz")
    assert alike(again.values, found.values)
    assert set(again.beside) == {"stderr", "n_in", "n_out", "right_in", "right_out", "influence"}
    assert again.beside["influence"].dtype == torch.float32
    assert "influence" not in Memorisation(models=12)(seen).beside


def test_images_are_known_by_id_however_they_stand() -> None:
    right, member = chance(10, 8)
    tested, _ = chance(10, 4, seed=5)
    seen, score = seen_by(right, member, tested), Memorisation(models=10, influence=True)
    mixed = torch.randperm(len(seen.ids), generator=torch.Generator().manual_seed(2))
    one, other = score(seen), score(seen.examples(mixed))
    assert torch.equal(other.of(one.ids), one.values)
    columns = [seen.examples(mixed).of("test").ids.tolist().index(i) for i in seen.of("test").ids.tolist()]
    assert torch.equal(other.beside["influence"][other.rows(one.ids)][:, columns], one.beside["influence"])


def test_ties_and_trained_labels() -> None:
    """Right is what ``Outputs.predicted`` says: of equal logits the lowest class."""
    right, member = chance(6, 4)
    seen = seen_by(right, member, right[:, :1])
    level = replace(seen, logits=torch.zeros_like(seen.logits))
    found = Memorisation(models=6)(replace(level, labels=torch.zeros_like(level.labels)))
    assert torch.equal(found.values.nan_to_num(0), torch.zeros(4, dtype=torch.float64))  # always right, in and out
    assert bool((memorisation._right(level) == (level.labels == 0)).all())


def test_what_cannot_be_scored() -> None:
    right, member = chance(6, 4)
    seen = seen_by(right, member, right)
    with pytest.raises(InputError, match="score 'memorisation' was given outputs of 6 models; expected models = 400"):
        Memorisation()(seen)
    ruined = seen.logits.clone()
    ruined[3, 2] = torch.nan
    with pytest.raises(InputError, match="model 3 has a NaN or infinite logit on example id 994"):
        Memorisation(models=6)(replace(seen, logits=ruined))
    for wrong, message in [({"models": 1}, "models = 1 is out of range"), ({"share": 1.0}, "share = 1.0 is out of range"), ({"share": 0.0}, "share = 0.0")]:
        with pytest.raises(InputError, match=message):
            Memorisation(**wrong)


def test_the_size_of_a_subset() -> None:
    """round(share·n), where the published int(share·n) falls into the gaps between floating-point numbers."""
    assert int(0.7 * 45_000) == 31_499
    assert [len(subsets((0,), n, share)[0][0]) for n, share in ((45_000, 0.7), (50_000, 0.7), (500, 0.7), (100, 0.29))] == [31_500, 35_000, 350, 29]


# -- what it means ---------------------------------------------------------------------------------


def test_it_is_unbiased_and_the_standard_error_is_honest() -> None:
    """Right answers with known probabilities: 4000 images of 400 models each. The variance is estimated too small by 1 − 1/n on either side."""
    g = torch.Generator().manual_seed(0)
    p, q = 0.1 + 0.8 * torch.rand(2, 4000, generator=g)
    _, member = subsets(range(400), 4000, 0.7)
    correct = torch.rand(400, 4000, generator=g) < torch.where(member, p, q)
    found = estimate_memorisation(correct, member)
    z = (found.values - (p - q)) / found.stderr
    assert abs(float(z.mean())) < 4 / math.sqrt(4000)
    assert float(z.square().mean()) == pytest.approx(1, abs=0.1)  # 1.01 and ±.022 are to be expected


@cache
def noisy_digits() -> tuple[Images, Outputs]:
    """64 small models on random parts of 200 digits of which 40 are mislabelled."""
    train = SymmetricNoise(0.2)(Digits()().rows(torch.arange(200)), seed=1)
    net, part = Mlp(hidden=(64,))((1, 8, 8), 10), torch.full((200,), PARTS.index("retain"))
    return train, observe_subsets(Stack.init(net, range(MODELS)), train, train, part, Recipe(epochs=40, batch=25), 0.7)


def test_mislabelled_digits_are_memorised() -> None:
    """Of 64 models: mean .59 of the 40 mislabelled, .16 of the 160 others, area under the curve .84."""
    train, seen = noisy_digits()
    scores = Memorisation(models=MODELS)(seen)
    assert torch.equal(scores.ids, train.ids)
    assert not bool(scores.values.isnan().any())
    wrong, fine = scores.of(train.ids[train.mislabelled]), scores.of(train.ids[~train.mislabelled])
    assert float(wrong.mean()) > float(fine.mean()) + 0.3
    above = (wrong.unsqueeze(1) > fine).double() + 0.5 * (wrong.unsqueeze(1) == fine).double()
    assert float(above.mean()) > 0.75


def test_two_halves_of_an_ensemble_agree_as_far_as_the_standard_error_says() -> None:
    """Correlation .93. The squared difference is 1.2 times what the errors say: with 10 models outside, these are too small by a tenth."""
    _, seen = noisy_digits()

    def half(rows: range) -> Memorised:
        return estimate_memorisation((seen.predicted == seen.labels)[rows], seen.member[rows])

    one, other = half(range(MODELS // 2)), half(range(MODELS // 2, MODELS))
    assert float(torch.corrcoef(torch.stack([one.values, other.values]))[0, 1]) > 0.85
    apart, said = (one.values - other.values).square().sum(), (one.stderr.square() + other.stderr.square()).sum()
    assert 0.75 < float(apart / said) < 1.5
