"""The text of an editable file, read once for everybody who asks: does it compile, and is it the same program?

Python is compared by its syntax tree without comments, docstrings and layout. Formats that a parser of the standard
library or PyYAML reads are compared by what they say, and code in other common languages without its comments and
layout. Any other text is compared as it is, but for blanks at line ends.
"""

from __future__ import annotations

import ast
import configparser
import hashlib
import json
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import yaml

DEEPEST = 150  # levels of a syntax tree: what walks one recursively needs up to four stack frames for each level
KEPT_TREES = 4  # the incumbent's file and the candidate's, with some to spare; a tree of train.py takes about 1 MB


@dataclass(frozen=True)
class Source:
    """One Python text. Exactly one of the two fields is set; the tree is shared by all callers: don't change it."""

    error: str = ""
    """Where and why it does not compile."""
    tree: ast.Module | None = None
    """Without docstrings, `pass` and other statements that do nothing."""


@lru_cache(maxsize=KEPT_TREES)
def read_python(text: str) -> Source:
    """Parse and compile the text. Never raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
            if _deeper_than(DEEPEST, tree):
                return Source("it is nested too deeply: split the longest expression")
            compile(tree, "<edit>", "exec", dont_inherit=True)
    except SyntaxError as error:
        line = "".join(text.split("\n")[(error.lineno or 1) - 1 : error.lineno or 1]).strip()[:200]
        return Source(f"line {error.lineno}: {error.msg}\n    {line}".rstrip())
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return Source(str(error) or type(error).__name__)
    return Source(tree=_WithoutIdleStatements().visit(tree))


def syntax_error(text: str, path: str) -> str:
    """Where and why Python text does not compile, or ""."""
    error = read_python(text).error
    return f"{path} would not be valid Python: {error}" if error else ""


def program_hash(path: str, text: str) -> str:
    """Equal for two texts that say the same in other clothes. SHA-256, in hexadecimal.

    Texts of a whole night are compared, so the answers are kept (200 bytes for each version of a file), not the trees.
    """
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    key = suffix.encode() + hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    if key not in _hashes:
        said = _meaning(suffix, text)
        _hashes[key] = hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()
    return _hashes[key]


_hashes: dict[bytes, str] = {}


def _meaning(suffix: str, text: str) -> str:
    """What the text says, as text; where its format can't be read, the text itself."""
    if suffix == "py":
        tree = read_python(text).tree
        return _lines(text) if tree is None else ast.dump(tree)
    try:
        if suffix in UNINDENTED:
            return _without_comments(suffix, text)
        return READERS[suffix](text) if suffix in READERS else _lines(text)
    except (ValueError, RecursionError, yaml.YAMLError, configparser.Error):
        return _lines(text)


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()


def _yaml(text: str) -> str:
    """The events of the parser: tags, anchors and the order of keys count, comments and layout don't."""
    fields = ("value", "tag", "implicit", "anchor")
    return repr([(type(e).__name__, *(getattr(e, f, None) for f in fields)) for e in yaml.parse(text, yaml.SafeLoader)])


def _ini(text: str) -> str:
    parser = configparser.RawConfigParser(strict=True, empty_lines_in_values=False)
    parser.optionxform = str  # type: ignore[assignment]  # names of options are compared as they are written
    parser.read_string(text)
    return repr([(section, parser.items(section)) for section in ["DEFAULT", *parser.sections()]])


def _shell(text: str) -> str:
    """Lines that hold only a comment are dropped, where no quote or here-document can make them part of a text."""
    first, *others = _lines(text).split("\n")
    code = [line for line in others if line.strip() and not line.lstrip().startswith("#")]
    code.insert(0, first if first.startswith("#!") or not first.startswith("#") else "")
    open_ended = any(line.endswith("\\") or any(line.count(quote) % 2 for quote in "'\"`") for line in code)
    return _lines(text) if "<<" in text or open_ended else "\n".join(code)


def _without_comments(suffix: str, text: str) -> str:
    """The tokens of a language in which indentation means nothing; directives that look like comments stay."""
    from pygments.lexers import get_lexer_by_name  # here, because few need it
    from pygments.token import Comment, Text

    directives = Comment.Preproc, Comment.PreprocFile, Comment.Hashbang, Comment.Special
    said: list[str] = []
    for kind, value in get_lexer_by_name(UNINDENTED[suffix]).get_tokens(text):
        if kind in Text or kind in Comment and not any(kind in directive for directive in directives):
            blank = "\n" if "\n" in value else " "
            before = said.pop() if said and said[-1] in ("\n", " ") else " "
            said.append(min(before, blank))  # a run of blanks with a line end in it is a line end
        else:
            said.append(value)
    return _lines("".join(said)).strip()


UNINDENTED = {
    **dict.fromkeys(("c", "h"), "c"),
    **dict.fromkeys(("cc", "cpp", "cxx", "hpp", "hh"), "cpp"),
    **dict.fromkeys(("cu", "cuh"), "cuda"),
    **dict.fromkeys(("js", "mjs", "cjs"), "javascript"),
    **{"ts": "typescript", "rs": "rust", "go": "go", "java": "java", "jl": "julia", "lua": "lua", "r": "r"},
}
"""Suffix -> lexer of Pygments."""
READERS: dict[str, Callable[[str], str]] = {
    "json": lambda text: repr(json.loads(text)),
    "yaml": _yaml,
    "yml": _yaml,
    "toml": lambda text: repr(tomllib.loads(text)),
    "ini": _ini,
    "cfg": _ini,
    "sh": _shell,
    "bash": _shell,
}


def _deeper_than(most: int, tree: ast.AST) -> bool:
    level: list[ast.AST] = [tree]
    for _ in range(most):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return False
    return True


class _WithoutIdleStatements(ast.NodeTransformer):
    """Drops docstrings and every other statement that is a bare constant, and `pass`."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None
