"""``original``: do nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from unlearnlab.contract import Context
from unlearnlab.data.images import Split
from unlearnlab.spec import spec
from unlearnlab.stack import Stack


@spec("method", "original")
class Original:
    """Do nothing: the original model comes back, the floor every method must beat.

    θ_u = θ_o. Source: ours, a calibration row. Differs from the published code: there is none.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    cost: ClassVar[str] = "0"
    null: ClassVar[Mapping[str, Any] | None] = {}

    def __call__(self, stack: Stack, split: Split, ctx: Context) -> Stack:
        return stack.having()
