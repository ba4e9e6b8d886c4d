"""``sisa``: shards and slices that hold every image, and deletions that are exact, cheap, and survive interruption."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toy import make_toy, same
from unlearnlab.data.images import Images
from unlearnlab.methods import sisa
from unlearnlab.methods.sisa import Sisa, System
from unlearnlab.optimizers import MultiStep, WarmUp
from unlearnlab.outputs import lowest_argmax
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack, Tensors
from unlearnlab.train import Recipe

RECIPE, SEEDS = Recipe(epochs=3, batch=8), (5, 6)
METHOD = Sisa(shards=3, slices=2)
STARTS = {net: make_toy(net).stack.rows([0, 1]) for net in ("mlp", "batch_norm")}


def images() -> Images:
    return make_toy("mlp").split.train


def fitted(folder: Path, net: str = "mlp", of: Images | None = None, method: Sisa = METHOD) -> System:
    return method.fit(STARTS[net], images() if of is None else of, RECIPE, SEEDS, folder)


def weights(system: System) -> list[list[Tensors]]:
    """Of every shard, after every slice."""
    method = system.method
    found = [[system.checkpoint(shard, at) for at in range(method.slices + 1)] for shard in range(method.shards)]
    return [[stack.params | stack.buffers for stack in shard] for shard in found]


def equal(a: System, b: System) -> bool:
    return all(same(x, y) for one, other in zip(weights(a), weights(b), strict=True) for x, y in zip(one, other, strict=True))


def of(system: System, shard: int, at: int) -> list[int]:
    return system.ids[(system.shard == shard) & (system.slice == at)].tolist()


def test_every_image_is_in_one_shard_and_one_slice() -> None:
    for count in (1, 7, 60, 1797):
        ids = torch.randperm(5000)[:count]
        shard, at = Sisa(shards=4, slices=3).places(ids)
        assert len(shard) == len(at) == count
        assert set(shard.tolist()) <= set(range(4))
        assert set(at.tolist()) <= set(range(3))
        part = torch.arange(count)[::2]  # the place of an id does not depend on the others
        assert all(torch.equal(some, every[part]) for some, every in zip(Sisa(shards=4, slices=3).places(ids[part]), (shard, at), strict=True))
    counts = torch.bincount(shard * 3 + at, minlength=12)
    assert float((counts - 1797 / 12).abs().max()) < 5 * (1797 / 12) ** 0.5  # evenly, as far as chance allows
    assert not torch.equal(Sisa(shards=4, slices=3, draw=1).places(ids)[0], shard)


def test_shards_together_are_trained_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], int]] = []

    def run(self: Recipe, stack: Stack, images: Images, progress: Progress) -> Stack:
        seen.append((images.ids.tolist(), self.epochs))
        return stack

    monkeypatch.setattr(Recipe, "__call__", run)
    system = fitted(tmp_path)
    expected = [sorted(of(system, shard, 0) + (of(system, shard, 1) if at else [])) for shard in range(3) for at in range(2)]
    assert seen == [(ids, 2) for ids in expected]  # 2·3/(2+1) epochs
    assert sorted(i for ids, _ in seen[1::2] for i in ids) == images().ids.tolist()


@pytest.mark.parametrize("net", ["mlp", "batch_norm"])
def test_a_deletion_is_exact(net: str, tmp_path: Path) -> None:
    """All shards are, bit for bit, those of a system that was trained without the images from the beginning."""
    system = fitted(tmp_path / "deleted", net)
    gone = of(system, 0, 1)[:2] + of(system, 2, 0)[:1]
    system.delete(gone)
    never = fitted(tmp_path / "never", net, images().without(gone))
    assert equal(system, never)
    asked = make_toy().split.test
    assert torch.equal(system.logits(asked), never.logits(asked))


def test_a_deletion_retrains_only_from_the_earliest_slice_hit(tmp_path: Path) -> None:
    system = fitted(tmp_path)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("shard-*")}
    progress, gone = Progress(), of(system, 0, 1)[:1] + of(system, 2, 1)[:1] + of(system, 2, 0)[:1]
    system.delete(gone, progress)
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("shard-*")}
    again = {"shard-0-slice-2.safetensors", "shard-2-slice-1.safetensors", "shard-2-slice-2.safetensors"}
    assert {name for name in before if before[name] != after[name]} == again
    left = [len(of(system, 0, 0)) + len(of(system, 0, 1)) - 1, len(of(system, 2, 0)) - 1, len(of(system, 2, 0)) + len(of(system, 2, 1)) - 2]
    assert progress.forward == progress.backward == 2 * sum(left) == system.passes(request=1)[0]


def test_deletions_one_after_the_other_equal_one_of_all(tmp_path: Path) -> None:
    """Slice borders stay where they were."""
    one, other = fitted(tmp_path / "a"), fitted(tmp_path / "b")
    gone = of(one, 1, 0)[:2] + of(one, 1, 1)[:1]
    for i in gone:
        one.delete([i])
    other.delete(gone)
    assert equal(one, other)
    assert torch.equal(one.slice, other.slice)


def test_state_survives_reload(tmp_path: Path) -> None:
    system, toy = fitted(tmp_path), make_toy("mlp")
    first, second = of(system, 0, 0)[:1], of(system, 1, 1)[:1]
    system.delete(first)
    left = images().without(first)
    opened = System.load(tmp_path, toy.stack.net, left.rows(torch.randperm(len(left))))  # deleted images are not needed, nor is their order
    assert opened.requests == [first]
    assert opened.method == METHOD
    assert torch.equal(opened.logits(toy.split.test), system.logits(toy.split.test))
    with pytest.raises(InputError, match=f"ids {first[0]}: deleted before"):
        opened.delete(first + second)
    opened.delete(second)
    assert equal(opened, fitted(tmp_path / "never", of=images().without(first + second)))
    with pytest.raises(InputError, match="are not among those given"):
        System.load(tmp_path, toy.stack.net, images().without(of(system, 2, 0)))
    with pytest.raises(InputError, match="not there"):
        System.load(tmp_path / "elsewhere", toy.stack.net, images())


def test_an_interrupted_deletion_is_finished_when_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fitted(tmp_path / "it")
    gone = of(system, 0, 0)[:1] + of(system, 1, 0)[:1]
    calls = []

    def tired(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(*given)

    write = sisa.write
    monkeypatch.setattr(sisa, "write", tired)  # the request, one checkpoint, then it stops: shard 1 still knows its image
    with pytest.raises(KeyboardInterrupt):
        system.delete(gone)
    monkeypatch.undo()
    opened = System.load(tmp_path / "it", STARTS["mlp"].net, images())
    assert opened.requests == [sorted(gone)]
    assert equal(opened, fitted(tmp_path / "never", of=images().without(gone)))
    cost = Progress()
    other = fitted(tmp_path / "other")
    other.delete(gone, cost)
    assert opened.passes(request=1) == (cost.forward, cost.backward)


def test_an_interrupted_deletion_is_not_answered_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is known, the models are still those that saw the image."""
    system, asked = fitted(tmp_path / "it"), make_toy().split.test
    gone = of(system, 0, 0)[:1]

    def tired(*given: Any) -> Stack:
        raise KeyboardInterrupt

    monkeypatch.setattr(system, "_train", tired)
    with pytest.raises(KeyboardInterrupt):
        system.delete(gone)
    monkeypatch.undo()
    with pytest.raises(InputError, match="may still know deleted images"):
        system.logits(asked)
    system.update()
    assert torch.equal(system.logits(asked), fitted(tmp_path / "never", of=images().without(gone)).logits(asked))


