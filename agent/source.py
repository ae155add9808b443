"""The text of an editable file, read once for everybody who asks: does it compile, and is it the same program?

Python is compared by its syntax tree without comments, docstrings and layout. Formats that a parser of the standard
library or PyYAML reads are compared by what they say, and every other language that Pygments knows by its tokens,
without comments. Prose, and what can't be read, is compared as it is, but for blanks at line ends.
"""

from __future__ import annotations

import ast
import configparser
import hashlib
import json
import time
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import yaml

PATIENCE = 1.0  # seconds for a text's tokens: some patterns of Pygments take the square of what is not their language
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
    name = path.rpartition("/")[2]
    key = name.encode(errors="surrogatepass") + b"/" + hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    if key not in _hashes:
        said = _meaning(name, text)
        _hashes[key] = hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()
    return _hashes[key]


_hashes: dict[bytes, str] = {}


def _meaning(name: str, text: str) -> str:
    """What the text of a file of this name says, as text; where it can't be read, the text itself."""
    suffix = name.rpartition(".")[2].lower()
    if suffix == "py":
        tree = read_python(text).tree
        return _lines(text) if tree is None else ast.dump(tree)
    try:
        if suffix in READERS:
            return READERS[suffix](text)
    except (ValueError, RecursionError, yaml.YAMLError, configparser.Error):
        pass  # its words may still be told from comments
    try:
        return _without_comments(name, text)
    except ValueError:
        return _lines(text)


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()


def _json(text: str) -> str:
    """Many readers of JSON let comments stand in it."""
    try:
        return repr(json.loads(text))
    except ValueError:
        return repr(json.loads(_without_comments("a.json", text)))


def _yaml(text: str) -> str:
    """The events of the parser: tags, anchors and the order of keys count, comments and layout don't."""
    fields = ("value", "tag", "implicit", "anchor")
    return repr([(type(e).__name__, *(getattr(e, f, None) for f in fields)) for e in yaml.parse(text, yaml.SafeLoader)])


def _ini(text: str) -> str:
    parser = configparser.RawConfigParser(strict=True, empty_lines_in_values=False)
    parser.optionxform = str  # type: ignore[assignment]  # names of options are compared as they are written
    try:
        parser.read_string(text)
    except configparser.MissingSectionHeaderError:
        parser.read_string(f"[DEFAULT]\n{text}")
    return repr([(section, parser.items(section)) for section in ["DEFAULT", *parser.sections()]])


def _without_comments(name: str, text: str) -> str:
    """The tokens of a language, with single blanks between them; directives that look like comments stay. Raises
    ValueError where the language is not known, or the text is none of it."""
    from pygments.lexer import DelegatingLexer  # here, because few need it
    from pygments.lexers import get_lexer_for_filename
    from pygments.token import Comment, Error, String
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_for_filename(name)
    except ClassNotFound:
        raise ValueError(f"nobody knows what {name} is written in") from None
    if isinstance(lexer, DelegatingLexer) or lexer.name in PROSE or lexer.name in HERE_DOCUMENTS and "<<" in text:
        raise ValueError(f"blanks and lines mean something in {lexer.name}")
    directives = Comment.Preproc, Comment.PreprocFile, Comment.Hashbang, Comment.Special
    said, blank, until = list[str](), "", time.thread_time() + PATIENCE
    for kind, value in lexer.get_tokens(text):
        if kind in Error or time.thread_time() > until:
            raise ValueError(f"{name} is no {lexer.name}")
        if kind in Comment and not any(kind in directive for directive in directives):
            blank += "\n" * value.count("\n") or " "
            continue
        word = value if kind in String else value.strip()
        before, _, after = value.partition(word) if word else (value, "", "")
        if word:
            said += [_blank(blank + before, lexer.name in UNINDENTED), word]
        blank = after if word else blank + before
    return "".join(said).strip()


def _blank(run: str, unindented: bool) -> str:
    """What a run of blanks says: that a line ends, and how far the next one is indented, where that means something."""
    *lines, indent = run.split("\n")
    if not lines:
        return " " if run else ""
    return "\n" if unindented else "\n" + indent


# Names of Pygments' lexers.
UNINDENTED = frozenset(
    ["Bash", "C", "C#", "C++", "CMake", "CUDA", "Docker", "GLSL", "Go", "JSON", "Java", "JavaScript", "Julia", "Kotlin"]
    + ["Lua", "Perl", "Protocol Buffer", "Rust", "S", "Swift", "TOML", "TypeScript", "Zig"]
)
"""Indentation means nothing in them."""
PROSE = frozenset(["Text only", "Text output", "Markdown", "reStructuredText", "TeX", "HTML", "YAML", "INI"])
"""Blanks mean something in them; and what is a comment in YAML and INI only their own parsers know."""
HERE_DOCUMENTS = frozenset(["Bash", "Docker", "Makefile"])
"""What their lexers take for comments may be a here-document's text."""
READERS: dict[str, Callable[[str], str]] = {
    "json": _json,
    "yaml": _yaml,
    "yml": _yaml,
    "toml": lambda text: repr(tomllib.loads(text)),
    "ini": _ini,
    "cfg": _ini,
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
