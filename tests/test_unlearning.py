"""The verb on models and data of one's own: what comes back, what stays untouched, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from test_contract import NAMES, short, the_toy
from toy import SHORT, Toy, furthest, make_toy, same
from unlearnlab.contract import Context, only_declared
from unlearnlab.data.images import Images, Split
from unlearnlab.methods.finetune import FineTune
from unlearnlab.spec import InputError, Setting, _registry, spec
from unlearnlab.stack import Stack
from unlearnlab.unlearning import unlearn

CLASSES, FORGET, RETAIN = 3, 5, 23
BRIEF = {"epochs": 2, "batch": 8}


class Own(nn.Module):
    """Everything a user's model may have: BatchNorm, dropout, a frozen layer, a buffer that no state dict holds."""

    def __init__(self, drop: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(drop), nn.Flatten())
        self.head = nn.Linear(4 * 16, CLASSES)
        self.note = "mine"

    def reset_parameters(self) -> None:
        """The scale is a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.float() * self.scale))


class Tanh(nn.Module):
    """The same modules and shapes may compute different things."""

    def __init__(self, twist: bool) -> None:
        super().__init__()
        self.head, self.twist = nn.Linear(36, CLASSES), twist

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1).tanh() if self.twist else x.flatten(1))


class Looking(nn.Module):
    """Looks at values, so it cannot be stacked; its own weight cannot be drawn anew."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.head = nn.Parameter(torch.ones(1)), nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) * self.gain) * (1.0 if self.head.weight.sum().item() < 1e9 else 2.0)


class Pairs(Dataset[tuple[Any, Any]]):
    """A map-style data set that counts how it is read."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.labels, self.read = images, labels, []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        self.read.append(at)
        return self.images[at], self.labels[at]


class Endless(IterableDataset[tuple[Tensor, int]]):
    """Has no positions."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(())


def own(seed: int = 0, drop: float = 0.2) -> Own:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Own(drop)


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 6, 6, generator=chance), torch.randint(CLASSES, (count,), generator=chance)


F, R = images(FORGET, 1), images(RETAIN, 2)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def run(model: Any = None, **given: Any) -> Any:
    return unlearn(own() if model is None else model, **{"forget": F, "retain": R, **BRIEF, **given})


# ---- what comes back, and what is left alone


@pytest.mark.parametrize("drop", [0.0, 0.2])
@pytest.mark.parametrize("training", [True, False])
def test_a_new_model_of_the_same_kind_comes_back(drop: float, training: bool) -> None:
    model = own(drop=drop).train(training)
    model.body[1].eval()  # one layer in a mode of its own
    model.body[0].bias.requires_grad_(False)
    model(F[0]).sum().backward()
    before, data, lot = state(model), [tensor.clone() for tensor in (*F, *R)], torch.get_rng_state()
    after = run(model)
    assert same(state(model), before)
    assert model.head.weight.grad is not None
    assert all(torch.equal(a, b) for a, b in zip(data, (*F, *R), strict=True))
    assert torch.equal(torch.get_rng_state(), lot)
    assert type(after) is Own
    assert after.note == "mine"
    assert list(after.state_dict()) == list(model.state_dict())
    assert [part.training for part in after.modules()] == [part.training for part in model.modules()]
    assert [p.requires_grad for p in after.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in after.parameters())
    assert not same(state(after), before)
    assert torch.equal(after.body[0].bias, model.body[0].bias)  # frozen: stays
    assert not torch.equal(after.body[1].running_mean, model.body[1].running_mean)


