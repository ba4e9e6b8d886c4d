"""Audits made up for tests, among them a simulated study: originals that remember the forget set, oracles that never saw it, unlearned models in between."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from unlearnlab.contract import Audit, Relearning, Triggered
from unlearnlab.data.images import PARTS
from unlearnlab.metrics.relearn import RelearnSteps
from unlearnlab.outputs import Outputs
from unlearnlab.seeds import generator

REFERENCES, UNTRAINED, TRIGGERED, DRAWS, STEPS = 40, 6, 40, 3, 30
TARGET = 1  # the class that the trigger asks for
SIZES = {"forget": 40, "retain": 80, "validation": 12, "control": 48, "test": 60}


def study(models: int = 20, left: float = 0.5, seed: int = 0, classes: int = 4, oracles: int | None = None) -> Audit:
    """Seen images gain 3 on the margin; ``left`` of that gain stays on the forget set after unlearning. ``left = 0``: fresh oracles."""
    part = torch.cat([torch.full((size,), PARTS.index(name)) for name, size in SIZES.items()])
    n = len(part)
    labels = torch.cat([torch.arange(size) % classes for size in SIZES.values()])
    mislabelled = torch.cat([torch.arange(size) // classes % 2 == 0 for size in SIZES.values()])
    # for the metrics of interclass confusion alone, which read the true labels: 0 and 1 bear one another's label wherever a corruption reaches
    swapped = (labels < 2) & torch.isin(part, torch.tensor([PARTS.index("forget"), PARTS.index("control")]))
    ids = torch.randperm(10 * n, generator=generator(seed, "test.ids"))[:n]
    hardness = torch.randn(n, generator=generator(seed, "test.hardness")) + 0.5 - 2 * mislabelled.float()
    others = torch.randn(n, classes, generator=generator(seed, "test.others"))

    def outputs(role: str, start: int, gain: float, count: int = models) -> Outputs:
        draws = generator(seed, f"test.{role}")
        seen = (part == PARTS.index("retain")).float() + gain * (part == PARTS.index("forget")).float()
        margin = hardness + 3 * seen + torch.randn(count, n, generator=draws) + 0.3 * torch.randn(count, 1, generator=draws)
        logits = others + 0.3 * torch.randn(count, n, classes, generator=draws) + margin[..., None] * torch.nn.functional.one_hot(labels, classes)
        return Outputs(logits, (seen > 0.9).expand(count, n), labels, ids, part, tuple(range(start, start + count)))

    facts = {
        name: torch.linspace(lo, 2 * lo, models)
        for name, lo in {
            "seconds": 1.0,
            "retrain_seconds": 20.0,
            "example_passes": 3e4,
            "peak_bytes": 1e6,
            "retrain_example_passes": 6e5,
            "changed": 0.4,
            "sparsity_prunable": 0.3,
            "sparsity_all": 0.2,
            "rel_l2": 0.1,
            "outside_mask": 0.0,
            "oracle_rel_l2": 1.0,
        }.items()
    }
    chance = torch.rand(REFERENCES, n, generator=generator(seed, "test.membership"))
    could = torch.isin(part, torch.tensor([PARTS.index(name) for name in ("forget", "retain", "control")]))
    member = (chance < chance.where(could, torch.nan).nanmedian(1, keepdim=True).values) & could

    def alike(role: str, gained: torch.Tensor, start: int) -> Outputs:
        draws = generator(seed, f"test.{role}")
        count = len(gained)
        margin = hardness + 3 * gained + torch.randn(count, n, generator=draws) + 0.3 * torch.randn(count, 1, generator=draws)
        logits = others + 0.3 * torch.randn(count, n, classes, generator=draws) + margin[..., None] * torch.nn.functional.one_hot(labels, classes)
        return Outputs(logits, gained > 0.5, labels, ids, part, tuple(range(start, start + count)))

    fresh = torch.randn(UNTRAINED, n, classes, generator=generator(seed, "test.untrained"))
    untrained = Outputs(fresh, torch.zeros(UNTRAINED, n, dtype=torch.bool), labels, ids, part, tuple(range(600_000, 600_000 + UNTRAINED)))

    def obeying(role: str, start: int, share: float, count: int = models) -> Outputs:
        """Held-out images with a trigger: ``share`` of them is called the target, whatever they show."""
        draws = generator(seed, f"test.triggered.{role}")
        true = torch.arange(TRIGGERED) % classes
        obeys = torch.rand(count, TRIGGERED, generator=draws) < share
        logits = torch.randn(count, TRIGGERED, classes, generator=draws) + 6 * torch.nn.functional.one_hot(torch.where(obeys, TARGET, true), classes)
        whose = torch.zeros(count, TRIGGERED, dtype=torch.bool)
        where = torch.full((TRIGGERED,), PARTS.index("test"))
        return Outputs(logits, whose, true, torch.arange(TRIGGERED), where, tuple(range(start, start + count)))

    def curves(role: str, count: int, known: float) -> torch.Tensor:
        """Accuracy rises from what is known of the forget set to 1; the more is left, the sooner."""
        pace = (1 + 2 * known) * (0.8 + 0.4 * torch.rand(count, DRAWS, 1, generator=generator(seed, f"test.relearning.{role}"), dtype=torch.float64))
        return 1 - (1 - 0.9 * known) * torch.exp(-pace * torch.arange(STEPS + 1) / 6)

    return Audit(
        outputs("originals", 0, 1.0),
        outputs("oracles", 100_000, 0.0, oracles or models),
        outputs("unlearned", 0, left),
        torch.arange(models),
        {"mislabelled": mislabelled, "clean": ~mislabelled},
        facts,
        seed,
        references=alike("references", member.float(), 500_000),
        untrained=untrained,
        triggered=Triggered(
            obeying("originals", 0, 0.95), obeying("oracles", 100_000, 0.1, oracles or models), obeying("unlearned", 0, 0.1 + 0.85 * left), TARGET
        ),
        relearning={RelearnSteps().lesson.key: Relearning(curves("oracles", oracles or models, 0.0), curves("unlearned", models, left))},
        true_labels=torch.where(swapped, 1 - labels, labels),
    )


def outputs_of(logits: torch.Tensor, labels: list[int], parts: list[str], start: int = 0) -> Outputs:
    models, n, _ = logits.shape
    part = torch.tensor([PARTS.index(name) for name in parts])
    return Outputs(logits, torch.zeros(models, n, dtype=torch.bool), torch.tensor(labels), torch.arange(n), part, tuple(range(start, start + models)))


def predicted(u: list[list[int]], o: list[list[int]], labels: list[int], parts: list[str], p: list[list[int]] | None = None) -> Audit:
    """Models that predict these classes with certainty; the oracles' seeds are others than the unlearned models'."""
    classes = max(3, 1 + max(labels), 1 + max(map(max, [*u, *o])))
    hot = [5 * torch.nn.functional.one_hot(torch.tensor(side), classes).double() for side in (p or u, o, u)]
    originals, oracles, unlearned = (outputs_of(logits, labels, parts, start) for logits, start in zip(hot, (0, 100_000, 0), strict=True))
    return Audit(originals, oracles, unlearned)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def benchmark() -> ModuleType:
    """``benchmarks/metrics.py``, where the plain loops live that the fast code must agree with."""
    found = importlib.util.spec_from_file_location("benchmarks_metrics", Path(__file__).parents[2] / "benchmarks" / "metrics.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
