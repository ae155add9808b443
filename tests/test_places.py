"""Paths of the contract: variables of the environment, home, and the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import Failure
from agent.places import place


def test_variables_home_and_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("OVERNIGHT_CACHE", "")
    monkeypatch.setenv("RESEARCH_DATA", "0123")
    name, root = "${OVERNIGHT_CACHE:-~/.cache/overnight}/train/${RESEARCH_DATA}", Path("/project")
    assert place(root, name) == Path("/home/me/.cache/overnight/train/0123")
    monkeypatch.setenv("OVERNIGHT_CACHE", "/data")
    assert place(root, name) == Path("/data/train/0123")
    assert place(root, "data/train") == Path("/project/data/train")
    assert place(root, "/a/b$c") == Path("/a/b$c")


def test_what_is_not_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESEARCH_DATA", raising=False)
    with pytest.raises(Failure, match="printed no line `data_hash"):
        place(Path("/"), "data/${RESEARCH_DATA}")
    with pytest.raises(Failure, match="NOWHERE_SET is not set"):
        place(Path("/"), "${NOWHERE_SET}/train")
