"""``stored``: a mask from a file, made earlier from the very same model. Also writes such files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unlearnlab.contract import Context, Localiser
from unlearnlab.data.images import Images, Split
from unlearnlab.localise.ranking import NEVER, Ranking
from unlearnlab.spec import InputError, Setting, spec, to_dict
from unlearnlab.stack import Mask, Stack

AnyBudget = Annotated[float | None, Setting("share of all weights that may change, by the file's ranks (none: the mask it holds)", symbol="q", gt=0, le=1)]
STEPS = 65534  # a rank is the smallest budget that opens a weight, in so many steps; 0 is always, 65535 never


@spec("localiser", "stored")
class Stored:
    """Open what a mask file says; a mask made from another model is refused.

    A file with ranks holds the masks of all budgets: set a ``budget`` to choose one (to within 1/65534 of the weights, never more).
    Source: methods.md §5.4, protocols.md §16. Differs from the published code: bits instead of 64-bit integers or pickles, one file for all
    budgets, and the file remembers its parent model (there: any mask is applied to any model). A file holds the mask of one stack, so in a
    study it serves only where all models are one chunk.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    path: Annotated[str, Setting("mask file written by write_mask")]
    budget: AnyBudget = None

    def content(self) -> dict[str, Any]:
        """What enters the key: the mask itself, wherever the file lies."""
        return {"sha256": sha256(self.path), **({} if self.budget is None else {"budget": self.budget})}

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        path = Path(self.path)
        mask = read_mask(path) if self.budget is None else read_ranking(path).mask(self.budget)
        mask.require(stack)
        return Mask({name: bits.to(stack.device) for name, bits in mask.open.items()}, mask.parent)


def write_mask(path: Path, mask: Mask, *, localiser: Localiser, forget: Images, seeds: tuple[int, ...], ranking: Ranking | None = None) -> None:
    """Write a mask as packed bits (safetensors) with names, shapes and where it came from; replaces the file in one move.

    ``ranking``: written besides, as 16 bits a weight, so that the one file serves every budget.
    """
    from safetensors.torch import save_file

    words = {
        "parent": mask.parent,
        "shapes": {name: list(bits.shape) for name, bits in mask.open.items()},
        "localiser": to_dict(localiser),
        "forget": forget.fingerprint,
        "seeds": list(seeds),
        "share": mask.share().tolist(),
    }
    tensors = {name: torch.from_numpy(np.packbits(bits.cpu().numpy())) for name, bits in mask.open.items()}
    if ranking is not None:
        tensors |= {f"rank:{name}": _steps(needed, ranking.total[name]) for name, needed in ranking.needed.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"about": json.dumps(words)})  # one entry: safetensors writes several in any order, and bits must repeat
    temporary.replace(path)


def read_mask(path: Path) -> Mask:
    """The mask in a file; raises ``InputError`` where there is none."""
    words, tensors = _read(path)
    try:
        shapes: dict[str, list[int]] = words["shapes"]
        return Mask({name: _unpacked(tensors[name], shape) for name, shape in shapes.items()}, words["parent"])
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def read_ranking(path: Path) -> Ranking:
    """The ranks in a file, which give the mask of any budget; raises ``InputError`` where there are none."""
    words, tensors = _read(path)
    try:
        shapes: dict[str, list[int]] = words["shapes"]
        if not any(f"rank:{name}" in tensors for name in shapes):
            raise InputError(f"the mask file {path} holds the mask of one budget and no ranks; leave budget out, or write it with write_mask(…, ranking=…)")
        steps = {name: tensors[f"rank:{name}"].to(torch.int64).reshape(shape) for name, shape in shapes.items()}
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, error) from error
    needed = {name: torch.where(held > STEPS, NEVER, held) for name, held in steps.items()}
    return Ranking(needed, {name: torch.full((len(held),), STEPS) for name, held in steps.items()}, words["parent"])


def sha256(path: str) -> str:
    """Hash of a mask file, for keys."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read the mask {path}: {error.strerror}; give a file written by write_mask") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"there is no mask file {path}; write one with unlearnlab.localise.stored.write_mask")
    try:
        with safe_open(path, framework="pt") as held:
            return json.loads((held.metadata() or {}).get("about", "{}")), {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, ValueError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is not a mask file or is damaged ({type(error).__name__}: {error}); write it again")


def _unpacked(bits: Tensor, shape: list[int]) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=int(np.prod(shape)))).bool().reshape(shape)


def _steps(needed: Tensor, total: Tensor) -> Tensor:
    """The smallest budget that opens each weight, rounded up to a step."""
    needed, total = needed.cpu(), total.cpu().view(-1, *[1] * (needed.dim() - 1))
    steps = -(-needed.clamp(max=2**40) * STEPS // total.clamp(min=1))
    return torch.from_numpy(torch.where(needed == NEVER, STEPS + 1, steps).numpy().astype(np.uint16))
