"""``file``: scores that somebody has computed already, in our own format or as papers publish theirs."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import IO, Annotated, Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.contract import Scores
from unlearnlab.data.images import Images
from unlearnlab.data.unpickle import Arrays, text
from unlearnlab.scores.memorisation import estimate_memorisation
from unlearnlab.spec import InputError, Setting, info, spec

Array = np.ndarray[Any, np.dtype[Any]]
Scale = Literal["memorisation", "proxy"]

_EVENTS = {"confidence": 2, "max_conf": 3, "entropy": 4, "bi_acc": 5}  # where they stand in a legacy file of learning events
_RUN = ("correctness_train", "index_train", "correctness_removed", "index_removed")
_OWN = {"ids", "score"}
_FORMATS = ("memorization", "tr_mem", "events", "kl_divergences", "curvatures")
_BESIDE = ("stderr", "n_in", "n_out")
_READ = {*_FORMATS, "tr_labels", *_OWN, "sign", "scale", *_BESIDE, *_RUN, "subsample_idx"}
_READABLE = f"expected ids and score, {', '.join(_FORMATS)}, or a table (.csv) of id,score"


@dataclass(frozen=True, eq=False)
class _Found:
    """What a file says, whatever its format. ``ids``: None where the row of a score is the id. ``last``: an id up to which it goes at least."""

    values: Array
    ids: Array | None = None
    labels: Array | None = None
    scale: Scale | None = None  # None: the file does not say
    beside: Mapping[str, Array] = field(default_factory=dict)
    last: int = -1


@spec("score", "file")
class FileScore:
    """Scores from a file: of published work, of another study, or your own.

    What a file is, its keys tell; ids are rows of the release, and higher means more memorised whatever the file's own direction.
    Memorisation: ``memorization`` (RUM's file of CIFAR-10, the MNIST example) and ``tr_mem`` with ``tr_labels`` (CIFAR-100), both by row of the release;
    or the folder of one ratio of the public models of held-out influence, with an npz of correctness_{train,removed}, index_{train,removed} and
    subsample_idx for each model, of which mem(i) is estimated as ``memorisation`` does. Proxies: ``events`` [n 6] (setting ``column``: 1 − confidence,
    1 − max_conf, −neg_entropy or 1 − bi_acc), ``kl_divergences`` [n 2] of ids and values, ``curvatures`` (a pickled table of values by id).
    Either: our own npz with ids, score and sign; a table (.csv) with the columns id and score, and perhaps label; an array (.npy) by row of the release.
    Labels in a file must be those of the release. Influence is never read. Source: protocols.md §6 and §7.
    Differs from the published code: scores are found by id, never by position among the images that are left; values of learning events are
    turned round, so that the high group is the hard one; nothing in a pickle is executed. Published indices may count in the order of another
    library, which a file without labels does not show.
    """

    path: Annotated[str, Setting("the file, or the folder of runs")]
    column: Annotated[Literal["confidence", "max_conf", "entropy", "bi_acc"] | None, Setting("which score of a legacy file of learning events")] = None
    scale: Annotated[
        Literal["as_written", "memorisation", "proxy"],
        Setting("what the numbers are, where the file does not say: differences of probabilities, or a proxy of which only the order means anything"),
    ] = "as_written"

    def content(self) -> dict[str, Any]:
        """What enters the key: what is read of the file, wherever it lies."""
        path = self._path
        if not path.is_dir():
            return {"sha256": self._sha256(path), "column": self.column, "scale": self.scale}
        return {"sha256": sorted(self._sha256(run) for run in self._runs()), "column": self.column, "scale": self.scale}

    def read(self, train: Images, test: Images | None = None, size: int | None = None) -> Scores:
        """The scores of exactly these training images; raises ``InputError`` naming the first that does not fit.

        ``test``: where the release has test images of its own and these are some of them, a file that goes on into them is refused.
        ``size``: how many images the release has, beyond which no file goes.
        """
        ids = train.ids.cpu()
        found = self._estimated(ids.numpy()) if self._path.is_dir() else self._written()
        rows = self._rows(found, ids, _first_of_test(train, test), size)
        self._check_labels(found, rows, train)
        scale = self._scale(found)
        values, beside = found.values[rows], {name: torch.from_numpy(held[rows]) for name, held in found.beside.items()}
        if len(values) and bool(np.isnan(values).all()):
            raise self._wrong(f"knows the score of none of the {len(values)} training images: all are NaN", "give the scores of these images")
        if scale == "memorisation":
            self._check_range(ids.numpy(), values, -1, 1, "memorisation", "set scale = 'proxy' if it is something else")
        return Scores(info(self).name, ids, torch.from_numpy(values), scale, beside)

    def told(self, count: int) -> str:
        """What is in the file, of whatever data set it is; raises ``InputError`` where it does not hold so many scores."""
        found = self._written()
        if len(found.values) != count:
            raise self._wrong(f"holds {len(found.values)} scores", f"expected {count}: replace it with the published file")
        if self._scale(found) == "memorisation":
            self._check_range(np.arange(count), found.values, -1, 1, "memorisation", "replace it with the published file")
        known = found.values[~np.isnan(found.values)]
        ends = f"from {known.min():.3f} to {known.max():.3f}" if len(known) else "all unknown (NaN)"
        return f"{count} scores ({self._scale(found)}), {ends}" + (f", {count - len(known)} unknown (NaN)" if 0 < len(known) < count else "")

    # ---- what a file is

    @property
    def _path(self) -> Path:
        return Path(self.path).expanduser()

    def _written(self) -> _Found:
        """What stands in a single file."""
        path = self._path
        try:
            with path.open("rb") as file:
                start = file.read(6)
                if start.startswith(b"PK"):
                    return self._by_keys(_Npz(self, path))
                file.seek(0)
                if start.startswith(b"\x93NUMPY"):
                    held = _array(self, path, file)
                elif start.startswith(b"\x80"):
                    held = self.unpickled(path, file)
                else:
                    return self._table()
        except OSError as error:
            raise self._unreadable(path, error) from error
        held = held.item() if isinstance(held, np.ndarray) and held.dtype.hasobject and held.size == 1 else held
        if isinstance(held, np.ndarray):
            self._no_column("it is one array")
            return _Found(self._numbers(held, "its array"))
        if isinstance(held, dict) and held and not any(isinstance(key, (str, bytes)) for key in held):
            held = {"curvatures": held}  # the table alone
        if not isinstance(held, dict):
            raise self._wrong(f"holds a {type(held).__name__}", _READABLE)
        return self._by_keys({text(key): value for key, value in held.items()})

    def _by_keys(self, held: Mapping[str, Any]) -> _Found:
        """What a file of named arrays says; only the arrays that are needed are read."""
        if all(name in held for name in _RUN):
            raise self._wrong("is one run of many", "give the folder that holds them all")
        kinds = [name for name in _FORMATS if name in held] + ["ids and score"] * (set(held) >= _OWN)
        if len(kinds) != 1:
            there = ", ".join(list(held)[:12]) or "none"
            raise self._wrong(f"holds {' and '.join(kinds) or 'no scores that are known here'} (its arrays: {there})", _READABLE + ", and one of these")
        kind = kinds[0]
        if kind == "events":
            return self._events(self._numbers(held[kind], kind, columns=6))
        self._no_column(f"it holds {kind}")
        if kind == "kl_divergences":
            pairs = self._numbers(held[kind], kind, columns=2)
            return _Found(pairs[:, 1], self._whole(pairs[:, 0], "the first column of kl_divergences"), scale="proxy")
        if kind == "curvatures":
            return self._curvatures(held[kind])
        if kind == "ids and score":
            return self._own(held)
        if kind == "tr_mem" and "tr_labels" not in held:
            raise self._wrong("has tr_mem without tr_labels", "give a file with both: labels tell whether its order is that of the release")
        labels = self._whole(held["tr_labels"], "tr_labels") if "tr_labels" in held else None
        return _Found(self._numbers(held[kind], kind), labels=labels, scale="memorisation")

    def _own(self, held: Mapping[str, Any]) -> _Found:
        """The format that ``scores.npz`` writes; a file without a scale that counts models on both sides is of memorisation."""
        if "sign" not in held:
            raise self._wrong("has ids and score without sign", "add sign = 1 if higher means more memorised, and -1 if lower does")
        sign = self._array(held["sign"], "sign")
        if sign.size != 1 or sign.item() not in (1, -1):
            raise self._wrong(f"says sign = {' '.join(str(sign).split())}", "expected 1 (higher means more memorised) or -1")
        scale = str(held["scale"]) if "scale" in held else "memorisation" if {"n_in", "n_out"} <= set(held) else None
        if scale not in (None, "memorisation", "proxy"):
            raise self._wrong(f"says scale = '{scale}'", "expected memorisation or proxy")
        values = sign.item() * self._numbers(held["score"], "score")
        beside = {name: self._array(held[name], name) for name in _BESIDE if name in held}
        odd = next((name for name, array in beside.items() if array.shape != values.shape or array.dtype.kind not in "biuf"), None)
        if odd is not None:
            raise self._wrong(f"has {beside[odd].dtype} {list(beside[odd].shape)} under {odd}", f"expected one number for each of its {len(values)} scores")
        return _Found(values, self._whole(held["ids"], "ids"), None, cast(Scale | None, scale), beside)

    def _events(self, held: Array) -> _Found:
        """Learning events; published files say what is easy with high numbers, and the negative of the entropy."""
        if self.column is None:
            raise self._wrong("holds learning events, which are four scores", f"set column to one of: {', '.join(_EVENTS)}")
        ids, raw = self._whole(held[:, 0], "the first column of events"), held[:, _EVENTS[self.column]]
        if self.column == "entropy":
            self._check_range(ids, raw, -np.inf, 0, "neg_entropy, the fifth column of events,", "reorder its columns")
            return _Found(0.0 - raw, ids, scale="proxy")
        self._check_range(ids, raw, 0, 1, self.column, "reorder its columns: id, last epoch, confidence, max_conf, neg_entropy, bi_acc")
        return _Found(1 - raw, ids, scale="proxy")

    def _curvatures(self, held: Any) -> _Found:
        held = held.item() if isinstance(held, np.ndarray) and held.dtype.hasobject and held.size == 1 else held
        if isinstance(held, dict):
            values, ids = self._numbers(list(held.values()), "curvatures"), self._whole(list(held), "the keys of curvatures")
            return _Found(values, ids, scale="proxy")
        array = self._array(held, "curvatures")
        if array.ndim == 1:
            return _Found(self._numbers(array, "curvatures"), scale="proxy")
        pairs = self._numbers(array, "curvatures", columns=2)
        return _Found(pairs[:, 1], self._whole(pairs[:, 0], "the first column of curvatures"), scale="proxy")

    def _table(self) -> _Found:
        """A CSV table with a heading, or of id,score without one. An empty score is not known."""
        self._no_column("it is a table")
        try:
            with self._path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise self._wrong("is neither an .npz, an .npy, a pickle nor a table", _READABLE) from error
        if not lines:
            raise self._wrong("is empty", _READABLE)
        heading = [cell.lower() for cell in lines[0][1]]
        if {"id", "score"} <= set(heading):
            lines = lines[1:]
        elif len(heading) == 2 and _is_number(heading[0]):
            heading = ["id", "score"]
        else:
            raise self._wrong(f"has the columns {', '.join(lines[0][1])[:80]}", "expected id and score")
        at = [heading.index(name) for name in ("id", "score", "label") if name in heading]
        cells = []
        for number, row in lines:
            try:
                one, value, *label = (row[i] for i in at)
                cells.append((int(one), float(value or "nan"), *map(int, label)))
            except (ValueError, IndexError) as error:
                raise self._wrong(f"has '{','.join(row)[:80]}' in line {number}", f"expected {', '.join(heading[i] for i in at)}, as numbers") from error
        ids, values, *labels = (np.array(found) for found in zip(*cells, strict=True)) if cells else (np.zeros(0, dtype=np.int64), np.zeros(0))
        return _Found(values, self._whole(ids, "the column id"), self._whole(labels[0], "the column label") if labels else None)

    # ---- folders of runs

    def _runs(self) -> list[Path]:
        runs = sorted(self._path.rglob("*.npz"))
        if not runs:
            raise self._wrong("is a folder without an .npz", f"give one that holds, for each run, {', '.join(_RUN)}")
        return runs

    def _estimated(self, ids: Array) -> _Found:
        """Memorisation of these images, from what each of many models answered right."""
        self._no_column("it is a folder of runs")
        runs = self._runs()
        correct, member = np.zeros((2, len(runs), len(ids)), dtype=bool)
        sizes, last = list[int](), -1
        for k, run in enumerate(runs):
            held = _Npz(self, run)
            lacks = next((name for name in _RUN if name not in held), None)
            if lacks is not None:
                raise self._wrong(f"has no {lacks}", f"expected {', '.join(_RUN)}; move what is no run out of the folder", run)
            index, right = [], []
            for part in ("train", "removed"):
                index.append(self._whole(held[f"index_{part}"], f"index_{part}", run))
                right.append(self._numbers(held[f"correctness_{part}"], f"correctness_{part}", path=run))
                if len(index[-1]) != len(right[-1]):
                    what = f"has {len(right[-1])} values under correctness_{part} and {len(index[-1])} under index_{part}"
                    raise self._wrong(what, "expected as many", run)
            inside, everyone, answers = len(index[0]), np.concatenate(index), np.concatenate(right)
            if bool(((answers != 0) & (answers != 1)).any()):
                raise self._wrong("has other numbers than 0 and 1 for correctness", "expected 1 where the model is right and 0 where it is wrong", run)
            self._check_unique(everyone, "among its train and removed images", run)
            if "subsample_idx" in held and not np.array_equal(np.sort(self._whole(held["subsample_idx"], "subsample_idx", run)), np.sort(index[0])):
                raise self._wrong("was trained on other images (subsample_idx) than it lists under index_train", "replace it with an intact copy", run)
            sizes.append(inside)
            last = max(last, int(everyone.max(initial=-1)))
            if sizes[-1] != sizes[0]:
                what = f"was trained on {sizes[-1]} images, {runs[0]} on {sizes[0]}"
                raise self._wrong(what, "estimate from runs of one ratio: give the folder of that ratio", run)
            rows = self._found_at(everyone, ids, run)
            correct[k], member[k] = answers[rows] == 1, rows < inside
        made = estimate_memorisation(torch.from_numpy(correct), torch.from_numpy(member))
        beside = {name: getattr(made, name).numpy() for name in _BESIDE}
        return _Found(made.values.numpy(), ids, scale="memorisation", beside=beside, last=last)

    # ---- what does not fit

    def _rows(self, found: _Found, ids: Int64[Tensor, " n"], first: int | None, size: int | None) -> Array:
        """Where in the file each image stands."""
        n, wanted = len(found.values), ids.numpy()
        if found.ids is not None and len(found.ids) != n:
            raise self._wrong(f"has {len(found.ids)} ids and {n} scores", "expected as many")
        if found.labels is not None and len(found.labels) != n:
            raise self._wrong(f"has {len(found.labels)} labels and {n} scores", "expected as many")
        if found.ids is not None:
            self._check_unique(found.ids, "among its ids")
        end = n if found.ids is None else int(found.ids.max(initial=found.last)) + 1
        if size is not None and end > size:
            what = f"has scores up to image id {end - 1}, but the release has {size} images, with the ids 0 to {size - 1}"
            raise self._wrong(what, "give scores of the training images of this release")
        if first is not None and end > first:
            what = f"has scores up to image id {end - 1}, but the release's test images begin at id {first}"
            raise self._wrong(what, "give scores of the training images of this release")
        if found.ids is not None:
            return self._found_at(found.ids, wanted)
        late = wanted[wanted >= n]
        if len(late):
            what = f"has {n} scores, for the ids 0 to {n - 1}, but training image id {late.min()} needs one too ({len(late)} such image(s), to id {late.max()})"
            raise self._wrong(what, "give a score for each row of the release")
        return wanted

    def _found_at(self, ids: Array, wanted: Array, path: Path | None = None) -> Array:
        """Where among these ids, each there once, the wanted ones stand."""
        beyond = int(wanted.max(initial=-1)) + 1
        column = np.full(beyond + 1, -1)  # the last is for ids that nobody wants
        column[wanted] = np.arange(len(wanted))
        at = column[np.where((ids < 0) | (ids > beyond), beyond, ids)]
        rows = np.full(len(wanted), -1)
        rows[at[at >= 0]] = (at >= 0).nonzero()[0]
        missing = wanted[rows < 0]
        if len(missing):
            what = f"knows nothing of training image id {missing.min()} ({len(missing)} such image(s) of {len(wanted)})"
            raise self._wrong(what, "give a file that covers the training set of this study", path)
        return rows

    def _check_unique(self, ids: Array, where: str, path: Path | None = None) -> None:
        found, counts = np.unique(ids, return_counts=True)
        if len(found) != len(ids):
            raise self._wrong(f"names image id {found[counts > 1][0]} twice {where}", "expected every id once", path)

    def _check_labels(self, found: _Found, rows: Array, train: Images) -> None:
        if found.labels is None:
            return
        theirs, ours, ids = found.labels[rows], train.true_labels.cpu().numpy(), train.ids.cpu().numpy()
        bad = (theirs != ours).nonzero()[0]
        if len(bad):
            first = bad[ids[bad].argmin()]
            what = f"gives image id {ids[first]} the label {theirs[first]}, and the data set {ours[first]} ({len(bad)} such image(s) of {len(ids)})"
            raise self._wrong(what, "give scores of this data set, in the order of its release")

    def _check_range(self, ids: Array, values: Array, low: float, high: float, name: str, do: str) -> None:
        bad = ((values < low - 1e-4) | (values > high + 1e-4)).nonzero()[0]  # rounded sums stand a little outside
        if len(bad):
            bounds = f"at most {high:g}" if low == -np.inf else f"{low:g} to {high:g}"
            raise self._wrong(f"says {name} = {values[bad[0]]:g} of image id {ids[bad[0]]}", f"expected {bounds}; {do}")

    def _scale(self, found: _Found) -> Scale:
        if self.scale == "as_written":
            return found.scale or "proxy"
        if found.scale not in (None, self.scale):
            raise self._wrong(f"holds a score of the scale {found.scale}, not {self.scale}", "leave scale out")
        return self.scale

    def _no_column(self, what: str) -> None:
        if self.column is not None:
            raise self._wrong(f"has no column '{self.column}' to choose: {what}", "leave column out, which is for learning events")

    def _numbers(self, given: Any, name: str, columns: int = 0, path: Path | None = None) -> Array:
        """float64 [n] (or [n columns])."""
        held = self._array(given, name, path)
        if held.dtype.kind not in "biuf" or held.ndim != 1 + bool(columns) or (columns and held.shape[1] != columns):
            expected = f"numbers of the shape [n, {columns}]" if columns else "one number for each image"
            raise self._wrong(f"has {held.dtype} {list(held.shape)} under {name}", f"expected {expected}", path)
        return held.astype(np.float64)

    def _whole(self, given: Any, name: str, path: Path | None = None) -> Array:
        """int64 [n], of ids or labels."""
        held = self._array(given, name, path)
        if held.ndim != 1 or held.dtype.kind not in "iuf":
            raise self._wrong(f"has {held.dtype} {list(held.shape)} under {name}", "expected one whole number for each image", path)
        bad = (~(np.abs(held) < 2**53) | (held != np.rint(held))).nonzero()[0] if held.dtype.kind == "f" else held[:0]
        if len(bad):
            raise self._wrong(f"has {held[bad[0]]:g} in row {bad[0]} of {name}", "expected whole numbers", path)
        return held.astype(np.int64)

    def _array(self, given: Any, name: str, path: Path | None = None) -> Array:
        try:
            return np.asarray(given)
        except (ValueError, TypeError) as error:  # lists of different lengths
            raise self._wrong(f"has no array under {name}", "expected numbers", path) from error

    # ---- files

    def unpickled(self, path: Path, file: IO[bytes]) -> Any:
        """What a pickle holds, if that is numbers in dicts, lists and arrays; nothing that it names is imported or run."""
        try:
            return _Numbers(file, self, path).load()
        except InputError:
            raise
        except Exception as error:  # garbage makes the unpickler raise nearly anything
            raise self.damaged(path, error) from error

    def damaged(self, path: Path, error: Exception) -> InputError:
        return self._wrong(f"is truncated or damaged ({' '.join(str(error).split())[:120]})", "replace it with an intact copy", path)

    def _wrong(self, what: str, do: str, path: Path | None = None) -> InputError:
        return InputError(f"score 'file': {path or self._path} {what}; {do}")

    def _unreadable(self, path: Path, error: OSError) -> InputError:
        return InputError(f"score 'file': cannot read {path}: {error.strerror}; give the path of an existing file of scores")

    def _sha256(self, path: Path) -> str:
        try:
            stat = path.stat()
            return _hash(path, stat.st_size, stat.st_mtime_ns)
        except OSError as error:
            raise self._unreadable(path, error) from error


class _Npz(Mapping[str, Any]):
    """The arrays of an .npz, each read when it is asked for: published files hold gigabytes of influence beside the scores."""

    def __init__(self, score: FileScore, path: Path) -> None:
        self.score, self.path = score, path
        try:
            with zipfile.ZipFile(path) as archive:
                self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:  # names may be no text, versions unknown
            raise score.damaged(path, error) from error

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
                return _array(self.score, self.path, file)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise self.score.damaged(self.path, error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class _Numbers(Arrays):
    """Gives a pickle none of the functions it asks for but those that rebuild arrays and NumPy's numbers."""

    def find_class(self, module: str, name: str) -> Any:
        for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
            if (module, name) == (f"{core}.multiarray", "scalar"):
                return _number
            if (module, name) == (f"{core}.numeric", "_frombuffer"):
                return _rebuilt
        try:
            return super().find_class(module, name)
        except InputError:
            what = f"asks for {module}.{name}, where nothing but numbers and NumPy arrays is read, and none of it was run"
            raise InputError(f"score 'file': {self.path} {what}; save it anew with numpy.savez(path, ids=ids, score=values, sign=1)") from None


def _number(kind: Any, held: bytes) -> Any:
    """One of NumPy's numbers."""
    return _rebuilt(held, kind, (1,), "C")[0]


def _rebuilt(held: bytes, kind: Any, shape: tuple[int, ...], order: Any) -> Array:
    """An array, as pickles of protocol 5 hold it."""
    if not isinstance(kind, np.dtype) or kind.kind not in "biuf":  # bytes taken for objects would be taken for addresses
        raise pickle.UnpicklingError(f"{kind} is no type of a number")
    return np.frombuffer(held, kind).reshape(shape, order=order)


def _array(score: FileScore, path: Path, file: IO[bytes]) -> Any:
    """An array, or what it holds as a pickle: so NumPy writes what is no array of numbers."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read(file)
        if dtype.hasobject:
            return score.unpickled(path, file)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    except InputError:
        raise
    except (ValueError, EOFError, MemoryError, TokenError) as error:
        raise score.damaged(path, error) from error


def _first_of_test(train: Images, test: Images | None) -> int | None:
    """The id of the first test image, where the release tells training from test images and the study keeps to that."""
    if test is None or not len(test) or any("split" not in images.columns for images in (train, test)):
        return None
    split, held_out = train.columns["split"].values, test.columns["split"].values
    return int(test.ids.min()) if not bool(split.any()) and bool(held_out.all()) else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4096)
def _hash(path: Path, size: int, changed: int) -> str:
    """Once for each state of a file, since a study asks for its keys again and again; of an .npz without its gigabytes of influence."""
    found = hashlib.sha256()
    with path.open("rb") as file, contextlib.suppress(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError):
        with zipfile.ZipFile(file) as archive:
            for name in sorted(archive.namelist()):
                if name.removesuffix(".npy") in _READ:
                    found.update(name.encode() + archive.read(name))
        return found.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
