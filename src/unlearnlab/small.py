"""The small form of a study: the same stages, methods and metrics on digits, in minutes on two cores.

Every rule of it stands here. What comes out shows that a study runs from end to end and what its report looks like; it says nothing
about the published numbers, since rates and strengths keep the values that were chosen for other data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unlearnlab.spec import build

Table = dict[str, Any]

TRAIN, HELD_OUT, TEST = 500, 297, 1000  # digits, as the study `digits` divides them
FORGET = (40, 250)  # images forgotten: at least and at most
NOISE = {"name": "symmetric_noise", "share": 0.2}  # of a study that forgets by score: hardly any clean digit is memorised
PER_CLASS = 40  # of the images of a class, half a hundred, at most as many
MIX = 120  # three groups together, so that the report shows each of them, and the wrong labels, and none meets another
MODELS, EPOCHS, BATCH, METHOD_EPOCHS, REFERENCES = 8, 20, 50, 5, 16
ROUNDS = 5  # of iterative pruning, each of which trains all models again
SUBSETS = 48  # models behind a score or attributions
MANY, VARIANTS = 32, 5  # where a metric needs more models or a family has more studies than this, perceptrons are trained in place of convolutions
# Side of a digit over side of the images that published triggers were made for; digits are white on black, so the square is white.
TRIGGER = {"size": 2, "margin": 0, "value": 255}
TRANSFORMER = {"name": "vit_small_data", "patch": 4, "dim": 32, "depth": 2, "heads": 4, "head_dim": 8, "mlp": 64}
TRANSFORMERS = ("vit_small_data", "swin_t", "tiny_vit_11m")
EXAMPLES = 8  # that a localiser searches through one by one
MADE_UP = 100  # images that a method makes of each class
CAPS = {"batch": BATCH, "forget_batch": BATCH, "retain_batch": BATCH, "examples": EXAMPLES, "noise_images": MADE_UP}


def shrink(table: Mapping[str, Any], variants: int = 1) -> Table:
    """The small form of a resolved study (``to_dict``), resolved again. ``variants``: studies in its family."""
    made = {name: value for name, value in table.items() if name not in ("dataset", "partition", "net", "recipe", "original")}
    share = TRAIN / (_trained_on(table) or TRAIN)
    pairs = any(one["name"] == "sub_class" for one in _sets(table))
    classes = 5 if pairs else 10
    needed = max((build("metric", one).minimum for one in table["metrics"]), default=0)
    rewinding = table["prune"] is not None or table["recipe"].get("rewind") is not None
    made |= {
        "title": f"{table['title']} (small form, on digits)",
        "dataset": {"name": "digits_pairs" if pairs else "digits"},
        "partition": {"name": "stratified", "train": TRAIN, "held_out": HELD_OUT, "test": TEST},
        "net": _net(table["net"], many=needed > MANY or variants > VARIANTS, norm=rewinding or _by_score(table)),
        "recipe": _recipe(table["recipe"], table["prune"]),
        "corruption": NOISE if _by_score(table) else _corruption(table["corruption"], share, classes),
        "forget": _forget(table["forget"], share, classes),
        "models": max(min(table["models"], MODELS), needed),
        "references": min(table["references"], REFERENCES),
        "methods": [_method(one) for one in table["methods"]],
        "scores": list({held["name"]: held for held in map(_score, table["scores"])}.values()),  # those of a file may now be there twice
        "attribution": {**table["attribution"], "models": min(table["attribution"]["models"], SUBSETS)},
    }
    if table["requests"] is not None:
        made["requests"] = {**table["requests"], "sets": [_forget(one, share, classes) for one in table["requests"]["sets"]]}
    if made["forget"]["name"] == "sub_class":
        told = [{**one, "labels": [made["forget"]["value"] // 2]} if one.get("labels") else one for one in made["methods"]]
        made["methods"] = told  # the class of the digit, where a method must know it
    if table["prune"] is not None:
        made["prune"] = _pruning(table["prune"])
    if table["budget"] is not None and "epochs" in table["recipe"]:  # as many epochs as it allows at full scale, since methods keep up to five of theirs
        fraction = table["budget"]["fraction_of_retrain"] * table["recipe"]["epochs"] / EPOCHS
        made["budget"] = {**table["budget"], "fraction_of_retrain": round(fraction, 4)}
    if table["tune"] is not None:
        made["tune"] = {**table["tune"], "trials": min(table["tune"]["trials"], 4), "sets": 1, "models": 4}
    return made


def _sets(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All that is asked to be forgotten."""
    return [table["forget"], *(() if table["requests"] is None else table["requests"]["sets"])]


def _by_score(table: Mapping[str, Any]) -> bool:
    return table["corruption"] in ({"name": "none"}, NOISE) and "score" in table["forget"]


def _trained_on(table: Mapping[str, Any]) -> int | None:
    """How many images the study trains on, where its data set says how large it is."""
    held = table["partition"]
    if held.get("train"):
        return int(held["train"])
    size = getattr(build("dataset", table["dataset"]), "facts", None)
    return None if size is None else round(size.train * (1 - held.get("held_out", 0)))