def test_a_slice_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def tired(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        METHOD.fit(STARTS["batch_norm"], images(), RECIPE, SEEDS, tmp_path / "it", Progress(every=0, tell=tired))
    (tmp_path / "it" / "older.partial").mkdir()  # of a training that nobody wants any more
    system = METHOD.fit(STARTS["batch_norm"], images(), RECIPE, SEEDS, tmp_path / "it", Progress(tell=lambda *step: told.append(step)))
    assert told[0][0] == told[0][1] > 1  # the last step alone was left
    other = fitted(tmp_path / "other", "batch_norm")
    assert equal(system, other)
    assert system.passes(request=0) == other.passes(request=0)
    assert not list((tmp_path / "it").glob("*.partial"))


def test_a_damaged_table_is_not_begun_anew(tmp_path: Path) -> None:
    """It would bring deleted images back."""
    fitted(tmp_path).delete([int(images().ids[0])])
    (tmp_path / "system.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged"):
        fitted(tmp_path)


def test_damaged_and_stale_checkpoints_are_made_again(tmp_path: Path) -> None:
    system = fitted(tmp_path / "it")
    gone, stale = of(system, 0, 0)[:1], tmp_path / "stale.safetensors"
    shutil.copyfile(tmp_path / "it" / "shard-0-slice-2.safetensors", stale)
    system.delete(gone)
    shutil.copyfile(stale, tmp_path / "it" / "shard-0-slice-2.safetensors")  # a model that has seen the deleted image
    (tmp_path / "it" / "shard-1-slice-1.safetensors").write_bytes(b"damaged")
    assert equal(System.load(tmp_path / "it", STARTS["mlp"].net, images()), fitted(tmp_path / "never", of=images().without(gone)))


def test_a_shard_without_images_has_no_say(tmp_path: Path) -> None:
    system, asked = fitted(tmp_path), make_toy().split.test
    gone = of(system, 1, 0) + of(system, 1, 1)
    system.delete(gone)
    shards = torch.stack([system.checkpoint(shard, 2).logits(asked.pixels) for shard in (0, 2)]).softmax(-1)
    assert torch.allclose(system.logits(asked).exp(), shards.mean(0), atol=1e-6)
    system.delete(of(system, 0, 0))  # a slice without images is passed over
    assert bool(torch.isfinite(system.logits(asked)).all())


def test_mean_and_vote_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards, three images: all agree; two against one; each for another class, which goes to the lowest."""
    said = torch.tensor([[[4.0, 0, 0], [0, 0.2, 0], [0, 0, 3]], [[5.0, 0, 0], [0, 0.2, 0], [0, 2, 0]], [[6.0, 0, 0], [9.0, 0, 0], [1, 0, 0]]])

    class Said:
        def __init__(self, shard: int) -> None:
            self.shard = shard

        def logits(self, pixels: torch.Tensor) -> torch.Tensor:
            return said[self.shard, None]

    asked = images().rows(torch.arange(3))
    for combine, winners in (("mean", [0, 0, 2]), ("vote", [0, 1, 0])):
        system = fitted(tmp_path / combine, method=replace(METHOD, combine=combine))
        monkeypatch.setattr(system, "checkpoint", lambda shard, at: Said(shard))
        found = system.logits(asked)[0]
        assert lowest_argmax(found).tolist() == winners
        assert torch.allclose(found.exp().sum(-1), torch.ones(3))
        if combine == "mean":
            assert torch.allclose(found.exp(), said.softmax(-1).mean(0), atol=1e-6)
        else:
            assert torch.allclose(found[1].exp(), torch.tensor([4 / 3, 7 / 3, 1 / 3]) / 4)  # votes 1, 2, 0 and a third more each, of four


def test_epochs_of_a_slice_and_a_schedule_that_shrinks_with_them() -> None:
    recipe = Recipe(epochs=40, schedule=WarmUp(epochs=8, then=MultiStep(epochs=(10, 30))), rewind=3)
    assert [Sisa(slices=slices).slice_recipe(recipe).epochs for slices in (1, 4, 10, 200)] == [40, 16, 7, 1]
    assert Sisa(slices=1).slice_recipe(recipe) == replace(recipe, rewind=None)
    assert Sisa(slices=4, slice_epochs=20).slice_recipe(recipe).schedule == WarmUp(epochs=4, then=MultiStep(epochs=(5, 15)))


def test_wrong_requests_and_folders_are_refused(tmp_path: Path) -> None:
    system = fitted(tmp_path)
    for ids, message in (([99999], "ids 99999: not among"), ([], "at least one"), (images().ids.tolist(), "leave at least one")):
        with pytest.raises(InputError, match=message):
            system.delete(ids)
    with pytest.raises(InputError, match="holds a system of other settings"):
        fitted(tmp_path, method=Sisa(shards=2))
    with pytest.raises(InputError, match="holds a system of other settings"):
        fitted(tmp_path, of=images().without(images().ids[:1].tolist()))
    with pytest.raises(InputError, match="one seed for each"):
        METHOD.fit(STARTS["mlp"], images(), RECIPE, (1, 2, 3), tmp_path / "three")
    assert equal(fitted(tmp_path), system)  # the same again is not trained again
    live = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) < 0.5 for name, p in STARTS["mlp"].params.items()}
    with pytest.raises(InputError, match="or pruned weights"):
        METHOD.fit(STARTS["mlp"].pruned(live), images(), RECIPE, SEEDS, tmp_path)  # there are models whose weights are not 0
    with pytest.raises(InputError, match="cannot shorten a recipe of one's own"):
        METHOD.slice_recipe(object())  # type: ignore[arg-type]


def test_pruned_weights_stay_pruned_after_a_reload(tmp_path: Path) -> None:
    name = next(iter(STARTS["mlp"].params))
    live = {name: torch.rand(STARTS["mlp"].params[name].shape, generator=torch.Generator().manual_seed(0)) < 0.5}
    METHOD.fit(STARTS["mlp"].pruned(live), images(), RECIPE, SEEDS, tmp_path)
    opened = System.load(tmp_path, STARTS["mlp"].net, images())
    opened.delete(of(opened, 0, 0)[:1])
    assert int((opened.checkpoint(0, 2).params[name][~live[name]] != 0).sum()) == 0


def test_an_interrupted_answer_counts_what_an_undisturbed_one_counts(tmp_path: Path) -> None:
    toy = make_toy("mlp").only(0)
    whole = toy.context()
    wanted = METHOD.answer(toy.stack, toy.split, whole, toy.split.test)
    METHOD.fit(toy.stack, toy.split.train, toy.recipe, whole.seeds, tmp_path / "sisa").delete(toy.split.forget.ids.tolist())
    ctx = replace(toy.context(), progress=Progress(tmp_path))
    assert torch.equal(METHOD.answer(toy.stack, toy.split, ctx, toy.split.test), wanted)
    assert (ctx.progress.forward, ctx.progress.backward) == (whole.progress.forward, whole.progress.backward)
