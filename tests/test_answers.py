"""What everything must hold to that unlearns without giving a ``Stack`` back, run over the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from facts import Facts, Sizes, collect
from toy import SHORT, Toy, make_toy, same
from unlearnlab.contract import Answers, Context, Forbidden, Undeclared, only_declared
from unlearnlab.data.images import Images
from unlearnlab.localise.random import Random
from unlearnlab.spec import InputError, build, fields, names, to_dict

FACTS: dict[str, Facts] = collect()
NAMES = [name for name in names("method") if name in FACTS and FACTS[name].build is None and not callable(build("method", name))]

every = pytest.mark.parametrize("name", NAMES)


def short(name: str) -> Any:
    return replace(build("method", name), **FACTS[name].short)


def busy(name: str) -> Any:
    return replace(short(name), **FACTS[name].busy)


def answered(toy: Toy, method: Answers, ctx: Context | None = None, images: Images | None = None) -> Tensor:
    """Its answer on images to forget, to retain and to test, as a study asks: it sees only what it declares."""
    split, told = only_declared(method, toy.split, equipped(toy, method, ctx or toy.context()))
    return method.answer(toy.stack, split, told, asked(toy) if images is None else images)


def asked(toy: Toy) -> Images:
    return Images.join([toy.split.forget, toy.split.retain, toy.split.test])


def equipped(toy: Toy, method: Any, ctx: Context) -> Context:
    found = toy.equipped(method, ctx)
    if "attribution" in method.reads and found.attribution is None:
        pytest.skip("the toy has no attribution")
    return found


def test_there_are_some() -> None:
    assert {"certified_removal", "sisa"} <= set(NAMES)


@every
def test_it_answers_for_every_model_image_and_class(name: str) -> None:
    toy, method = make_toy(), short(name)
    assert isinstance(method, Answers)
    found = answered(toy, method)
    assert found.shape == (3, 80, 10)
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all())


@every
@pytest.mark.parametrize("classes", [2, 100])
def test_any_number_of_classes(name: str, classes: int) -> None:
    found = answered(make_toy("small_cnn", classes).only(0), short(name))
    assert found.shape == (1, 80, classes)
    assert bool(torch.isfinite(found).all())


@every
@pytest.mark.parametrize("net", ["batch_norm", "mlp", "vit"])
def test_any_net(name: str, net: str) -> None:
    found = answered(make_toy(net).only(0), short(name))
    assert found.shape == (1, 80, 10)
    assert bool(torch.isfinite(found).all())


@every
def test_a_forget_set_of_one_image(name: str) -> None:
    toy = make_toy().only(0)
    assert bool(torch.isfinite(answered(toy.forgetting(toy.split.forget.rows(torch.tensor([1]))), short(name))).all())


@every
def test_same_seed_same_bits_other_seed_other_bits(name: str) -> None:
    toy, method = make_toy(), short(name)
    first, again, other = (answered(toy, method, toy.context(shift=shift)) for shift in (0, 0, 1000))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == ("seed" in FACTS[name].exempt)


@every
def test_stacked_equals_separate(name: str) -> None:
    toy, method = make_toy(), short(name)
    together, ctx = answered(toy, method), toy.context()
    for k in range(3):
        alone = answered(toy.only(k), method, replace(toy.only(k).context(), seeds=ctx.seeds[k : k + 1]))
        assert float((together[k] - alone[0]).abs().max()) < 1e-4


@every
def test_an_answer_does_not_depend_on_what_else_is_asked(name: str) -> None:
    toy, method = make_toy().only(0), short(name)
    whole, some = answered(toy, method), torch.tensor([40, 3, 77])
    assert float((answered(toy, method, images=asked(toy).rows(some)) - whole[:, some]).abs().max()) < 1e-5


@every
def test_reads_exactly_what_it_declares(name: str) -> None:
    toy, method = make_toy().only(0), short(name)
    answered(toy, method)  # undeclared parts raise when touched
    split, ctx = only_declared(method, toy.split, equipped(toy, method, toy.context()))
    for part in method.reads:
        hidden: Any = Forbidden(name, part)
        where = {part: hidden}
        with pytest.raises(Undeclared, match=part):
            method.answer(
                toy.stack, replace(split, **where) if hasattr(split, part) else split, ctx if hasattr(split, part) else replace(ctx, **where), asked(toy)
            )


@every
def test_no_side_effects(name: str) -> None:
    toy = make_toy()
    before, lot = _everything(toy), torch.get_rng_state()
    answered(toy, short(name))
    assert same(_everything(toy), before)
    assert torch.equal(torch.get_rng_state(), lot)


def _everything(toy: Toy) -> dict[str, Tensor]:
    held = {f"{which}.{n}": t for which, s in (("stack", toy.stack), ("init", toy.init)) for n, t in (s.params | s.buffers | s.net.state_dict()).items()}
    parts = {f"{part}.{n}": getattr(getattr(toy.split, part), n) for part in ("forget", "retain", "test") for n in ("pixels", "labels", "ids", "true_labels")}
    return {name: tensor.clone() for name, tensor in (held | parts).items()}


@every
def test_cost_is_that_of_the_deletion(name: str) -> None:
    toy = make_toy()
    sizes = Sizes(forget=4, retain=56, validation=10, epochs=0, batch=0, classes=10, recipe_epochs=SHORT.epochs)
    for one in (toy, toy.only(1)):
        ctx = one.context()
        answered(one, short(name), ctx)
        assert (ctx.progress.forward, ctx.progress.backward) == FACTS[name].passes(sizes)


@every
def test_a_mask_is_refused(name: str) -> None:
    toy = make_toy().only(0)
    ctx = toy.context(mask=toy.locate(Random(budget=0.5)))
    if "mask" in FACTS[name].exempt:
        assert torch.equal(answered(toy, short(name), ctx), answered(toy, short(name)))
        return
    with pytest.raises(InputError, match="mask"):
        answered(toy, short(name), ctx)


def _variants(name: str) -> Iterator[tuple[str, Any]]:
    """The method with each setting changed in turn."""
    method = busy(name)
    for field in fields(type(method)):
        now: Any = getattr(method, field.name)
        is_choice = get_origin(field.type) is Literal
        choices = [choice for choice in get_args(field.type) if choice != now] if is_choice else [FACTS[name].other[field.name]]
        for value in choices:
            assert value != now
            yield field.name, replace(method, **{field.name: value})


@pytest.mark.parametrize(("name", "setting", "method"), [(name, setting, method) for name in NAMES for setting, method in _variants(name)])
def test_no_dead_settings(name: str, setting: str, method: Any) -> None:
    toy = make_toy().only(0)
    assert not torch.equal(answered(toy, busy(name)), answered(toy, method))


@every
def test_settings_survive_writing_and_reading(name: str) -> None:
    for method in (build("method", name), *(method for _, method in _variants(name))):
        assert build("method", json.loads(json.dumps(to_dict(method)))) == method


@every
def test_they_say_what_they_are(name: str) -> None:
    method = build("method", name)
    assert "Source:" in method.__doc__
    assert "Differs from the published code:" in method.__doc__
    assert method.cost
    assert all(field.setting.help for field in fields(type(method)))
