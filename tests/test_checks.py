"""What is refused before a trial, and what is not, on this repository's own train.py."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.judge.checks import check, fingerprint, tried
from agent.records import Experiment, Proposal, Verdict, VerdictKind

ROOT = Path(__file__).parent.parent
REAL = (ROOT / "train.py").read_text(encoding="utf-8")
PROPOSAL = Proposal(hypothesis="h", category="other", edits=())


def experiment(
    number: int, files: dict[str, str], kind: VerdictKind = "discard", parent: str = "c0", metric: float | None = 1.5
) -> Experiment:
    return Experiment(
        number=number,
        state="published",
        parent=parent,
        commit=f"c{number}",
        files=files,
        proposal=PROPOSAL,
        verdict=Verdict(kind=kind, reason="r", metric=metric),
    )


def judged(after: str, before: str = REAL, history: tuple[Experiment, ...] = ()):
    return refusal({"train.py": before}, {"train.py": after}, history)


def refusal(before: dict[str, str], after: dict[str, str], history: tuple[Experiment, ...] = ()):
    return check(before, after) or tried(before, after, history)


def changed(*names: str, text: str = REAL) -> str:
    """The file with these module-level numbers changed, as a proposer would."""
    for name in names:
        new = re.sub(rf"(?m)^({name}\b[^=\n]*= )([0-9.e-]+)", r"\g<1>3 * \2", text, count=1)
        assert new != text, name
        text = new
    return text


def constants() -> list[str]:
    tree = ast.parse(REAL)
    return [
        n.targets[0].id
        for n in tree.body
        if isinstance(n, ast.Assign)
        and isinstance(n.targets[0], ast.Name)
        and isinstance(n.value, ast.Constant)
        and type(n.value.value) in (int, float)
    ]


@pytest.mark.parametrize("name", constants())
def test_any_one_constant_may_change(name):
    assert judged(changed(name)) is None


def test_comments_docstrings_and_layout_change_nothing_that_runs():
    other = "# a comment\n" + REAL.replace("\n\n\n", "\n\n\n\n")
    other = re.sub(r"(?m)^( *)return ", r"\1# why\n\1return ", other)
    other = re.sub(r'"""[^"]*"""', '"""Another docstring."""', other)
    assert other != REAL and fingerprint({"train.py": other}) == fingerprint({"train.py": REAL})
    kind, reason = judged(other) or ("", "")
    assert kind == "invalid" and "changes nothing that runs" in reason
    assert judged("A = 0.001\n", "A = 1e-3\n") is not None


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_every_change_of_a_number_is_seen_and_every_comment_is_not(data):
    lines = REAL.split("\n")
    at = data.draw(st.sampled_from([i for i, line in enumerate(lines) if re.match(r"[A-Z_]+ = [0-9.]+\b", line)]))
    number = data.draw(st.floats(0, 1e6).filter(lambda x: repr(x) not in lines[at]))
    commented = [*lines[:at], lines[at] + "  # " + data.draw(st.from_regex(r"\A[ -~]*\Z")), *lines[at + 1 :]]
    renumbered = [*lines[:at], re.sub("= .*", f"= {number + 1e7}", lines[at]), *lines[at + 1 :]]
    assert fingerprint({"train.py": "\n".join(commented)}) == fingerprint({"train.py": REAL})
    assert fingerprint({"train.py": "\n".join(renumbered)}) != fingerprint({"train.py": REAL})


def test_what_does_not_parse_is_invalid_with_the_line():
    kind, reason = judged("A = 1\nB = (\n", "A = 1\nB = 2\n") or ("", "")
    assert kind == "invalid" and "line 2" in reason


@pytest.mark.parametrize("kind", ["keep", "discard", "crash", "timeout", "violation"])
def test_the_same_code_again_is_a_duplicate_and_says_how_it_went(kind):
    tried = changed(constants()[0])
    history = (experiment(0, {}, "baseline"), experiment(1, {"train.py": tried}, kind, metric=1.25))
    assert judged(tried + "\n# said otherwise\n", REAL, history) == (
        "duplicate",
        f"same code as experiment 1: {kind}, 1.25; propose something else",
    )
    assert judged(changed(constants()[1]), REAL, history) is None


def test_what_never_ran_is_no_duplicate():
    tried = changed(constants()[0])
    for kind in ("invalid", "duplicate"):
        assert judged(tried, REAL, (experiment(1, {"train.py": tried}, kind, metric=None),)) is None


def test_the_baseline_again_is_a_duplicate():
    kept = changed(constants()[0])
    history = (experiment(0, {"train.py": REAL}, "baseline"), experiment(1, {"train.py": kept}, "keep"))
    assert (judged(REAL, kept, history) or ("",))[0] == "duplicate"


def test_unchanged_files_come_from_the_parents():
    """Each experiment records one of the two files; the same pair is found, a different pair is not."""
    base = {"a.py": "A = 1\n", "b.py": "B = 1\n"}
    history = (
        experiment(0, base, "baseline"),
        experiment(1, {"a.py": "A = 2\n"}, "discard", "c0"),
        experiment(2, {"b.py": "B = 2\n"}, "keep", "c0"),
        experiment(3, {"a.py": "A = 3\n"}, "discard", "c2"),
    )
    now = {"a.py": "A = 1\n", "b.py": "B = 2\n"}
    assert refusal(now, {"a.py": "A = 2\n"}, history) is None  # tried with the other b.py only
    assert (refusal(now, {"a.py": "A = 3\n"}, history) or ("", ""))[1].startswith("same code as experiment 3")
    assert (refusal(now, {"a.py": "A = 2\n", "b.py": "B = 1\n"}, history) or ("", ""))[1].startswith(
        "same code as experiment 1"
    )
    assert (refusal(now, {"b.py": "B = 1\n"}, history) or ("", ""))[1].startswith("same code as experiment 0")


def test_an_unknown_file_is_not_guessed():
    history = (experiment(1, {"a.py": "A = 2\n"}), experiment(2, {"b.py": "B = 2\n"}, "keep", "c0"))
    now = {"a.py": "A = 1\n", "b.py": "B = 2\n"}  # nobody recorded what b.py was in experiment 1
    assert refusal(now, {"a.py": "A = 2\n"}, history) is None


def test_changes_of_any_size_are_tried():
    assert judged(REAL.replace("relu", "silu")) is None
    assert judged(changed(*constants())) is None


@pytest.mark.parametrize(
    ("path", "text", "same", "other"),
    [
        ("a.yaml", "a: 1\nb: [x, y]\n", "# why\na:   1 # so\nb:\n- x\n- y\n", "a: 1\nb: [y, x]\n"),
        ("a.yml", "a: 1\n", "{a: 1}\n", "a: '1'\n"),
        ("a.json", '{"a": [1, 2]}', '{\n  "a": [1,\n 2]\n}\n', '{"a": [1, 2.0]}'),
        ("a.toml", "[a]\nb = 1\n", "# c\n[a]\n\nb=1 # d\n", "[a]\nb = 1.0\n"),
        ("conf/a.cfg", "[a]\nb = 1\n", "; c\n[a]\n\nb=1\n", "[a]\nB = 1\n"),
        ("run.sh", "#!/bin/sh\nset -e\npython a.py\n", "#!/bin/sh\n# c\n\nset -e\n  # don't\npython a.py\n",
         "#!/bin/bash\nset -e\npython a.py\n"),
        ("run.sh", "cat <<E\nx\nE\n", "cat <<E\nx\nE\n\n", "cat <<E\nx\n# y\nE\n"),
        ("run.sh", "echo 'a\nb'\n", "echo 'a\nb'  \n", "echo 'a\n# b\nb'\n"),
        ("kernel.cu", "#define A 1\nint f() { return A; }\n",
         "// c\n#define A 1 // d\n\nint f() {  return A; /* e */ }\n",
         "#define A 2\nint f() { return A; }\n"),
        ("a.cpp", 'auto s = "a  // b";\n', '  auto s = "a  // b"; // c\n', 'auto s = "a // b";\n'),
        ("a.jl", "x = 1\ny = 2\n", "# c\nx = 1 # d\n#= e\n f =#\ny = 2\n", "x = 1 y = 2\n"),
        ("notes.txt", "a\nb\n", "a  \nb\n\n", "a\n# c\nb\n"),
        ("a.json", "{broken", "{broken\n", "{broken 2"),
        ("a.json", '{"a": 1, "b": "x // y"}\n', '{ // why\n  "a": 1, /* so */\n  "b": "x // y"\n}\n',
         '{ // why\n  "a": 1, /* so */\n  "b": "x // z"\n}\n'),
        ("CMakeLists.txt", 'set(A "x # y")\nset(B 1)\n', '# c\nset(A  "x # y") # d\n#[[ e\nf ]]\n  set(B 1)\n',
         'set(A "x # z")\nset(B 1)\n'),
        ("lib/ops.cmake", "set(A 1)\n", "# c\n\nset(A 1) # d\n", "set(A 2)\n"),
        ("Makefile", 'A = 1\nall:\n\techo "a # b"\n', '# c\nA = 1 # d\n\nall:\n\t# e\n\techo "a # b" # f\n',
         'A = 1\nall:\n\techo "a # c"\n'),
        ("Makefile", "all:\n\ttrue\n", "# c\nall:\n\ttrue\n", "all:\ntrue\n"),
        ("Dockerfile", 'FROM x\nRUN echo "a # b"\n', '# c\nFROM  x\n\n# d\nRUN echo "a # b"\n',
         'FROM x\nRUN echo "a # c"\n'),
        ("Dockerfile", "FROM x\nRUN <<E\na\nE\n", "FROM x \nRUN <<E\na\nE\n", "FROM x\nRUN <<E\n# b\na\nE\n"),
        ("a.toml", "a = 1\na = 2\n", "# c\na = 1 # d\na = 2\n", "a = 1\na = 3\n"),  # broken: a name twice
        ("a.ini", "a = 1\nb = x#y\n", "; c\na = 1\n# d\nb = x#y\n", "a = 1\nb = x#z\n"),  # without a section
        ("run.sh", 'python a.py "a # b" ${x#y} $#\n', '# c\npython a.py "a # b" ${x#y} $# # d\n',
         'python a.py "a # b" ${x#z} $#\n'),
        ("ops.pyx", "def f():\n    a = 1\n    b = 2\n", "# c\ndef f(): # d\n    a = 1\n\n  # e\n    b = 2\n",
         "def f():\n    a = 1\nb = 2\n"),
        ("a.R", "x <- 1\n", "# c\nx <- 1 # d\n", "x <- 2\n"),
        ("a.h", "int f(int);\n", "/* c\nd */\nint  f(int); // e\n", "int g(int);\n"),
        ("a.ts", "let a = `x  y`\n", "// c\nlet a = `x  y` // d\n", "let a = `x y`\n"),
        ("a.rs", "fn f() {}\n", "// c\nfn f() {} /* d */\n", "fn g() {}\n"),
        ("a.sql", "select '-- a'\n", "-- c\nselect '-- a' -- d\n", "select '-- b'\n"),
        ("README.md", "a\nb\n", "a  \nb\n", "a\n\nb\n"),
        ("prompt.unknown", "a # b\n", "a # b  \n", "a # c\n"),
    ],
)  # fmt: skip
def test_comments_and_layout_change_nothing_in_any_kind_of_file(path, text, same, other):
    assert (check({path: text}, {path: same}) or ("", ""))[1].startswith("changes nothing that runs")
    assert check({path: text}, {path: other}) is None


def test_a_text_that_would_take_a_quarter_of_an_hour_to_read_is_compared_by_its_lines():
    text = "a " * 100_000
    assert check({"A.java": text}, {"A.java": text + "\n"}) and not check({"A.java": text}, {"A.java": text + "b"})


def test_an_expression_too_deep_to_be_read_is_refused_and_not_passed_over():
    for deep in ("+".join(["1"] * 3000), "-" * 100_000 + "1", "[" * 150 + "]" * 150, "a" + ".b" * 50_000):
        kind, reason = judged(f"A = {deep}\n", "A = 1\n") or ("", "")
        assert kind == "invalid" and "not be valid Python" in reason


def test_a_night_s_texts_leave_no_trees_in_memory():
    """A tree takes a megabyte, and a night compares a thousand texts."""
    code = (
        "import resource, sys; from agent.source import program_hash\n"
        "text = open(sys.argv[1]).read(); peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for n in range(10): program_hash('train.py', f'A = {n}\\n{text}')\n"
        "before = peak()\n"
        "for n in range(10, 60): program_hash('train.py', f'A = {n}\\n{text}')\n"
        "print(peak() - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code, ROOT / "train.py"], cwd=ROOT, capture_output=True, check=True)
    assert int(ran.stdout) < 20_000  # kB; 50 trees are more than twice that


def test_files_that_are_no_python():
    assert fingerprint({"a.yaml": "a: 1\n"}) == fingerprint({"a.yaml": "a: 1  \n\n"}) != fingerprint({"a.yaml": "a: 2"})
    assert check({"a.yaml": "a: 1\n"}, {"a.yaml": "a: 2\n"}) is None
    assert check({"a.py": "print 1\n"}, {"a.py": "print 2\n"}) is None  # for another Python


@given(st.text(max_size=80), st.text(max_size=80))
@settings(deadline=None)
def test_any_text_gets_an_answer(before, after):
    answer = judged(after, before)
    assert answer is None or answer[0] in ("invalid", "duplicate")
