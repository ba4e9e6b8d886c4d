"""Bands are disjoint, deterministic and honest about their size."""

from dataclasses import replace

import pytest
import torch
from simulated import study

from unlearnlab.contract import Audit
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.accuracy import Accuracy
from unlearnlab.metrics.agreement import TugOfWar, TugOfWarMia
from unlearnlab.metrics.groups import band_differences, bands, inside, of_group
from unlearnlab.metrics.statistics import holm
from unlearnlab.metrics.trace import Trace
from unlearnlab.outputs import Outputs
from unlearnlab.seeds import generator
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
    assert {name: mask.nonzero()[:, 0].tolist() for name, mask in masks.items()} == {"low": [2], "mid": [4], "high": [1], "unscored": [0, 3]}


def test_metric_of_a_group() -> None:
    audit = study(4)
    found = of_group(Accuracy(), audit, "clean")
    assert (found.key, found.missing, found.n_examples) == ("group.label.clean.acc.forget", "not computed: 20 forget images, needs 30", 20)
    whole = replace(audit, groups={"all": torch.ones_like(audit.groups["clean"])})
    assert of_group(Accuracy(), whole, "all").value == Accuracy()(audit).value


def test_a_group_keeps_all_that_is_not_forgotten() -> None:
    audit = study(4)
    wrong, sizes = audit.groups["mislabelled"], {}
    held = inside(audit, "mislabelled").unlearned
    for part in PARTS:
        rows = audit.unlearned.of(part)
        sizes[part] = len(held.of(part).labels)
        assert sizes[part] == (len(rows.labels) if part in ("retain", "validation", "test") else len(audit.restrict(wrong).unlearned.of(part).labels))
    assert sizes["control"] == 24  # attacks compare like with like
    with pytest.raises(InputError, match="unknown group 'wrong'"):
        inside(audit, "wrong")


def test_tow_of_a_group_takes_its_images_for_the_forget_part() -> None:
    audit = study(6)
    forget = (audit.unlearned.part == PARTS.index("forget")).nonzero()[:, 0]
    high = torch.ones(len(audit.unlearned.labels), dtype=torch.bool)
    high[forget[:8]] = False
    marked = replace(audit, groups={**audit.groups, "memorisation.high": high, "forget only": high & (audit.unlearned.part == PARTS.index("forget"))})
    found = of_group(TugOfWar(), marked, "memorisation.high")
    assert found.key == "group.memorisation.high.tow"
    assert found.value == TugOfWar()(audit.restrict(high)).value != TugOfWar()(audit).value
    assert of_group(TugOfWar(), marked, "forget only").value == found.value
    mia = of_group(TugOfWarMia(), marked, "memorisation.high")
    assert (mia.key, mia.value) == ("group.memorisation.high.tow_mia", TugOfWarMia()(audit.restrict(high)).value)
    assert of_group(Trace(), replace(study(20), groups=marked.groups), "memorisation.high").value is not None


# ---- differences between bands

BAND, N = 40, 16
LEFT = {"low": 0.1, "mid": 0.3, "high": 0.6}


def seen(margins: torch.Tensor, first: int = 0) -> Outputs:
    models, n = margins.shape
    zeros = torch.zeros(n, dtype=torch.int64)
    logits = torch.stack([margins, torch.zeros_like(margins)], -1)
    return Outputs(logits, torch.zeros(models, n, dtype=torch.bool), zeros, torch.arange(n), zeros, tuple(range(first, first + models)))


