"""What every method must hold to (methods.md §1.10, DESIGN §7), run over the whole registry.

All tests run on ``small_cnn`` with ten classes; each other net, number of classes and short forget set once a method. The
full matrix is ``slow``. What a test must know of a method stands in its ``Facts``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from facts import Facts, Sizes, collect
from toy import SHORT, Interrupted, Stops, Toy, furthest, make_toy, same
from unlearnlab.contract import Forbidden, Method, Undeclared, only_declared
from unlearnlab.data.augment import Crop
from unlearnlab.localise.random import Random
from unlearnlab.optimizers import Adam, Cosine, Sgd
from unlearnlab.progress import Progress
from unlearnlab.spec import build, fields, lookup, names, to_dict
from unlearnlab.stack import Mask, Stack, head_names

FACTS: dict[str, Facts] = collect()
NAMES = [name for name in sorted(FACTS) if callable(FACTS[name].build or build("method", name))]  # the others answer, see test_answers.py
OTHER_NETS = ["batch_norm", "mlp", "vit"]

# Another allowed value for each setting that is neither a choice nor a switch, where the method's facts name none.
OTHER: dict[str, Any] = {
    "lr": 0.02, "epochs": 3, "batch": 9, "optimizer": Adam(), "schedule": Cosine(), "clip": 0.01, "penalty": 1e-3, "penalty_free_epochs": 1,
    "budget": 0.1, "top_share": 1.0, "selection": 2.0, "dampening": 0.5, "exponent": 2.0, "retain_weight": 0.5,
}  # fmt: skip

slow = pytest.mark.slow
nets = pytest.mark.parametrize("net", ["small_cnn", *(pytest.param(net, marks=slow) for net in OTHER_NETS)])


def default(name: str) -> Method:
    made: Method = FACTS[name].build or build("method", name)
    return made


def short(name: str, *, epochs: int = 2, batch: int | None = None) -> Method:
    """The same method on fewer and smaller steps: several an epoch, also where only the four forget images are seen."""
    return _shortened(default(name), epochs, batch, dict(FACTS[name].short))


def _shortened(method: Any, epochs: int, batch: int | None, more: dict[str, Any]) -> Any:
    size = batch or (3 if method.reads == {"forget"} else 16)
    changes: dict[str, Any] = {name: value for name, value in (("epochs", epochs), ("batch", size)) if hasattr(method, name)}
    for held in ("method", "each", "then"):  # methods that hold a method
        if hasattr(getattr(method, held, None), "__spec__"):
            changes[held] = _shortened(getattr(method, held), epochs, batch, {})
    return replace(method, **{**changes, **more})


def busy(name: str) -> Method:
    """Under these settings every setting has something to do."""
    return replace(short(name), **FACTS[name].busy)


def unexempt(test: str) -> list[str]:
    return [name for name in NAMES if test not in FACTS[name].exempt]


def the_toy(name: str, net: str = "small_cnn", classes: int = 10) -> Toy:
    """The toy as a method asks for it."""
    toy, facts = make_toy(net, classes), FACTS[name]
    toy = toy if facts.prepare is None else facts.prepare(toy)
    return toy if facts.recipe is None else replace(toy, recipe=facts.recipe)


def random_mask(toy: Toy) -> Mask:
    return toy.locate(Random(budget=0.4))


def test_every_method_has_facts() -> None:
    assert set(FACTS) == {name for name in names("method") if lookup("method", name).__module__.startswith("unlearnlab.")}  # tests file more


@pytest.mark.parametrize("name", NAMES)
def test_moves(name: str) -> None:
    toy = the_toy(name)
    after = toy.unlearn(default(name))
    for k in range(len(after)):
        moved = any(not torch.equal(after.params[n][k], p[k]) for n, p in toy.stack.params.items())
        assert moved == ("moves" not in FACTS[name].exempt)


@nets
@pytest.mark.parametrize("name", unexempt("null"))
def test_null_changes_nothing(name: str, net: str) -> None:
    toy, method = the_toy(name, net), short(name)
    assert method.null is not None
    after = toy.unlearn(replace(method, **method.null))
    assert same(after.params, toy.stack.params)
    assert same(after.buffers, toy.stack.buffers)


@pytest.mark.parametrize("name", [name for name in NAMES if "null" in FACTS[name].exempt])
def test_exempt_from_null_declares_none(name: str) -> None:
    assert default(name).null is None


@pytest.mark.parametrize("name", NAMES)
def test_reads_exactly_what_it_declares(name: str) -> None:
    toy, method = the_toy(name), short(name)
    split, ctx = only_declared(method, toy.split, toy.equipped(method, toy.context()))
    method(toy.stack, split, ctx)  # undeclared parts raise when touched
    for part in method.reads:
        hidden: Any = Forbidden(name, part)
        where = {part: hidden}
        with pytest.raises(Undeclared, match=part):
            method(toy.stack, replace(split, **where) if hasattr(split, part) else split, ctx if hasattr(split, part) else replace(ctx, **where))


@nets
@pytest.mark.parametrize("name", NAMES)
def test_no_side_effects(name: str, net: str) -> None:
    toy = the_toy(name, net)
    before, lot = _everything(toy), torch.get_rng_state()
    toy.unlearn(short(name))
    assert same(_everything(toy), before)
    assert torch.equal(torch.get_rng_state(), lot)  # the global generator was not touched


def _everything(toy: Toy) -> dict[str, Tensor]:
    """Copies of all tensors a method is handed."""
    held = {f"{which}.{n}": t for which, s in (("stack", toy.stack), ("init", toy.init)) for n, t in (s.params | s.buffers | s.net.state_dict()).items()}
    parts = {
        f"{part}.{n}": getattr(getattr(toy.split, part), n) for part in ("forget", "retain", "validation") for n in ("pixels", "labels", "ids", "true_labels")
    }
    return {name: tensor.clone() for name, tensor in (held | parts).items()}


@nets
@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits_other_seed_other_bits(name: str, net: str) -> None:
    toy, method = the_toy(name, net), short(name)
    first, again, other = (toy.unlearn(method, toy.context(shift=shift)) for shift in (0, 0, 1000))
    assert same(first.params | first.buffers, again.params | again.buffers)
    differs = any(not torch.equal(first.params[n][k], other.params[n][k]) for n in first.params for k in range(len(first)))
    assert differs == ("seed" not in FACTS[name].exempt)


@nets
@pytest.mark.parametrize("name", unexempt("mask"))
def test_mask_is_hard(name: str, net: str) -> None:
    toy, method = the_toy(name, net), short(name, epochs=5)
    if hasattr(method, "optimizer"):
        method = replace(method, optimizer=Sgd(momentum=0.9, weight_decay=5e-4))
    mask = random_mask(toy)
    if FACTS[name].opens_head:
        mask = mask.opening(head_names(toy.stack))
    after = toy.unlearn(method, toy.context(mask=mask))
    for n, is_open in mask.open.items():
        assert torch.equal(after.params[n][~is_open], toy.stack.params[n][~is_open])
    if "moves" not in FACTS[name].exempt:
        assert not same(after.params, toy.stack.params)


@nets
@pytest.mark.parametrize("name", unexempt("pruned"))
def test_pruned_weights_stay_pruned(name: str, net: str) -> None:
    toy = the_toy(name, net)
    lots = random_mask(toy).open
    sparse = replace(toy, stack=toy.stack.pruned({n: bits for n, bits in lots.items() if bits.dim() > 2}))
    after = sparse.unlearn(short(name))
    assert same(after.live, sparse.stack.live)
    for n, live in after.live.items():
        assert int((after.params[n][~live] != 0).sum()) == 0
        assert "moves" in FACTS[name].exempt or int((after.params[n][live] != 0).sum()) > 0


@pytest.mark.parametrize(("net", "classes"), [("small_cnn", 2), ("small_cnn", 10), ("small_cnn", 100), ("batch_norm", 10), ("mlp", 10), ("vit", 10)])
@pytest.mark.parametrize("name", NAMES)
def test_shape_of_the_model_is_kept(name: str, net: str, classes: int) -> None:
    toy = the_toy(name, net, classes)
    after = toy.unlearn(short(name))
    assert repr(after.net) == repr(toy.stack.net)
    assert len(after) == len(toy.stack)
    assert not after.diverged
    for mine, theirs in ((after.params, toy.stack.params), (after.buffers, toy.stack.buffers)):
        assert [(n, t.shape, t.dtype) for n, t in mine.items()] == [(n, t.shape, t.dtype) for n, t in theirs.items()]
        assert all(bool(torch.isfinite(t).all()) for t in mine.values())
    assert after.logits(toy.split.forget.pixels).shape[-1] == classes


@pytest.mark.parametrize("name", unexempt("cost"))
def test_cost_is_counted(name: str) -> None:
    epochs, batch = 3, 5
    toy = the_toy(name)
    parts = {part: len(getattr(toy.split, part)) for part in ("forget", "retain", "validation")}
    sizes = Sizes(**parts, epochs=epochs, batch=batch, classes=10, recipe_epochs=(FACTS[name].recipe or SHORT).epochs)
    for stack in (toy, toy.only(1)):
        ctx = stack.context()
        stack.unlearn(short(name, epochs=epochs, batch=batch), ctx)
        assert (ctx.progress.forward, ctx.progress.backward) == FACTS[name].passes(sizes)


@pytest.mark.parametrize("name", NAMES)
def test_an_interruption_changes_nothing(name: str, tmp_path: Path) -> None:
    """Broken off early, in the middle and at the end, then run to the end: the same bits at the same count."""
    toy, method, undisturbed = the_toy(name), short(name), Stops()
    whole = toy.unlearn(method, replace(toy.context(), progress=undisturbed))
    for at in sorted({1, undisturbed.steps // 2, undisturbed.steps} - {0}) if undisturbed.steps else ():
        folder = tmp_path / str(at)
        with pytest.raises(Interrupted):
            toy.unlearn(method, replace(toy.context(), progress=Stops(folder, at)))
        again = Progress(folder, every=0)
        after = toy.unlearn(method, replace(toy.context(), progress=again))
        assert same(after.params | after.buffers, whole.params | whole.buffers)
        assert (again.forward, again.backward) == (undisturbed.forward, undisturbed.backward)


@pytest.mark.parametrize("name", [name for name in NAMES if FACTS[name].one_shot])
def test_order_of_forget_ids_does_not_matter(name: str) -> None:
    toy = the_toy(name)
    turned = toy.forgetting(toy.split.forget.rows(torch.tensor([2, 0, 3, 1])))
    assert furthest(toy.unlearn(default(name)).params, turned.unlearn(default(name)).params) < 1e-6


@pytest.mark.parametrize(("net", "count"), [("small_cnn", 1), ("small_cnn", 2), pytest.param("small_cnn", 4, marks=slow), ("batch_norm", 1)])
@pytest.mark.parametrize("name", unexempt("short_forget"))
def test_short_forget_sets(name: str, count: int, net: str) -> None:
    """One image; fewer than a batch; a number that the batch size does not divide."""
    toy = the_toy(name, net).only(0)
    ctx = toy.context()
    after = toy.forgetting(toy.split.forget.rows(torch.arange(count))).unlearn(short(name, batch=3), ctx)
    assert all(bool(torch.isfinite(p).all()) for p in after.params.values())
    if "forget" in default(name).reads:
        assert ctx.progress.forward >= count


@nets
@pytest.mark.parametrize("name", NAMES)
def test_stacked_equals_separate(name: str, net: str) -> None:
    """After 20 or more steps; where a method selects, the toy has no scores so close to a cut that the selections differ.

    Nor does an activation come so near a kink (of a ReLU or a max pooling) that rounding decides its side: with five epochs
    one does, in one member of `del` with BatchNorm, whose weights then differ by 6e-4 instead of 2e-7.
    """
    toy, method = the_toy(name, net), short(name, epochs=10 if name == "gradient_ascent" else 6)
    together, ctx = toy.unlearn(method), toy.context()
    for k in range(len(together)):
        alone = toy.only(k).unlearn(method, replace(toy.only(k).context(), seeds=ctx.seeds[k : k + 1]))
        assert furthest(together.rows([k]).params, alone.params) < 1e-5
        assert not together.buffers or furthest(together.rows([k]).buffers, alone.buffers) < 1e-4


def _variants(name: str) -> Iterator[tuple[str, Method]]:
    """The method with each setting changed in turn."""
    method = busy(name)
    for field in fields(type(method)):
        now: Any = getattr(method, field.name)
        others: list[Any]
        if field.name in FACTS[name].other:
            others = [FACTS[name].other[field.name]]
        elif field.name == "bn":  # eval_all differs from frozen in nets with dropout only
            others = ["frozen" if now == "train" else "train"]
        elif get_origin(field.type) is Literal:
            others = [choice for choice in get_args(field.type) if choice != now]
        else:
            others = [not now] if field.type is bool else [OTHER.get(field.name, now)]
        for value in others:
            yield field.name, replace(method, **{field.name: value})


@pytest.mark.parametrize(("name", "setting", "method"), [(name, setting, method) for name in NAMES for setting, method in _variants(name)])
def test_no_dead_settings(name: str, setting: str, method: Method) -> None:
    assert method != busy(name), f"name another value of '{setting}' in the facts"
    augmenting = setting == "augment"  # without augmentation in the recipe there is none to leave out
    before, after = _usual(name, augmenting), _one(name, augmenting).unlearn(method)
    assert not same(before.params | before.buffers, after.params | after.buffers)


def _one(name: str, augmenting: bool) -> Toy:
    toy = the_toy(name, "batch_norm").only(0)
    return replace(toy, recipe=replace(toy.recipe, augment=(Crop(padding=1),))) if augmenting else toy


@cache
def _usual(name: str, augmenting: bool) -> Stack:
    """What the method makes before a setting is changed."""
    return _one(name, augmenting).unlearn(busy(name))


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_writing_and_reading(name: str) -> None:
    for method in (default(name), *(method for _, method in _variants(name))):
        assert build("method", json.loads(json.dumps(to_dict(method)))) == method


def test_methods_say_what_they_are() -> None:
    for name in NAMES:
        words = default(name).__doc__ or ""
        assert "Source:" in words, name
        assert "Differs from the published code:" in words, name
        assert default(name).cost, name
        assert all(field.setting.help for field in fields(type(default(name)))), name
