"""``Mapped``: pixels that stay on the disk. A data set of 10 GB is read where a batch needs it, by as many processes as like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


class Mapped:
    """Some rows of a memory-mapped array, in some order: indexing gives tensors, ``select`` another view.

    ``whole``: the mapped pixels, whose content ``name`` (a hash) stands for. ``extra``: pixels of this run's own (images with
    a trigger); row len(whole) + j means ``extra[j]``.
    """

    def __init__(self, whole: UInt8[Tensor, "n c h w"], at: Int64[Tensor, " rows"], name: str, extra: UInt8[Tensor, "m c h w"] | None = None) -> None:
        self.whole, self.at, self.name = whole, at, name
        self.extra = whole[:0].clone() if extra is None else extra

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.at), *self.whole.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    @property
    def device(self) -> torch.device:
        return self.whole.device

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        at = self.at[index.cpu() if isinstance(index, Tensor) else index]
        rows, size = at.reshape(-1), len(self.whole)
        found = self.whole.index_select(0, rows.clamp(max=size - 1))
        late = rows >= size
        if bool(late.any()):
            found[late] = self.extra[rows[late] - size]
        return found.view(*at.shape, *self.whole.shape[1:])

    def select(self, index: Tensor) -> Mapped:
        return Mapped(self.whole, self.at[index.cpu()], self.name, self.extra)

    def putting(self, rows: Int64[Tensor, " m"], pixels: UInt8[Tensor, "m c h w"]) -> Mapped:
        """The same images with other pixels at these rows; nothing on the disk changes."""
        at = self.at.clone()
        at[rows] = torch.arange(len(rows)) + len(self.whole) + len(self.extra)
        return Mapped(self.whole, at, self.name, torch.cat([self.extra, pixels]))

    def to(self, device: torch.device | str) -> Tensor | Mapped:
        """All of it on an accelerator where it takes less than half of what is free there; else it stays here, and batches travel."""
        device = torch.device(device)
        if device.type != "cuda":
            return self
        size = len(self) * self.whole[0].numel()
        if size > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        held = torch.empty(self.shape, dtype=self.dtype, device=device)
        for first in range(0, len(self), 4096):
            held[first : first + 4096] = self[slice(first, first + 4096)].to(device)
        return held

    def fingerprint(self) -> str:
        """Hash that stands for these pixels; the mapped ones are not read again."""
        found = hashlib.sha256(f"{self.name} {tuple(self.shape)}".encode())
        for tensor in (self.at, self.extra):
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()[:32]

    @staticmethod
    def join(parts: Sequence[Mapped]) -> Mapped | Tensor:
        """One view where all look at the same pixels, else one tensor."""
        first = parts[0]
        if any(part.name != first.name for part in parts):
            return torch.cat([part[:] for part in parts])
        at, extra = [], first.whole[:0].clone()
        for part in parts:
            at.append(torch.where(part.at >= len(first.whole), part.at + len(extra), part.at))
            extra = torch.cat([extra, part.extra])
        return Mapped(first.whole, torch.cat(at), first.name, extra)
