"""What every method must hold to (methods.md §1.10, DESIGN §7), run over the whole registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from toy import SHORT, Toy, furthest, make_toy, same
from unlearnlab.contract import Forbidden, Method, Undeclared, only_declared
from unlearnlab.localise.random import Random
from unlearnlab.localise.weight_magnitude import WeightMagnitude
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.l1_sparse import L1Sparse
from unlearnlab.methods.ssd import Ssd
from unlearnlab.optimizers import Adam, Cosine, Sgd
from unlearnlab.spec import build, fields, names, to_dict
from unlearnlab.stack import Mask, head_names

NAMES = names("method")
TRAINING = [name for name in NAMES if name not in ("original", "ssd")]
NETS = ["small_cnn", "batch_norm", "mlp"]

# Combinators have no default inner parts.
BUILT: dict[str, Method] = {"localised": Localised(where=Random(budget=0.5, granularity="channel"), method=FineTune())}

# The one table of exemptions: who need not pass which test, and why.
EXEMPT: dict[str, dict[str, str]] = {
    "moves": {"original": "does nothing by definition"},
    "null": {
        "retrain": "starts from fresh weights",
        "reset_finetune": "resets before it trains",
        "del": "resets before it trains",
        "localised": "is nothing where the method it holds is nothing: see the test of its own",
    },
    "seed": {"original": "draws nothing", "ssd": "draws nothing"},
    "mask": {"retrain": "refuses a mask: see the test of its own"},
}
BUSY: dict[str, Method] = {"ssd": Ssd(selection=1.0)}  # settings under which every setting has something to do
OPENS_HEAD = {"reset_finetune", "del"}  # the classifier head is trained whatever the mask says (methods.md §5.2 step 7)
ONE_SHOT = {"ssd"}

# Another allowed value for each setting that is neither a choice nor a switch.
OTHER: dict[str, Any] = {
    "lr": 0.02, "epochs": 3, "batch": 9, "optimizer": Adam(), "schedule": Cosine(), "clip": 0.01, "penalty": 1e-3, "penalty_free_epochs": 1,
    "retain_weight": 0.5, "budget": 0.1, "top_share": 1.0, "selection": 2.0, "dampening": 0.5, "exponent": 2.0, "where": WeightMagnitude(),
    "method": L1Sparse(),
}  # fmt: skip


def default(name: str) -> Method:
    return BUILT.get(name) or build("method", name)


def short(method: Method, *, epochs: int = 2, batch: int | None = None) -> Method:
    """The same method on fewer and smaller steps: several an epoch, also where only the four forget images are seen."""
    batch = batch or (3 if method.reads == {"forget"} else 16)
    changes: dict[str, Any] = {name: value for name, value in (("epochs", epochs), ("batch", batch)) if hasattr(method, name)}
    if hasattr(method, "method"):
        changes["method"] = short(method.method, epochs=epochs, batch=batch)
    return replace(method, **changes)


def unexempt(test: str) -> list[str]:
    return [name for name in NAMES if name not in EXEMPT[test]]


def random_mask(toy: Toy) -> Mask:
    return toy.locate(Random(budget=0.4))


def test_exemptions_name_methods_that_exist() -> None:
    assert {name for table in EXEMPT.values() for name in table} | set(BUILT) | OPENS_HEAD | ONE_SHOT <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_moves(name: str, toy: Toy) -> None:
    after = toy.unlearn(default(name))
    for k in range(len(after)):
        moved = any(not torch.equal(after.params[n][k], p[k]) for n, p in toy.stack.params.items())
        assert moved == (name not in EXEMPT["moves"])


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm"])
@pytest.mark.parametrize("name", unexempt("null"))
def test_null_changes_nothing(name: str, net: str) -> None:
    toy, method = make_toy(net), default(name)
    assert method.null is not None
    after = toy.unlearn(replace(short(method), **method.null))
    assert same(after.params, toy.stack.params)
    assert same(after.buffers, toy.stack.buffers)


@pytest.mark.parametrize("name", EXEMPT["null"])
def test_exempt_from_null_declares_none(name: str) -> None:
    assert default(name).null is None


@pytest.mark.parametrize("name", NAMES)
def test_reads_exactly_what_it_declares(name: str, toy: Toy) -> None:
    method = short(default(name))
    split, ctx = only_declared(method, toy.split, toy.context())
    method(toy.stack, split, ctx)  # undeclared parts raise when touched
    for part in method.reads:
        hidden: Any = Forbidden(name, part)
        where = {part: hidden}
        with pytest.raises(Undeclared, match=part):
            method(toy.stack, replace(split, **where) if hasattr(split, part) else split, ctx if hasattr(split, part) else replace(ctx, **where))


@pytest.mark.parametrize("name", NAMES)
def test_no_side_effects(name: str) -> None:
    toy = make_toy("batch_norm")
    before, lot = _everything(toy), torch.get_rng_state()
    toy.unlearn(short(default(name)))
    assert same(_everything(toy), before)
    assert torch.equal(torch.get_rng_state(), lot)  # the global generator was not touched


def _everything(toy: Toy) -> dict[str, Tensor]:
    """Copies of all tensors a method is handed."""
    held = {f"{which}.{n}": t for which, s in (("stack", toy.stack), ("init", toy.init)) for n, t in (s.params | s.buffers | s.net.state_dict()).items()}
    parts = {
        f"{part}.{n}": getattr(getattr(toy.split, part), n) for part in ("forget", "retain", "validation") for n in ("pixels", "labels", "ids", "true_labels")
    }
    return {name: tensor.clone() for name, tensor in (held | parts).items()}


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits_other_seed_other_bits(name: str, toy: Toy) -> None:
    method = short(default(name))
    first, again, other = (toy.unlearn(method, toy.context(shift=shift)) for shift in (0, 0, 1000))
    assert same(first.params | first.buffers, again.params | again.buffers)
    differs = any(not torch.equal(first.params[n][k], other.params[n][k]) for n in first.params for k in range(len(first)))
    assert differs == (name not in EXEMPT["seed"])


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm"])
@pytest.mark.parametrize("name", unexempt("mask"))
def test_mask_is_hard(name: str, net: str) -> None:
    toy, method = make_toy(net), short(default(name), epochs=5)
    if hasattr(method, "optimizer"):
        method = replace(method, optimizer=Sgd(momentum=0.9, weight_decay=5e-4))
    mask = random_mask(toy)
    if name in OPENS_HEAD:
        mask = mask.opening(head_names(toy.stack))
    after = toy.unlearn(method, toy.context(mask=mask))
    for n, is_open in mask.open.items():
        assert torch.equal(after.params[n][~is_open], toy.stack.params[n][~is_open])
    if name not in EXEMPT["moves"]:
        assert not same(after.params, toy.stack.params)


@pytest.mark.parametrize(("net", "classes"), [("small_cnn", 2), ("small_cnn", 10), ("small_cnn", 100), ("batch_norm", 10), ("mlp", 10)])
@pytest.mark.parametrize("name", NAMES)
def test_shape_of_the_model_is_kept(name: str, net: str, classes: int) -> None:
    toy = make_toy(net, classes)
    after = toy.unlearn(short(default(name)))
    assert repr(after.net) == repr(toy.stack.net)
    assert len(after) == len(toy.stack)
    assert not after.diverged
    for mine, theirs in ((after.params, toy.stack.params), (after.buffers, toy.stack.buffers)):
        assert [(n, t.shape, t.dtype) for n, t in mine.items()] == [(n, t.shape, t.dtype) for n, t in theirs.items()]
        assert all(bool(torch.isfinite(t).all()) for t in mine.values())
    assert after.logits(toy.split.forget.pixels).shape[-1] == classes


@pytest.mark.parametrize("name", NAMES)
def test_cost_is_counted(name: str, toy: Toy) -> None:
    forget, retain, epochs, batch = len(toy.split.forget), len(toy.split.retain), 3, 5
    steps = epochs * -(-retain // batch)
    turns = [min(batch, forget - at) for at in range(0, forget, batch)]  # sizes of one pass of forget batches
    expected = {
        "original": 0,
        "retrain": SHORT.epochs * retain,
        "finetune": epochs * retain,
        "localised": epochs * retain,
        "l1_sparse": epochs * retain,
        "reset_finetune": epochs * retain,
        "del": epochs * retain + forget,
        "gradient_ascent": epochs * forget,
        "neggrad_plus": epochs * retain + sum(turns[step % len(turns)] for step in range(steps)),
        "random_label": epochs * (retain + forget),
        "salun": epochs * (retain + forget) + forget,
        "ssd": retain + forget,
    }
    for stack in (toy, toy.only(1)):
        ctx = stack.context()
        stack.unlearn(short(default(name), epochs=epochs, batch=batch), ctx)
        assert (ctx.progress.forward, ctx.progress.backward) == (expected[name], expected[name])


@pytest.mark.parametrize("name", sorted(ONE_SHOT))
def test_order_of_forget_ids_does_not_matter(name: str, toy: Toy) -> None:
    turned = toy.forgetting(toy.split.forget.rows(torch.tensor([2, 0, 3, 1])))
    assert furthest(toy.unlearn(default(name)).params, turned.unlearn(default(name)).params) < 1e-6


@pytest.mark.parametrize(("net", "count"), [("small_cnn", 1), ("small_cnn", 2), ("small_cnn", 4), ("batch_norm", 1)])
@pytest.mark.parametrize("name", NAMES)
def test_short_forget_sets(name: str, count: int, net: str) -> None:
    """One image; fewer than a batch; a number that the batch size does not divide."""
    toy = make_toy(net).only(0)
    ctx = toy.context()
    after = toy.forgetting(toy.split.forget.rows(torch.arange(count))).unlearn(short(default(name), batch=3), ctx)
    assert all(bool(torch.isfinite(p).all()) for p in after.params.values())
    if "forget" in default(name).reads:
        assert ctx.progress.backward >= count


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_stacked_equals_separate(name: str, net: str) -> None:
    """After 20 or more steps; where a method selects, the toy has no scores so close to a cut that the selections differ.

    Nor does an activation come so near a kink (of a ReLU or a max pooling) that rounding decides its side: with five epochs
    one does, in one member of `del` with BatchNorm, whose weights then differ by 6e-4 instead of 2e-7.
    """
    toy, method = make_toy(net), short(default(name), epochs=10 if name == "gradient_ascent" else 6)
    together, ctx = toy.unlearn(method), toy.context()
    for k in range(len(together)):
        alone = toy.only(k).unlearn(method, replace(toy.only(k).context(), seeds=ctx.seeds[k : k + 1]))
        assert furthest(together.rows([k]).params, alone.params) < 1e-5
        assert not together.buffers or furthest(together.rows([k]).buffers, alone.buffers) < 1e-4


def _variants(name: str) -> Iterator[tuple[str, Method]]:
    """The method with each setting changed in turn."""
    method = short(BUSY.get(name) or default(name))
    for field in fields(type(method)):
        now: Any = getattr(method, field.name)
        others: list[Any]
        if field.name == "bn":  # eval_all differs from frozen in nets with dropout only
            others = ["frozen" if now == "train" else "train"]
        elif get_origin(field.type) is Literal:
            others = [choice for choice in get_args(field.type) if choice != now]
        else:
            others = [not now] if field.type is bool else [OTHER[field.name]]
        for value in others:
            assert value != now
            yield field.name, replace(method, **{field.name: value})


@pytest.mark.parametrize(("name", "setting", "method"), [(name, setting, method) for name in NAMES for setting, method in _variants(name)])
def test_no_dead_settings(name: str, setting: str, method: Method) -> None:
    toy = make_toy("batch_norm").only(0)
    plain = short(BUSY.get(name) or default(name))
    before, after = toy.unlearn(plain), toy.unlearn(method)
    assert not same(before.params | before.buffers, after.params | after.buffers)


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_writing_and_reading(name: str) -> None:
    for method in (default(name), *(method for _, method in _variants(name))):
        assert build("method", json.loads(json.dumps(to_dict(method)))) == method


def test_methods_say_what_they_are() -> None:
    for name in NAMES:
        words = default(name).__doc__ or ""
        assert "Source:" in words, name
        assert "Differs from the published code:" in words, name
        assert all(field.setting.help for field in fields(type(default(name)))), name
