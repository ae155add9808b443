"""What a training repository tells of itself, for `init`: which script trains, what it prints, which flags it takes,
which files measure and which hold data. Read from the code, which is never run; each finding is a proposal that a
person looks at.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import git

SCRIPTS = ("train.py", "main.py", "run.py", "training.py", "fit.py", "finetune.py", "experiment.py")
FOLDERS = (".", "src", "scripts", "training")
MEASURES = re.compile(r"(?i)(^|_)(prepare|eval|evaluate|evaluation|metrics?|score|valid|validate|test)(_|$)")
FEEDS = re.compile(r"(?i)(^|_)(data|dataset|datasets|dataloader|loader|tokenizer|corpus|prepare|download)(_|$)")
CONFIGS = (".yaml", ".yml", ".toml", ".json")
VALID = re.compile(r"(?i)val|dev|test|acc|score|f1|auc|bpb|perplexity")
LIKELY = re.compile(r"(?i)loss|error|rmse|mae|mse|nll|ppl|reward")  # where no name says that it is of held-out data
SAYS = ("print", "info", "log", "write", "echo", "warning")
NAME = r"[A-Za-z_][\w./@-]{0,48}"
BEFORE_VALUE = re.compile(rf"(?:^|[\s|,;(\[])({NAME})\s*[:=]\s*$")
FORMATTED = re.compile(rf"(?:^|[\s|,;(\[])({NAME})\s*[:=]\s*(?:%[-+#0-9.]*[a-zA-Z]|\{{[^}}]*\}})")
FLAGS = {"{seed}": ("seed", "random-seed"), "{seconds}": ("seconds", "max-seconds", "time-budget", "time-limit"),
         "{output}": ("output", "output-dir", "out-dir", "save-dir", "checkpoint-dir", "model-dir")}  # fmt: skip
LARGEST = 1 << 20  # bytes of a file that is read


@dataclass(frozen=True)
class Printed:
    """A number that the code prints under a name. `alone`: on a line of its own, as `name: value`."""

    name: str
    alone: bool

    @property
    def pattern(self) -> str:
        """What finds it in a line that holds more."""
        return rf"{re.escape(self.name)}\s*[:=]?\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)"


@dataclass(frozen=True)
class Found:
    """What there is to write into program.md."""

    script: str
    printed: tuple[Printed, ...]
    """By what measures: the evaluation, where there is one, else the training script."""
    edit: tuple[str, ...]
    protect: tuple[str, ...]
    run: str
    evaluate: str | None
    data: tuple[str, ...]
    speaks: bool
    """It prints progress with a step and a loss, so that a night sees its curve."""

    @property
    def metric(self) -> Printed | None:
        """What looks most like a validation metric, or else like a loss; the last such one. None: nothing does."""
        marked = [[p for p in self.printed if like.search(p.name)] for like in (VALID, LIKELY)]
        return ([*marked[1], *marked[0]] or [None])[-1]


def scripts(root: Path) -> list[str]:
    """Files that look like a training script, the likeliest first."""
    named = [f"{folder}/{name}".removeprefix("./") for name in SCRIPTS for folder in FOLDERS]
    other = sorted(p.relative_to(root).as_posix() for f in FOLDERS for p in (root / f).glob("*train*.py"))
    return [path for path in dict.fromkeys([*named, *other]) if (root / path).is_file()]


def look(root: Path, script: str) -> Found:
    """What the script and the files beside it say."""
    source = read(root / script)
    tree, folder = parsed(source), (root / script).parent
    local = [path.relative_to(root).as_posix() for path in imported(tree, root, folder)]
    beside = [p.relative_to(root).as_posix() for p in sorted({*root.glob("*.py"), *folder.glob("*.py")})]
    judges = [path for path in beside if path != script and MEASURES.search(Path(path).stem)]
    protect = [path for path in dict.fromkeys([*judges, *local]) if is_fixed(path)]
    configs = [path for path in named_files(tree, root, folder) if path.endswith(CONFIGS)]
    edit = [script, *(path for path in local if path not in protect), *configs]
    flags = flags_of(tree)
    evaluate = next((command for path in judges if (command := evaluation(root, path, flags))), None)
    printed = prints(root / (evaluate.split()[1] if evaluate else script))
    python = "uv run" if (root / "uv.lock").is_file() else "python"
    return Found(
        script=script,
        printed=tuple(dict.fromkeys(printed)),
        edit=tuple(dict.fromkeys(edit)),
        protect=tuple(protect),
        run=" ".join([python, script, *flags]),
        evaluate=evaluate,
        data=tuple(ignored(root, source, *(read(root / path) for path in protect))),
        speaks=bool(re.search(r"(?i)\b(step|iter|epoch|batch)", source) and re.search(r"(?i)loss", source)),
    )


def is_fixed(path: str) -> bool:
    """Whether it is for data or measuring, which an agent must not change."""
    return bool(MEASURES.search(Path(path).stem) or FEEDS.search(Path(path).stem))


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size < LARGEST else ""
    except OSError:
        return ""


def parsed(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ast.Module(body=[], type_ignores=[])


def prints(path: Path) -> list[Printed]:
    """The named numbers that a file prints or logs, in order."""
    calls = [node for node in ast.walk(parsed(read(path))) if isinstance(node, ast.Call) and said_by(node) in SAYS]
    return [found for call in sorted(calls, key=lambda c: (c.lineno, c.col_offset)) for found in told(call)]


def said_by(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def told(call: ast.Call) -> Iterator[Printed]:
    """The names before the values of one call that prints."""
    if not call.args:
        return
    first, *rest = call.args
    if isinstance(first, ast.JoinedStr):
        yield from told_by_f_string(first)
    elif isinstance(first, ast.Constant) and isinstance(first.value, str):
        found = BEFORE_VALUE.search(first.value.lstrip("\n"))
        if rest and found:  # print("loss:", loss)
            yield Printed(found[1], alone=len(rest) == 1 and first.value.strip().rstrip(":= ") == found[1])
    elif (text := template(first)) is not None:
        names = FORMATTED.findall(text)
        whole = re.fullmatch(rf"\s*{NAME}\s*[:=]\s*(?:%[-+#0-9.]*[a-zA-Z]|\{{[^}}]*\}})\s*", text)
        yield from (Printed(name, alone=whole is not None) for name in names)


def told_by_f_string(text: ast.JoinedStr) -> Iterator[Printed]:
    values = [part for part in text.values if isinstance(part, ast.FormattedValue)]
    rest = "".join(str(part.value) for part in text.values if isinstance(part, ast.Constant)).strip()
    for before, value in zip(text.values, text.values[1:], strict=False):
        text_before = str(before.value) if isinstance(before, ast.Constant) else ""
        if isinstance(value, ast.FormattedValue) and (found := BEFORE_VALUE.search(text_before.lstrip("\n"))):
            yield Printed(found[1], alone=len(values) == 1 and rest.rstrip(":= ") == found[1])


def template(node: ast.expr) -> str | None:
    """Of `"..." % values` and `"...".format(values)`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        node = node.left
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        node = node.func.value
    else:
        return None
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def imported(tree: ast.Module, root: Path, folder: Path) -> list[Path]:
    """Files of this project that a script imports, in order."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names)]
    found = []
    for name in filter(None, names):
        for base in (folder, root):
            path = base.joinpath(*name.split(".")).with_suffix(".py")
            if path.is_file():
                found.append(path)
                break
    return list(dict.fromkeys(found))


def named_files(tree: ast.Module, root: Path, folder: Path) -> list[str]:
    """Files of this project that a string of the script names."""
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    found = []
    for text in sorted(s for s in strings if 0 < len(s) < 200 and "\n" not in s and "\0" not in s):
        for base in (folder, root):
            path = base / text
            if path.is_file() and path.resolve().is_relative_to(root):
                found.append(path.resolve().relative_to(root).as_posix())
                break
    return found


def flags_of(tree: ast.Module) -> list[str]:
    """Flags of the script for what a night says: its seed, its seconds, its output."""
    known = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and said_by(node) in ("add_argument", "option", "Option"):
            texts = (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
            known |= {text for text in texts if text.startswith("--")}
    found = []
    for value, names in FLAGS.items():
        spelled = (f"--{spelling}" for name in names for spelling in (name, name.replace("-", "_")))
        if (flag := next((flag for flag in spelled if flag in known), None)) is not None:
            found += [flag, value]
    return found


def evaluation(root: Path, path: str, flags: list[str]) -> str | None:
    """A command that measures what training has saved; None where the file can't be told where that is."""
    source = read(root / path)
    tree = parsed(source)
    if "__main__" not in source or not prints(root / path):
        return None
    where = flags_of(tree)
    if "{output}" in where and "{output}" in flags:
        at = where.index("{output}")
        return " ".join(["python", path, *where[at - 1 : at + 1]])
    return f"python {path}" if "RESEARCH_OUTPUT" in source else None


def ignored(root: Path, *sources: str) -> list[str]:
    """Folders and files here that are not in git, and that the code names: data."""
    try:
        repo = git.Repo(root, search_parent_directories=True)
        listed = repo.git.ls_files("--others", "--directory", "--", str(root)).splitlines()
    except git.GitError:
        return []
    top = Path(str(repo.working_dir)).resolve()
    found = []
    for line in listed:
        path = (top / line.rstrip("/")).resolve()
        if path.name.startswith(".") or not path.is_relative_to(root.resolve()):
            continue
        name = path.relative_to(root.resolve()).as_posix()
        if any(re.search(rf"['\"/]{re.escape(path.name)}['\"/]", source) for source in sources):
            found.append(name)
    return found[:8]
