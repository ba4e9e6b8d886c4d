"""Masks on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from toy import SHORT, Toy, same
from unlearnlab.localise.random import Random
from unlearnlab.localise.stored import Stored, read_mask, write_mask
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.finetune import FineTune
from unlearnlab.spec import InputError, key


@pytest.fixture
def path(toy: Toy, tmp_path: Path) -> Path:
    where = Random(budget=0.37)
    write_mask(tmp_path / "mask.safetensors", toy.locate(where), localiser=where, forget=toy.split.forget, seeds=toy.context().seeds)
    return tmp_path / "mask.safetensors"


def test_comes_back_bit_for_bit_and_serves_a_method(toy: Toy, path: Path) -> None:
    mask = toy.locate(Random(budget=0.37))
    assert same(toy.locate(Stored(path=str(path))).open, mask.open)
    stored, direct = (toy.unlearn(Localised(where, FineTune(epochs=1))) for where in (Stored(path=str(path)), Random(budget=0.37)))
    assert same(stored.params, direct.params)


def test_is_packed_and_remembers_where_it_came_from(toy: Toy, path: Path) -> None:
    with safe_open(path, framework="pt") as held:
        words = held.metadata()
        size = sum(held.get_tensor(name).numel() for name in held.keys())  # noqa: SIM118 - not a dict
    weights = sum(p.numel() for p in toy.stack.params.values())
    assert size < weights / 8 + len(toy.stack.params)
    assert words["parent"] == toy.stack.fingerprint
    assert words["forget"] == toy.split.forget.fingerprint
    assert '"budget": 0.37' in words["localiser"]


def test_a_mask_of_another_model_is_refused(toy: Toy, path: Path) -> None:
    later = replace(toy, stack=SHORT(toy.stack, toy.split.retain))
    with pytest.raises(InputError, match="this mask was made from model") as caught:
        later.locate(Stored(path=str(path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "cut", "scribbled", "foreign"])
def test_what_is_no_mask_file_is_refused_in_one_line(damage: str, path: Path, toy: Toy) -> None:
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "scribbled":
        path.write_bytes(b"not safetensors at all")
    else:
        from safetensors.torch import save_file

        save_file(toy.stack.params, path)  # tensors, but no mask
    with pytest.raises(InputError) as caught:
        read_mask(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_its_key_holds_the_mask_and_not_the_path(toy: Toy, path: Path, tmp_path: Path) -> None:
    before, moved = key(Stored(str(path))), tmp_path / "moved.safetensors"
    moved.write_bytes(path.read_bytes())
    assert key(Stored(str(moved))) == before
    mask = toy.locate(Random(0.6))
    write_mask(path, mask, localiser=Random(0.6), forget=toy.split.forget, seeds=toy.stack.seeds)
    assert key(Stored(str(path))) != before
    with pytest.raises(InputError, match="cannot read the mask"):
        key(Stored(str(tmp_path / "none")))