@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_same_seed_same_bits_other_seed_other_bits(drop: float) -> None:
    first, again, other = (state(run(own(drop=drop), seed=seed)) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("name", [name for name in NAMES if short(name).reads <= {"forget", "retain", "validation", "original_init"}])
def test_equals_the_method_on_a_stack(name: str) -> None:
    toy, method = the_toy(name), short(name)
    model, init, seeds = toy.stack.member(1), toy.init.member(1), (70,)
    nobody = toy.split.forget.rows(torch.arange(0))
    split = replace(toy.split, control=nobody, test=nobody)
    ctx = Context(seeds, toy.recipe, original_init=Stack.of([init], seeds))
    expected = method(Stack.of([model], seeds), *only_declared(method, split, ctx))
    given: dict[str, Any] = {"original_init": init} if "original_init" in method.reads else {}
    given |= {"validation": split.validation} if "validation" in method.reads else {}
    after = unlearn(model, forget=split.forget, retain=split.retain, method=method, seed=70, recipe=toy.recipe, **given)
    assert same(dict(after.named_parameters()), {name: tensor[0] for name, tensor in expected.params.items()})
    assert same(state(model), state(toy.stack.member(1)))


def test_a_stack_comes_back_as_a_stack(toy: Toy) -> None:
    ctx = Context((50, 51, 52), SHORT)
    expected = FineTune(epochs=2)(toy.stack, *only_declared(FineTune(), toy.split, ctx))
    after = unlearn(toy.stack, forget=toy.split.forget, retain=toy.split.retain, method="finetune", epochs=2, seed=50)
    assert same(after.params, expected.params)
    assert after.seeds == toy.stack.seeds


def test_models_of_one_architecture_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    call = FineTune.__call__
    monkeypatch.setattr(FineTune, "__call__", lambda self, stack, *rest: sizes.append(len(stack)) or call(self, stack, *rest))
    models = [own(0, 0.0), Tanh(True), own(1, 0.0), Tanh(False), Looking(), Looking()]
    after = run(models, method="finetune", seed=9)
    assert sorted(sizes) == [1, 1, 1, 1, 2]  # equal shapes are not enough: each must say in the stack what it says alone
    assert [type(one) for one in after] == [type(one) for one in models]
    for i, model in enumerate(models):
        alone = run(model, method="finetune", seed=9 + i)
        assert furthest(state(after[i]), state(alone)) < 1e-5
        assert not same(state(after[i]), state(model))


# ---- any data


def test_all_kinds_of_data_are_the_same_data() -> None:
    numbers = [(image, int(label)) for image, label in zip(*F, strict=True)]
    data = Pairs([image.numpy() for image in F[0]], F[1].numpy())
    readonly = F[0].numpy().copy()
    readonly.flags.writeable = False
    ids = torch.arange(FORGET)
    kinds = [TensorDataset(*F), numbers, data, (readonly, F[1].numpy()), (F[0], F[1].tolist()), (F[0], F[1].to(torch.int32)), Images(*F, ids, CLASSES)]
    expected = state(run())
    assert all(same(state(run(forget=kind)), expected) for kind in kinds)
    assert data.read == list(range(FORGET))  # once, in order


def test_ids_are_positions_unless_they_are_given() -> None:
    seen: dict[str, list[int]] = {}

    @spec("method", "_spy")
    class Spy:
        reads: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "validation"})
        null: ClassVar[Mapping[str, Any] | None] = None
        epochs: Annotated[int, Setting("")] = 1
        batch: Annotated[int, Setting("")] = 1

        def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
            seen.update({part: getattr(split, part).ids.tolist() for part in self.reads})
            return stack

    try:
        run(method="_spy", validation=(R[0][:2], R[1][:2]))
        assert seen == {"forget": [0, 1, 2, 3, 4], "retain": list(range(5, 28)), "validation": [28, 29]}
        held = [Images(pixels, labels, torch.arange(len(labels)) * 10 + at, CLASSES) for at, (pixels, labels) in enumerate((F, R, (R[0][:2], R[1][:2])))]
        run(method="_spy", forget=held[0], retain=held[1], validation=held[2])
        assert seen["retain"][:3] == [1, 11, 21]
        run(method="_spy", forget=held[0], retain=R, validation=held[2])
        assert seen["forget"] == [0, 1, 2, 3, 4]
        with pytest.raises(InputError, match="method '_spy' needs validation: pass validation="):
            run(method="_spy")
    finally:
        del _registry["method"]["_spy"]


def test_uint8_reaches_nets_that_scale_it() -> None:
    toy = make_toy("mlp")
    data = TensorDataset(toy.split.forget.pixels, toy.split.forget.labels)
    after = unlearn(toy.stack.member(0), forget=data, retain=(toy.split.retain.pixels, toy.split.retain.labels), method="finetune", epochs=1)
    assert not same(state(after), state(toy.stack.member(0)))


# ---- methods and their settings


def test_a_method_is_a_name_a_table_or_a_spec() -> None:
    ways: list[dict[str, Any]] = [
        {"method": "finetune", **BRIEF},
        {"method": {"name": "finetune", "epochs": 2, "batch": 8}},
        {"method": {"name": "finetune", "epochs": 2}, "batch": 8},
        {"method": FineTune(epochs=2, batch=8)},
    ]
    first, *others = (state(unlearn(own(), forget=F, retain=R, **way)) for way in ways)
    assert all(same(first, other) for other in others)


def test_retrain_and_del_get_what_they_need() -> None:
    recipe = {"name": "standard", "epochs": 1, "batch": 8}
    model = own()
    assert not same(state(unlearn(model, forget=F, retain=R, method="retrain", recipe=recipe)), state(model))
    after = run(model, method="del", original_init=own(5), reset_to="original_init", lr=0.0, budget=1.0)
    assert torch.equal(after.head.weight, own(5).head.weight)


