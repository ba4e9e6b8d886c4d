"""Facts of the methods that hold methods, and of those that prune."""

from __future__ import annotations

from facts import Facts, both
from unlearnlab.methods.finetune import FineTune
from unlearnlab.methods.gradient_ascent import GradientAscent
from unlearnlab.methods.l1_sparse import L1Sparse
from unlearnlab.methods.prune_first import PruneFirst
from unlearnlab.methods.rum import Rum
from unlearnlab.methods.sequence import Sequence
from unlearnlab.prune.omp import Omp
from unlearnlab.prune.synflow import SynFlow
from unlearnlab.refine import Shuffle

PRUNES = {"mask": "refuses a mask: see the test of its own", "pruned": "prunes further: see the test of its own"}

FACTS = {
    "sequence": Facts(
        lambda n: both(n.epochs * n.retain + 5 * n.forget),
        build=Sequence(steps=(GradientAscent(lr=0.01, batch=3), FineTune())),
        short={"steps": (GradientAscent(lr=0.01, batch=3), FineTune(epochs=2, batch=16))},
        other={"steps": (FineTune(epochs=2, batch=16),)},
        exempt={"null": "is nothing where its steps are nothing", "cost": "holds several methods: see the test of its own"},
    ),
    "rum": Facts(
        lambda n: both(n.epochs * (2 * n.retain + n.forget // 2)),
        build=Rum(refine=Shuffle(groups=2), each=(FineTune(),)),
        short={"each": (FineTune(epochs=2, batch=16),)},
        busy={"refine": Shuffle(groups=3), "each": (FineTune(epochs=2, batch=16), GradientAscent(lr=0.01, batch=3), FineTune(epochs=1, batch=9))},
        other={"refine": Shuffle(groups=3, draw=2), "each": (FineTune(epochs=1, batch=16),)},
        exempt={"null": "is nothing where its methods are nothing", "cost": "holds several methods: see the test of its own"},
    ),
    "prune_first": Facts(
        lambda n: both(n.recipe_epochs * (n.retain + n.forget) + n.epochs * n.retain),
        build=PruneFirst(pruning=Omp(sparsity=0.5, rewind_to="trained", include_linear=True), method=FineTune()),
        other={"pruning": SynFlow(sparsity=0.5, rounds=3, include_linear=True), "method": L1Sparse()},
        exempt={"null": "prunes, and trains again", **PRUNES},
    ),
    "finetune_prune": Facts(
        lambda n: both(n.epochs * n.retain),
        short={"sparsity": 0.5, "include_linear": True},
        other={"sparsity": 0.2},
        exempt=PRUNES,
    ),
}
