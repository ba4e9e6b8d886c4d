"""Models on the way through a fit, for methods that go back to them member by member."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unlearnlab.data.images import Images
from unlearnlab.progress import Progress
from unlearnlab.spec import InputError
from unlearnlab.stack import Stack


class Waypoints:
    """The stack after certain steps of the next ``fit``: give it ``keep``, then ask ``at(step)``.

    Where the run keeps its state in a folder, these stacks lie there too: a fit that was interrupted does not repeat the steps whose
    state it saved, so it will not hand over those stacks again. Else they lie in memory.
    """

    def __init__(self, start: Stack, steps: Iterable[int], progress: Progress) -> None:
        self._start, self._held = start, dict[int, Stack]()
        self._place = progress.state_file()  # a number of its own, so that several methods of one run share no file
        self.keep: Mapping[int, Callable[[Stack], None]] = {step: partial(self._put, step) for step in steps}

    def at(self, step: int) -> Stack:
        """The stack after so many steps, bit for bit."""
        held = self._held[step] if self._place is None else self._read(step)
        return held.to(self._start.device)

    def _file(self, step: int) -> Path:
        assert self._place is not None
        return self._place.with_name(f"{self._place.stem}-after-{step}.safetensors")

    def _put(self, step: int, stack: Stack) -> None:
        if self._place is None:
            self._held[step] = stack.to("cpu")
            return
        from safetensors.torch import save_file

        file = self._file(step)
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in (stack.params | stack.buffers).items()}
        save_file(tensors, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    def _read(self, step: int) -> Stack:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self._file(step)
        try:
            held = load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}, the models after step {step}, is missing or damaged; delete {file.parent} and run again") from error
        start = self._start
        return replace(start, params={name: held[name] for name in start.params}, buffers={name: held[name] for name in start.buffers})


def pick(where: Bool[Tensor, " k"], these: Stack, those: Stack) -> Stack:
    """The members of ``these`` where asked for, those of ``those`` elsewhere: weights and buffers."""

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(where.view(-1, *[1] * (a.dim() - 1)), a, b)

    params = {name: chosen(these.params[name], p) for name, p in those.params.items()}
    return replace(those, params=params, buffers={name: chosen(these.buffers[name], b) for name, b in those.buffers.items()})


def logits_on(stack: Stack, images: Images, progress: Progress, *, batch: int = 1024) -> Float[Tensor, "k n classes"]:
    """Logits of every member on these images in eval mode, counted as forward passes."""
    found = []
    for at in range(0, len(images), batch):
        with torch.no_grad():
            found.append(stack.logits(images.pixels[at : at + batch].to(stack.device)))
        progress.seen(len(images.labels[at : at + batch]))
    return torch.cat(found, 1)
