"""``unlearn``: the verb for models and data of one's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from unlearnlab.contract import CONTEXT_PARTS, Context, Method, Scores, only_declared
from unlearnlab.data.images import Images, Split
from unlearnlab.data.mapped import Mapped
from unlearnlab.spec import InputError, build, fields, info, lookup, within
from unlearnlab.stack import Mask, Stack, chunk_size


@overload
def unlearn(
    model: nn.Module, *, forget: Any, retain: Any, method: Any = ..., seed: int = ..., validation: Any = ..., recipe: Any = ...,
    original_init: nn.Module | None = ..., scores: Mapping[str, Any] | None = ..., classes: int | None = ...,
    device: torch.device | str | None = ..., **settings: Any,
) -> nn.Module: ...  # fmt: skip
@overload
def unlearn(
    model: Stack, *, forget: Any, retain: Any, method: Any = ..., seed: int = ..., validation: Any = ..., recipe: Any = ...,
    original_init: Stack | None = ..., scores: Mapping[str, Any] | None = ..., classes: int | None = ...,
    device: torch.device | str | None = ..., **settings: Any,
) -> Stack: ...  # fmt: skip
@overload
def unlearn(
    model: Sequence[nn.Module], *, forget: Any, retain: Any, method: Any = ..., seed: int = ..., validation: Any = ..., recipe: Any = ...,
    original_init: Sequence[nn.Module] | None = ..., scores: Mapping[str, Any] | None = ..., classes: int | None = ...,
    device: torch.device | str | None = ..., **settings: Any,
) -> list[nn.Module]: ...  # fmt: skip
def unlearn(
    model: nn.Module | Stack | Sequence[nn.Module],
    *,
    forget: Any,
    retain: Any,
    method: Any = "salun",
    seed: int = 0,
    validation: Any = None,
    recipe: Any = None,
    original_init: Any = None,
    scores: Mapping[str, Any] | None = None,
    classes: int | None = None,
    device: torch.device | str | None = None,
    **settings: Any,
) -> nn.Module | Stack | list[nn.Module]:
    """Make a model forget: gives back a new model of the same class and mode; the one given is untouched.

    ``model``: any ``nn.Module`` that turns a batch of images into logits; a list of them or a ``Stack`` (then one comes back).
    Model i of several draws from seed + i, and those of one architecture train together.
    ``forget``, ``retain``, ``validation``: a map-style ``Dataset`` of (image, label), read once and in order; a tuple (X, y) of tensors or
    arrays; or ``Images``, whose ids are kept where all are ``Images``. Pixels float32 as the model wants them, or uint8 for nets
    that scale them. ``method``: a name, with its ``settings`` beside it; a table, as for methods that hold methods
    (``{"name": "localised", "where": "deepest", "method": "finetune"}``); or a spec. ``recipe``: how the model was
    trained, for methods that train from scratch. ``original_init``: the model before it was trained, for methods that go back to it.
    ``scores``: by name what methods go by that divide the forget set (``rum``): ``Scores``, for data with ids of its own (``Images``), or one
    number for each image to forget, in their order, high = memorised. ``classes``: how many labels there are, by default the width of
    the model's output. ``device``: where to compute, by default where the model is.

    Weights frozen by ``requires_grad = False`` stay as they are, but for a classifier head that a method says it opens.
    """
    chosen, course = _method(method, settings), None if recipe is None else build("recipe", recipe)
    parts = {"forget": forget, "retain": retain} | ({} if validation is None else {"validation": validation})
    _require(chosen, {*parts, *(name for name, given in (("original_init", original_init), ("scores", scores)) if given is not None)}, scores)
    pieces = _pieces("model", model, seed)
    inits = None if original_init is None else _pieces("original_init", original_init, seed)
    if inits is not None and [_shapes(one) for one in inits] != [_shapes(one) for one in pieces]:
        raise InputError("original_init does not fit the model: pass the same architecture, and as many, as before training")
    where = torch.device(pieces[0].device if device is None else device)
    pieces = [one.to(where) for one in pieces]
    read = {who: _read(who, given) for who, given in parts.items()}
    split = _split(read, _classes(pieces, read["forget"][0][:1].to(where), classes), where)
    known = _scores(scores or {}, split.forget, own=all(held is not None for _, _, held in read.values()))
    done: dict[int, tuple[Stack, int]] = {}
    for group in _groups(pieces, split.forget.pixels[:1]):
        stack = Stack.join([pieces[i] for i in group])
        ctx = Context(
            tuple(seed + i for i in (range(len(stack)) if isinstance(model, Stack) else group)),
            course or _NoRecipe(chosen),  # type: ignore[arg-type]
            where,
            mask=None if isinstance(model, Stack) else _thawed(stack, [_modules(model)[i] for i in group]),
            original_init=None if inits is None else Stack.join([inits[i].to(where) for i in group]),
            scores=known,
        )
        after = chosen(stack, *only_declared(chosen, split, ctx))
        if found := after.diverged[len(stack.diverged) :]:
            raise InputError(f"method '{info(chosen).name}' diverged for {found[0]} ({len(found)} of {len(stack)} models); lower its learning rate")
        done |= {i: (after, k) for k, i in enumerate(group)}
    if isinstance(model, Stack):
        return done[0][0].to(model.device)
    made = [_holding(one, *done[i]) for i, one in enumerate(_modules(model))]
    return made[0] if isinstance(model, nn.Module) else made


# ---------------------------------------------------------------- the method and what it needs


def _method(method: Any, settings: Mapping[str, Any]) -> Method:
    if settings and not isinstance(method, (str, Mapping)):
        raise InputError(f"the method is given whole, so its settings belong inside it; '{next(iter(settings))}' stands beside it")
    if isinstance(method, str) and any(field.name == "method" for field in fields(lookup("method", method))):
        table = f'{{"name": "{method}", …, "method": "finetune"}}'
        raise InputError(f"method '{method}' holds a method, so give it as a table: method={table}")
    made: Method = build("method", {**({"name": method} if isinstance(method, str) else method), **settings} if settings else method)
    return made


def _require(method: Method, given: set[str], scores: Mapping[str, Any] | None) -> None:
    """Refuse, before any work, a method that reads what was not given."""
    if not callable(method):
        own = ", or use its own class (docs/exact.md)" if getattr(method, "certified", "") else ""
        raise InputError(f"method '{info(method).name}' gives no model back, only answers: run it in a study{own}")
    named = {one.score for one in within(method) if info(one).kind == "refiner" and one.score}
    example = f"scores={{'{min(named, default='name')}': one number for each forget image, high = memorised}}"
    what = {"original_init": "original_init=model_before_training", "validation": "validation=images"}
    what |= {} if "centroid_distance" in named else {"scores": example}  # which needs the features of a study's models
    for part in sorted(method.reads - given & {"validation", *CONTEXT_PARTS}):
        how = f"pass {what[part]}" if part in what else "run it in a study, which has them"
        raise InputError(f"method '{info(method).name}' needs {part}: {how}")
    if scores is not None and not isinstance(scores, Mapping):
        raise InputError(f"scores must be a table of them by name, got {type(scores).__name__}: pass {example}")
    if scores is not None and "scores" in method.reads and (missing := named - set(scores)):
        given_names = ", ".join(map(str, scores)) or "none"
        raise InputError(f"method '{info(method).name}' needs the score '{min(missing)}', and scores names {given_names}: pass it under that name")


class _NoRecipe:
    """Stands for the recipe that was not given; says so when it is used."""

    augment = ()  # how the model was trained is not known: unlearning then sees the images as they are

    def __init__(self, method: Method) -> None:
        self._words = f"method '{info(method).name}' trains from scratch: pass recipe=…, with the settings that the model was trained with"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError(self._words)

    __call__ = __getattr__ = _refuse


# ---------------------------------------------------------------- models


def _modules(model: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    return [model] if isinstance(model, nn.Module) else list(model)


def _pieces(who: str, model: Any, seed: int) -> list[Stack]:
    """Each model as a stack of one; a ``Stack`` stays whole."""
    if isinstance(model, Stack):
        return [model]
    models = _modules(model) if isinstance(model, (nn.Module, list, tuple)) else []
    if not models or not all(isinstance(one, nn.Module) for one in models):
        raise InputError(f"{who} must be an nn.Module, a list of them or a Stack, got {type(model).__name__}")
    if not all(any(True for _ in one.parameters()) for one in models):
        raise InputError(f"{who} has no parameters: there is nothing to change")
    return [Stack.of([one], [seed + i]) for i, one in enumerate(models)]


def _shapes(stack: Stack) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in (stack.params | stack.buffers).items()}


def _classes(pieces: Sequence[Stack], image: Tensor, classes: int | None) -> int:
    """The number of classes: the width of the models' output, found by one forward pass in eval mode."""
    widths = set()
    for one in pieces:
        try:
            with torch.no_grad():
                logits = one.logits(image)
        except Exception as error:
            hint = "; if it wants floats, give float32 images" if image.dtype == torch.uint8 else ""
            words = f"the model fails on an image of shape {list(image.shape)} and type {image.dtype}: {type(error).__name__}: {str(error).splitlines()[0]}"
            raise InputError(words + hint) from error
        if not isinstance(logits, Tensor) or logits.dim() != 3 or not logits.is_floating_point():
            raise InputError("the model must turn a batch of images into one row of logits each: a tensor [images, classes]")
        widths.add(logits.shape[-1])
    if len(widths) > 1 or (classes is not None and not 0 < classes <= min(widths)):
        given = "" if classes is None else f", and classes = {classes}"
        raise InputError(f"the width of the models' output is {' and '.join(map(str, sorted(widths)))}{given}; all must fit one number of classes")
    return classes or widths.pop()


