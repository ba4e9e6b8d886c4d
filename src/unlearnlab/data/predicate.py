"""Conditions on what is known of images, such as ``age < 20`` or ``user == "u17" and label != 3``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from unlearnlab.data.images import Column, Images
from unlearnlab.spec import InputError, suggest

_ORDER: dict[type[ast.cmpop], Callable[[Tensor, float], Tensor]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq}
GRAMMAR = "compare columns with numbers or quoted text by < <= > >= == != in, and join with and, or, not"


def check_condition(text: str) -> ast.expr:
    """The parsed condition; raises ``InputError`` unless it is made of comparisons only. Nothing in it is ever executed."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"cannot read the condition {text!r}: {getattr(error, 'msg', error)}; {GRAMMAR}") from error
    _refuse_all_else(tree, text)
    return tree


def holds(text: str, images: Images) -> Bool[Tensor, " n"]:
    """For which images a condition is true. It may name the columns of the release, and ``label`` (the release's) and ``id``."""
    known = {**images.columns, "label": Column(images.true_labels.cpu()), "id": Column(images.ids.cpu())}
    return _evaluate(check_condition(text), known, text)


def _refuse_all_else(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _refuse_all_else(value, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _refuse_all_else(node.operand, text)
    elif not isinstance(node, ast.Compare):
        raise InputError(f"cannot read the condition {text!r}: '{ast.unparse(node)}' is no comparison; {GRAMMAR}")


def _evaluate(node: ast.expr, known: Mapping[str, Column], text: str) -> Tensor:
    if isinstance(node, ast.BoolOp):
        parts = torch.stack([_evaluate(value, known, text) for value in node.values])
        return parts.all(0) if isinstance(node.op, ast.And) else parts.any(0)
    if isinstance(node, ast.UnaryOp):
        return ~_evaluate(node.operand, known, text)
    assert isinstance(node, ast.Compare)
    sides = [node.left, *node.comparators]
    return torch.stack([_compare(left, op, right, known, text) for left, op, right in zip(sides, node.ops, sides[1:], strict=False)]).all(0)


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr, known: Mapping[str, Column], text: str) -> Tensor:
    if not isinstance(left, ast.Name) and isinstance(right, ast.Name) and type(op) in _MIRRORED:
        left, op, right = right, _MIRRORED[type(op)](), left  # 20 > age
    if not isinstance(left, ast.Name):
        raise InputError(f"cannot read the condition {text!r}: '{ast.unparse(left)}' is no column; {GRAMMAR}")
    if left.id not in known:
        raise InputError(f"the condition {text!r} names '{left.id}', which these images do not have{suggest(left.id, known)}; they have: {', '.join(known)}")
    column, value = known[left.id], _constant(right, text)
    if isinstance(op, (ast.In, ast.NotIn)):
        if not isinstance(value, (list, tuple, set)):
            raise InputError(f"cannot read the condition {text!r}: after 'in' comes a list, such as {left.id} in [1, 2]")
        found = torch.zeros(len(column.values), dtype=torch.bool)
        for one in value:
            found |= _equal(column, one, left.id, text)
        return found if isinstance(op, ast.In) else ~found
    if isinstance(op, (ast.Eq, ast.NotEq)):
        found = _equal(column, value, left.id, text)
        return found if isinstance(op, ast.Eq) else ~found
    if column.words or type(op) not in _ORDER or isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"the condition {text!r} cannot compare '{left.id}' with {value!r} in this way; text knows == != and in only")
    return _ORDER[type(op)](column.values, value)


def _equal(column: Column, value: object, name: str, text: str) -> Tensor:
    if column.words:
        if not isinstance(value, str):
            raise InputError(f"the condition {text!r} compares '{name}', which is text, with {value!r}; put it in quotes")
        return column.values == (column.words.index(value) if value in column.words else -1)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"the condition {text!r} compares '{name}', which is a number, with {value!r}")
    return column.values == value


def _constant(node: ast.expr, text: str) -> object:
    try:
        value: object = ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot read the condition {text!r}: '{ast.unparse(node)}' is neither a number nor quoted text; {GRAMMAR}") from error
    return value
