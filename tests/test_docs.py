"""The documentation is true of the code: generated pages are fresh, links lead somewhere, commands parse."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from unlearnlab import cli
from unlearnlab.studyfiles import presets, read_family

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
# a prompt, variables and a path may stand before the command
COMMAND = re.compile(r"^\s*(?:\$ )?(?:\w+=\S+ )*(?:\S+/)?unlearnlab(?: +(.*))?$")
MAKE = re.compile(r"^\s*(?:\$ )?make (.+)$")
PLACEHOLDER = re.compile(r"[A-Z]+")


def load() -> ModuleType:
    found = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


make = load()


def snippets(page: Path) -> list[str]:
    """Lines of fenced blocks, and code spans."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()[1:-1]]
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def command_lines() -> list[tuple[str, str]]:
    found = ((page.name, COMMAND.match(line)) for page in PAGES for line in snippets(page))
    return sorted({(name, match[1] or "") for name, match in found if match})


@pytest.mark.parametrize("name", make.pages())
def test_generated_pages_are_fresh(name: str) -> None:
    held = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert held == make.pages()[name], f"docs/{name} is stale; run: {make.COMMAND}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if file.startswith(("https://", "http://", "mailto:")):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {file}, which is not there"
        if anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", FENCE.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
            assert anchor in {make.anchor(head.replace("`", "")) for head in heads}, (
                f"{page.name} links to #{anchor} of {target.name}, which has no such heading"
            )


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_commands_in_the_docs_parse(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(re.split(r"\s[|>]|\s{2,}", line)[0], comments=True)  # up to a redirection or a remark
    if not words or words[-1] in ("--help", "--version"):
        assert all(word.startswith("-") or word in cli.app for word in words)
        return
    assert words[0] in cli.app, f"{page}: there is no command '{words[0]}'"
    _, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
    given = {**bound.arguments}
    name = next((word for word in words[1:] if not word.startswith("-")), "")
    if not name or PLACEHOLDER.fullmatch(name):
        return
    if words[0] in ("run", "report"):
        study = "digits" if ".toml" in name else name  # a user's own file: take its changes to be of digits
        read_family(study, given.get("changes") or ())
    elif words[0] == "presets":
        assert name in presets()
    elif words[0] == "list":
        assert cli.call(words) == 0, capsys.readouterr().err
    elif words[0] == "show":
        told = cli.call(words), capsys.readouterr().err
        assert told[0] == 0 or "here it is called" in told[1], told[1]
    for path in (*(given.get("plugins") or ()), *([given["file"]] if "file" in given else ())):
        assert not str(path).startswith("examples/") or (ROOT / path).exists()


def test_make_targets_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {(page.name, match[1].split()[0]) for page in PAGES for line in snippets(page) if (match := MAKE.match(line))}
    assert asked
    assert not [(page, target) for page, target in asked if target not in targets and "=" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_the_docs_exist(page: Path) -> None:
    named = {name for line in snippets(page) for name in re.findall(r"(?<![\w/.])(?:src|tests|docs|benchmarks|examples)/[\w./-]*\w/?", line)}
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_counts_in_the_comparison_are_those_of_today() -> None:
    text = (ROOT / "docs" / "compared.md").read_text(encoding="utf-8")
    no_methods = {"original", "retrain", "localised", "prune_first", "rum", "sequence"}  # calibration rows, and what holds other methods
    today = {
        "[{}](methods.md)": len(set(make.ours("method")) - no_methods),
        "[{} localisers]": len(make.ours("localiser")),
        "[{}](metrics.md)": len(make.ours("metric")),
        "[{}](forgetsets.md)": len([name for name in make.ours("forget") if not name.startswith("elsewhere")]),
        "[{}](datasets.md)": len(set(make.ours("dataset")) - {"csv", "digits_pairs", "hf", "image_folder", "npz"}),
        "[{}](presets.md)": len([name for name in presets() if not name.startswith("digits")]),
    }
    assert not [said.format(count) for said, count in today.items() if said.format(count) not in text]
