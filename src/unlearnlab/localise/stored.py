"""``stored``: a mask from a file, made earlier from the very same model. Also writes such files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from unlearnlab.contract import Context, Localiser
from unlearnlab.data.images import Images, Split
from unlearnlab.spec import InputError, Setting, spec, to_dict
from unlearnlab.stack import Mask, Stack


@spec("localiser", "stored")
class Stored:
    """Open what a mask file says; a mask made from another model is refused.

    Source: methods.md §5.4, protocols.md §16. Differs from the published code: bits instead of 64-bit integers or pickles, and the
    file remembers its parent model (there: any mask is applied to any model). A file holds the mask of one stack, so in a study it
    serves only where all models are one chunk.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    path: Annotated[str, Setting("mask file written by write_mask")]

    def content(self) -> dict[str, str]:
        """What enters the key: the mask itself, wherever the file lies."""
        try:
            return {"sha256": hashlib.sha256(Path(self.path).read_bytes()).hexdigest()}
        except OSError as error:
            raise InputError(f"cannot read the mask {self.path}: {error.strerror}; give a file written by write_mask") from error

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        mask = read_mask(Path(self.path))
        mask.require(stack)
        return Mask({name: bits.to(stack.device) for name, bits in mask.open.items()}, mask.parent)


def write_mask(path: Path, mask: Mask, *, localiser: Localiser, forget: Images, seeds: tuple[int, ...]) -> None:
    """Write a mask as packed bits (safetensors) with names, shapes and where it came from; replaces the file in one move."""
    from safetensors.torch import save_file

    words = {
        "parent": mask.parent,
        "shapes": json.dumps({name: list(bits.shape) for name, bits in mask.open.items()}),
        "localiser": json.dumps(to_dict(localiser)),
        "forget": forget.fingerprint,
        "seeds": json.dumps(list(seeds)),
        "share": json.dumps(mask.share().tolist()),
    }
    temporary = path.with_suffix(".tmp")
    save_file({name: torch.from_numpy(np.packbits(bits.cpu().numpy())) for name, bits in mask.open.items()}, temporary, metadata=words)
    temporary.replace(path)


def read_mask(path: Path) -> Mask:
    """The mask in a file; raises ``InputError`` where there is none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"there is no mask file {path}; write one with unlearnlab.localise.stored.write_mask")
    try:
        with safe_open(path, framework="pt") as held:
            words = held.metadata() or {}
            shapes: dict[str, list[int]] = json.loads(words["shapes"])
            return Mask({name: _unpacked(held.get_tensor(name), shape) for name, shape in shapes.items()}, words["parent"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a mask file or is damaged ({type(error).__name__}: {error}); write it again") from error


def _unpacked(bits: Tensor, shape: list[int]) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=int(np.prod(shape)))).bool().reshape(shape)
