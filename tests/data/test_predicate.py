"""Conditions on columns: what they select, and what they refuse to be."""

from __future__ import annotations

import pytest
import torch

from unlearnlab.data.images import Column, Images
from unlearnlab.data.predicate import check_condition, holds
from unlearnlab.spec import InputError


@pytest.fixture(scope="module")
def people() -> Images:
    columns = {
        "age": Column(torch.tensor([5, 19, 20, 64, 101])),
        "score": Column(torch.tensor([0.5, -1.0, 0.25, 0.5, 2.0], dtype=torch.float64)),
        "user": Column(torch.tensor([1, 0, 1, 2, 0]), ("u1", "u17", "u2")),
    }
    return Images(torch.zeros(5, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 2, 1, 0]), torch.arange(5) + 40, 3, columns=columns)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("age < 20", [0, 1]),
        ("20 > age", [0, 1]),
        ("10 <= age <= 64", [1, 2, 3]),
        ("score == .5", [0, 3]),
        ("score < -.5", [1]),
        ('user == "u17"', [0, 2]),
        ("user != 'u17'", [1, 3, 4]),
        ("user == 'nobody'", []),
        ("user in ['u1', 'u2']", [1, 3, 4]),
        ("age not in (5, 19)", [2, 3, 4]),
        ("label == 1 and not age > 50", [1]),
        ("age < 10 or (label == 0 and score > 1)", [0, 4]),
        ("id >= 43", [3, 4]),
    ],
)
def test_what_it_selects(people, text, rows):
    assert holds(text, people).nonzero()[:, 0].tolist() == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age <", "cannot read the condition"),
        ("age", "is no comparison"),
        ("__import__('os').system('true') == 0", "is no column"),
        ("age < int('3')", "neither a number nor quoted text"),
        ("user < 'u2'", "text knows == != and in only"),
        ("user == 3", "which is text, with 3; put it in quotes"),
        ("age == 'old'", "which is a number, with 'old'"),
        ("age < 'old'", "in this way"),
        ("agee < 3", "did you mean 'age'"),
        ("age in 3", "after 'in' comes a list"),
        ("5 < 6", "is no column"),
        ("age is 3", "in this way"),
    ],
)
def test_what_it_refuses(people, text, words):
    with pytest.raises(InputError, match=words):
        holds(text, people)


def test_form_is_checked_without_any_images():
    check_condition("age < 20 and user == 'u17'")
    with pytest.raises(InputError, match="is no comparison"):
        check_condition("age < 20 and 1 + 1")
