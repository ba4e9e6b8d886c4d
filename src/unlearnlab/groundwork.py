"""What every job of a study stands on: its setup as plain data, its images, and who is forgotten.

Every ``make_`` function here is a job: plain arguments, the key of what it made as the answer, safe to run anywhere and
twice. What is in the store already is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnlab.contract import Scores
from unlearnlab.data.corrupt import Corruption
from unlearnlab.data.disk import content, find_mapped, load_images, save_images
from unlearnlab.data.images import PARTS, Images, Split
from unlearnlab.data.mapped import Mapped
from unlearnlab.data.partition import Parts, check_forget, split_for
from unlearnlab.forgetsets import ForgetSet, ScoredForgetSet
from unlearnlab.scores.npz import read_npz
from unlearnlab.spec import InputError, build, digest, identity, info, key, load_plugin
from unlearnlab.store import Store

Table = Mapping[str, Any]
KINDS = ("dataset", "partition", "corruption", "forget", "net", "recipe", "original")  # of a study, what jobs need


@dataclass(frozen=True)
class Setup:
    """What all jobs of a study share, as plain data: where the store is and what the models are.

    ``earlier``: the forget sets of requests that were carried out before the one in ``forget``. ``scores``: names and keys of those made so far.
    ``jobs_on``: "cpu" or "cuda", what jobs compute on.
    """

    root: str
    seed: int
    dataset: Table
    partition: Table
    corruption: Table
    forget: Table
    net: Table
    recipe: Table
    original: Table
    prune: Table | None = None
    attribution: Table | None = None
    earlier: tuple[Table, ...] = ()
    scores: tuple[tuple[str, str], ...] = ()
    normalise: bool = True
    data_root: str | None = None
    plugins: tuple[str, ...] = ()
    jobs_on: str = "cpu"

    @property
    def device(self) -> str:
        """Where this process computes: as jobs do, or on the CPU where it only steers others and has no accelerator itself."""
        return self.jobs_on if torch.cuda.is_available() else "cpu"

    @property
    def store(self) -> Store:
        return _store(self.root)

    def spec(self, kind: str, table: Any = None) -> Any:
        """The study's own spec of this kind, or the one in a table."""
        for path in self.plugins:
            _plugin(path)
        return build(kind, getattr(self, kind) if table is None else table)

    @property
    def view(self) -> int | None:
        """Side of what a net sees of a larger image, if the data set says so."""
        found: int | None = getattr(self.spec("dataset"), "view", None)
        return found

    @property
    def seen(self) -> dict[str, Any]:
        """What the net does to pixels, for keys: the images' fingerprint does not show it."""
        return {"normalised": self.normalised} | ({} if self.view is None else {"view": self.view})

    @property
    def normalised(self) -> dict[str, Any]:
        """Mean and deviation that the net applies."""
        dataset = self.spec("dataset")
        return {"mean": list(dataset.mean), "std": list(dataset.std)} if self.normalise else {"mean": [0.0], "std": [1.0]}


@lru_cache
def _plugin(path: str) -> None:
    """Once in each process: keys must not change under a running study when the file is edited."""
    load_plugin(path)


@lru_cache(maxsize=4)
def _store(root: str) -> Store:
    return Store(root)


# ---- data and forget sets


def make_data(setup: Setup) -> str:
    """Load, divide and corrupt the images; store once who is where. Pixels stay in the converted data set, if there is one."""
    dataset, partition, corruption = (setup.spec(kind) for kind in ("dataset", "partition", "corruption"))
    where = (None if setup.data_root is None else Path(setup.data_root), setup.store)
    release: Images = dataset(*where) if hasattr(dataset, "files") else dataset()  # what comes from no file needs neither
    inputs = {"partition": identity(partition), "corruption": identity(corruption), "seed": setup.seed, "release": content(release)}
    made = key(dataset, **inputs)

    def write(folder: Path) -> Table:
        parts = partition(release, setup.seed)
        parts = Parts(corruption(parts.train, setup.seed), parts.held_out, parts.test)
        for name in ("train", "held_out", "test"):
            save_images(folder / name, getattr(parts, name))
        mapped = {"images": find_mapped(setup.store, release.pixels.name)} if isinstance(release.pixels, Mapped) else {}
        return {"classes": release.classes, "size": len(release), "train": parts.train.fingerprint, **mapped}

    setup.store.make("data", made, write, manifest={"spec": identity(dataset), **inputs})
    return made


def load_data(setup: Setup, data: str) -> Parts:
    """The divided images; raises ``FileNotFoundError`` where they are not in the store."""
    return _read_data(setup.root, stored(setup, "data", data))


def stored(setup: Setup, kind: str, made: str) -> Path:
    """The verified folder of an artefact that an earlier stage made."""
    folder = setup.store.get(kind, made)
    if folder is None:
        raise FileNotFoundError(f"{kind}/{made} is not in the store {setup.root}, or was damaged a moment ago; run the study again")
    return folder


@lru_cache(maxsize=2)
def _read_data(root: str, folder: Path) -> Parts:
    return Parts(*(load_images(folder / name, _store(root)) for name in ("train", "held_out", "test")))


