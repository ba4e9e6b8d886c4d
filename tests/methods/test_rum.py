"""``rum``: groups forgotten one after the other, each from the model that the one before left."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from toy import Interrupted, Stops, Toy, same
from unlearnlab.artefacts import opens_head
from unlearnlab.contract import Context, Scores
from unlearnlab.data.images import Images, Split
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.localise.random import Random
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.gradient_ascent import GradientAscent
from unlearnlab.methods.neggrad_plus import NegGradPlus
from unlearnlab.methods.original import Original
from unlearnlab.methods.random_label import RandomLabel
from unlearnlab.methods.reset_finetune import ResetFineTune
from unlearnlab.methods.rum import Rum, Step
from unlearnlab.methods.salun import SalUn
from unlearnlab.methods.sequence import Sequence
from unlearnlab.methods.ssd import Ssd
from unlearnlab.progress import Progress
from unlearnlab.refine import ByClass, ByScore, Given, Shuffle
from unlearnlab.seeds import at_step, generator
from unlearnlab.spec import InputError, build, info, spec, to_dict
from unlearnlab.stack import Stack

TUNE = FineTune(epochs=2, batch=16)
HIGH = SalUn(epochs=1, batch=16, budget=0.3)


def scores_of(toy: Toy) -> dict[str, Scores]:
    """Of six images to forget two each are low, mid and high: ids 2 and 5, 1 and 4, 0 and 3."""
    ids = toy.split.forget.ids
    return {"memorisation": Scores("memorisation", ids, torch.tensor([0.9, 0.5, 0.1, 0.8, 0.4, 0.2], dtype=torch.float64)[: len(ids)], "memorisation")}


@pytest.fixture(scope="module")
def six(toy: Toy) -> Toy:
    """The toy with six images to forget and 54 to retain."""
    train = Images.join([toy.split.forget, toy.split.retain])
    return replace(toy, split=replace(toy.split, forget=train.rows(torch.arange(6)), retain=train.rows(torch.arange(6, 60))))


def context(toy: Toy, **more: Any) -> Context:
    return replace(toy.context(), scores=scores_of(toy), **more)


def turn(ctx: Context, retained: int) -> Context:
    """The context of a later turn, in which so many images are retained."""
    return replace(ctx, seeds=tuple(generator(seed, "rum.turn", retained).initial_seed() for seed in ctx.seeds))


def steps_of(method: Rum, toy: Toy) -> list[Step]:
    return list(method.steps(toy.stack, toy.split, context(toy)))


@pytest.mark.parametrize("refine", [ByScore(), Shuffle(), ByClass(), Given(groups=((0, 4), (1, 2, 3), (5,)))])
@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_retain_sets_shrink_and_never_hold_who_had_a_turn(refine: Any, order: Any, six: Toy) -> None:
    train, gone, before = set(six.split.train.ids.tolist()), set[int](), 61
    steps = steps_of(Rum(refine, (Original(),), order), six)
    for step in steps:
        asked, kept = step.split.forget.ids.tolist(), step.split.retain.ids.tolist()
        assert not gone & set(asked)  # each image has one turn
        gone |= set(asked)
        assert set(kept) == train - gone  # those to come are retained, those gone never return
        assert len(kept) == len(set(kept)) < before
        before = len(kept)
        assert bool((step.split.retain.labels == six.split.train.take(kept).labels).all())
        for part in ("validation", "control", "test"):
            assert getattr(step.split, part) is getattr(six.split, part)
    assert gone == set(six.split.forget.ids.tolist())
    assert before == len(six.split.retain)


def test_sizes_of_the_published_groups_in_miniature(six: Toy) -> None:
    steps = steps_of(Rum(ByScore(), (Original(),)), six)
    assert [(step.group, len(step.split.forget), len(step.split.retain)) for step in steps] == [("low", 2, 58), ("mid", 2, 56), ("high", 2, 54)]
    assert [step.split.forget.ids.tolist() for step in steps] == [[2, 5], [1, 4], [0, 3]]


def test_sizes_of_the_published_groups(six: Toy) -> None:
    ids = torch.arange(45_000)
    images = Images(torch.zeros(45_000, 1, 1, 1), torch.zeros(45_000, dtype=torch.int64), ids, 10)
    split = replace(six.split, forget=images.rows(ids[:3000]), retain=images.rows(ids[3000:]))
    scores = {"memorisation": Scores("memorisation", ids, torch.linspace(0, 1, 45_000, dtype=torch.float64))}
    steps = list(Rum(ByScore(), (Original(),)).steps(six.stack, split, replace(six.context(), scores=scores)))
    assert [(len(step.split.forget), len(step.split.retain)) for step in steps] == [(1000, 44_000), (1000, 43_000), (1000, 42_000)]


def test_parents_chain(six: Toy) -> None:
    method = Rum(ByScore(), (GradientAscent(lr=0.01, epochs=1), TUNE, HIGH))
    steps = steps_of(method, six)
    assert steps[0].before.fingerprint == six.stack.fingerprint
    for one, then in pairwise(steps):
        assert then.before.fingerprint == one.after.fingerprint
    assert len({step.after.fingerprint for step in steps} | {six.stack.fingerprint}) == 4
    assert steps[-1].after.fingerprint == six.unlearn(method, context(six)).fingerprint  # the last step's model is the result
    assert [info(step.method).name for step in steps] == ["gradient_ascent", "finetune", "salun"]


def test_each_step_is_its_method_on_its_split_with_draws_of_its_own(six: Toy) -> None:
    method, stack, ctx = Rum(ByScore(), (RandomLabel(epochs=1, batch=16), TUNE, HIGH)), six.stack, context(six)
    train = six.split.train
    for at, (one, asked, kept) in enumerate(zip(method.each, ([2, 5], [1, 4], [0, 3]), ([0, 1, 3, 4], [0, 3], []), strict=True)):
        split = replace(six.split, forget=train.take(asked), retain=Images.join([six.split.retain, train.take(kept)]))
        stack = one(stack, split, turn(ctx, len(split.retain)) if at else ctx)
    assert same(six.unlearn(method, ctx).params, stack.params)


def test_no_two_turns_draw_alike_in_requests_or_methods_around_or_within(six: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, act = list[tuple[int, ...]](), Original.__call__

    def spy(self: Original, stack: Stack, split: Split, ctx: Context) -> Stack:
        drawn.append(ctx.seeds)
        return act(self, stack, split, ctx)

    monkeypatch.setattr(Original, "__call__", spy)
    plain = Rum(ByScore(), (Original(),))
    nested = Rum(Given(groups=((0, 1, 2), (3, 4, 5))), (Rum(Shuffle(), (Original(),)),))
    around = Sequence(steps=(plain, plain, Original()))  # which counts its steps as requests are counted: of one request
    for method, requests, turns in ((plain, 3, 9), (nested, 3, 18), (around, 1, 7)):
        drawn.clear()
        for request in range(requests):
            ctx = context(six)
            six.unlearn(method, replace(ctx, seeds=tuple(at_step(seed, request) for seed in ctx.seeds)))
        made = [seed for seeds in drawn for seed in seeds]
        assert len(drawn) == turns
        assert len(set(made)) == len(made)
        assert all(0 <= seed < 2**63 for seed in made)


def test_its_cost_is_the_sum_of_the_groups(six: Toy) -> None:
    ctx = context(six)
    six.unlearn(Rum(ByScore(), (Original(), FineTune(epochs=2), RandomLabel(epochs=3))), ctx)
    assert ctx.progress.backward == 2 * 56 + 3 * (54 + 2)


def test_doing_nothing_everywhere_is_the_original_bit_for_bit(six: Toy) -> None:
    for method in (Rum(ByScore(), (Original(),)), Rum(ByScore(), (Original(),) * 3), Rum(Shuffle(groups=5), (Original(),), "random")):
        after = six.unlearn(method, context(six))
        assert same(after.params | after.buffers, six.stack.params | six.stack.buffers)
        assert after.fingerprint == six.stack.fingerprint


def test_a_skipped_group_leaves_all_later_retain_sets(six: Toy) -> None:
    skipped, worked = (steps_of(Rum(ByScore(), (first, Original(), Original())), six) for first in (Original(), TUNE))
    assert [step.split.retain.ids.tolist() for step in skipped] == [step.split.retain.ids.tolist() for step in worked]
    assert not {2, 5} & {i for step in skipped for i in step.split.retain.ids.tolist()}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "method", [TUNE, HIGH, NegGradPlus(epochs=2, batch=16), GradientAscent(lr=0.01, batch=3), Ssd(selection=1), ResetFineTune(epochs=1), RandomLabel(epochs=1)]
)
def test_one_group_is_the_method_itself_bit_for_bit(method: Any, turned: bool, six: Toy) -> None:
    if turned:  # sets in no order of id
        six = replace(
            six,
            split=replace(six.split, forget=six.split.forget.rows(torch.tensor([3, 0, 5, 1, 4, 2])), retain=six.split.retain.rows(torch.arange(53, -1, -1))),
        )
    plain = six.unlearn(method)
    for refine in (ByScore(groups=1), Shuffle(groups=1), Given(groups=((0, 1, 2, 3, 4, 5),))):
        after = six.unlearn(Rum(refine, (method,)), context(six))
        assert same(after.params | after.buffers, plain.params | plain.buffers)


def test_order(six: Toy) -> None:
    each = (GradientAscent(lr=0.01, epochs=1), TUNE, HIGH)
    up, down = (steps_of(Rum(ByScore(), each, order), six) for order in ("ascending", "descending"))
    assert [step.group for step in down] == [step.group for step in up][::-1] == ["high", "mid", "low"]
    for step in down:  # a group keeps its method, whenever its turn comes
        assert step.method == each[["low", "mid", "high"].index(step.group)]
    assert not same(up[-1].after.params, down[-1].after.params)
    forget = six.split.forget
    first = [step.group for step in steps_of(Rum(Shuffle(groups=6), (Original(),), "random"), six)]
    turned = replace(six, split=replace(six.split, forget=forget.rows(torch.tensor([3, 0, 5, 1, 4, 2]))))
    torch.manual_seed(3)
    again = [step.group for step in Rum(Shuffle(groups=6), (Original(),), "random").steps(turned.stack, turned.split, turned.context(shift=9))]
    assert first == again  # of the forget set alone: neither of seeds nor of the order of images
    assert first not in (sorted(first), sorted(first)[::-1])


def test_an_empty_group_hands_its_method_to_nobody(six: Toy) -> None:
    steps = steps_of(Rum(ByScore(cuts=(0.3, 0.35)), (Original(), TUNE, GradientAscent(lr=0.01, epochs=1))), six)
    assert [(step.group, info(step.method).name) for step in steps] == [("low", "original"), ("high", "gradient_ascent")]


def test_images_without_a_score_have_a_method_of_their_own(six: Toy) -> None:
    values = torch.tensor([0.9, float("nan"), 0.1, 0.8, 0.4, 0.2], dtype=torch.float64)
    ctx = replace(six.context(), scores={"memorisation": Scores("memorisation", six.split.forget.ids, values)})
    four = Rum(ByScore(), (Original(), Original(), Original(), GradientAscent(lr=0.01, epochs=1)))
    steps = list(four.steps(six.stack, six.split, ctx))
    assert [(step.group, info(step.method).name) for step in steps][-1] == ("unscored", "gradient_ascent")
    with pytest.raises(InputError, match=r"names 3 methods in `each`, and refiner 'by_score' makes 4 \(low, mid, high, unscored\); give one for all"):
        list(Rum(ByScore(), (Original(),) * 3).steps(six.stack, six.split, ctx))
    with pytest.raises(InputError, match=r"names 4 methods in `each`, and refiner 'by_score' makes 3 \(low, mid, high\)"):
        steps_of(four, six)  # where all have one


def test_what_makes_no_sense_is_refused(six: Toy) -> None:
    with pytest.raises(InputError, match="needs a method for its groups"):
        Rum(ByScore(), ())
    with pytest.raises(InputError, match="method 'rum' cannot hold 'sisa', which gives no models back"):
        Rum(ByScore(), (TUNE, build("method", "sisa"), TUNE))
    for refine, count, makes in ((ByScore(), 2, r"'by_score' makes 3 \(low, mid, high\)"), (Shuffle(groups=4), 3, r"makes 4"), (Shuffle(), 4, "makes 3")):
        with pytest.raises(InputError, match=rf"names {count} methods in `each`, and refiner .*{makes}"):
            Rum(refine, (TUNE,) * count)  # known before any image is
    with pytest.raises(InputError, match=r"names 9 methods in `each`, and refiner 'by_class' makes 6 \(0, 1, 2, 3, 4, 5\)"):
        six.unlearn(Rum(ByClass(), (TUNE,) * 9))
    with pytest.raises(InputError, match="goes by the score 'memorisation', which is not at hand"):
        six.unlearn(Rum(ByScore(), (TUNE,)))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1, 2], [2, 3, 4, 5]], "put image id 2 in two of its groups"),
        ([[0, 1, 2], [3, 4]], "put image id 5 in none of its groups"),
        ([[0, 1, 2], [3, 4, 5, 9]], "put image id 9 in one of its groups, and is not to be forgotten"),
        ([], "put image id 0 in none"),
    ],
)
def test_a_refiner_of_ones_own_must_cover_the_forget_set(groups: list[list[int]], message: str, six: Toy) -> None:
    own = _own_refiner(groups)
    with pytest.raises(InputError, match=message):
        six.unlearn(Rum(own, (TUNE,)))


def _own_refiner(groups: list[list[int]]) -> Any:
    from unlearnlab import spec as registry

    @spec("refiner", "test_own")
    class Own:
        score: ClassVar[str] = ""

        def __call__(self, split: Split, scores: Any) -> dict[str, torch.Tensor]:
            return {str(at): torch.tensor(ids) for at, ids in enumerate(groups)}

    del registry._registry["refiner"]["test_own"]
    return Own()


# ---------------------------------------------------------------- masks


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """Of every mask that ``grad_param`` makes: the model that it is made from, and the images."""
    seen, make = list[tuple[str, list[int]]](), GradParam.__call__

    def spy(self: GradParam, stack: Stack, split: Split, ctx: Context) -> Any:
        seen.append((stack.fingerprint, split.forget.ids.tolist()))
        mask = make(self, stack, split, ctx)
        assert mask.parent == stack.fingerprint
        return mask

    monkeypatch.setattr(GradParam, "__call__", spy)
    return seen


@pytest.mark.parametrize("inner", [HIGH, Localised(GradParam(budget=0.2), TUNE)])
def test_masks_come_from_the_model_before_and_this_group_alone(inner: Any, six: Toy, spied: list[tuple[str, list[int]]]) -> None:
    steps = steps_of(Rum(ByScore(), (inner,)), six)
    assert spied == [(step.before.fingerprint, step.split.forget.ids.tolist()) for step in steps]
    assert [ids for _, ids in spied] == [[2, 5], [1, 4], [0, 3]]
    assert len({parent for parent, _ in spied}) == 3


def test_a_mask_of_the_original_is_refused_in_a_later_step(six: Toy, tmp_path: Path) -> None:
    from unlearnlab.localise.stored import Stored, write_mask

    where = GradParam(budget=0.2)
    first = replace(six.split, forget=six.split.forget.take([2, 5]))
    write_mask(tmp_path / "mask.safetensors", where(six.stack, first, six.context()), localiser=where, forget=first.forget, seeds=six.stack.seeds)
    again = Localised(Stored(path=str(tmp_path / "mask.safetensors")), TUNE)
    with pytest.raises(InputError, match="this mask"):
        six.unlearn(Rum(ByScore(), (again,)), context(six))


def test_a_mask_around_it_holds_in_every_step(six: Toy) -> None:
    where = Random(budget=0.3)
    closed, inner = six.locate(where), Rum(ByScore(), (GradientAscent(lr=0.01, epochs=1), TUNE, HIGH))
    after = six.unlearn(Localised(where, inner), context(six))
    for n, bits in closed.open.items():
        assert torch.equal(after.params[n][~bits], six.stack.params[n][~bits])
    assert not same(after.params, six.stack.params)
    assert opens_head(Localised(where, Rum(ByScore(), (TUNE, TUNE, ResetFineTune()))))
    assert not opens_head(Localised(where, inner))


# ---------------------------------------------------------------- interruptions, nesting, names


METHODS = (
    Rum(ByScore(), (GradientAscent(lr=0.01, epochs=1), TUNE, HIGH)),
    Rum(ByScore(), (Original(), ResetFineTune(epochs=1, batch=16), Ssd(selection=1))),
    Rum(Shuffle(groups=2), (Sequence(steps=(RandomLabel(epochs=1, batch=16), TUNE)),), "descending"),
    Sequence(steps=(TUNE, Rum(Shuffle(groups=2), (RandomLabel(epochs=1, batch=16),)))),
    Rum(Given(groups=((0, 1, 2, 3), (4, 5))), (Rum(Shuffle(groups=2), (TUNE,)), HIGH)),
)


@pytest.mark.parametrize("method", METHODS, ids=lambda one: info(one).name)
def test_broken_off_in_any_step_it_ends_in_the_same_bits(method: Any, six: Toy, tmp_path: Path) -> None:
    undisturbed = Stops()
    whole = six.unlearn(method, context(six, progress=undisturbed))
    assert undisturbed.steps > 3
    for at in sorted({1, *(undisturbed.steps * quarter // 4 for quarter in (1, 2, 3, 4))}):
        folder = tmp_path / str(at)
        with pytest.raises(Interrupted):
            six.unlearn(method, context(six, progress=Stops(folder, at)))
        again = Progress(folder, every=0)
        after = six.unlearn(method, context(six, progress=again))
        assert same(after.params | after.buffers, whole.params | whole.buffers)
        assert (again.forward, again.backward) == (undisturbed.forward, undisturbed.backward)


def test_what_was_finished_is_not_trained_again(six: Toy, tmp_path: Path) -> None:
    method = Rum(ByScore(), (TUNE,))
    whole = Stops()
    six.unlearn(method, context(six, progress=whole))
    with pytest.raises(Interrupted):
        six.unlearn(method, context(six, progress=Stops(tmp_path, whole.steps - 1)))  # in the last step of the last group
    rest = Stops(tmp_path)
    six.unlearn(method, context(six, progress=rest))
    assert rest.steps <= 2


def test_nested_it_is_what_it_says(six: Toy) -> None:
    inner = Rum(Shuffle(groups=2), (RandomLabel(epochs=1, batch=16),))
    ctx = context(six)
    first = six.unlearn(TUNE, ctx)
    later = replace(ctx, seeds=tuple(generator(seed, "sequence.step", 1).initial_seed() for seed in ctx.seeds))
    assert same(six.unlearn(Sequence(steps=(TUNE, inner)), ctx).params, replace(six, stack=first).unlearn(inner, later).params)


def test_reset_finetune_inside_goes_back_to_the_originals_own_weights(six: Toy) -> None:
    steps = steps_of(Rum(ByScore(), (TUNE, Localised(Random(budget=0.5), ResetFineTune(lr=0.0, epochs=1)), Original())), six)
    opened = Random(budget=0.5)(steps[1].before, steps[1].split, turn(six.context(), len(steps[1].split.retain)))
    for n, bits in opened.open.items():
        assert torch.equal(steps[1].after.params[n][bits], six.init.params[n][bits])
        assert torch.equal(steps[1].after.params[n][~bits], steps[0].after.params[n][~bits])


def test_reads_what_its_parts_read() -> None:
    assert Rum(ByScore(), (Original(),)).reads == {"forget", "retain", "scores"}
    assert Rum(Shuffle(), (Original(),)).reads == {"forget", "retain"}
    assert Rum(Shuffle(), (TUNE, build("method", "oracle_matching"), ResetFineTune())).reads == {"forget", "retain", "oracles", "original_init"}


def test_row_says_what_it_is_made_of() -> None:
    assert Rum(ByScore(), (HIGH,)).row == "rum-memorisation-salun"
    assert Rum(ByScore(score="confidence"), (HIGH,)).row == "rum-confidence-salun"  # by which score
    assert Rum(Shuffle(), (TUNE,)).row == "rum-shuffle-finetune"
    assert Rum(ByScore(), (Original(), TUNE, HIGH)).row == "rum-memorisation-original+finetune+salun"
    assert Rum(ByScore(), (TUNE,), "descending").row == "rum-memorisation-finetune-descending"
    assert Rum(ByClass(), (Rum(Shuffle(), (TUNE,)),)).row == "rum-by_class-rum-shuffle-finetune"


def test_it_is_written_as_a_table() -> None:
    table = {"name": "rum", "refine": "by_score", "each": ["original", {"name": "finetune", "epochs": 2, "batch": 16}, "salun"]}
    made = build("method", table)
    assert made == Rum(ByScore(), (Original(), TUNE, SalUn()))
    assert build("method", to_dict(made)) == made


def test_the_stack_is_untouched_and_a_diverged_member_is_told(six: Toy) -> None:
    before = {n: t.clone() for n, t in six.stack.params.items()}
    after = six.unlearn(Rum(ByScore(), (TUNE, FineTune(lr=1e30, epochs=1, batch=16), Original())), context(six))
    assert same(six.stack.params, before)
    assert len(after.diverged) == len(six.stack)
