"""Names under which studies are kept, and the commands that messages tell the user to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_cli import TINY, Call, call
from unlearnlab.naming import again, asked, kept_as
from unlearnlab.studyfiles import read_family

__all__ = ["call"]  # the fixture


@pytest.mark.parametrize(
    ("given", "name"),
    [("digits", "digits"), ("a/b.toml", "b"), ("a/b.toml.few", "b.few"), ("trojan.dense", "trojan.dense"), ("b-small.few", "b-small.few"), ("v1.toml", "v1")],
)
def test_a_study_is_found_however_it_was_named(given: str, name: str) -> None:
    assert kept_as(given) == name


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("digits", "digits"),
        ("digits-small", "digits --small"),
        ("trojan-small.dense", "trojan.dense --small"),
        ("trojan-small.dense.request-2", "trojan.dense --small"),
        ("digits.request-12", "digits"),
        ("a-smaller.one", "a-smaller.one"),
        ("x-small.d/mine.toml", "x-small.d/mine.toml"),
        ("mine-small.toml.few", "mine-small.toml.few"),
    ],
)
def test_the_command_that_makes_it(name: str, command: str) -> None:
    assert again(name) == f"unlearnlab run {command}"


@pytest.mark.parametrize("family", ["digits", "trojan"])
def test_the_small_form_goes_back_to_what_it_is_of(family: str) -> None:
    for name in read_family(family, small=True).studies:
        study, small = asked(name)
        assert small
        assert list(read_family(study, small=True).studies) == [name]


@pytest.fixture
def family(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    path = tmp_path / "mine.toml"
    path.write_text(TINY + '\n[variants.few]\n"forget.count" = 5\n[variants.many]\n"forget.count" = 9\n')
    return path


def test_a_family_of_ones_own_is_run_compared_and_reported(call: Call, family: Path) -> None:
    assert "first: unlearnlab run mine.toml.few" in call("report", "mine.toml.few").err
    assert "each with a report of its own: unlearnlab report mine.few" in call("report", "mine.toml").err
    assert call("run", "mine.toml", "--workers", "1").code == 0
    for words in (("report", "mine.toml.few"), ("report", "mine.many"), ("compare", "mine.toml.few", "mine.toml.many"), ("compare", "mine")):
        assert call(*words).code == 0, words
    assert "each with a report of its own: unlearnlab report mine.few" in call("report", "mine").err  # the file is not named, the store knows


def test_a_study_of_a_family_that_fails_is_named(call: Call, family: Path) -> None:
    family.write_text(family.read_text() + '[variants.all]\n"forget.count" = 60\n')
    said = call("run", "mine.toml", "--workers", "1", "--until", "data")
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith("unlearnlab: mine.all: the forget set is the whole training set")


def test_tuned_settings_are_missed_before_anything_runs(call: Call, family: Path, tmp_path: Path) -> None:
    assert "there is no store here yet" in call("run", "mine.toml", "--tuned", "--dry-run").err
    (tmp_path / "store").mkdir()
    for more in ((), ("--dry-run",)):
        said = call("run", "mine.toml", "--tuned", *more)
        assert (said.code, said.out) == (2, "")
        assert "there are no tuned settings in" in said.err
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("report", "digits-small"), "run it first: unlearnlab run digits --small"),
        (("report", "trojan-small.dense"), "run it first: unlearnlab run trojan.dense --small"),
        (("export", "trojan-small", "out"), "each with logits of its own: unlearnlab export trojan-small.dense"),
        (("report", "digits.request-1"), "run it first: unlearnlab run digits"),
        (("run", "digits-small"), "to run it: unlearnlab run digits --small"),
    ],
)
def test_messages_tell_commands_that_work(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str) -> None:
    monkeypatch.setenv("UNLEARNLAB_STORE", str(tmp_path / "store"))
    said = call(*words)
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert said.err.rstrip().endswith(told)
