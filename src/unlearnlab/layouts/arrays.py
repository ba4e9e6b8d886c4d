"""``Held``: the arrays of one ensemble as a file has them, each found to be what it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from unlearnlab.data.images import PARTS
from unlearnlab.spec import InputError, suggest

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
SHAPE = "[models, examples, classes]"


class NotFinite(InputError):  # noqa: N818 - it reads as a sentence
    """Logits that are NaN or infinite: a model that diverged."""


@dataclass(frozen=True, eq=False)
class Held:
    """What a file says; None where it says nothing. Raises ``InputError`` naming the file for logits that are none."""

    file: Path
    logits: Float[Tensor, "models examples classes"]
    labels: Int64[Tensor, " examples"]
    ids: Int64[Tensor, " examples"] | None = None
    part: Int64[Tensor, " examples"] | None = None
    member: Bool[Tensor, "models examples"] | None = None
    models: tuple[int, ...] | None = None
    accuracies: Mapping[str, Float64[Tensor, " models"]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _, examples, classes = self.logits.shape
        if classes < 2 or not examples:
            raise InputError(f"{self.file} has {examples} example(s) of {classes} class(es); expected at least 1 example of 2 classes")
        strange = ((self.labels < 0) | (self.labels >= classes)).nonzero()
        if len(strange):
            at = int(strange[0])
            raise InputError(
                f"{self.file}: example {self.called(at)} has the label {int(self.labels[at])}, and the logits are of {classes} classes;"
                f" expected labels 0 to {classes - 1} ({len(strange)} such example(s))"
            )
        shares = True
        for model, rows in enumerate(self.logits):  # model by model: masks of all of them at once would be as large as the logits
            if not bool(torch.isfinite(rows).all()):
                at = int((~torch.isfinite(rows).all(-1)).nonzero()[0])
                raise NotFinite(
                    f"{self.file}: model {self.model(model)} has a NaN or infinite logit on example {self.called(at)};"
                    " expected finite logits: leave that model out, or evaluate it again"
                )
            shares = shares and bool((rows >= 0).all()) and bool(((rows.float().sum(-1) - 1).abs() < 0.01).all())
        if shares:
            raise InputError(
                f"{self.file} holds probabilities (each row is 0 or more and sums to 1), not logits; save what stands before the softmax,"
                " or its logarithm where nothing else is left"
            )

    def called(self, at: int) -> str:
        """What an example is called in messages."""
        return f"id {int(self.ids[at])}" if self.ids is not None else f"{at} (counted from 0)"

    def model(self, at: int) -> str:
        return f"of seed {self.models[at]}" if self.models is not None else f"{at} (counted from 0)"


def logits_of(file: Path, array: Array | Tensor, shape: str = SHAPE) -> None:
    """Refuse what cannot be logits by its shape or type."""
    found = str(array.dtype).removeprefix("torch.")
    if found not in ("float16", "bfloat16", "float32", "float64") and not (isinstance(array, np.ndarray) and array.dtype.kind == "f" and array.itemsize <= 8):
        raise InputError(f"{file}: the logits are of type {found}; expected float16, float32 or float64: save what a model says before softmax and argmax")
    if array.ndim != 3:
        raise InputError(f"{file}: the logits have {array.ndim} dimension(s), {_shape(array)}; expected 3, {shape}: save all models in one array")


def build(file: Path, arrays: Mapping[str, Array | Tensor], **rest: Any) -> Held:
    """An ensemble of the arrays ``logits``, ``labels`` and, if they are there, ``member``, ``part``, ``ids``, ``models``; ``rest``: more of ``Held``."""
    for name in ("logits", "labels"):
        if name not in arrays:
            raise InputError(f"{file} has no array '{name}'; expected logits {SHAPE} and labels [examples] (it has: {', '.join(arrays) or 'nothing'})")
    logits_of(file, arrays["logits"])
    logits = _tensor(arrays["logits"])
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits  # NumPy knows no bfloat16
    count, n, classes = logits.shape
    labels = _whole(file, "labels", arrays["labels"])
    if labels.shape == (n, classes) or (labels.dim() == 2 and labels.shape[0] == n):
        raise InputError(f"{file}: labels have the shape {_shape(labels)}; expected one class number for each example, [{n}]: save their argmax")
    if labels.shape != (n,):
        hint = (
            ": examples and models look exchanged, save logits.swapaxes(0, 1)"
            if labels.shape == (count,)
            else ": labels and logits must be of the same examples"
        )
        raise InputError(f"{file}: labels have the shape {_shape(labels)} and the logits {_shape(logits)}; expected labels [{n}] for {SHAPE}{hint}")
    if "models" in arrays:
        rest["models"] = tuple(_sized(file, "models", _whole(file, "models", arrays["models"]), {"one seed for each model": (count,)}).tolist())
    seeds = rest.get("models")
    if seeds is not None and not len(seeds) == len(set(seeds)) == count:
        raise InputError(f"{file} names {len(set(seeds))} different seeds for {count} models; expected a seed of its own for each")
    if "ids" in arrays:
        rest["ids"] = _sized(file, "ids", _whole(file, "ids", arrays["ids"]), {"one for each example": (n,)})
    if "part" in arrays:
        rest["part"] = _sized(file, "part", _parts(file, arrays["part"]), {"one for each example": (n,)})
    if "member" in arrays:
        sizes = {"one for each model and example": (count, n), "one for each example": (n,)}
        member = _sized(file, "member", _whole(file, "member", arrays["member"]), sizes)
        if bool(((member != 0) & (member != 1)).any()):
            raise InputError(f"{file}: member holds {int(member.max())}; expected true or false (1 or 0): was the example in the model's training set?")
        rest["member"] = member.bool().expand(count, n)
    return Held(file, logits, labels, **rest)


def _whole(file: Path, name: str, array: Array | Tensor) -> Int64[Tensor, "*shape"]:
    kind = array.dtype.kind if isinstance(array, np.ndarray) else "f" if array.is_floating_point() or array.is_complex() else "i"
    if kind not in "iub":
        raise InputError(f"{file}: {name} are of type {str(array.dtype).removeprefix('torch.')}; expected whole numbers: save them with .astype(int)")
    return _tensor(array.astype(np.int64) if isinstance(array, np.ndarray) else array).long()


def _parts(file: Path, array: Array | Tensor) -> Int64[Tensor, "*shape"]:
    if isinstance(array, np.ndarray) and array.dtype.kind in "US":
        words, places = np.unique(np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array, return_inverse=True)
        strange = [str(word) for word in words if word not in PARTS]
        if strange:
            raise InputError(f"{file}: unknown part '{strange[0]}'{suggest(strange[0], PARTS)}; parts: {', '.join(PARTS)}")
        return torch.tensor([PARTS.index(word) for word in words])[torch.from_numpy(places.reshape(array.shape))]
    part = _whole(file, "part", array)
    if part.numel() and not 0 <= int(part.min()) <= int(part.max()) < len(PARTS):
        raise InputError(f"{file}: part holds the numbers {int(part.min())} to {int(part.max())}; expected 0 to {len(PARTS) - 1} for {', '.join(PARTS)}")
    return part


def _sized(file: Path, name: str, tensor: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Tensor:
    if tuple(tensor.shape) not in shapes.values():
        wanted = " or ".join(f"{list(shape)} ({words})" for words, shape in shapes.items())
        raise InputError(f"{file}: {name} has the shape {_shape(tensor)}; expected {wanted}")
    return tensor


def _shape(array: Array | Tensor) -> str:
    return str(list(array.shape))


def _tensor(array: Array | Tensor) -> Shaped[Tensor, "*shape"]:
    if isinstance(array, Tensor):
        return array
    native = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch knows no other order of bytes
    if not (native.flags.c_contiguous and native.flags.writeable):
        native = np.array(native, order="C")  # the only copy, of what may be a mapped file
    return torch.from_numpy(native)


def opened(file: Path, load: Callable[[], Any]) -> Any:
    """What ``load`` makes of a file from elsewhere; raises ``InputError`` where it is cut short, damaged or would run code."""
    try:
        return load()
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no file {file}; give it, or leave out what it belongs to") from error
    except Exception as error:  # whatever the readers of damaged files raise: of zip, zlib, of Python's own tokens …
        if isinstance(error, ValueError) and ("pickle" in str(error).lower() or "Python objects" in str(error)):
            raise InputError(f"{file} holds pickled Python objects, which could run code and are never opened; save plain arrays of numbers") from error
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{file} is cut short, damaged or of another format ({why[:120]}); copy or write it again") from error
