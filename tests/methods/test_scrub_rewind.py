"""``scrub_rewind``: back to the epoch whose forget error is nearest the reference, member by member, also after an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unlearnlab.methods.scrub_rewind as module
from facts_scrub import learnable
from toy import Interrupted, Stops, Toy, same
from unlearnlab.contract import Context
from unlearnlab.data.images import Images
from unlearnlab.methods.scrub import Scrub
from unlearnlab.methods.scrub_rewind import ScrubRewind, labelled_as, mistakes
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError, fields
from unlearnlab.stack import Stack

SETTINGS: dict[str, Any] = {"epochs": 4, "max_epochs": 2, "lr": 0.02, "batch": 16}


def checkpoints(toy: Toy) -> list[Stack]:
    """The stack after 0, 1, … epochs of SCRUB."""
    held: dict[int, Stack] = {0: toy.stack}
    stream, ends = Scrub(**SETTINGS).passes(toy.split, toy.context())
    Scrub(**SETTINGS).train(toy.stack, stream, ends, toy.context(), {end: lambda stack, end=end: held.setdefault(end, stack) for end in ends[1:]})
    return [held[end] for end in ends]


def scripted(monkeypatch: pytest.MonkeyPatch, toy: Toy, reference: Sequence[int], errors: Sequence[Sequence[int]]) -> list[Images]:
    """From then on the models err as told: ``reference`` [K] on the validation images, ``errors`` [E + 1][K] on the forget set."""
    asked: list[Images] = []
    waiting = iter(errors)

    def told(stack: Stack, images: Images, ctx: Context) -> Tensor:
        asked.append(images)
        return torch.tensor(reference if images is not toy.split.forget else next(waiting))

    monkeypatch.setattr(module, "mistakes", told)
    return asked


def test_each_member_goes_back_to_its_nearest_epoch_the_smallest_on_ties(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four forget images and four validation images of their classes."""
    then = checkpoints(toy)
    scripted(monkeypatch, toy, (2, 2, 0), [(0, 2, 4), (1, 2, 3), (3, 2, 3), (3, 2, 3), (4, 2, 1)])
    after = toy.unlearn(ScrubRewind(**SETTINGS))
    for k, epoch in enumerate((1, 0, 4)):  # errors 1 and 3 are as far from 2; always at it; nearest at the end
        assert same(after.rows([k]).params, then[epoch].rows([k]).params)
    assert not same(then[1].params, then[4].params)