def banded(seed: int = 0, left: dict[str, float] = LEFT, common: float = 0.5, gaps: tuple[float, ...] = (2.0, 3.0, 4.0)) -> Audit:
    """Three bands of 40 images. Every model has a level of its own, on all images and on each band; unlearned models have part of their original's."""
    draws = generator(seed, "test.banded")

    def models() -> torch.Tensor:
        levels = common * torch.randn(N, 1, generator=draws, dtype=torch.float64) + 0.3 * torch.randn(N, 3, generator=draws, dtype=torch.float64)
        return torch.randn(N, 3 * BAND, generator=draws, dtype=torch.float64) + levels.repeat_interleave(BAND, 1)

    gap = torch.tensor(gaps).double().repeat_interleave(BAND)
    originals, oracles = models() + gap, models()
    unlearned = 0.6 * originals + 0.8 * models() + (torch.tensor([*left.values()]).double().repeat_interleave(BAND) - 0.6) * gap
    masks = {f"score.{name}": torch.arange(3 * BAND) // BAND == at for at, name in enumerate(left)}
    return Audit(seen(originals), seen(oracles, 100), seen(unlearned), torch.arange(N), masks)


def test_differences_are_those_of_the_traces_with_holm_within_a_scheme() -> None:
    audit = banded()
    found = {result.key: result for result in band_differences(audit, list(audit.groups))}
    assert list(found) == [f"difference.score.{pair}.trace" for pair in ("mid.low", "high.low", "high.mid")]
    trace = {name: of_group(Trace(), audit, f"score.{name}") for name in LEFT}
    for key, result in found.items():
        a, b = key.split(".")[2:4]
        assert result.value == pytest.approx(trace[a].value - trace[b].value)
        assert result.ci is not None
        assert result.ci.lo < result.value < result.ci.hi
        assert (result.n_examples, result.n_models) == (80, (N, N, N))
    p = [result.p for result in found.values()]
    assert [result.extra["holm_p"] for result in found.values()] == holm(p)
    assert found["difference.score.high.low.trace"].extra["holm_p"] < 1e-3
    assert [result.missing for result in band_differences(audit, list(audit.groups)[:2])] == [None]
    assert band_differences(audit, list(audit.groups)[:2])[0].extra["holm_p"] == pytest.approx(p[0])


def test_what_models_have_in_common_cancels() -> None:
    """The same models are scored in all bands: their levels must not be counted as noise twice."""
    audit = banded(common=3.0, gaps=(6.0, 6.0, 6.0), left=dict.fromkeys(LEFT, 0.3))
    apart = [of_group(Trace(), audit, name).extra["se"] for name in ("score.high", "score.low")]
    high_low = band_differences(audit, list(audit.groups))[1]
    assert high_low.extra["se"] < 0.5 * (apart[0] ** 2 + apart[1] ** 2) ** 0.5
    alone = replace(audit, parents=None)
    assert band_differences(alone, list(audit.groups))[1].value == pytest.approx(high_low.value, abs=0.05)


def test_the_original_leaves_as_much_everywhere() -> None:
    audit = banded()
    for result in band_differences(replace(audit, unlearned=audit.originals), list(audit.groups)):
        assert (result.value, result.ci.lo, result.ci.hi, result.p, result.extra["holm_p"]) == (0, 0, 0, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("left", [LEFT, dict.fromkeys(LEFT, 0.3)], ids=["apart", "equal"])
def test_intervals_of_differences_cover(left: dict[str, float]) -> None:
    studies, covered, accused = 200, 0, 0
    true = [left["mid"] - left["low"], left["high"] - left["low"], left["high"] - left["mid"]]
    for seed in range(studies):
        found = band_differences(banded(seed, left), [f"score.{name}" for name in left])
        covered += sum(result.ci.lo <= value <= result.ci.hi for result, value in zip(found, true, strict=True))
        accused += min(result.extra["holm_p"] for result in found) <= 0.05
    assert 0.93 <= covered / (3 * studies) <= 0.99
    assert accused == studies if left is LEFT else accused <= 0.08 * studies


def test_a_score_that_means_nothing_gives_no_trend() -> None:
    """On average: p speaks of these images, and any two groups of images may differ a little in truth."""
    audit = banded()

    def high_low(order: torch.Tensor) -> float:
        mixed = replace(audit, groups={name: mask[order] for name, mask in audit.groups.items()})
        return band_differences(mixed, list(mixed.groups))[1].value

    shuffled = [high_low(torch.randperm(3 * BAND, generator=generator(seed, "test.shuffled"))) for seed in range(20)]
    assert abs(sum(shuffled)) / 20 < 0.03
    assert max(map(abs, shuffled)) < 0.1 < 0.4 < high_low(torch.arange(3 * BAND))


def test_pairs_that_cannot_be_compared() -> None:
    audit = banded(gaps=(0.0, 3.0, 4.0))
    names = list(audit.groups)
    reasons = {result.key: result.missing for result in band_differences(audit, names)}
    assert reasons == {
        "difference.score.mid.low.trace": f"not computed: 'low' leaves no trace at N={N}",
        "difference.score.high.low.trace": f"not computed: 'low' leaves no trace at N={N}",
        "difference.score.high.mid.trace": None,
    }
    assert of_group(Trace(), audit, "score.low").missing == f"not computed: this group leaves no trace at N={N}"
    # one that shares images with another, one of another scheme, one that is too small
    at = torch.arange(3 * BAND)
    odd = replace(audit, groups={**audit.groups, "score.wide": at > 20, "other.high": at < 40, "score.few": at < 29})
    assert [result.key for result in band_differences(odd, list(odd.groups))] == [*reasons]
    few = replace(audit, **{side: getattr(audit, side).rows(range(8)) for side in ("originals", "oracles", "unlearned")}, parents=torch.arange(8))
    assert {result.missing for result in band_differences(few, names)} == {"not computed: N=8, needs 16"}
    requests = replace(audit, groups={"request 1": at < 40, "request 2": (at >= 40) & (at < 80), "clean": at >= 0})
    assert [result.key for result in band_differences(requests, list(requests.groups))] == ["difference.label.request 2.request 1.trace"]
