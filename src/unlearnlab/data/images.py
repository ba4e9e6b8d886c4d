"""``Images``: labelled images held whole in memory; ``Split``: who is forgotten, kept and held out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from torch import Tensor

from unlearnlab.data.mapped import Mapped
from unlearnlab.spec import InputError

PARTS = ("forget", "retain", "validation", "control", "test")
THUMBNAIL = 32  # side at most of an image in a report: more would make it megabytes long


@dataclass(frozen=True)
class Facts:
    """What a public data set is known to hold before its files are there: numbers of images, classes, and [c, h, w] as stored.

    ``test``: 0 where the release holds out none.
    """

    train: int
    test: int
    classes: int
    shape: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Column:
    """A fact known of every image (an age, a user, a file). Of a text column, ``values`` are positions in ``words``."""

    values: Int64[Tensor, " n"] | Float64[Tensor, " n"]
    words: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images. ``ids`` are rows of the original release and are never renumbered.

    ``uint8`` pixels are scaled by 1/255 inside the net; ``float32`` pixels pass untouched.
    ``labels`` are what models are trained on, ``true_labels`` those of the release (equal unless a
    corruption changed them). ``triggered``: whose pixels bear a backdoor's trigger. ``columns``: what else the release says
    of every image; models never see it. Raises ``InputError`` for NaN pixels, repeated ids or a label outside the classes.
    """

    pixels: UInt8[Tensor, "n c h w"] | Float32[Tensor, "n ..."] | Mapped
    labels: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]
    classes: int
    true_labels: Int64[Tensor, " n"] = None  # type: ignore[assignment]  # None = labels
    triggered: Bool[Tensor, " n"] = None  # type: ignore[assignment]  # None = nobody's
    columns: Mapping[str, Column] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.true_labels is None:
            object.__setattr__(self, "true_labels", self.labels)
        if self.triggered is None:
            object.__setattr__(self, "triggered", torch.zeros_like(self.labels, dtype=torch.bool))
        n = len(self.pixels)
        if not len(self.labels) == len(self.ids) == len(self.true_labels) == len(self.triggered) == n:
            raise InputError(f"images, labels and ids must be equally many: got {n}, {len(self.labels)} and {len(self.ids)}")
        if self.pixels.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"pixels must be uint8 or float32, got {self.pixels.dtype}; convert them first")
        if isinstance(self.pixels, Tensor) and self.pixels.dtype == torch.float32 and not bool(torch.isfinite(self.pixels).all()):
            bad = (~torch.isfinite(self.pixels.flatten(1)).all(1)).nonzero()[0].item()
            raise InputError(f"image id {int(self.ids[int(bad)])} has pixels that are NaN or infinite; expected finite numbers: remove or repair it")
        if n and (int(self.labels.min()) < 0 or int(self.labels.max()) >= self.classes):
            bad = ((self.labels < 0) | (self.labels >= self.classes)).nonzero()[0].item()
            raise InputError(f"image id {int(self.ids[int(bad)])} has label {int(self.labels[int(bad)])}; expected 0 to {self.classes - 1}")
        if len(torch.unique(self.ids)) != n:
            raise InputError("image ids must be unique: some id is given twice")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> Images:
        """The images at these positions (a mask or indices)."""
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        pixels = self.pixels.select(index) if isinstance(self.pixels, Mapped) else self.pixels[index]
        columns = {name: replace(column, values=column.values[index.cpu()]) for name, column in self.columns.items()}
        own = {name: getattr(self, name)[index] for name in ("labels", "ids", "true_labels", "triggered")}
        return replace(self, pixels=pixels, columns=columns, **own)

    def pick(self, rows: Int64[Tensor, "*batch"]) -> Tensor:
        """Their pixels [*batch c h w]: nine times as fast as ``pixels[rows]``, which torch reads a number at a time."""
        if isinstance(self.pixels, Mapped):
            return self.pixels[rows].to(self.labels.device)
        return self.pixels.index_select(0, rows.flatten()).view(*rows.shape, *self.pixels.shape[1:])

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
        """The same images there; pixels too large for an accelerator stay mapped, and their batches travel."""
        moved = replace(self, **{name: getattr(self, name).to(device) for name in ("pixels", "labels", "ids", "true_labels", "triggered")})
        if isinstance(self.pixels, Mapped):
            moved.__dict__["fingerprint"] = self.fingerprint  # the same images have one fingerprint, wherever they lie
        return moved

    @property
    def corrupted(self) -> Bool[Tensor, " n"]:
        """Whose label or pixels are not the release's."""
        return self.mislabelled | self.triggered

    @property
    def mislabelled(self) -> Bool[Tensor, " n"]:
        """Whose label is not the release's."""
        return self.labels != self.true_labels

    @cached_property
    def fingerprint(self) -> str:
        """Hash of pixels, labels and ids, which is all that a model sees; enters the key of everything made from these images."""
        found = hashlib.sha256(f"{self.classes} {self.pixels.dtype} {tuple(self.pixels.shape)}".encode())
        for held in (self.pixels, self.labels, self.ids, self.true_labels):
            found.update(held.fingerprint().encode() if isinstance(held, Mapped) else held.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:32]

    @staticmethod
    def join(parts: Iterable[Images]) -> Images:
        """Concatenate; ids must stay unique, and only columns that all parts have (with the same words) remain."""
        held = list(parts)
        first = held[0]

        def together(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in held])

        mapped = [part.pixels for part in held if isinstance(part.pixels, Mapped)]
        pixels = Mapped.join(mapped) if len(mapped) == len(held) else torch.cat([part.pixels[:] for part in held])
        shared = [name for name, column in first.columns.items() if all(name in part.columns and part.columns[name].words == column.words for part in held)]
        columns = {name: replace(first.columns[name], values=torch.cat([part.columns[name].values for part in held])) for name in shared}
        return Images(pixels, together("labels"), together("ids"), first.classes, together("true_labels"), together("triggered"), columns)


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

    def together(self) -> tuple[Images, Int64[Tensor, " n"]]:
        """All images of the split, and for each the number of its part (its place in ``PARTS``)."""
        parts = [getattr(self, name) for name in PARTS]
        return Images.join(parts), torch.repeat_interleave(torch.tensor([len(part) for part in parts]))

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


def grey_levels(pixels: Tensor) -> Tensor:
    """Pixels as 0 to 255 and small enough for a report, [n h w] where there is one channel; what is no picture gives none."""
    if pixels.dim() != 4 or pixels.shape[1] not in (1, 3):
        return torch.empty(0)
    if pixels.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = ((pixels - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8)
    step = -(-max(pixels.shape[2:]) // THUMBNAIL)
    pixels = pixels[:, :, ::step, ::step]
    return pixels[:, 0] if pixels.shape[1] == 1 else pixels
