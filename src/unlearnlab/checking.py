"""Checks a user's method against the contract, on real digits: what ``unlearnlab check FILE`` prints."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnlab.contract import READABLE, Context, Method, Undeclared, only_declared
from unlearnlab.data.corrupt import SymmetricNoise
from unlearnlab.data.digits import Digits
from unlearnlab.data.images import Split
from unlearnlab.engine import Job, Local
from unlearnlab.nets.small_cnn import SmallCnn
from unlearnlab.seeds import generator
from unlearnlab.spec import InputError, build, key, load_plugin, lookup, names, to_dict
from unlearnlab.stack import Mask, Stack, head_names
from unlearnlab.train import Recipe

FORGET = 4  # images to forget, of 60
STEPS = 5  # epochs of at most 16 images a step: some 20 steps on 60 images, more than enough to tell a mistake from rounding
TOLERANCE = 1e-5  # between models unlearned together and alone; buffers (running averages of activations) ten times that


@dataclass(frozen=True)
class Finding:
    """One check of one method: passed or not, with a sentence saying what holds or what is wrong."""

    method: str
    check: str
    passed: bool
    sentence: str


class Fault(Exception):  # noqa: N818 - it reads as a sentence
    """A check found something: the sentence says what, and what to do."""


def check_file(path: str | Path) -> Iterator[Finding]:
    """Run every check on every method that a plugin file registers; raises ``InputError`` where it registers none."""
    load_plugin(path)
    home = str(Path(path).resolve())
    found = [name for name in names("method") if getattr(sys.modules[lookup("method", name).__module__], "__file__", None) == home]
    if not found:
        raise InputError(f"the plugin {path} registers no method; decorate its class with @spec('method', 'a_name')")
    for name in found:
        yield from check_method(name)


def check_method(name: str) -> Iterator[Finding]:
    """Run every check on the registered method of this name, with its default settings (fewer steps where it has ``epochs``)."""
    for title, check in CHECKS.items():
        job = Job(_judge, (name, title, check))
        found: Finding = next(Local(1).run([job]))[1]  # with one thread, as in a study
        yield found
        if not found.passed and check in GATES:
            return


def _judge(name: str, title: str, check: Callable[[Any], str]) -> Finding:
    try:
        return Finding(name, title, True, check(name if check is _builds else build("method", name)))
    except Fault as fault:
        return Finding(name, title, False, str(fault))
    except Exception as error:  # the user's code may raise anything: that is a finding too
        return Finding(name, title, False, f"raised {type(error).__name__}: {' '.join(str(error).split())}")


# ---- the toy: three originals trained on 60 digits, some of them mislabelled


@dataclass(frozen=True, eq=False)
class Bench:
    """The models to unlearn, their initial weights, and the split."""

    stack: Stack
    init: Stack
    split: Split

    def context(self, mask: Mask | None = None, shift: int = 0) -> Context:
        return Context(tuple(50 + shift + seed for seed in self.stack.seeds), Recipe(epochs=2, batch=10), mask=mask, original_init=self.init)

    def unlearn(self, method: Method, mask: Mask | None = None) -> Stack:
        """Run a method as a study does: it sees only what it declares."""
        return method(self.stack, *only_declared(method, self.split, self.context(mask)))

    def only(self, k: int) -> Bench:
        return Bench(self.stack.rows([k]), self.init.rows([k]), self.split)


def _bench() -> Bench:
    """A copy of its own for every check: what one method breaks must not show in the next check."""
    return copy.deepcopy(_trained())


@cache
def _trained() -> Bench:
    images, ends = SymmetricNoise(0.2)(Digits()(), seed=1), (0, FORGET, 60, 70, 80, 100)
    split = Split(*(images.rows(torch.arange(a, b)) for a, b in itertools.pairwise(ends)))
    init = Stack.init(SmallCnn((10, 10, 12), norm="batch")((1, 8, 8), 10), (0, 1, 2))  # BatchNorm: buffers are part of the contract
    return Bench(Recipe(epochs=20, batch=10)(init, split.train), init, split)


def _short(method: Any) -> Any:
    """The same method on fewer and smaller steps, where it has such settings."""
    wanted = {"epochs": STEPS, "batch": 3 if method.reads == {"forget"} else 16}
    return replace(method, **{name: value for name, value in wanted.items() if hasattr(method, name)})


# ---- the checks: each returns what holds, or raises a Fault


def _builds(name: str) -> str:
    try:
        method = build("method", name)
    except InputError as error:
        raise Fault(f"it cannot be made from its name alone: {error}; give every setting a default") from error
    again = build("method", json.loads(json.dumps(to_dict(method))))
    if again != method or key(again) != key(method):
        raise Fault(f"its settings do not survive being written and read: {method} became {again}; __post_init__ must not change them")
    return "its settings survive being written to a file and read again"


def _declares(method: Any) -> str:
    missing = [part for part in ("reads", "null") if not hasattr(method, part)] + ([] if callable(method) else ["__call__"])
    if missing:
        raise Fault(f"it lacks '{missing[0]}'; a method has reads, null and __call__(stack, split, ctx)")
    if not isinstance(method.reads, frozenset) or not method.reads <= READABLE:
        raise Fault(f"reads = {method.reads!r} must be a frozenset of: {', '.join(sorted(READABLE))}")
    if method.null is not None and not isinstance(method.null, Mapping):
        raise Fault(f"null = {method.null!r} must be the settings under which it changes nothing, such as {{'lr': 0.0}}, or None where it has none")
    return f"it reads {', '.join(sorted(method.reads)) or 'nothing'}"


def _shape(method: Method) -> str:
    before, after = _bench().stack, _bench().unlearn(_short(method))
    if not isinstance(after, Stack):
        raise Fault(f"it returned a {type(after).__name__}, not a Stack; return stack.having(params, buffers) or what fit returns")
    for what in ("params", "buffers"):
        mine, theirs = ({n: (tuple(t.shape), t.dtype) for n, t in getattr(one, what).items()} for one in (after, before))
        if mine != theirs:
            odd = next(n for n in [*theirs, *mine] if mine.get(n) != theirs.get(n))
            raise Fault(f"{what} '{odd}' came back as {mine.get(odd, 'missing')}, expected {theirs.get(odd, 'no such name')}; keep names, shapes and types")
    if len(after) != len(before) or repr(after.net) != repr(before.net):
        raise Fault("another network or another number of models came back; change weights only")
    bad = [n for n, t in after.params.items() if not bool(torch.isfinite(t).all())]
    if bad:
        raise Fault(f"'{bad[0]}' holds NaN or infinite weights; try a lower learning rate")
    return "the same network comes back: names, shapes and types of all weights are kept"


def _moves(method: Method) -> str:
    before, after = _bench().stack, _bench().unlearn(method)
    still = [k for k in range(len(after)) if all(torch.equal(after.params[n][k], p[k]) for n, p in before.params.items())]
    if still:
        raise Fault(f"with its default settings, {len(still)} of {len(after)} models came back unchanged; every model of the stack must change")
    return "every model changes under the default settings"


def _null(method: Any) -> str:
    if method.null is None:
        return "it declares that no settings make it do nothing (null = None)"
    changed = _first_difference(_bench().unlearn(replace(_short(method), **method.null)), _bench().stack)
    if changed:
        raise Fault(f"with {dict(method.null)} it still changes '{changed}'; it must leave every bit alone, or declare null = None")
    return f"with {dict(method.null)} it changes nothing, bit for bit"


def _reads(method: Method) -> str:
    try:
        _bench().unlearn(_short(method))
    except Undeclared as error:
        raise Fault(str(error)) from error
    return "it uses only what it declares in `reads`"


def _clean(method: Method) -> str:
    bench = _bench()
    before, lot = _copies(bench), torch.get_rng_state()
    bench.unlearn(_short(method))
    changed = [name for name, tensor in _copies(bench).items() if not torch.equal(tensor, before[name])]
    if changed:
        raise Fault(f"it changed '{changed[0]}', which it was handed; work on a copy (tensor.clone()) and return a new stack")
    if not torch.equal(torch.get_rng_state(), lot):
        raise Fault("it drew from torch's global generator; draw from unlearnlab.seeds.generator(seed, purpose), one per model of ctx.seeds")
    return "models and images it is handed stay untouched, and so does the global random generator"


def _repeats(method: Method) -> str:
    changed = _first_difference(_bench().unlearn(_short(method)), _bench().unlearn(_short(method)))
    if changed:
        raise Fault(f"run twice with the same seeds, '{changed}' differs; draw only from unlearnlab.seeds.generator(seed, purpose), seeds from ctx.seeds")
    return "the same seeds give the same bits"


def _stacked(method: Method) -> str:
    bench = _bench()
    together = bench.unlearn(_short(method))
    for k in range(len(together)):
        alone, mine = bench.only(k).unlearn(_short(method)), together.rows([k])
        for what, limit in (("params", TOLERANCE), ("buffers", 10 * TOLERANCE)):
            for name, tensor in getattr(mine, what).items():
                gap = float((tensor.double() - getattr(alone, what)[name].double()).abs().max())
                if not gap <= limit:
                    raise Fault(f"model {k} ends elsewhere with others than alone ('{name}' by {gap:.1g}); reduce and draw per model, not over the stack")
    return "models unlearned together end where each ends alone"


def _masked(method: Method) -> str:
    bench = _bench()
    open_ = {n: torch.rand(t.shape, generator=generator(0, "check", i)) < 0.4 for i, (n, t) in enumerate(bench.stack.params.items())}
    mask = Mask(open_, bench.stack.fingerprint).opening(head_names(bench.stack))  # resetting methods open the head whatever the mask says
    try:
        after = bench.unlearn(_short(method), mask)
    except InputError:
        return "it refuses a mask"
    moved = [n for n, bits in mask.open.items() if not torch.equal(after.params[n][~bits], bench.stack.params[n][~bits])]
    if moved:
        raise Fault(f"it changes weights of '{moved[0]}' that ctx.mask closes, so `localised` would not hold; obey ctx.mask, or raise InputError on a mask")
    return "weights that ctx.mask closes stay bit for bit"


CHECKS: dict[str, Callable[[Any], str]] = {
    "build": _builds, "declares": _declares, "reads": _reads, "keys": _shape, "moves": _moves, "null": _null, "side effects": _clean,
    "deterministic": _repeats, "stacked": _stacked, "mask": _masked,
}  # fmt: skip
GATES = (_builds, _declares, _reads, _shape)  # what fails one of these would fail all that follow, for the same reason


def _first_difference(a: Stack, b: Stack) -> str:
    """The first tensor in which two stacks differ; empty where they agree bit for bit."""
    return next((n for one, other in ((a.params, b.params), (a.buffers, b.buffers)) for n in one if not torch.equal(one[n], other[n])), "")


def _copies(bench: Bench) -> dict[str, Tensor]:
    """Copies of everything a method is handed."""
    held = {f"{name}.{n}": t for name, s in (("stack", bench.stack), ("original_init", bench.init)) for n, t in (s.params | s.buffers).items()}
    for part in ("forget", "retain", "validation"):
        held |= {f"{part}.{n}": getattr(getattr(bench.split, part), n) for n in ("pixels", "labels", "ids", "true_labels")}
    return {name: tensor.clone() for name, tensor in held.items()}