def _groups(pieces: Sequence[Stack], image: Tensor) -> list[list[int]]:
    """Which models train together: those of one architecture, in whole chunks."""
    kin: dict[str, list[int]] = {}
    for i, one in enumerate(pieces):
        kin.setdefault(f"{one.net!r} {_shapes(one)}", []).append(i)
    chunks = [held[at : at + size] for held in kin.values() for size in [chunk_size(pieces[held[0]].net)] for at in range(0, len(held), size)]
    return [group for chunk in chunks for group in ([chunk] if len(chunk) == 1 or _alike([pieces[i] for i in chunk], image) else [[i] for i in chunk])]


def _alike(pieces: Sequence[Stack], image: Tensor) -> bool:
    """Does the stack say what each model says alone? Equal names and shapes do not prove it: a forward pass may read more than its modules."""
    with torch.no_grad():
        try:
            together = Stack.join(pieces).logits(image)
        except RuntimeError:  # a forward pass that cannot be stacked, since it looks at values
            return False
        return torch.allclose(together, torch.cat([one.logits(image) for one in pieces]), rtol=1e-3, atol=1e-4)


def _thawed(stack: Stack, models: Sequence[nn.Module]) -> Mask | None:
    """Closed where the user froze a parameter; None where all may change."""
    frozen = {name: torch.tensor([not dict(one.named_parameters())[name].requires_grad for one in models]) for name in stack.params}
    if not any(bool(held.any()) for held in frozen.values()):
        return None
    if torch.stack(list(frozen.values())).all(0).any():
        raise InputError("every parameter of the model is frozen (requires_grad = False), so nothing could change; call model.requires_grad_(True) first")
    opened = Mask.everything(stack).open
    return Mask({name: held & ~frozen[name].to(held.device).view(-1, *[1] * (held.dim() - 1)) for name, held in opened.items()}, stack.fingerprint)