def _net(net: Mapping[str, Any], *, many: bool, norm: bool) -> Table:
    """``norm``: of a study that prunes, or keeps weights to rewind to, as the dense models beside sparse ones do; or that must learn wrong labels by heart."""
    if net["name"] in TRANSFORMERS:
        return dict(TRANSFORMER)
    if net["name"] == "mlp" and not net["hidden"]:
        return {"name": "mlp", "hidden": []}  # a linear model stays one
    if net["name"] == "mlp" or many:
        return {"name": "mlp"}
    # As published convolutions have it: without it most oracles of 90 % sparsity, and all of 95 %, learned nothing (docs/trojan.md), and of a
    # fifth of labels that are wrong a tenth was learned by heart, too few for a group of them.
    return {"name": "small_cnn", "norm": "batch"} if norm else {"name": "small_cnn"}


def _recipe(recipe: Mapping[str, Any], prune: Mapping[str, Any] | None) -> Table:
    """Twenty epochs of one cycle; the kind of loss and what pruning rewinds to are kept. Digits are neither cropped nor mirrored."""
    kept = {name: recipe[name] for name in ("optimizer", "label_smoothing", "class_weights", "sharpness", "adaptive") if name in recipe}
    rewind = None if recipe.get("rewind") is None else max(1, round(recipe["rewind"] * EPOCHS / recipe["epochs"]))
    if rewind is None and prune is not None and "rewind" in build("pruning", prune).needs:
        rewind = 1  # originals came from files
    rate = 0.1 if recipe.get("optimizer", {"name": "sgd"})["name"] == "sgd" else 0.003  # a step of Adam's is about as long as its rate
    return {"name": "standard", "epochs": EPOCHS, "batch": BATCH, "lr": rate, "schedule": "one_cycle", "rewind": rewind, **kept}


def _pruning(prune: Mapping[str, Any]) -> Table:
    """Iterative pruning in fewer rounds that take more, to the same sparsity."""
    made = dict(prune)
    if made["name"] == "imp" and made["rounds"] > ROUNDS:
        made |= {"rounds": ROUNDS, "share": round(1 - (1 - made["share"]) ** (made["rounds"] / ROUNDS), 4)}
    return made


def _corruption(corruption: Mapping[str, Any], share: float, classes: int) -> Table:
    made = dict(corruption)
    if "like" in made:
        made["like"] = _corruption(made["like"], share, classes)
    if made["name"] == "backdoor":
        made |= TRIGGER | {"target": made["target"] % classes, "share": max(made["share"], FORGET[0] / TRAIN)}
    if made["name"] == "interclass_confusion":
        made["a"], made["b"] = _classes((made["a"], made["b"]), classes)
        made["count"] = 2 * min(_count(made["count"], share) // 2, PER_CLASS)
    return made


def _forget(forget: Mapping[str, Any], share: float, classes: int) -> Table:
    made = dict(forget)
    if "like" in made:
        return made | {"like": _forget(made["like"], share, classes)}
    if made["name"] == "ids":  # published rows of another release: others than those of a random set
        return {"name": "random", "count": _count(len(made["ids"]) or 1000, share), "draw": 1}
    if made["name"] == "attribute":
        return {"name": "random", "count": _count(made["count"] or 0, share)}
    if made["name"] == "class":
        made["label"] = _classes((made["label"],), classes)[0]
    if made["name"] == "sub_class":
        made |= {"value": _classes((made["value"],), 10)[0], "column": "fine"}
    if made["name"] == "by_entanglement":
        made |= {"parts": 6, "neighbours": 1, "picks": None}
    if made.get("score") == "file":
        made["score"] = "memorisation"
    if made.get("band") == "unscored":  # what is made here has a score for all
        made["band"] = "low"
    if isinstance(made.get("count"), int):
        made["count"] = _count(made["count"], share)
        if "mix" in (made.get("band"), made.get("level")):
            made["count"] = MIX
        elif made["name"] == "by_entanglement":
            made["count"] = min(made["count"], TRAIN // made["parts"])
    if made["name"] == "partial_class":
        made["labels"] = _classes(made["labels"], classes)
        made["count"] = min(made["count"], PER_CLASS * len(made["labels"]))
    if made.get("mislabelled"):  # as many of those there are
        made["mislabelled"] = min(max(round(made["mislabelled"] * share), 1), made["count"])
    return made


def _classes(labels: Sequence[int | str], classes: int) -> list[int]:
    """Different classes for different ones, given by number or name, as long as there are any."""
    found: list[int] = []
    for label in labels[: classes - 1]:
        first = label if isinstance(label, int) else _number(label)
        found.append(next(one for one in ((first + step) % classes for step in range(classes)) if one not in found))
    return found


def _number(text: str) -> int:
    """A number of a name's own, or nearly so."""
    return sum(map(ord, text))


def _count(count: int, share: float) -> int:
    return min(max(round(count * share), FORGET[0]), FORGET[1])


def _method(method: Mapping[str, Any]) -> Table:
    """Fewer epochs in smaller batches, in methods that others hold as well."""
    if method["name"] in ("legacy_file", "stored"):  # a mask fits one net alone; published ones hold the weights of largest gradient
        return {"name": "grad_param", "budget": method["budget"] or 0.5}
    if method["name"] == "rum" and method["refine"]["name"] == "given":  # groups of images of another release
        groups = len(method["refine"]["groups"]) or (len(method["each"]) if len(method["each"]) > 1 else 3)
        method = {**method, "refine": {"name": "shuffle", "groups": groups}}
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
        elif name == "k" and method["name"] in ("cf_k", "eu_k"):  # a perceptron has one block before its head
            made[name] = min(value, 1)
        elif (method["name"], name) == ("unsir", "labels"):  # as in ``_forget``
            made[name] = _classes(value, 10)
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
