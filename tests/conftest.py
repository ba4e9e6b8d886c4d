"""Fixtures shared by the tests."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from toy import Toy, make_toy
from unlearnlab.fit import Batch
from unlearnlab.methods import training
from unlearnlab.stack import Stack

torch.set_num_threads(1)  # as every worker of the engine; small nets are several times slower with more
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a script starts in the background: then no test could interrupt what it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def toy() -> Toy:
    return make_toy()


@dataclass
class Fit:
    """What a method asked the training loop to do."""

    stack: Stack
    batches: list[Batch]
    settings: Mapping[str, Any]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Fit]]:
    """record(): from then on the methods' calls of ``fit`` are listed instead of carried out."""

    def start() -> list[Fit]:
        calls: list[Fit] = []

        def fit(stack: Stack, stream: Any, loss: Any, **settings: Any) -> Stack:
            calls.append(Fit(stack, [stream(step) for step in range(settings["steps"])], {**settings, "loss": loss}))
            return stack

        monkeypatch.setattr(training, "fit", fit)
        return calls

    return start
