"""``elsewhere``: another corruption, done to images that it left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from jaxtyping import Int64
from torch import Tensor

from unlearnlab.data.images import Images
from unlearnlab.seeds import at_step
from unlearnlab.spec import InputError, Setting, info, spec


@spec("corruption", "elsewhere")
class Elsewhere:
    """Do what another corruption does, to as many images that it left alone; those that it hit stay as released.

    For tuning where the forget set is all that was corrupted: nothing of the kind is left, so others are corrupted.
    Source: ours. Differs from the published code: there is none.
    """

    like: Annotated[Any, Setting("the corruption whose images are spared", kind="corruption")]
    draw: Annotated[int, Setting("each number hits images that no smaller one does", ge=1)] = 1

    def __call__(self, images: Images, seed: int) -> Images:
        spared = torch.zeros(len(images), dtype=torch.bool)
        for draw in range(self.draw + 1):  # 0: what the other corruption itself hits
            hit = self._hit(images, (~spared).nonzero()[:, 0], at_step(seed, draw))
            spared[hit] = True
        return self.alike(images, hit, at_step(seed, self.draw))

    def alike(self, images: Images, rows: Int64[Tensor, " m"], seed: int) -> Images:
        made: Images = self.like.alike(images, rows, seed)
        return made

    def _hit(self, images: Images, rows: Int64[Tensor, " n"], seed: int) -> Int64[Tensor, " m"]:
        """Which of the images in these rows the other corruption hits, where it may hit no others."""
        here, name = images.rows(rows), info(self.like).name
        try:
            # a share is one of all images
            like = replace(self.like, share=self.like.share * len(images) / max(1, len(here))) if hasattr(self.like, "share") else self.like
            made = like(here, seed)
        except InputError as error:
            raise InputError(f"corruption 'elsewhere': '{name}' leaves too few images alone for draw {self.draw} ({error}); tune on fewer sets") from error
        changed: Tensor = (made.labels != here.labels) | (made.triggered != here.triggered)
        if not bool(changed.any()):
            raise InputError(f"corruption 'elsewhere': '{name}' changes no image, so there are no others to change")
        return rows[changed]