def refused(message: str, model: Any = None, **given: Any) -> None:
    with pytest.raises(InputError) as caught:
        run(model, **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def broken(at: int, value: float) -> tuple[Tensor, Tensor]:
    pixels = R[0].clone()
    pixels[at, 0, 2, 3] = value
    return pixels, R[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"retain": broken(7, torch.nan)}, "retain: image id 7 has pixels that are NaN or infinite"),
        ({"retain": (R[0], R[1].index_fill(0, torch.tensor([4]), 3))}, "retain: image id 4 has label 3; expected 0 to 2"),
        ({"forget": (F[0], F[1] - 5)}, "forget: image id 0 has label -"),
        ({"forget": (F[0][:0], F[1][:0])}, "the forget set is empty"),
        ({"forget": []}, "the forget set is empty"),
        ({"retain": []}, "the retain set is empty"),
        ({"retain": (R[0], R[1][1:])}, "retain needs one whole number as label for each of its 23 images, got shape [22]"),
        ({"retain": (R[0], R[1].float())}, "got shape [23] of torch.float32"),
        ({"retain": (R[0], nn.functional.one_hot(R[1], CLASSES))}, "got shape [23, 3]"),
        ({"retain": (R[0][..., :5], R[1])}, "images of retain are [1, 6, 5] of torch.float32, those of forget [1, 6, 6]"),
        ({"retain": (R[0].double(), R[1])}, "images of retain are [1, 6, 6] of torch.float64"),
        ({"forget": (F[0].double(), F[1]), "retain": (R[0].double(), R[1])}, "forget: pixels must be uint8 or float32, got torch.float64"),
        ({"forget": DataLoader(TensorDataset(*F))}, "give the dataset, not the loader: forget=loader.dataset"),
        ({"forget": Endless()}, "forget must be a map-style Dataset, a tuple (X, y) or Images, got Endless"),
        ({"forget": F[0]}, "forget must be a map-style Dataset, a tuple (X, y) or Images, got Tensor"),
        ({"forget": 3}, "got int"),
        ({"forget": [(F[0][0], 1), F[0][1]]}, "forget[1] must be a pair (image, label), got Tensor"),
        ({"forget": [("picture.png", 1)]}, "forget[0] must be a tensor or a NumPy array, got str; convert it"),
        ({"forget": [(F[0][0], 1), (F[0][0, :, 1:], 1)]}, "forget[1] has the shape [1, 5, 6] of torch.float32, and forget[0] [1, 6, 6]"),
        ({"forget": [(F[0][0], [1, 0, 0])]}, "the label of forget[0] must be one whole number, got shape [3]"),
        ({"forget": (np.array([None]), [1])}, "forget images cannot become a tensor"),
        ({"forget": Images(*F, torch.arange(5), 3), "retain": Images(*R, torch.arange(23), 3)}, "image id 0 is in both the forget and the retain set"),
        ({"method": "salum"}, "unknown method 'salum'; did you mean 'salun'?"),
        ({"epoch": 3}, "method 'salun' has no setting 'epoch'; did you mean 'epochs'?"),
        ({"budget": 30}, "budget = 30.0 is out of range"),
        ({"method": FineTune()}, "its settings belong inside it; 'epochs' stands beside it"),
        ({"method": "del"}, "method 'del' needs original_init: pass original_init=model_before_training"),
        ({"method": "del", "original_init": nn.Linear(2, 2)}, "original_init does not fit the model"),
        ({"method": "retrain", "epochs": 2}, "method 'retrain' has no setting 'epochs'"),
        ({"recipe": "fast"}, "unknown recipe 'fast'"),
        ({"method": "finetune", "lr": 1e30}, "method 'finetune' diverged for seed 0 at step "),
        ({"classes": 4}, "the width of the models' output is 3, and classes = 4"),
        ({"classes": 2}, "has label 2; expected 0 to 1"),
        ({"model": []}, "model must be an nn.Module, a list of them or a Stack, got list"),
        ({"model": own}, "got function"),
        ({"model": nn.Flatten()}, "model has no parameters"),
        ({"model": nn.Conv2d(1, 3, 3)}, "the model must turn a batch of images into one row of logits each"),
        ({"model": nn.Linear(7, 3)}, "the model fails on an image of shape [1, 1, 6, 6] and type torch.float32: RuntimeError"),
        ({"model": nn.Conv2d(1, 3, 3), "forget": ((F[0] * 9).byte(), F[1])}, "if it wants floats, give float32 images"),
        ({"model": [own(), nn.Sequential(nn.Flatten(), nn.Linear(36, 4))]}, "the width of the models' output is 3 and 4"),
        ({"model": own().requires_grad_(False)}, "every parameter of the model is frozen"),
    ],
)
def test_wrong_input_is_told_in_one_line(given: dict[str, Any], message: str) -> None:
    refused(message, **copy.copy(given))


def test_retrain_says_what_it_lacks() -> None:
    with pytest.raises(InputError, match="method 'retrain' trains from scratch: pass recipe="):
        unlearn(own(), forget=F, retain=R, method="retrain")
    with pytest.raises(InputError, match=r"cannot re-initialise 'Looking': it holds gain but has no reset_parameters"):
        unlearn(Looking(), forget=F, retain=R, method="retrain", recipe=SHORT)
    run(Looking(), method="finetune")  # which draws no weight anew


def test_a_method_that_holds_a_method_is_given_as_a_table(toy: Toy) -> None:
    model = toy.stack.member(0)
    with pytest.raises(InputError, match="holds a method, so give it as a table"):
        unlearn(model, forget=toy.split.forget, retain=toy.split.retain, method="localised", where="random")
    table = {"name": "localised", "where": "random", "method": {"name": "finetune", "epochs": 1}}
    after = unlearn(model, forget=toy.split.forget, retain=toy.split.retain, method=table)
    assert not same(state(after), state(model))
