"""``Images``: labelled images held whole in memory; ``Split``: who is forgotten, kept and held out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from unlearnlab.spec import InputError

PARTS = ("forget", "retain", "validation", "control", "test")


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images. ``ids`` are rows of the original release and are never renumbered.

    ``uint8`` pixels are scaled by 1/255 inside the net; ``float32`` pixels pass untouched.
    ``labels`` are what models are trained on, ``true_labels`` those of the release (equal unless a
    corruption changed them). Raises ``InputError`` for NaN pixels, repeated ids or a label outside
    the classes.
    """

    pixels: UInt8[Tensor, "n c h w"] | Float32[Tensor, "n ..."]
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]
    classes: int
    true_labels: Int64[Tensor, " n"] = None  # type: ignore[assignment]  # None = labels

    def __post_init__(self) -> None:
        if self.true_labels is None:
            object.__setattr__(self, "true_labels", self.labels)
        n = len(self.pixels)
        if not len(self.labels) == len(self.ids) == len(self.true_labels) == n:
            raise InputError(f"images, labels and ids must be equally many: got {n}, {len(self.labels)} and {len(self.ids)}")
        if self.pixels.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"pixels must be uint8 or float32, got {self.pixels.dtype}; convert them first")
        if self.pixels.dtype == torch.float32 and not bool(torch.isfinite(self.pixels).all()):
            bad = (~torch.isfinite(self.pixels.flatten(1)).all(1)).nonzero()[0].item()
            raise InputError(f"image id {int(self.ids[int(bad)])} has pixels that are NaN or infinite; expected finite numbers: remove or repair it")
        if n and (int(self.labels.min()) < 0 or int(self.labels.max()) >= self.classes):
            bad = ((self.labels < 0) | (self.labels >= self.classes)).nonzero()[0].item()
            raise InputError(f"image id {int(self.ids[int(bad)])} has label {int(self.labels[int(bad)])}; expected 0 to {self.classes - 1}")
        if len(set(self.ids.tolist())) != n:
            raise InputError("image ids must be unique: some id is given twice")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> Images:
        """The images at these positions (a mask or indices)."""
        return Images(self.pixels[index], self.labels[index], self.ids[index], self.classes, self.true_labels[index])

    def take(self, ids: Iterable[int]) -> Images:
        """The images with these ids, in the order given; raises ``InputError`` for an id not here."""
        where = {i: row for row, i in enumerate(self.ids.tolist())}
        wanted = [int(i) for i in ids]
        missing = [i for i in wanted if i not in where]
        if missing:
            raise InputError(f"id {missing[0]} is not among these {len(self)} images ({len(missing)} such id(s))")
        return self.rows(torch.tensor([where[i] for i in wanted], dtype=torch.int64))

    def without(self, ids: Iterable[int]) -> Images:
        """All images but those with these ids, order kept."""
        drop = torch.tensor(sorted(int(i) for i in ids), dtype=torch.int64)
        return self.rows(~torch.isin(self.ids, drop.to(self.ids.device)))

    def to(self, device: torch.device | str) -> Images:
        moved = (tensor.to(device) for tensor in (self.pixels, self.labels, self.ids))
        pixels, labels, ids = moved
        return Images(pixels, labels, ids, self.classes, self.true_labels.to(device))

    @property
    def mislabelled(self) -> Bool[Tensor, " n"]:
        """Whose label is not the release's."""
        return self.labels != self.true_labels

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content; enters the key of everything made from these images."""
        found = hashlib.sha256(f"{self.classes} {self.pixels.dtype} {tuple(self.pixels.shape)}".encode())
        for tensor in (self.pixels, self.labels, self.ids, self.true_labels):
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:32]

    @staticmethod
    def join(parts: Iterable[Images]) -> Images:
        """Concatenate; ids must stay unique."""
        held = list(parts)

        def together(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in held])

        return Images(together("pixels"), together("labels"), together("ids"), held[0].classes, together("true_labels"))


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one unlearning task.

    ``forget`` and ``retain`` together are the training set. ``control``: held-out images drawn as
    the forget set was (same classes, same share of flipped labels): the non-members of every
    membership attack. ``validation`` and ``test`` are never trained on; methods never read ``test``.
    """

    forget: Images
    retain: Images
    validation: Images
    control: Images
    test: Images

    def __post_init__(self) -> None:
        for name in ("forget", "retain"):
            if isinstance(getattr(self, name), Images) and len(getattr(self, name)) == 0:
                other = "it would leave nothing to retain" if name == "retain" else "name at least one image to forget"
                raise InputError(f"the {name} set is empty: {other}")

    @property
    def train(self) -> Images:
        """Forget and retain together, in order of id."""
        joined = Images.join([self.forget, self.retain])
        return joined.rows(joined.ids.argsort())

    @cached_property
    def fingerprint(self) -> str:
        words = " ".join(f"{field.name}:{getattr(self, field.name).fingerprint}" for field in dataclasses.fields(self))
        return hashlib.sha256(words.encode()).hexdigest()[:32]

    def check(self) -> None:
        """Assert the invariants of a run: no image in two parts. Raises ``InputError`` naming ids and parts."""
        seen: dict[int, str] = {}
        for name in PARTS:
            for i in getattr(self, name).ids.tolist():
                if i in seen:
                    raise InputError(f"image id {i} is in both the {seen[i]} and the {name} set; every image must be in one part only")
                seen[i] = name