def _holding(model: nn.Module, stack: Stack, k: int) -> nn.Module:
    """A copy of the user's model, with its class, mode, device and all else, that holds the weights of member k."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in (*made.named_parameters(), *made.named_buffers()):
            tensor.copy_((stack.params | stack.buffers)[name][k])
    return made


# ---------------------------------------------------------------- data


def _read(who: str, given: Any) -> tuple[Tensor | Mapped, Tensor, Images | None]:
    """Pixels and labels of a set, whatever it came as, and the ``Images`` if it was such."""
    pixels: Tensor | Mapped
    if isinstance(given, Images):
        pixels, labels = given.pixels, given.labels
    elif isinstance(given, DataLoader):
        raise InputError(f"{who} is a DataLoader, which shuffles and batches; give the dataset, not the loader: {who}=loader.dataset")
    elif isinstance(given, tuple) and len(given) == 2:
        pixels, labels = _tensor(f"{who} images", given[0]), _tensor(f"{who} labels", given[1])
    elif isinstance(given, (Tensor, np.ndarray, IterableDataset, Mapping, str)) or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise InputError(f"{who} must be a map-style Dataset, a tuple (X, y) or Images, got {type(given).__name__}")
    else:
        pixels, labels = _items(who, given)
    if len(pixels) == 0:
        raise InputError(f"the {who} set is empty: give at least one image")
    if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool or len(labels) != len(pixels):
        raise InputError(f"{who} needs one whole number as label for each of its {len(pixels)} images, got shape {list(labels.shape)} of {labels.dtype}")
    return pixels, labels.long(), given if isinstance(given, Images) else None


def _items(who: str, dataset: Any) -> tuple[Tensor, Tensor]:
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for at in range(len(dataset)):
        item = dataset[at]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise InputError(f"{who}[{at}] must be a pair (image, label), got {type(item).__name__}")
        image, label = _tensor(f"{who}[{at}]", item[0]), torch.as_tensor(item[1])
        if images and (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
            shapes = f"{list(image.shape)} of {image.dtype}, and {who}[0] {list(images[0].shape)} of {images[0].dtype}"
            raise InputError(f"{who}[{at}] has the shape {shapes}; all images must be alike")
        if label.dim() != 0:
            raise InputError(f"the label of {who}[{at}] must be one whole number, got shape {list(label.shape)}")
        images.append(image)
        labels.append(label)
    return (torch.stack(images), torch.stack(labels)) if images else (torch.empty(0), torch.empty(0))


def _tensor(what: str, given: Any) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach()
    if not isinstance(given, (np.ndarray, list)):
        raise InputError(f"{what} must be a tensor or a NumPy array, got {type(given).__name__}; convert it (for pictures: torchvision's ToTensor)")
    try:
        return torch.tensor(given)  # a copy: an array may be read-only
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} cannot become a tensor: {error}") from error


def _scores(given: Mapping[str, Any], forget: Images, *, own: bool) -> dict[str, Scores]:
    """Scores as they are, or made of one number for each forget image. ``own``: do the data bear ids of their own?"""
    found = {}
    for name, held in given.items():
        if not isinstance(held, Scores):
            values = _tensor(f"scores['{name}']", held)
            if values.shape != (len(forget),) or values.dtype == torch.bool or values.is_complex():
                expected = f"expected one number for each of the {len(forget)} images to forget, or Scores"
                raise InputError(f"scores['{name}'] have the shape {list(values.shape)} and the type {values.dtype}; {expected}")
            held = Scores(name, forget.ids.cpu(), values.double().cpu(), "memorisation" if name == "memorisation" else "proxy")
        elif not own:
            raise InputError(f"scores['{name}'] are Scores, which go by image id, and these data bear none: pass Images, or one number for each forget image")
        found[name] = held
    return found


def _split(read: Mapping[str, tuple[Tensor | Mapped, Tensor, Images | None]], classes: int, device: torch.device) -> Split:
    """The sets as a split; ids are positions, forget first, unless all came as ``Images``."""
    first = read["forget"][0]
    own = all(held is not None for _, _, held in read.values())
    made, at = {}, 0
    for who, (pixels, labels, held) in read.items():
        if (pixels.shape[1:], pixels.dtype) != (first.shape[1:], first.dtype):
            shapes = f"{list(pixels.shape[1:])} of {pixels.dtype}, those of forget {list(first.shape[1:])} of {first.dtype}"
            raise InputError(f"images of {who} are {shapes}; all sets must be alike")
        try:
            images = Images(pixels, labels, torch.arange(len(labels)), classes) if held is None else replace(held, classes=classes)
        except InputError as error:
            raise InputError(f"{who}: {error}") from error
        made[who] = (images if own else replace(images, ids=torch.arange(at, at + len(images)))).to(device)
        at += len(images)
    none = made["forget"].rows(torch.arange(0))
    split = Split(made["forget"], made["retain"], made.get("validation", none), control=none, test=none)
    split.check()
    return split
