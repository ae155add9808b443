"""What was compiled for one trial serves those that may use it, and no others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_local import GOOD, Lab, contract, write

from agent.protocols import Job
from agent.run.cache import CompileCache, ModuleCache, copy_plain
from agent.run.sandbox import choose_sandbox
from bench.one_trial import run_one

COMPILES = GOOD + """
cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
print("found:", len(list(cache.rglob("*.bin"))))
cache.mkdir(parents=True, exist_ok=True)
(cache / (os.environ["RESEARCH_SEED"] + ".bin")).write_text(str(cache))
(cache / "link").symlink_to("/etc/passwd")
"""


@pytest.mark.parametrize("sandbox", ["bubblewrap", "landlock", "none"])
def test_what_was_compiled_serves_the_same_commit_and_what_is_built_on_it(tmp_path, sandbox):
    lab = Lab(tmp_path, sandbox=choose_sandbox(sandbox))
    program = contract(evaluate=EVALUATE_CACHE, protect=[])
    first = lab.job(COMPILES, program)

    def found(job: Job, **changes) -> float:
        return run_one(lab.executor, job.model_copy(update=changes), 60).numbers["found"]

    assert found(first) == 0
    assert found(first, number=1, seed=43) == 1, "a second trial of the same code starts warm"
    other = lab.job(COMPILES, program)
    assert found(other) == 0, "another experiment starts cold"
    child = lab.job(COMPILES, program)
    assert found(child, builds_on=1) == 2, "what is built on it starts from the entries of both trials"
    lab.executor.discard(2)
    assert found(lab.job(COMPILES, program), builds_on=2) == 0, "what was not kept leaves nothing"
    assert found(lab.job(COMPILES, program), builds_on=1) == 2


# The evaluation starts with an empty cache: it fails where it finds anything.
EVALUATE_CACHE = (
    "python -c \"import os, pathlib; c = pathlib.Path(os.environ['TORCHINDUCTOR_CACHE_DIR']); "
    "assert not list(c.rglob('*.bin')); print('val_bpb: 0.5')\""
)


def test_only_plain_files_of_a_bounded_size_are_taken_over(tmp_path):
    made, kept = tmp_path / "made", tmp_path / "kept"
    (made / "deep").mkdir(parents=True)
    (made / "deep" / "a").write_text("entry")
    (made / "link").symlink_to("/etc/passwd")
    (made / "folder").symlink_to("/etc")
    os.mkfifo(made / "pipe")
    copy_plain(made, kept)
    assert [str(path.relative_to(kept)) for path in kept.rglob("*")] == ["deep", "deep/a"]
    copy_plain(made, tmp_path / "none", most_bytes=3)
    assert not list((tmp_path / "none").rglob("*"))


def test_what_a_later_trial_compiles_is_added_and_what_was_there_stays(tmp_path):
    cache, place = CompileCache(tmp_path / "compiled"), Path("/tmp/compiled")
    for number in (1, 2):
        write(tmp_path / str(number) / "entry", str(number))
        write(tmp_path / str(number) / "group" / f"kernel{number}", "code")
        cache.take(7, place, tmp_path / str(number))
    lent = tmp_path / "lent"
    cache.lend(8, 7, place, lent)
    assert (lent / "entry").read_text() == "1"
    assert sorted(path.name for path in (lent / "group").iterdir()) == ["kernel1", "kernel2"]
    assert len(list((tmp_path / "compiled" / "7").iterdir())) == 1, "no half-made copy is left"
    cache.lend(8, 7, Path("/elsewhere"), tmp_path / "other")
    assert not (tmp_path / "other").exists(), "entries hold paths, so they serve at one place only"


def test_the_baseline_compiles_the_modules_of_packages_for_all_trials(tmp_path, monkeypatch):
    """As on an image whose packages came without compiled modules."""
    packages = tmp_path / "site-packages"
    (packages / "slow").mkdir(parents=True)
    (packages / "slow" / "__init__.py").write_text("VALUE = 1\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    assert ModuleCache(tmp_path / "modules").needed
    made = tmp_path / "made"
    subprocess.run(
        [sys.executable, "-c", "import slow, mine"],
        env={"PYTHONPYCACHEPREFIX": str(made), "PYTHONPATH": f"{packages}{os.pathsep}{tmp_path / 'commit'}"},
        cwd=write(tmp_path / "commit" / "mine.py", "").parent,
        check=True,
    )
    cache = ModuleCache(tmp_path / "modules")
    cache.take(made)
    found = [path.name for path in cache.folder.rglob("*.pyc")]
    assert any(name.startswith("__init__") for name in found)
    assert not any(name.startswith("mine") for name in found), "nothing of the commit's own modules"


EVALUATE_BY_A_MODEL = """
import json, os, subprocess, sys
compiles = (
    "import os, pathlib; cache = pathlib.Path(os.environ['TORCHINDUCTOR_CACHE_DIR']); "
    "cache.mkdir(parents=True); (cache / 'kernel').write_text('code')"
)
prefix = json.loads(os.environ["RESEARCH_MODEL_SANDBOX"])
for _ in range(2):
    subprocess.run([*prefix, sys.executable, "-c", compiles], check=True)
print("val_bpb: 0.5")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux")
@pytest.mark.parametrize("wall", ["bubblewrap", "landlock"])
def test_a_model_can_compile_where_it_is_evaluated_and_another_finds_nothing_of_it(tmp_path, wall):
    lab = Lab(tmp_path, sandbox=choose_sandbox(wall))
    program = contract(evaluate="python prepare.py val", test=None)
    got = run_one(lab.executor, lab.job(GOOD, program, **{"prepare.py": EVALUATE_BY_A_MODEL}), 60)
    assert (got.outcome, got.metric) == ("ok", 0.5), got
    lab.executor.close(now=True)
