"""``original`` and ``retrain``: the two calibration rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from toy import SHORT, Toy, make_toy, same
from unlearnlab.data.images import Images
from unlearnlab.localise.random import Random
from unlearnlab.methods.combine import Localised
from unlearnlab.methods.original import Original
from unlearnlab.methods.retrain import Retrain
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack


def test_original_is_the_model_itself(toy: Toy) -> None:
    after = toy.unlearn(Original())
    assert after is not toy.stack
    assert after.fingerprint == toy.stack.fingerprint


@pytest.mark.parametrize("net", ["small_cnn", "batch_norm"])
def test_retrain_is_the_original_recipe_on_the_retain_set_from_fresh_weights(net: str) -> None:
    toy = make_toy(net)
    ctx = toy.context()
    assert same(toy.unlearn(Retrain()).params, SHORT(toy.stack.fresh(ctx.seeds), toy.split.retain).params)


def test_retrain_starts_without_a_trace_of_the_original_and_sees_only_retained_ids() -> None:
    toy, seen = make_toy("batch_norm"), []

    def recipe(stack: Stack, images: Images, progress: Progress) -> Stack:
        seen.append((stack, images.ids.tolist()))
        return stack

    toy.unlearn(Retrain(), replace(toy.context(), recipe=recipe))
    ((start, ids),) = seen
    assert sorted(ids) == sorted(set(toy.split.train.ids.tolist()) - set(toy.split.forget.ids.tolist()))
    for others in (toy.stack, toy.init):
        for name, p in start.params.items():
            fixed = name.endswith(("weight", "bias")) and p.unique().numel() == 1  # BatchNorm starts at ones and zeros everywhere
            assert fixed or not any(torch.equal(mine, theirs) for mine in p for theirs in others.params[name])
    for name, b in start.buffers.items():
        assert torch.equal(b, toy.init.buffers[name]), name  # running averages start anew


def test_retrain_refuses_a_mask(toy: Toy) -> None:
    with pytest.raises(InputError, match="reset_finetune"):
        toy.unlearn(Localised(Random(), Retrain()))
