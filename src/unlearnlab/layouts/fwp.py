"""The published layout of "Forget with Precision": ``logits_retain.npy`` beside one folder for each approach, with ``logits_unlearn.npy``."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from unlearnlab.layouts.arrays import Array, Held, build, logits_of, opened
from unlearnlab.layouts.ensembles import KEPT, Ensemble, Listing
from unlearnlab.layouts.writing import folder_name, writing
from unlearnlab.outputs import Outputs
from unlearnlab.spec import InputError

ORACLES, APPROACH, METRICS = "logits_retain.npy", "logits_unlearn.npy", "metrics.csv"
SHAPE = "(examples, 1 + models, classes) with the one-hot label in slot 0"
COLUMNS = ("seed", *(f"{part}_accuracy" for part in KEPT))


def listing(folder: Path) -> Listing:
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    found = {path.name: path for path in folders if (path / APPROACH).exists()}
    notes = [f"{path.name}: has no {APPROACH}, and is left out" for path in folders if path.name not in found]
    without = [name for name, path in {"the oracles": folder, **found}.items() if not (path / METRICS).exists()]
    if without:
        notes.append(f"no {METRICS} for {', '.join(without)}: accuracies on other images are unknown")
    return Listing("fwp", partial(_read, folder / ORACLES), {name: partial(_read, path / APPROACH) for name, path in found.items()}, notes=tuple(notes))


def _read(file: Path) -> Held:
    array = opened(file, lambda: np.lib.format.open_memmap(file, mode="r"))  # which opens no pickle
    logits_of(file, array, SHAPE)
    labels = _labels(file, array)
    models, told = array.shape[1] - 1, file.parent / METRICS
    shares, notes = _read_metrics(told) if told.exists() else ({}, list[str]())
    rows = len(next(iter(shares.values()), ()))
    if shares and rows != models:
        notes.append(f"{told.parent.name}/{METRICS} has {rows} row(s) for {models} models")
    return build(file, {"logits": array[:, 1:].swapaxes(0, 1), "labels": labels}, accuracies=shares, notes=tuple(notes))


def _labels(file: Path, array: Array) -> Int64[Tensor, " examples"]:
    """The labels in slot 0; raises ``InputError`` where it holds anything but one 1 and zeros."""
    if array.shape[1] < 2:
        raise InputError(f"{file} has the shape {list(array.shape)}, a label and no model; expected {SHAPE}")
    wrong = ~_one_hot(array[:, 0])
    if not wrong.any():
        return torch.from_numpy(np.asarray(array[:, 0]).argmax(-1).astype(np.int64))
    first = int(wrong.argmax())
    row = np.asarray(array[first, 0], dtype=np.float64)
    seen = "is all zero" if not row.any() else f"holds [{', '.join(f'{value:g}' for value in row[:4])}{', …' if len(row) > 4 else ''}]"
    hint = ""
    if len(array) > 1 and _one_hot(array[0]).all():
        hint = ": examples and models look exchanged, save array.swapaxes(0, 1)"
    elif wrong.sum() > len(array) / 2:
        hint = ": the labels look left out, put them before the first model"
    raise InputError(
        f"{file}: slot 0 of example {first} {seen}, which is no one-hot label ({int(wrong.sum())} of {len(array)} such examples); expected {SHAPE}{hint}"
    )


def _one_hot(rows: Array) -> Array:
    found: Array = ((rows == 1).sum(-1) == 1) & ((rows != 0).sum(-1) == 1)
    return found


def _read_metrics(file: Path) -> tuple[dict[str, Float64[Tensor, " rows"]], list[str]]:
    """Accuracies as shares, of the parts that the file knows; it may give percent."""

    def load() -> tuple[list[str], list[dict[str, str]]]:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, skipinitialspace=True, restval="")
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            return names, list(reader)

    names, rows = opened(file, load)
    if missing := [name for name in COLUMNS if name not in names]:
        raise InputError(f"{file} has no column {', '.join(missing)}; expected {','.join(COLUMNS)} in its first line (it has: {', '.join(names) or 'nothing'})")
    if not rows:
        raise InputError(f"{file} has no row below its heading; expected one for each model, or no such file")
    shares = {}
    for part in KEPT:
        cells = [row[f"{part}_accuracy"].strip() for row in rows]
        if any(cells):  # a column left blank throughout: a study without such images
            shares[part] = torch.tensor([_number(file, f"{part}_accuracy", at, cell) for at, cell in enumerate(cells, 2)], dtype=torch.float64)
    if not shares:
        raise InputError(f"{file} has no accuracy in it; fill in {', '.join(COLUMNS[1:])}, or remove the file")
    notes = []
    if any(float(column.max()) > 1 for column in shares.values()):
        few = [part for part, column in shares.items() if 0 < float(column.max()) <= 1]
        notes += [
            f"{file.parent.name}/{file.name}: other columns are percent, so {part}_accuracy, at most {float(shares[part].max()):g}, is taken as percent"
            for part in few
        ]
        shares = {part: column / 100 for part, column in shares.items()}
    return shares, notes


def _number(file: Path, column: str, line: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise InputError(f"{file}: {column} in line {line} is '{cell}'; expected a share of 0 to 1, or percent")
    return value


def write_fwp(folder: Path, oracles: Ensemble, approaches: Sequence[Ensemble]) -> None:
    """Write the forget images of these ensembles, as float32; accuracies as shares. Nothing is left of a folder that could not be written."""
    judged = oracles.outputs.of("forget")
    for one in approaches:
        if not torch.equal(one.outputs.of("forget").ids, judged.ids):
            raise InputError(f"{one.name} and the oracles were not observed on the same forget images; give ensembles of one study")
    names = [folder_name(one.name) for one in approaches]
    with writing(folder) as made:
        _write(made / ORACLES, judged, oracles.accuracies)
        for name, one in zip(names, approaches, strict=True):
            (made / name).mkdir()
            _write(made / name / APPROACH, one.outputs.of("forget"), one.accuracies)


def _write(file: Path, outputs: Outputs, shares: Mapping[str, Tensor]) -> None:
    models, n, classes = outputs.logits.shape
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(n, 1 + models, classes))
    array[:, 0] = torch.nn.functional.one_hot(outputs.labels, classes).numpy()
    for at, rows in enumerate(outputs.logits):  # model by model, so that there is never a second copy
        array[:, 1 + at] = rows.float().numpy()
    array.flush()
    if not shares:
        return
    rows = len(next(iter(shares.values())))
    seeds = outputs.models if rows == models else range(rows)
    with (file.parent / METRICS).open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for at, seed in enumerate(seeds):
            writer.writerow([seed, *(repr(float(shares[part][at])) if part in shares else "" for part in KEPT)])
