"""Mask files as the published code of SalUn, RUM and DEL saves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import Toy, make_toy, same
from unlearnlab.localise.grad_param import GradParam
from unlearnlab.localise.legacy_file import LegacyFile
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.finetune import FineTune
from unlearnlab.spec import InputError, key
from unlearnlab.stack import flat

Save = Callable[[Any], str]


@pytest.fixture
def one() -> Toy:
    return make_toy("mlp").only(1)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(held: Any) -> str:
        torch.save(held, tmp_path / "with_0.5.pt")
        return str(tmp_path / "with_0.5.pt")

    return write


def hard(toy: Toy, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    """As SalUn saves it: zeros and ones as 64-bit integers."""
    return {name: bits[0].to(dtype) for name, bits in toy.locate(GradParam(0.5)).open.items()}


def soft(toy: Toy) -> dict[str, Tensor]:
    """As RUM saves it: tanh of the summed gradient's size."""
    return {name: torch.tanh(torch.rand(p.shape[1:], generator=torch.Generator().manual_seed(2))) for name, p in toy.stack.params.items()}


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool, torch.uint8])
def test_zeros_and_ones_are_the_mask(one: Toy, save: Save, dtype: torch.dtype) -> None:
    where, direct = LegacyFile(save(hard(one, dtype))), one.locate(GradParam(0.5))
    assert same(one.locate(where).open, direct.open)
    tuned = one.unlearn(Localised(where, FineTune(epochs=1)))
    assert all(torch.equal(tuned.params[name][~bits], one.stack.params[name][~bits]) for name, bits in direct.open.items())


def test_names_of_a_data_parallel_model_in_any_order(one: Toy, save: Save) -> None:
    turned = dict(reversed([(f"module.{name}", held) for name, held in hard(one).items()]))
    assert same(one.locate(LegacyFile(save(turned))).open, one.locate(GradParam(0.5)).open)


def test_soft_values_rank_weights(one: Toy, save: Save) -> None:
    """|2σ(A) − 1| of RUM, and tanh A with its sign: what counts is the size."""
    values = soft(one)
    for held in (values, {name: 2 * torch.sigmoid(value) - 1 for name, value in values.items()}, {name: -value for name, value in values.items()}):
        opened = flat(one.locate(LegacyFile(save(held), 0.25)).open)[0]
        row = torch.cat([value.flatten() for value in values.values()])
        assert set(opened.nonzero().flatten().tolist()) == set(row.argsort(descending=True)[: int(0.25 * len(row))].tolist())


def test_what_does_not_fit_is_refused_in_one_line(one: Toy, save: Save, tmp_path: Path) -> None:
    good = hard(one)
    first = next(iter(good))
    cases: list[tuple[Any, float | None, str]] = [
        ({name: held for name, held in good.items() if name != first}, None, f"the file has no '{first}'"),
        ({**good, "extra": torch.ones(2)}, None, "the model has no 'extra'"),
        ({**good, first: torch.ones(3, 3)}, None, rf"'{first}' is \[3, 3\] in the file"),
        ({**soft(one), first: torch.full_like(soft(one)[first], torch.nan)}, 0.2, "damaged"),
        (soft(one), None, "soft values, which only rank the weights; set a budget"),
        (good, 0.5, "leave budget out"),
        ([torch.ones(2)], None, "expected a dictionary of names and tensors"),
        ({}, None, "expected a dictionary"),
        ({**good, first: 3}, None, "expected a dictionary"),
    ]
    for held, budget, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            one.locate(LegacyFile(save(held), budget))
        assert "\n" not in str(caught.value)
    for content, words in ((b"no archive at all", "holds no tensors that can be read"), (b"", "holds no tensors that can be read")):
        (tmp_path / "other.pt").write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            one.locate(LegacyFile(str(tmp_path / "other.pt")))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read the mask"):
        one.locate(LegacyFile(str(tmp_path / "none.pt")))
    with pytest.raises(InputError, match="that of one model, and there are 3"):
        make_toy("mlp").locate(LegacyFile(save(good)))


class Touch:
    """A pickle that would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_the_file_is_executed(one: Toy, save: Save, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without executing code") as caught:
        one.locate(LegacyFile(save({"a": Touch(tmp_path / "ran")})))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_its_key_holds_the_mask_and_not_the_path(one: Toy, save: Save, tmp_path: Path) -> None:
    path = save(soft(one))
    before, moved = key(LegacyFile(path, 0.5)), tmp_path / "moved.pt"
    moved.write_bytes(Path(path).read_bytes())
    assert key(LegacyFile(str(moved), 0.5)) == before
    assert key(LegacyFile(path, 0.4)) != before
    assert key(LegacyFile(save(hard(one)), 0.5)) != before


def test_pruned_weights_stay_closed(one: Toy, save: Save) -> None:
    name = next(iter(one.stack.params))
    live = {name: torch.zeros_like(one.stack.params[name], dtype=torch.bool)}
    sparse = replace(one, stack=one.stack.pruned(live))
    ones = {name: torch.ones(p.shape[1:]) for name, p in one.stack.params.items()}
    assert not bool(sparse.locate(LegacyFile(save(ones))).open[name].any())
