"""The small form of a study: the same stages, methods and metrics on digits, in minutes on two cores.

Every rule of it stands here. What comes out shows that a study runs from end to end and what its report looks like; it says nothing
about the published numbers, since rates and strengths keep the values that were chosen for other data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearnlab.spec import build, lookup

Table = dict[str, Any]

TRAIN, HELD_OUT, TEST = 500, 297, 1000  # digits, as the study `digits` divides them
FORGET = (40, 250)  # images forgotten: at least and at most
MIX = 90  # at least as many of three groups together, so that the report shows each of them
MODELS, EPOCHS, BATCH, METHOD_EPOCHS, REFERENCES = 8, 20, 50, 5, 16
SUBSETS = 48  # models behind a score or attributions
MANY = 32  # where a metric needs more models than this, perceptrons are trained in place of convolutions
# Side of a digit over side of the images that published triggers were made for; digits are white on black, so the square is white.
TRIGGER = {"size": 2, "margin": 0, "value": 255}
TRANSFORMER = {"name": "vit_small_data", "patch": 2, "dim": 32, "depth": 2, "heads": 4, "head_dim": 8, "mlp": 64}
TRANSFORMERS = ("vit_small_data", "swin_t")
CAPS = {"batch": BATCH, "forget_batch": BATCH, "retain_batch": BATCH}


def shrink(table: Mapping[str, Any]) -> Table:
    """The small form of a resolved study (``to_dict``), resolved again."""
    made = {name: value for name, value in table.items() if name not in ("dataset", "partition", "net", "recipe", "original")}
    share = TRAIN / (_trained_on(table) or TRAIN)
    pairs = table["forget"]["name"] == "sub_class"
    needed = max((build("metric", one).minimum for one in table["metrics"]), default=0)
    made |= {
        "title": f"{table['title']} (small form, on digits)",
        "dataset": {"name": "digits_pairs" if pairs else "digits"},
        "partition": {"name": "stratified", "train": TRAIN, "held_out": HELD_OUT, "test": TEST},
        "net": _net(table["net"], needed),
        "recipe": _recipe(table["recipe"]),
        "corruption": _corruption(table["corruption"], share),
        "forget": _forget(table["forget"], share),
        "models": max(min(table["models"], MODELS), needed),
        "references": min(table["references"], REFERENCES),
        "methods": [_method(one) for one in table["methods"]],
        "scores": [_score(one) for one in table["scores"]],
        "attribution": {**table["attribution"], "models": min(table["attribution"]["models"], SUBSETS)},
    }
    if table["requests"] is not None:
        made["requests"] = {**table["requests"], "sets": [_forget(one, share) for one in table["requests"]["sets"]]}
    if table["tune"] is not None:
        made["tune"] = {**table["tune"], "trials": min(table["tune"]["trials"], 4), "sets": 1, "models": 4}
    return made


def _trained_on(table: Mapping[str, Any]) -> int | None:
    """How many images the study trains on, where its data set says how large it is."""
    held = table["partition"]
    if held.get("train"):
        return int(held["train"])
    size = getattr(lookup("dataset", table["dataset"]["name"]), "facts", None)
    return None if size is None else round(size.train * (1 - held["held_out"]))


def _net(net: Mapping[str, Any], needed: int) -> Table:
    if net["name"] in TRANSFORMERS:
        return dict(TRANSFORMER)
    return {"name": "mlp"} if net["name"] == "mlp" or needed > MANY else {"name": "small_cnn"}


def _recipe(recipe: Mapping[str, Any]) -> Table:
    """Twenty epochs of one cycle; the kind of loss and what pruning rewinds to are kept. Digits are neither cropped nor mirrored."""
    kept = {name: recipe[name] for name in ("optimizer", "label_smoothing", "class_weights", "sharpness", "adaptive")}
    rewind = None if recipe["rewind"] is None else max(1, round(recipe["rewind"] * EPOCHS / recipe["epochs"]))
    return {"name": "standard", "epochs": EPOCHS, "batch": BATCH, "lr": 0.1, "schedule": "one_cycle", "rewind": rewind, **kept}


def _corruption(corruption: Mapping[str, Any], share: float) -> Table:
    made = dict(corruption)
    if made["name"] == "backdoor":
        made |= TRIGGER
    if "count" in made:
        made["count"] = _count(made["count"], share)
    return made


def _forget(forget: Mapping[str, Any], share: float) -> Table:
    made = dict(forget)
    if made["name"] == "ids":  # published rows of another release
        return {"name": "random", "count": _count(len(made["ids"]) or 1000, share)}
    if made["name"] == "attribute":
        return {"name": "random", "count": _count(made["count"] or 0, share)}
    if made["name"] == "sub_class":
        made |= {"value": sum(map(ord, str(made["value"]))) % 10, "column": "fine"}
    if made["name"] == "by_entanglement":
        made |= {"parts": 6, "neighbours": 1, "picks": None}
    if made.get("score") == "file":
        made["score"] = "memorisation"
    if isinstance(made.get("count"), int):
        made["count"] = _count(made["count"], share)
        if "mix" in (made.get("band"), made.get("level")):
            made["count"] = max(made["count"], MIX)
    return made


def _count(count: int, share: float) -> int:
    return min(max(round(count * share), FORGET[0]), FORGET[1])


def _method(method: Mapping[str, Any]) -> Table:
    """Fewer epochs in smaller batches, in methods that others hold as well."""
    made: Table = {}
    for name, value in method.items():
        if isinstance(value, Mapping):
            made[name] = _method(value)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            made[name] = [_method(one) for one in value]
        elif isinstance(value, int) and not isinstance(value, bool) and name in CAPS:
            made[name] = min(value, CAPS[name])
        elif isinstance(value, int) and not isinstance(value, bool) and (name == "epochs" or name.endswith("_epochs")):
            made[name] = min(value, METHOD_EPOCHS)
        elif (name, value) == ("score", "file"):  # as in ``_score``
            made[name] = "memorisation"
        else:
            made[name] = value
    return made


def _score(score: Mapping[str, Any]) -> Table:
    made = dict(score)
    if made["name"] == "file":
        return {"name": "memorisation", "models": SUBSETS}
    if "models" in made:
        made["models"] = min(made["models"], SUBSETS)
    if "epochs" in made:
        made["epochs"] = min(made["epochs"], EPOCHS)
    return made