def test_errors_are_compared_as_shares(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three validation images is wrong: 1/3 is nearer 1/4 than 2/4 = 1/2; two of three are nearer 3/4."""
    few = replace(toy, split=replace(toy.split, validation=toy.split.validation.rows(torch.tensor([0, 1, 2, 4]))))
    assert few.split.validation.labels.tolist() == [3, 7, 3, 4]
    then = checkpoints(few)
    asked = scripted(monkeypatch, few, (1, 2, 1), [(4, 4, 4), (2, 2, 2), (1, 1, 1), (3, 3, 3), (4, 4, 4)])
    after = few.unlearn(ScrubRewind(**SETTINGS))
    assert [images.labels.tolist() for images in asked if images is not few.split.forget] == [[3, 7, 3]]  # no image of another class
    for k, epoch in enumerate((2, 3, 2)):
        assert same(after.rows([k]).params, then[epoch].rows([k]).params)


def test_goes_back_to_the_original_itself() -> None:
    from toy import make_toy

    toy = make_toy("batch_norm")
    after = toy.unlearn(ScrubRewind(lr=1e-9))  # no answer changes
    assert same(after.params, toy.stack.params)
    assert same(after.buffers, toy.stack.buffers)
    assert not same(toy.unlearn(Scrub(lr=1e-9)).buffers, toy.stack.buffers)


def test_real_errors_decide(toy: Toy) -> None:
    toy = learnable(toy)
    after, then, ctx = toy.unlearn(ScrubRewind(**SETTINGS)), checkpoints(toy), toy.context()
    wrong = torch.stack([mistakes(stack, toy.split.forget, ctx) for stack in then])
    assert wrong[0].tolist() == [4, 4, 4]  # labels are shifted
    by_hand = torch.stack([(stack.logits(toy.split.forget.pixels).argmax(2) != toy.split.forget.labels).sum(1) for stack in then])
    assert torch.equal(wrong, by_hand)
    for k in range(3):
        best = min(range(5), key=lambda epoch: (abs(int(wrong[epoch, k] - wrong[4, k])), epoch))
        assert best > 0
        assert same(after.rows([k]).params, then[best].rows([k]).params)


def test_the_reference_is_labelled_as_the_forget_set_is(toy: Toy) -> None:
    validation, retain = toy.split.validation, toy.split.retain
    confused = replace(retain, labels=torch.where(retain.true_labels == 3, 5, retain.true_labels))
    expected = torch.where(validation.true_labels == 3, 5, validation.true_labels)
    assert labelled_as(confused, validation).equal(expected)
    assert labelled_as(confused.rows(confused.true_labels == 3), validation).equal(expected)  # of other classes nothing is known
    assert labelled_as(retain, validation).equal(validation.true_labels)  # a few wrong labels make no rule


def test_some_validation_image_must_be_like_the_forget_set(toy: Toy) -> None:
    few = replace(toy, split=replace(toy.split, validation=toy.split.validation.rows(toy.split.validation.labels == 6)))
    with pytest.raises(InputError, match=r"no validation image has a class of the forget set \(1, 2, 3, 7\)"):
        few.unlearn(ScrubRewind())


def test_settings_and_checks_are_those_of_scrub() -> None:
    assert [(f.name, f.type, f.default, f.setting) for f in fields(ScrubRewind)] == [(f.name, f.type, f.default, f.setting) for f in fields(Scrub)]
    with pytest.raises(InputError, match="max_epochs = 3 must be at most epochs = 2"):
        ScrubRewind(epochs=2)


@pytest.mark.parametrize("stops", [(1, 4), (6, 17), (13, 9)])  # 18 steps a method, 5 to the end of its first epoch
def test_an_interruption_loses_no_checkpoint(stops: tuple[int, int], tmp_path: Path) -> None:
    """Two methods in one run, as in a sequence, so that their files must not mix."""
    from toy import make_toy

    toy = learnable(make_toy("batch_norm"))

    def run(progress: Progress) -> Stack:
        ctx = replace(toy.context(), progress=progress)
        return ScrubRewind(**SETTINGS)(ScrubRewind(**SETTINGS)(toy.stack, toy.split, ctx), toy.split, ctx)

    undisturbed, progress = Progress(), Progress(tmp_path, every=0)
    whole = run(undisturbed)
    for at in stops:
        with pytest.raises(Interrupted):
            run(Stops(tmp_path, at + 1))
    again = run(progress)
    assert same(again.params | again.buffers, whole.params | whole.buffers)
    assert (progress.forward, progress.backward) == (undisturbed.forward, undisturbed.backward)
    assert same(run(Progress(tmp_path)).params, whole.params)  # all steps done before: every checkpoint comes from its file


def test_a_lost_checkpoint_is_named(tmp_path: Path, toy: Toy) -> None:
    method, ctx = ScrubRewind(**SETTINGS), replace(toy.context(), progress=Progress(tmp_path, every=0))
    method(toy.stack, toy.split, ctx)
    (lost,) = tmp_path.glob("*-after-5.safetensors")  # one max step and four min steps
    lost.write_bytes(b"torn")
    with pytest.raises(InputError, match=r"after-5.safetensors, the models after step 5, is missing or damaged; delete .* and run again"):
        method(toy.stack, toy.split, replace(toy.context(), progress=Progress(tmp_path)))
