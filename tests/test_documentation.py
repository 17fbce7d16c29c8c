"""The Python in the documentation runs and prints what it says."""

import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*sorted(DOCS.glob("tutorials/*.md")), DOCS / "extending.md"]
WITHOUT_CODE = {"index.md"}
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n*```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)

pytestmark = [
    pytest.mark.slow,
    # Small networks, trained for an epoch or not at all: ordinary attacks do fail on some.
    pytest.mark.filterwarnings("ignore:Ordinary attacks on the cross-entropy may be fooled"),
    # peft asks transformers by a name that the latter has deprecated since.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


class Block(NamedTuple):
    """Python of a page, the line where it begins, and what stands below it as its output."""

    line: int
    code: str
    output: str | None


def blocks(text: str) -> list[Block]:
    return [Block(text[: found.start(1)].count("\n"), found[1], found[2]) for found in BLOCK.finditer(text)]


def run(page: str, text: str) -> None:
    """Run the blocks one after the other in one namespace; lines in tracebacks are those of the page."""
    namespace = {"__name__": "page"}
    for block in blocks(text):
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile("\n" * block.line + block.code, page, "exec"), namespace)  # noqa: S102 - what is tested
        if block.output is not None:
            assert printed.getvalue() == block.output, f"{page}, line {block.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert page.name in WITHOUT_CODE or blocks(text)
    assert text.count("```python") == len(blocks(text))
    run(str(page), text)


@pytest.mark.parametrize(
    "page", [*DOCS.glob("*.md"), *DOCS.glob("tutorials/*.md"), DOCS.parent / "README.md"], ids=lambda page: page.name
)
def test_no_line_is_lost_as_a_comment_of_myst(page):
    assert not re.findall(r"^%.*", page.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nx = 1\n```\n\n```python\nprint(x + 1)\n```\n\n```text\n3\n```\n", AssertionError),
        ("```python\nmissing\n```\n", NameError),
    ],
)
def test_a_wrong_page_is_found_out(text, error):
    with pytest.raises(error):
        run("page", text)
