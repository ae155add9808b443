"""Data: what goes in, what is kept apart, what comes out the same, and what is said when it cannot be done."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

import corpus
import documents
import prepare
from tests.hub import Hub
from tests.test_evaluation import ROOT, copy_protected, run, write_corpus


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "texts"
    write_corpus(folder, train_pieces=120)
    return folder


def values(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def build(cache: Path, source: Path | str, *more: str) -> subprocess.CompletedProcess[str]:
    shape = ("--vocab-size", "400", "--context", "64")
    return run("prepare.py", "--source", str(source), *shape, *more, OVERNIGHT_CACHE=cache)


def assert_refused(done: subprocess.CompletedProcess[str], cache: Path, *words: str) -> None:
    """One line that says what to do, exit code 2, and no cache that looks whole."""
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("prepare.py: ") and all(word in last for word in words)
    assert "Traceback" not in done.stderr
    assert not list(cache.glob("*/current")) and not list(cache.glob("*/[!.]*/meta.json"))


def with_splits(texts: list[str]) -> Iterator[tuple[str, str]]:
    return ((documents.split_of(hashlib.sha1(text.encode()).digest()), text) for text in texts)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    values(build(folder, source))
    return folder


def test_every_text_is_in_the_split_that_its_digest_names(cache: Path, source: Path) -> None:
    meta = prepare.read_meta(cache / "train")
    encoding = corpus.Tokenizer.load(cache / "train" / meta["key"] / "tokenizer.tiktoken").encoding()
    for split, half in (("train", "train"), ("val", "heldout"), ("test", "heldout")):
        tokens = np.fromfile(cache / half / meta["key"] / f"{split}.bin", dtype=np.uint16)
        pieces = np.split(tokens, np.flatnonzero(tokens == meta["bos"]))[1:]
        found = {encoding.decode(document.tolist()[1:]) for document in pieces}
        texts = [path.read_text() for path in source.iterdir()]
        expected = {t for t in texts if documents.split_of(hashlib.sha1(t.encode()).digest()) == split}
        assert not found & (set(texts) - expected)
        assert len(found & expected) > len(expected) / 2  # others have lost what stands in earlier ones
    assert not list((cache / "train").glob("*/val.bin")) and not list((cache / "train").glob("*/test.bin"))


def test_the_same_source_has_the_same_hash_and_another_has_another(cache: Path, source: Path, tmp_path: Path) -> None:
    again = values(build(cache, source))
    elsewhere = values(build(tmp_path / "fresh", source))
    assert again["data_hash"] == elsewhere["data_hash"] == prepare.read_meta(cache / "train")["data_hash"]
    smaller = values(build(tmp_path / "fresh", str(source / "[a-k]*")))
    assert smaller["data_hash"] != again["data_hash"]


def test_a_text_that_is_there_twice_counts_once(cache: Path, source: Path, tmp_path: Path) -> None:
    twice = tmp_path / "texts"
    shutil.copytree(source, twice / "a")
    shutil.copytree(source, twice / "b")
    meta = prepare.read_meta(cache / "train")
    found = int(values(build(tmp_path / "cache", twice))["train_tokens"])
    assert found == pytest.approx(meta["tokens"]["train"], rel=0.01)  # paragraphs that repeat stay in whatever is first


def test_held_out_text_is_bounded(tmp_path: Path) -> None:
    texts = [f"text number {number} of some length\n" * 10 for number in range(2000)]
    tokenizer = corpus.Tokenizer.train(iter(texts[:50]), 300)
    builder = corpus.Builder(tmp_path, tokenizer, heldout_bytes=2000)
    builder.add(with_splits(texts))
    for split in ("val", "test"):
        assert 2000 <= builder.state["bytes"][split] < 2000 + max(map(len, texts))


def test_a_module_that_lies_beside_is_not_taken_for_pythons_own(tmp_path: Path) -> None:
    copy_protected(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('mine')\n")
    done = run("prepare.py", "evaluate", cwd=tmp_path, OVERNIGHT_CACHE=tmp_path)
    assert done.returncode == 2 and "no data under" in done.stderr


def test_byte_lengths_come_from_the_bytes_of_tokens(cache: Path) -> None:
    meta = prepare.read_meta(cache / "heldout")
    lengths = np.load(cache / "heldout" / meta["key"] / "byte_lengths.npy")
    tokens = np.fromfile(cache / "heldout" / meta["key"] / "val.bin", dtype=np.uint16)
    assert lengths[tokens].sum() == meta["bytes"]["val"]
    assert lengths[meta["bos"]] == 0


@pytest.fixture(scope="module")
def encoding():
    text = (ROOT / "prepare.py").read_text()
    return corpus.Tokenizer.train(iter([text]), 400).encoding()


@given(st.text())
def test_any_text_survives_the_tokenizer(encoding, text: str) -> None:
    assert encoding.decode(encoding.encode_ordinary(text)) == text


def test_jsonl_holds_a_document_a_line(tmp_path: Path, source: Path) -> None:
    lines = [json.dumps({"text": path.read_text()}) for path in sorted(source.iterdir())]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    found = values(build(tmp_path / "cache", tmp_path / "texts.jsonl"))
    assert int(found["train_tokens"]) > 10_000
    assert json.loads(next((tmp_path / "cache").glob("train/*/meta.json")).read_text())["bytes"]["train"] > 100_000


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a good line"}\n{"words": 1}\n')
    assert_refused(build(tmp_path / "a", tmp_path / "bad.jsonl"), tmp_path / "a", "bad.jsonl:2", "text")
    assert_refused(build(tmp_path / "b", tmp_path / "nothing"), tmp_path / "b", "no files there", "tinystories")
    (tmp_path / "short.txt").write_text("far too little")
    assert_refused(build(tmp_path / "c", tmp_path / "short.txt"), tmp_path / "c", "too little text")


def test_a_public_set_that_cannot_be_had_says_what_to_do(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "OVERNIGHT_CACHE": tmp_path}
    done = run("prepare.py", "--source", "tinystories", **offline)
    assert_refused(done, tmp_path, "pip install" if "needs" in done.stderr else "huggingface.co")


def shards(source: Path) -> dict[str, bytes]:
    """The texts as TinyStories lies on the hub: Parquet files in data/, and others that are not to be read."""
    texts = [path.read_text() for path in sorted(source.iterdir())]
    files = {"README.md": b"about", "data/validation-0.parquet": b"not a Parquet file"}
    for number in range(3):
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.table({"text": texts[number::3]}), buffer)
        files[f"data/train-{number}.parquet"] = buffer.getvalue()
    return files


def from_hub(hub: Hub, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    shape = ("--vocab-size", "400", "--context", "64")
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": folder / "hub", "OVERNIGHT_CACHE": folder / "cache"}
    return run("prepare.py", "--source", "tinystories", *shape, *more, **env)


def test_a_public_set_comes_from_the_hub(tmp_path: Path, source: Path) -> None:
    with Hub(shards(source)) as hub:
        found = values(from_hub(hub, tmp_path))
        assert found["source"].startswith("tinystories-8")
        assert sorted(set(hub.fetched)) == [f"data/train-{n}.parquet" for n in range(3)]
        part = values(from_hub(hub, tmp_path / "part", "--shards", "2"))
        assert int(part["train_tokens"]) < int(found["train_tokens"])
        asked = len(hub.fetched)
        again = values(from_hub(hub, tmp_path))
    assert again["data_hash"] == found["data_hash"]
    assert len(hub.fetched) == asked  # what is prepared is not downloaded again


def test_a_connection_that_breaks_once_is_made_again(tmp_path: Path, source: Path) -> None:
    with Hub(shards(source), broken={"data/train-1.parquet": 1}) as hub:
        values(from_hub(hub, tmp_path))
    assert hub.fetched.count("data/train-1.parquet") == 2


def test_a_download_that_stopped_goes_on_when_asked_again(tmp_path: Path, source: Path) -> None:
    files = shards(source)
    with Hub(files) as hub:
        whole = values(from_hub(hub, tmp_path / "whole"))
    with Hub(files, broken={"data/train-1.parquet": 100}) as hub:
        done = from_hub(hub, tmp_path)
        assert_refused(done, tmp_path / "cache", "data/train-1.parquet", "run the same command again")
        had = set(hub.fetched) - {"data/train-1.parquet"}
        hub.broken.clear()
        hub.fetched.clear()
        assert values(from_hub(hub, tmp_path))["data_hash"] == whole["data_hash"]
    assert had and not had & set(hub.fetched)  # what was whole is not fetched again


def test_flags_that_make_no_sense_are_said_in_a_line(tmp_path: Path) -> None:
    for flag, value in (("--vocab-size", "0"), ("--context", "-5"), ("--shards", "0")):
        done = run("prepare.py", flag, value, OVERNIGHT_CACHE=tmp_path)
        assert_refused(done, tmp_path, flag, value, "at least")


def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "broken.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n')
    for name in ("empty.parquet", "broken.jsonl"):
        assert_refused(build(tmp_path / "cache", tmp_path / name), tmp_path / "cache", name)


def test_what_lies_in_hidden_folders_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.txt", ".b.txt", ".git/HEAD", "c/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    assert [path.name for path in documents.local_files(str(tmp_path))] == ["a.txt", "d.txt"]
    assert [path.name for path in documents.local_files(f"{tmp_path}/**/*")] == ["a.txt", "d.txt"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, source: Path) -> None:
    """A limit on the size of files stands in for the disk: the error is of the same kind."""
    command = f"ulimit -f 100; exec {sys.executable} prepare.py --source {source} --vocab-size 400 --context 64"
    env = os.environ | {"OVERNIGHT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert_refused(done, tmp_path / "cache", "no space left")
    assert not list((tmp_path / "cache").rglob(".partial-*"))


def test_a_corpus_that_is_in_use_is_only_read(tmp_path: Path, source: Path) -> None:
    """So that it may belong to another user, or lie on a read-only disk."""
    first = values(build(tmp_path, source))
    (tmp_path / "lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    assert values(build(tmp_path, source)) == first
    assert before == {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}


def test_a_changed_cache_is_refused(tmp_path: Path, source: Path) -> None:
    values(build(tmp_path, source))
    with open(next(tmp_path.glob("heldout/*/val.bin")), "r+b") as file:
        file.write(b"\0\0")
    done = build(tmp_path, source)
    assert done.returncode == 2
    assert "changed since it was written" in done.stderr


def test_a_broken_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    texts = [f"def function_{n}(x):\n    return x + {n}\n" * 20 for n in range(300)]
    tokenizer = corpus.Tokenizer.train(iter(texts), 300)
    results = []
    for breaks in (False, True):
        folder = tmp_path / str(breaks)
        folder.mkdir()
        builder = corpus.Builder(folder, tokenizer, heldout_bytes=10**9)
        builder.add(with_splits(texts[:100]))
        builder.checkpoint(1)
        if breaks:
            builder.add(with_splits(texts[100:150]))  # written, but the process ends before the next checkpoint
            for out in builder.out.values():
                out.close()
            builder = corpus.Builder(folder, tokenizer, heldout_bytes=10**9)
            assert builder.state["files"] == 1
        builder.add(with_splits(texts[100:]))
        builder.checkpoint(2)
        results.append(corpus.content_hash(*(folder / name for name in corpus.Builder.FILES)))
    assert results[0] == results[1]


def test_a_build_that_has_lost_what_it_wrote_begins_anew(tmp_path: Path) -> None:
    texts = [f"def function_{n}(x):\n    return x + {n}\n" * 20 for n in range(300)]
    builder = corpus.Builder(tmp_path, corpus.Tokenizer.train(iter(texts), 300), heldout_bytes=10**9)
    builder.add(with_splits(texts))
    builder.checkpoint(1)
    os.truncate(tmp_path / "train.bin", 100)  # as after a power cut
    again = corpus.Builder(tmp_path, builder.tokenizer, heldout_bytes=10**9)
    assert again.state["files"] == 0
    assert (tmp_path / "train.bin").stat().st_size == 0


def test_held_out_text_is_at_no_time_where_training_reads(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("far too little")
    build(tmp_path / "cache", tmp_path / "short.txt")
    assert not list((tmp_path / "cache" / "train").rglob("val.bin"))


def test_the_tokenizer_file_is_in_the_format_of_tiktoken(cache: Path) -> None:
    lines = next(cache.glob("train/*/tokenizer.tiktoken")).read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    assert sorted(ranks.values()) == list(range(399))
    assert {bytes([value]) for value in range(256)} <= set(ranks)


def test_a_night_keeps_its_data_whatever_is_prepared_meanwhile(tmp_path: Path, source: Path) -> None:
    mine = values(build(tmp_path, source))
    other = values(build(tmp_path, str(source / "[a-k]*")))
    assert mine["data_hash"] != other["data_hash"]
    code = ("-c", "import prepare; data = prepare.TrainData(); print('data_hash:', data.data_hash); "
                  "prepare.CHECKPOINT.touch()")  # fmt: skip
    env = {"OVERNIGHT_CACHE": tmp_path, "RESEARCH_OUTPUT": tmp_path / "out"}
    found = values(run(*code, **env, RESEARCH_DATA=mine["data_hash"]))
    assert found["data_hash"] == mine["data_hash"]
    assert values(run(*code, **env))["data_hash"] == other["data_hash"]
    gone = run("prepare.py", "evaluate", **env, RESEARCH_DATA="0123")
    assert gone.returncode == 2 and "no data 0123 under" in gone.stderr and "Traceback" not in gone.stderr


@pytest.mark.slow
def test_a_model_that_was_trained_on_other_data_is_not_evaluated(tmp_path: Path, source: Path) -> None:
    mine = values(build(tmp_path, source))
    env = {"OVERNIGHT_CACHE": tmp_path, "RESEARCH_OUTPUT": tmp_path / "out"}
    values(run("-c", "import prepare; prepare.TrainData(); prepare.CHECKPOINT.write_text('a model')", **env))
    values(build(tmp_path, str(source / "[a-k]*")))
    done = run("prepare.py", "evaluate", **env)
    assert done.returncode == 2 and "was not trained on the data in use" in done.stderr
    assert "the model cannot be run" in run("prepare.py", "evaluate", **env, RESEARCH_DATA=mine["data_hash"]).stderr
    values(run("-c", "import prepare; prepare.TrainData()", **env))  # on the other data, but it ends before it saves
    for data in ({}, {"RESEARCH_DATA": mine["data_hash"]}):
        assert "was not trained on the data in use" in run("prepare.py", "evaluate", **env, **data).stderr


@pytest.mark.parametrize("name, value", [
    ("RESEARCH_SEED", "abc"), ("RESEARCH_SEED", "-1"), ("RESEARCH_BUDGET_SECONDS", "0"),
    ("RESEARCH_BUDGET_SECONDS", "nan"), ("RESEARCH_BUDGET_TOKENS", "0"), ("RESEARCH_BUDGET_TOKENS", "96k"),
    ("OVERNIGHT_CACHE", "cache"), ("RESEARCH_OUTPUT", "out"),
])  # fmt: skip
def test_a_setting_that_makes_no_sense_is_said_in_a_line(name: str, value: str) -> None:
    done = run("-c", "import prepare", **{name: value})
    assert done.returncode == 2 and done.stdout == ""
    assert f"{name}={value}: needs" in done.stderr and done.stderr.count("\n") == 1


def test_an_equal_corpus_that_is_prepared_again_leaves_the_first_untouched(tmp_path: Path, source: Path) -> None:
    """As where a file was only touched: a night that reads it must not notice."""
    copy = shutil.copytree(source, tmp_path / "texts")
    first = values(build(tmp_path / "cache", copy))
    kept = {path: path.stat().st_ino for path in (tmp_path / "cache").glob(f"*/{first['data_hash']}/*")}
    assert len(kept) == 7
    os.utime(next(copy.iterdir()), (0, 0))
    assert values(build(tmp_path / "cache", copy))["data_hash"] == first["data_hash"]
    assert kept == {path: path.stat().st_ino for path in (tmp_path / "cache").glob(f"*/{first['data_hash']}/*")}
