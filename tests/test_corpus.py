"""The default corpus: what is held out, what is left out, and that the two sides share no text."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import documents
from bench import corpus as bench
from cleaning import Cleaner, Rules, beginning, without_tables
from tests.test_evaluation import ROOT

STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()
SENTENCE = "The {} of the valley kept a ledger of every {} that had crossed the bridge since the winter of the flood.\n"
NOUNS = ("miller", "baker", "warden", "priest", "smith", "weaver", "carter", "doctor", "cooper", "mason", "piper")


@pytest.fixture(scope="module")
def source() -> documents.Source:
    return documents.find_source("python", "cpu", 0)


def paragraphs(count: int, first: int = 0) -> list[str]:
    """Different paragraphs of prose."""
    return [SENTENCE.format(NOUNS[n % 11], f"{NOUNS[n // 11 % 11]} {n}") for n in range(first, first + count)]


def test_a_package_lies_on_one_side(source: documents.Source) -> None:
    assert source.heldout is not None
    sides: dict[str, set[str]] = {}
    for file in source.files:
        side = "held out" if file in source.heldout else "train"
        sides.setdefault(file.relative_to(STDLIB).parts[0], set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert sides["idlelib"] == sides["tkinter"] == {"held out"}
    assert sides["argparse.py"] == sides["unittest"] == {"train"}
    assert not any("site-packages" in file.parts for file in source.files)


def test_val_and_test_are_alike_and_share_no_piece(source: documents.Source) -> None:
    dealt: dict[str, list[str]] = {"val": [], "test": []}
    for file in source.heldout or {}:
        assert not list(source.texts(file, "train"))
        for split, text in source.texts(file):
            dealt[split].append(text)
    size = {split: sum(map(len, texts)) for split, texts in dealt.items()}
    assert size["val"] == pytest.approx(size["test"], rel=0.05)
    assert min(size.values()) > documents.HELDOUT_BYTES["cpu"]
    assert len(set(dealt["val"]) & set(dealt["test"])) < 3  # as of two equal files, of which cleaning leaves one


def test_pieces_are_the_whole_text() -> None:
    text = "".join(f"line {n}\n" for n in range(1000)) + "no end of line"
    cut = list(documents.pieces(text, 100))
    assert "".join(cut) == text and all(100 <= len(piece) < 120 for piece in cut[:-1])


def test_the_order_does_not_depend_on_where_python_is_installed(tmp_path: Path) -> None:
    for folder, name in (("a", "x.py"), ("a/b", "y.py"), ("c", "z.py")):
        for root in ("one", "an/other"):
            (tmp_path / root / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / root / folder / name).write_text(name)
    one, other = (
        [file.name for file in documents.python_files(tmp_path / root)] for root in ("one", "an/other")
    )
    assert one == other == ["y.py", "x.py", "z.py"]


def test_held_out_packages_are_found_in_every_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("lib/python3.9", "lib/python3.9/site-packages", "lib/python3.9/site-packages/other"):
        (tmp_path / place / "idlelib").mkdir(parents=True)
    (tmp_path / "lib/python3.9/os.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = documents.heldout_paths(["idlelib"])
    assert {path for path in found if path.is_relative_to(tmp_path)} == {
        tmp_path / "lib/python3.9/idlelib", tmp_path / "lib/python3.9/site-packages/idlelib"
    }  # fmt: skip
    assert STDLIB / "idlelib" in found


@pytest.mark.slow
def test_no_training_imports_what_is_held_out() -> None:
    imported = documents.imported_by_training()
    assert {"torch", "unittest"} <= imported
    assert not imported & set(documents.APPLICATIONS)


def test_a_module_of_the_corpus_that_lies_beside_is_not_mistaken(tmp_path: Path) -> None:
    """prepare.py finds its own files, wherever it is called from."""
    (tmp_path / "cleaning.py").write_text("raise SystemExit('mine')\n")
    done = subprocess.run([sys.executable, ROOT / "prepare.py", "--source", "nothing"], cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and "no files there" in done.stderr


def test_tables_go_and_code_stays() -> None:
    code = "".join(f"def f{n}(x):\n    return x + {n}\n" for n in range(20))
    numbers = "TABLE = [\n" + "    0x10, 0x20, 0x30,\n" * 30 + "]\n"
    strings = "NAMES = {\n" + "    'a': 'b',\n" * 30 + "}\n"
    assert without_tables(code) == code
    left = without_tables(code * 4 + numbers + strings)
    assert left.startswith(code * 4) and "0x10" not in left and "'a'" not in left
    short = code + "COLOURS = (\n    'red',\n    'green',\n)\n"
    assert without_tables(short) == short
    assert without_tables(numbers + "end = 1\n") == ""
    assert without_tables(code + "DATA = b'" + "0" * 300 + "'\n") == code + "DATA = b'" + "0" * 300 + "'\n"


def cleaned(cleaner: Cleaner, text: str) -> str:
    """What is left of one text."""
    [left] = cleaner.clean([text])
    return left


def test_what_is_left_does_not_depend_on_how_texts_are_put_together() -> None:
    texts = ["".join(paragraphs(6, first=n)) + "\n" + "".join(paragraphs(3, first=2 * n)) for n in range(0, 40, 2)]
    together, one_by_one = Cleaner(Rules(copies=True)), Cleaner(Rules(copies=True))
    assert together.clean(texts) == [cleaned(one_by_one, text) for text in texts]
    assert together.left_out == one_by_one.left_out and together.left_out["copies"] > 0


def test_a_long_file_counts_up_to_its_bound() -> None:
    assert beginning("één regel\n" * 10, 25) == "één regel\n" * 2
    cleaner = Cleaner(Rules(most_bytes=1000))
    assert len(cleaned(cleaner, "a line of text\n" * 1000)) <= 1000
    assert cleaner.left_out["beyond_the_most"] >= 14_000


def test_paragraphs_that_were_there_are_left_out() -> None:
    cleaner, (licence, first, second) = Cleaner(Rules(copies=True)), paragraphs(3)
    assert cleaned(cleaner, f"{licence}\n{first}") == f"{licence}\n{first}"
    assert cleaned(cleaner, f"{licence}\n{second}") == f"\n{second}"
    assert cleaned(cleaner, f"    {licence}\n{first}") == ""  # indentation is no change
    assert cleaner.left_out["copies"] == len(licence) * 2 + len(first) + 5


def test_lines_that_stood_together_before_are_left_out() -> None:
    cleaner, block = Cleaner(Rules(copies=True)), "".join(f"    v_{n} = compute_the_{n}th(v)\n" for n in range(9))
    assert cleaned(cleaner, "def one(value):\n" + block) == "def one(value):\n" + block
    other = "".join(paragraphs(30))
    assert cleaned(cleaner, other + block + "    return 3\n") == other + "    return 3\n"


def test_idioms_may_repeat() -> None:
    cleaner = Cleaner(Rules(copies=True))
    for name in ("one", "two"):
        text = f"import {name}\n\nif __name__ == '__main__':\n    main()\n"
        assert cleaned(cleaner, text) == text


def test_texts_that_are_nearly_equal_are_left_out() -> None:
    cleaner, text = Cleaner(Rules(copies=True)), "".join(paragraphs(40))  # one paragraph, so no exact copy of it
    assert cleaned(cleaner, text) == text
    assert cleaned(cleaner, text.replace("miller 22 ", "miller 999 ").replace("bridge", "ford", 1)) == ""
    assert cleaner.left_out["near_copies"] > 0.9 * len(text)
    other = "".join(paragraphs(40, first=5000)).replace("the valley", "our town").replace("kept a", "lost the")
    assert cleaned(cleaner, other) == other


def test_the_bench_tells_text_that_is_there_from_text_that_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 50, 20_000).astype(np.uint16)
    splits = {"train": train, "val": np.concatenate([train[1000:2000], rng.integers(0, 50, 1000).astype(np.uint16)]),
              "test": rng.integers(0, 50, 2000).astype(np.uint16)}  # fmt: skip
    for name, tokens in splits.items():
        tokens.tofile(tmp_path / f"{name}.bin")
    np.save(tmp_path / "byte_lengths.npy", np.ones(51, dtype=np.int32))
    found = bench.figures((tmp_path, tmp_path), {"dtype": "uint16", "vocab_size": 51})
    assert found["val_runs_of_13_in_train_percent"] == pytest.approx(50, abs=1)
    assert found["test_bpb_of_ngrams"] > found["val_bpb_of_ngrams"]
    assert found["lookup_is_worth_bpb"] > 0.1  # n-grams of 5 tokens know most of it already
