"""Is the number honest? Checks of an edit before it runs, of a gain that is too good, and of keys in text.

The check of an edit reads the syntax tree and judges only what the edit adds or takes away: what the file did before,
it may go on doing. It lists bad cases, so it is a courtesy that tells the proposer early and in words, and no wall:
that is the sandbox, the clock outside and the evaluation apart (docs/SECURITY.md).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from agent.program import Program
from agent.source import read_python

# What an edit may not add, by dotted name with import aliases resolved; a dot at the end means all below.
REFUSED = {
    "reaches outside the training run": "subprocess. socket. ctypes. cffi. urllib. http. requests. httpx. ftplib. "
    "smtplib. ssl. asyncio. pty. fcntl. mmap. psutil. pwd. shutil. tempfile. glob. sqlite3. git. webbrowser. wandb. "
    "mlflow. huggingface_hub. torch.hub. os.system os.popen os.fork os.forkpty os.kill os.killpg os.setsid os.execv "
    "os.execve os.execvp os.spawnv os.listdir os.scandir os.walk os.remove os.unlink os.rename os.replace "
    "os.symlink os.link os.chmod os.chown os.rmdir os.putenv os.getppid os.dup2 os.write os.memfd_create os.environb",
    "changes how Python itself works": "importlib. builtins. runpy. code. atexit. signal. faulthandler. sys.settrace "
    "sys.setprofile sys.modules sys.meta_path sys.path_hooks sys._getframe sys._current_frames threading.settrace "
    "inspect.currentframe inspect.stack inspect.getouterframes gc.get_objects gc.get_referrers gc.get_referents",
    "loads a pickle, which can run any code (save tensors with safetensors)": "pickle. marshal. shelve. dill. joblib. "
    "cloudpickle. torch.load torch.package.",
}
REFUSED_NAMES = {"exec", "eval", "compile", "globals", "__import__", "__builtins__", "__loader__"}
REFUSED_NAMES |= {"__subclasses__", "__globals__", "__code__", "__closure__", "__mro__", "__bases__", "__reduce__"}
REFUSED_NAMES |= {"f_back", "f_locals", "f_globals", "tb_frame", "gi_frame"}
SEEDING = {"manual_seed", "manual_seed_all", "seed", "seed_all", "default_rng", "RandomState", "PRNGKey", "set_seed"}
SEEDING |= {"seed_everything", "set_rng_state"}
SEEDS = {"seed", "random_seed", "rng_seed", "random_state"}
FILES = {"open", "io.open", "os.open", "numpy.load", "numpy.memmap", "numpy.fromfile", "numpy.loadtxt", "numpy.save"}
FILES |= {"numpy.genfromtxt", "torch.from_file", "torch.save", "safetensors.safe_open", "os.makedirs", "os.mkdir"}
FILES |= {"safetensors.torch.load_file", "safetensors.torch.save_file"}
FILE_METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "iterdir", "rglob", "tofile", "symlink_to"}
FILE_METHODS |= {"hardlink_to", "unlink", "touch"}
# How code names the one place that it may write.
OUTPUT = re.compile(r"[Oo]utput|OUTPUT|[Cc]heckpoint|CHECKPOINT|\bpath\b")
PLACE = re.compile(
    r"(?i)^/(proc|sys|dev|etc|home|root|usr|var|tmp|mnt|opt|run|boot|srv|media)\b|^~|^\.\.(/|$)|\.git\b|\.ssh\b|held_?out"
)
SETTINGS = re.compile(r"^(CUDA_|TORCH|PYTORCH_|TRITON_|OMP_|MKL_|OPENBLAS_|NCCL_|CUBLAS_|CUDNN_|TOKENIZERS_|KMP_)")
OURS = {"RESEARCH_OUTPUT", "RESEARCH_SEED"}
EVALUATION = re.compile(r"(?i)held_?out|evaluat|^(val|test)(_|$)|_(val|test)$|^score$|^serve$|violation|^\*$")
SWITCHES = {"backends", "config", "options"}  # torch.backends.x = y and the like set an option, they patch nothing

KEY_NAME = re.compile(r"(?i)(key|token|secret|password|passwd|credential)s?$")
KEY_SHAPE = re.compile(
    r"\b(sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}"
    r"|AIza[\w-]{30,}|glpat-[\w-]{16,})"
)
SHORTEST_KEY = 8  # characters; shorter values are words that stand in every text


def check_edit(before: Mapping[str, str], after: Mapping[str, str], program: Program) -> str | None:
    """Why the edit must not run, in words for the proposer; None: nothing to be seen.

    `before`, `after`: path -> text of the editable files; what does not parse is left to checks.py.
    """
    for path, text in sorted(after.items()):
        if not path.endswith(".py") or text == before.get(path):
            continue
        old_tree, new_tree = read_python(before.get(path, "")).tree, read_python(text).tree
        if old_tree is None or new_tree is None:
            continue
        old, new = (Counter(_Reader(tree, program).read()) for tree in (old_tree, new_tree))
        for rule, code in new - old:
            again = rule == "protected call" and (rule, code) in old and not code.endswith("()")
            if rule != "seeded" and not again:
                return f"{path}: `{code}` {WORDS.get(rule, rule)}"
        seeded = any(rule in ("seed", "seeded") for rule, _ in new)
        for rule, code in old - new:
            if rule == "metric":
                return f"{path}: the edit takes away `{code}`, which prints the metric: leave it in place"
            if rule in ("seed", "seeded") and not seeded or rule == "protected call" and (rule, code) not in new:
                return f"{path}: the edit takes away `{code}`, which the harness needs: leave it in place"
    return None


WORDS = {
    "metric": "touches what prints the metric; change what is measured, and leave the measuring as it is",
    "seed": "sets a seed; the harness gives it (RESEARCH_SEED): use that one as it is, or none",
    "harness": "touches the harness's settings; leave them as they are",
    "protected call": "calls what a protected file gives in a new way; leave these calls as they are",
    "patch": "changes a module or an object of the harness; change your own code instead",
    "evaluation": "reaches into the evaluation; a model learns from the training data only",
    "file": "uses a file; only what is below RESEARCH_OUTPUT may be read or written",
    "place": "names a place outside the training run; only what is below RESEARCH_OUTPUT may be used",
    "environment": "uses the environment; only RESEARCH_OUTPUT, RESEARCH_SEED and the libraries' settings may be",
}


class _Reader:
    """Finds (rule, code) in one syntax tree."""

    def __init__(self, tree: ast.Module, program: Program):
        self.tree, self.holdout = tree, program.holdout
        name = re.escape(program.metric.name)
        self.printed = None if program.evaluate else re.compile(rf"(?i)(?<!\w){name}\s*[:=]")
        self.protected = {PurePosixPath(name).stem for name in program.protect}  # as modules
        self.names: dict[str, str] = {}  # what an imported name stands for
        self.parent: dict[ast.AST, ast.AST] = {}
        for node in ast.walk(tree):
            self.parent |= dict.fromkeys(ast.iter_child_nodes(node), node)
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.split(".")[0]
                    self.names[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                self.names |= {a.asname or a.name: f"{node.module or ''}.{a.name}" for a in node.names}
        assigned = (pair for node in ast.walk(tree) if isinstance(node, ast.Assign) for pair in _pairs(node))
        self.made = {  # names of objects that a protected file made, like `data` in data = prepare.TrainData()
            name.id
            for name, value in assigned
            if isinstance(name, ast.Name) and isinstance(value, ast.Call) and self.is_protected(value.func)
        }
        read = ("['RESEARCH_SEED']", ".get('RESEARCH_SEED', 0)", ".get('RESEARCH_SEED', '0')")
        self.own_seed = {"seed", "SEED", *(f"int(os.environ{text})" for text in read)}
        self.own_seed |= {f"{name}.SEED" for name in self.protected}

    def read(self) -> Iterator[tuple[str, str]]:
        for node in ast.walk(self.tree):
            for rule in self.rules(node):
                shown = ast.unparse(self.around(node, rule))
                yield rule, shown if len(shown) < 200 else shown[:200] + "..."
            if isinstance(node, ast.Call) and (self.is_protected(node.func) or self.root(node.func) in self.made):
                yield "protected call", self.protected_call(node)

    def around(self, node: ast.AST, rule: str) -> ast.AST:
        """What is shown for a finding at this node."""
        if rule == "environment":
            return self.parent[node]
        while rule == "metric" and not isinstance(node, ast.stmt):
            node = self.parent[node]
        return node

    def protected_call(self, node: ast.Call) -> str:
        """The call, with `...` for arguments that are the script's own business: those that name no such object.

        It may be made again where it has arguments; without any it acts on the object itself, like `clock.start()`.
        """
        texts = [ast.unparse(a) if self.names_made(a) else "..." for a in node.args]
        return f"{ast.unparse(node.func)}({', '.join(texts)})"

    def names_made(self, node: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id in self.made for n in ast.walk(node))

    def dotted(self, node: ast.AST) -> str:
        """`F.relu` -> `torch.nn.functional.relu`; empty where it is no chain of names."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id)
        root = self.dotted(node.value) if isinstance(node, ast.Attribute) else ""
        return f"{root}.{node.attr}" if root and isinstance(node, ast.Attribute) else ""

    def is_protected(self, node: ast.AST) -> bool:
        return self.dotted(node).split(".")[0] in self.protected

    def root(self, node: ast.AST) -> str:
        """The name that a chain of attributes and subscripts starts from."""
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        return node.id if isinstance(node, ast.Name) else ""

    def rules(self, node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Import() | ast.ImportFrom():
                module = (node.module or "") + "." if isinstance(node, ast.ImportFrom) else ""
                for alias in node.names:
                    yield from _refused(module + alias.name)
                    if module.rstrip(".") in self.protected and EVALUATION.search(alias.name):
                        yield "evaluation"
            case ast.Name() | ast.Attribute():
                yield from self.named(node)
            case ast.Call():
                yield from self.called(node)
            case ast.Constant(value=str(text)):
                if self.printed and self.printed.search(text):
                    yield "metric"
                if text.startswith("RESEARCH_") and text not in OURS:
                    yield "harness"
                elif PLACE.search(text) or any(name in text for name in self.holdout):
                    yield "place"
            case ast.Assign(targets=targets) | ast.Delete(targets=targets):
                yield from self.stored(targets, getattr(node, "value", None))
            case ast.AnnAssign(target=target, value=value) | ast.AugAssign(target=target, value=value):
                yield from self.stored([target], value)
            case ast.ClassDef() if any(map(self.is_protected, node.bases)):
                yield "patch"

    def named(self, node: ast.Name | ast.Attribute) -> Iterator[str]:
        name = self.dotted(node)
        if self.root(node) in self.names:
            yield from _refused(name)
        last = node.attr if isinstance(node, ast.Attribute) else name
        if last in REFUSED_NAMES and (name == last or "_" in last):  # model.eval() and torch.compile() are others
            yield "changes how Python itself works"
        if isinstance(node, ast.Attribute) and self.is_protected(node) and EVALUATION.search(node.attr):
            yield "evaluation"
        if name == "os.environ":
            above = self.parent[node]
            call = self.parent.get(above)
            called = call.args if isinstance(above, ast.Attribute) and isinstance(call, ast.Call) else []
            keys = [above.slice] if isinstance(above, ast.Subscript) else called
            if not keys or not _allowed(keys[0]):
                yield "environment"

    def called(self, node: ast.Call) -> Iterator[str]:
        name = self.dotted(node.func)
        last = node.func.attr if isinstance(node.func, ast.Attribute) else name.rpartition(".")[2]
        arguments = [ast.unparse(argument) for argument in node.args]
        if last in SEEDING:
            yield "seeded" if arguments and set(arguments) <= self.own_seed else "seed"
        if any(k.arg in SEEDS and ast.unparse(k.value) not in self.own_seed for k in node.keywords):
            yield "seed"
        if name in FILES or last in FILE_METHODS:
            place = (arguments or [""])[name.endswith(("torch.save", "save_file")) and len(arguments) > 1]
            if not OUTPUT.search(place if name in FILES else ast.unparse(node.func)):
                yield "file"
        if name == "os.getenv" and not (node.args and _allowed(node.args[0])):
            yield "environment"
        theirs = {*self.names, *self.made}
        if name in ("setattr", "delattr", "vars") and node.args and self.root(node.args[0]) in theirs:
            yield "patch"

    def stored(self, targets: Iterable[ast.expr], value: ast.expr | None) -> Iterator[str]:
        for target in targets:
            if isinstance(target, ast.Tuple | ast.List):
                yield from self.stored(target.elts, None)
            elif isinstance(target, ast.Name):
                if target.id.lower() in SEEDS and value is not None and ast.unparse(value) not in self.own_seed:
                    yield "seed"
            elif self.root(target) in self.made or (
                self.root(target) in self.names
                and not set(ast.unparse(target).split(".")) & SWITCHES
                and self.dotted(getattr(target, "value", target)) != "os.environ"
            ):
                yield "patch"


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(target, value) of an assignment, element by element where both sides are tuples."""
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def _allowed(key: ast.expr) -> bool:
    """Whether an honest script may use this environment variable."""
    return isinstance(key, ast.Constant) and (key.value in OURS or bool(SETTINGS.match(str(key.value))))


def _refused(name: str) -> Iterator[str]:
    """Why this dotted name may not be used, where it may not."""
    for why, names in REFUSED.items():
        for one in names.split():
            if name == one.rstrip(".") or (one.endswith(".") and name.startswith(one)):
                yield why


def implausible(effect: float, sigma: float, gains: Sequence[float]) -> str | None:
    """Why a gain is too good to be believed at once, or None. It is rerun, and marked for a person to review.

    `effect`: the gain over the incumbent, positive is better. `sigma`: standard deviation of the metric over
    seeds. `gains`: the effects of earlier kept changes. The rule: with fewer than three earlier gains, more than
    20 sigma; after that more than 10 sigma and more than 3 times the largest of them. Honest nights start with
    large gains and go on with smaller ones, while a leak of the answers is larger than everything before.
    """
    largest = max((gain for gain in gains if gain > 0), default=0.0)
    few = sum(gain > 0 for gain in gains) < 3
    threshold = 20 * sigma if few else max(10 * sigma, 3 * largest)
    if sigma <= 0 or effect <= threshold:
        return None
    bound = "3 times the largest gain so far"
    if few or threshold > 3 * largest:
        bound = f"{20 if few else 10} times the noise between seeds"
    return f"a gain of {effect:.4g} is more than {bound} (over {threshold:.4g}): look for a leak before trusting it"


def keys_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values in an environment that are secrets, by the names of their variables; longest first."""
    found = {value for name, value in environment.items() if KEY_NAME.search(name) and len(value) >= SHORTEST_KEY}
    return tuple(sorted(found, key=len, reverse=True))


def redact(text: str, keys: Iterable[str] = ()) -> str:
    """`text` without these keys, and without anything that has the shape of a well-known provider's key."""
    for key in keys:
        text = text.replace(key, "[redacted]")
    return KEY_SHAPE.sub("[redacted]", text)
