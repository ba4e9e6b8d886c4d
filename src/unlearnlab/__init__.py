"""Make image classifiers forget chosen training examples, and measure whether they really did.

Names below are imported when first used, so that ``import unlearnlab`` is instant. No public name is a submodule's:
``unlearnlab.spec`` and ``unlearnlab.fit`` are modules that hold the decorator and the loop.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearnlab.auditing import AuditReport as AuditReport
    from unlearnlab.auditing import audit as audit
    from unlearnlab.contract import Context as Context
    from unlearnlab.contract import Result as Result
    from unlearnlab.contract import Scores as Scores
    from unlearnlab.data.images import Images as Images
    from unlearnlab.data.images import Split as Split
    from unlearnlab.outputs import Outputs as Outputs
    from unlearnlab.outputs import observe as observe
    from unlearnlab.spec import InputError as InputError
    from unlearnlab.spec import Setting as Setting
    from unlearnlab.spec import build as build
    from unlearnlab.spec import key as key
    from unlearnlab.spec import names as names
    from unlearnlab.spec import to_dict as to_dict
    from unlearnlab.stack import Mask as Mask
    from unlearnlab.stack import Stack as Stack
    from unlearnlab.store import Store as Store
    from unlearnlab.train import Recipe as Recipe
    from unlearnlab.unlearning import unlearn as unlearn

_HOMES = {
    "auditing": ("AuditReport", "audit"),
    "contract": ("Context", "Result", "Scores"),
    "data.images": ("Images", "Split"),
    "outputs": ("Outputs", "observe"),
    "spec": ("InputError", "Setting", "build", "key", "names", "to_dict"),
    "stack": ("Mask", "Stack"),
    "store": ("Store",),
    "train": ("Recipe",),
    "unlearning": ("unlearn",),
}
_HOME = {name: home for home, held in _HOMES.items() for name in held}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = import_module("importlib.metadata").version("unlearnlab")
    elif name in _HOME:
        value = getattr(import_module(f"unlearnlab.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'unlearnlab' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
