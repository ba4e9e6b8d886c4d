"""``legacy_file``: a mask from a file of the published code of SalUn, RUM or DEL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from unlearnlab.checkpoints import pair_names
from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.localise.ranking import open_weights
from unlearnlab.localise.stored import sha256
from unlearnlab.spec import InputError, Setting, spec
from unlearnlab.stack import Mask, Stack, Tensors


@spec("localiser", "legacy_file")
class LegacyFile:
    """Open what a mask file of the published code of SalUn, RUM or DEL says.

    Such a file is a dictionary, written by ``torch.save``, of one tensor for every parameter, of its name (or what a checkpoint of the same
    code may call it: ``module.``, ``shortcut``, ``linear``) and shape.
    Values 0 and 1 (SalUn's ``with_{q}.pt``, RUM's ``hard_*``, DEL's ``mask_*_thr_{q}.pt``) are the mask: 1 is open. Other values
    (RUM's ``sigmoid_soft_*``, |2σ(A) − 1|, and ``tanh_soft_*``, tanh A) are scores: the ⌊q·P⌋ of largest absolute value open, budget = q.
    Source: protocols.md §16. Differs from the published code: nothing is executed on loading; soft values choose weights (there: they
    scale the gradient, which no hard mask can do). The file does not say which model it was made from: only names and shapes
    can be checked, and it serves one model (in a study: a single original for all, ``[original] checkpoint``).
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    path: Annotated[str, Setting("mask file of published code")]
    budget: Annotated[float | None, Setting("share of all weights that may change, where the file holds soft values", symbol="q", gt=0, le=1)] = None

    def content(self) -> dict[str, Any]:
        """What enters the key: the mask itself, wherever the file lies."""
        return {"sha256": sha256(self.path), **({} if self.budget is None else {"budget": self.budget})}

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Mask:
        if not all(bool((held == held[:1]).all()) for held in stack.params.values()):  # several members may start from one original
            held = f"the mask file {self.path} is that of one model, and there are {len(stack)}"
            raise InputError(f"{held}; give the study the one that it was made from ([original] checkpoint = …)")
        values = {name: held.expand(len(stack), *held.shape).to(stack.device) for name, held in self._checked(stack).items()}
        hard = all(bool(((held == 0) | (held == 1)).all()) for held in values.values())
        if hard and self.budget is not None:
            raise InputError(f"the mask file {self.path} holds zeros and ones, which are the mask; leave budget out")
        if not hard and self.budget is None:
            raise InputError(f"the mask file {self.path} holds soft values, which only rank the weights; set a budget")
        if self.budget is not None:
            return open_weights(stack, {name: held.abs() for name, held in values.items()}, self.budget)
        return Mask({name: (held == 1) & stack.live.get(name, torch.ones_like(held, dtype=torch.bool)) for name, held in values.items()}, stack.fingerprint)

    def _checked(self, stack: Stack) -> Tensors:
        """The values by our names, in our order, as float32."""
        held = self._loaded()
        called = {theirs: own for own, theirs in pair_names(stack.params, held).items()}
        held = {called.get(name, name): tensor for name, tensor in held.items()}
        odd = next((name for name in [*stack.params, *held] if name not in held or name not in stack.params), None)
        if odd is not None:
            lacks = "the model" if odd in held else "the file"
            raise InputError(f"the mask file {self.path} does not fit the model: {lacks} has no '{odd}'; give the mask of this very network")
        for name, p in stack.params.items():
            if held[name].shape != p.shape[1:]:
                shapes = f"{list(held[name].shape)} in the file and {list(p.shape[1:])} in the model"
                raise InputError(f"the mask file {self.path} does not fit the model: '{name}' is {shapes}; give the mask of this very network")
            if not bool(torch.isfinite(held[name]).all()):
                raise InputError(f"the mask file {self.path} is damaged: '{name}' holds NaN or infinite values")
        return {name: held[name].float() for name in stack.params}

    def _loaded(self) -> dict[str, Tensor]:
        try:
            held = torch.load(Path(self.path), map_location="cpu", weights_only=True)
        except OSError as error:
            raise InputError(f"cannot read the mask {self.path}: {error.strerror}; give a file written by the published code") from error
        except Exception as error:  # torch fails in many ways, and its own words advise to load it unsafely
            raise InputError(f"{self.path} holds no tensors that can be read without executing code; save a dictionary of tensors with torch.save") from error
        if not isinstance(held, dict) or not held or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in held.items()):
            raise InputError(f"{self.path} is not a mask: expected a dictionary of names and tensors, as published code saves it")
        return held