def make_forget(setup: Setup, data: str) -> str:
    """Choose who is forgotten; the ids are stored, and every later stage reads them from there.

    A later request chooses among those whom no earlier one removed; its split forgets them all.
    """
    chosen = setup.spec("forget")
    inputs: dict[str, Any] = {"data": data, "seed": setup.seed}
    if setup.earlier:
        *before, last = setup.earlier
        inputs["after"] = f"forget/{make_forget(replace(setup, forget=last, earlier=tuple(before)), data)}"
    by_score = isinstance(chosen, ScoredForgetSet)
    if by_score:
        inputs["scores"] = f"scores/{dict(setup.scores)[chosen.score]}"
    made = key(chosen, **inputs)

    def write(folder: Path) -> Table:
        parts, requests = load_data(setup, data), []
        if "after" in inputs:
            requests = load_requests(setup, inputs["after"].partition("/")[2])
        gone = [i for request in requests for i in request]
        scores = read_npz(stored(setup, *inputs["scores"].split("/")) / "scores.npz") if by_score else None
        ids, groups = choose(chosen, parts.train, gone, setup.seed, scores)
        (folder / "ids.json").write_text(json.dumps(sorted(gone + ids)))
        (folder / "requests.json").write_text(json.dumps([*requests, ids]))
        (folder / "groups.json").write_text(json.dumps(groups))
        forget = parts.train.take(ids)
        return {
            "split": divide(parts, torch.tensor(sorted(gone + ids)), setup.seed, _asked(setup), setup.spec("corruption")).fingerprint,
            "ids": digest(ids),
            "count": len(ids),
            "classes": torch.bincount(forget.true_labels, minlength=forget.classes).tolist(),
            "corrupted": int(forget.corrupted.sum()),
        }

    setup.store.make("forget", made, write, manifest={"spec": identity(chosen), **inputs})
    return made


def choose(
    chosen: ForgetSet | ScoredForgetSet, train: Images, gone: list[int], seed: int, scores: Scores | None = None
) -> tuple[list[int], dict[str, list[int]]]:
    """The ids that a forget set names among those whom no earlier request removed, and its groups by ``score.group``, if it has any.

    Raises ``InputError`` with the list of removed ones it names.
    """
    left, groups = train.without(gone), dict[str, list[int]]()
    if isinstance(chosen, ScoredForgetSet):
        assert scores is not None, "scores are made before a forget set is chosen by them"
        scheme = getattr(chosen, "scheme", chosen.score)
        groups = {f"{scheme}.{name}": ids.tolist() for name, ids in chosen.groups(left, seed, scores).items()}
        asked = torch.tensor([i for ids in groups.values() for i in ids])
    else:
        asked = chosen(left, seed)
    again = sorted(set(gone) & set(asked.tolist()))
    if again:
        some = ", ".join(map(str, again[:20])) + (" …" if len(again) > 20 else "")
        raise InputError(f"the request '{info(chosen).name}' names {len(again)} id(s) that an earlier request removed already: {some}; leave them out")
    return check_forget(left, asked), groups


def _asked(setup: Setup) -> tuple[ForgetSet, ...]:
    """The forget sets of all requests so far."""
    return tuple(setup.spec("forget", table) for table in (*setup.earlier, setup.forget))


def load_requests(setup: Setup, forget: str) -> list[list[int]]:
    """The ids of every request so far, the latest last."""
    folder = stored(setup, "forget", forget)
    if not (folder / "requests.json").exists():  # made before there were requests
        return [json.loads((folder / "ids.json").read_text())]
    held: list[list[int]] = json.loads((folder / "requests.json").read_text())
    return held


def load_groups(setup: Setup, forget: str) -> dict[str, list[int]]:
    """The ids of the groups in which the latest request was chosen, by ``score.group``; none where it was not chosen by a score."""
    file = stored(setup, "forget", forget) / "groups.json"
    held: dict[str, list[int]] = json.loads(file.read_text()) if file.exists() else {}  # made before there were groups
    return held


def load_request(setup: Setup, data: str, forget: str) -> Split:
    """The split as a method sees it that carries out the latest request: what earlier ones removed is in no part of it."""
    split, requests = load_split(setup, data, forget), load_requests(setup, forget)
    return split if len(requests) == 1 else replace(split, forget=split.forget.take(requests[-1]))


def load_split(setup: Setup, data: str, forget: str) -> Split:
    """The split of a study: who is forgotten (by this request and all earlier ones), retained and held out."""
    specs = _asked(setup), setup.spec("corruption")
    return _derive_split(setup.root, stored(setup, "data", data), stored(setup, "forget", forget), setup.seed, *specs, setup.device)


@lru_cache(maxsize=2)
def _derive_split(root: str, data: Path, forget: Path, seed: int, chosen: tuple[ForgetSet, ...], corruption: Corruption, device: str) -> Split:
    """Drawn on the CPU, where the generators are, and only then moved."""
    split = divide(_read_data(root, data), torch.tensor(json.loads((forget / "ids.json").read_text())), seed, chosen, corruption)
    moved = {part: getattr(split, part).to(device) for part in PARTS}
    if any(isinstance(images.pixels, Mapped) for images in moved.values()):  # where one part is too large, all stay, so that they can be joined
        moved = {part: replace(images, pixels=getattr(split, part).pixels) for part, images in moved.items()}
    return Split(**moved)


def divide(parts: Parts, ids: Tensor, seed: int, chosen: Sequence[ForgetSet], corruption: Corruption) -> Split:
    """The split of forget sets, with controls drawn among the like of them and corrupted as the training images were."""
    tests = [getattr(one, "eligible", None) for one in chosen]  # a plugin's forget set may do without

    def eligible(images: Images) -> Tensor:
        return torch.stack([test(images) for test in tests if test is not None]).any(0)

    drop = any(getattr(one, "drop_from_test", False) for one in chosen)
    return split_for(parts, ids, seed, corruption=corruption, eligible=None if None in tests else eligible, drop_from_test=drop)
