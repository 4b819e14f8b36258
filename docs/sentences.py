"""Draws random sentences of the project's prose, for a reader who has not seen the code.

    python docs/sentences.py --seed 1

The reader marks each sentence that is not understood at first reading. At most 3 in 100 may be marked. After mending, a new
seed draws other sentences. Sentences come from the comments and docstrings of `src/push1st`, and from the pages of `docs` and
the Markdown files of the root folder. A sentence is printed with its file and the name that it describes, and a table cell with
its row and column, because a reader of the source or of the page sees them too. `--context` also prints the text around each
sentence: the definition with its whole docstring, the comment with the next line of code, the paragraph, or the row of the table.
"""

import argparse
import ast
import inspect
import io
import random
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LEAST_WORDS = 5
"""shorter texts are headings and labels, not sentences"""
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`0-9\"(])|\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.) )|\n(?=\s*\w+(?:, \w+)*: )")
_BEGINS_BLOCK = re.compile(r"\s*(?:[-*|#>]|\d+\.)\s|\|")
_ONLY_CODE = re.compile(r"(?:`[^`]*`[,; ·]*)+")
"""texts of errors and names of tests are no prose"""
_CODE_BLOCK = re.compile(r"^```.*?^```|^ {4}.*?$", re.MULTILINE | re.DOTALL)


def sentences(text: str) -> Iterator[str]:
    for part in _END.split(text.replace("**", "")):
        sentence = " ".join(part.split()).strip("-*# ")
        if len(sentence.split()) >= LEAST_WORDS and not sentence.startswith(("noqa", "type:", "|")):
            yield sentence


class Sentence(NamedTuple):
    place: str
    """the name that the sentence describes, or the row and column of its cell; empty for other sentences"""
    text: str
    context: str
    """the text around the sentence"""


def in_source(file: Path) -> Iterator[Sentence]:
    """Returns the sentences of a module's docstrings, of the strings that describe attributes, and of the comments."""
    source = file.read_text()
    for name, definition, text in docstrings(ast.parse(source), "", ""):
        yield from (Sentence(f", `{name}`" if name else "", sentence, f"{definition}\n{text}") for sentence in sentences(text))
    yield from (Sentence("", sentence, context) for text, context in comments(source) for sentence in sentences(text))


def docstrings(owner: ast.AST, name: str, definition: str) -> Iterator[tuple[str, str, str]]:
    """Returns triples: the name of a class, a function or an attribute, its definition, and the text that describes it."""
    described = name, definition
    for node in getattr(owner, "body", []):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield *described, inspect.cleandoc(node.value.value)
        elif isinstance(node, ast.AnnAssign):
            described = ast.unparse(node.target), ast.unparse(node)
        elif isinstance(node, ast.Assign):
            described = ast.unparse(node.targets[0]), ast.unparse(node)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from docstrings(node, node.name, head(node))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from docstrings(node, name, definition)


def head(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Returns the definition of a class or function without its body."""
    lines = ast.unparse(node).splitlines()
    return next(line for line in lines if line.startswith(("class ", "def ", "async def ")))


def comments(source: str) -> Iterator[tuple[str, str]]:
    """Returns pairs: a comment of one or more lines, and the comment with the line of code that it describes."""
    code = source.splitlines()
    lines: dict[int, str] = {}
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = token.string.lstrip("# ")
    block: list[str] = []
    for number in sorted(lines):
        if block and number - 1 not in lines:
            yield "\n".join(block), "\n".join(code[last - len(block) : last + 1])
            block = []
        block.append(lines[number])
        last = number
    if block:
        yield "\n".join(block), "\n".join(code[last - len(block) : last + 1])


def in_page(file: Path) -> Iterator[Sentence]:
    """Returns the sentences of a page's paragraphs, list items and table cells."""
    block: list[str] = []
    head: list[str] = []
    for line in [*_CODE_BLOCK.sub("", file.read_text()).splitlines(), ""]:
        if block and (not line.strip() or _BEGINS_BLOCK.match(line)):
            yield from (Sentence("", sentence, "\n".join(block)) for sentence in sentences("\n".join(block)))
            block = []
        if not line.startswith("|"):
            head = []
            block += [line] if line.strip() else []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not head:
            head = cells
            continue
        for column, cell in zip(head, cells, strict=True):
            place = f", column {column!r}" if cell is cells[0] else f", row {cells[0]!r}, column {column!r}"
            if not _ONLY_CODE.fullmatch(cell):
                yield from (Sentence(place, sentence, f"{' | '.join(head)}\n{line}") for sentence in sentences(cell))


def draw(seed: int, from_source: int, from_pages: int) -> list[Sentence]:
    """Returns random sentences with their files; the same sentences for the same seed and the same text."""
    chosen = random.Random(seed)  # noqa: S311  not a secret
    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "clients").rglob("*.md")])
    modules = sorted((ROOT / "src/push1st").rglob("*.py"))
    found: list[Sentence] = []
    for files, read, count in ((modules, in_source, from_source), (pages, in_page, from_pages)):
        all_of_them = [
            sentence._replace(place=f"{file.relative_to(ROOT)}{sentence.place}") for file in files for sentence in read(file)
        ]
        found += chosen.sample(all_of_them, min(count, len(all_of_them)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, metavar="N", help="another number draws other sentences")
    parser.add_argument("--source", type=int, default=100, metavar="N", help="sentences from comments and docstrings")
    parser.add_argument("--pages", type=int, default=60, metavar="N", help="sentences from the pages")
    parser.add_argument("--context", action="store_true", help="also print the text around each sentence")
    options = parser.parse_args()
    for number, (place, sentence, context) in enumerate(draw(options.seed, options.source, options.pages), 1):
        print(f"{number:3}  {place}: {sentence}")
        if options.context:
            print(textwrap.indent(f"{context.strip()}\n", "     | "))


if __name__ == "__main__":
    main()
