"""Nights in experiment trackers, read back by the trackers' own clients."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, git
from test_after import finished, project  # noqa: F401
from test_cli import agent
from test_loop import block, command, environment, night, strays, wait_for, write_replies
from test_loop import project as fresh  # noqa: F401

from agent.errors import Failure
from agent.observers.track import parse
from agent.observers.trackers import TRACKERS
from agent.observers.trackers.sending import reason_of
from agent.observers.trackers.to_wandb import WandB

slow = pytest.mark.slow


def mlflow_runs(project: Path) -> tuple[Any, dict[str, Any]]:  # noqa: F811
    """The client, and MLflow's runs by name; each name once."""
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient(f"sqlite:///{project / '.research' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(project.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return client, {run.info.run_name: run for run in runs}


def test_what_is_no_tracker_or_is_not_installed_is_said_before_anything_begins(
    fresh: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    assert "choose from mlflow, wandb, tensorboard, trackio" in night(fresh, "--track", "clearml", expect=2)
    assert not (fresh / ".research").exists()

    class Missing(WandB):
        package = "no_such_package"

    monkeypatch.setitem(TRACKERS, "wandb", Missing)
    with pytest.raises(Failure, match=r"pip install 'overnight\[wandb\]', or pip install no_such_package"):
        parse("wandb:team")


def test_weights_and_biases_without_a_key_is_said_and_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(Failure, match="WANDB_MODE=offline"):
        WandB.check()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    WandB.check()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(Failure, match="disabled lets wandb take nothing"):
        WandB.check()


def test_what_a_library_says_is_told_without_keys_and_passwords():
    error = ConnectionError("no answer from http://user:secret-pass@host:5000/api\nand more")
    assert reason_of(error) == "ConnectionError: no answer from http://host:5000/api and more"
    assert reason_of(KeyError()) == "KeyError"


@slow
def test_a_night_that_is_killed_is_in_mlflow_and_tensorboard_once(
    fresh: Path,  # noqa: F811
    tmp_path: Path,
):
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow-skinny")
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install tensorboard tensorboardX")
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    slow_one = block("WIDTH = 8\nPAUSE = 0.0", "WIDTH = 16\nPAUSE = 4.0")
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"), slow_one)
    flags = ("--replay", str(replies), "--experiments", "2", "--track", "mlflow", "--track", "tensorboard")
    books = fresh / ".research" / "night" / "trackers"

    def sent(name: str) -> dict[str, str]:
        found = [json.loads(path.read_text()) for path in books.glob(f"{name}-*.json")]
        return found[0] if found else {}

    with subprocess.Popen(command(fresh, *flags), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: "1" in sent("mlflow") and "1" in sent("tensorboard"), process, "run was sent")
        process.kill()
    psutil.wait_procs(strays(fresh), timeout=10)
    assert not strays(fresh)
    for book in books.glob("*.json"):  # as if it had died before it was written down
        book.unlink()
    said = night(fresh, *flags)
    assert "look at it with `tensorboard --logdir" in said and said.count("mlflow: experiment project") == 1

    client, runs = mlflow_runs(fresh)
    assert set(runs) == {"night #0", "night #1", "night #2"}
    assert [runs[f"night #{n}"].data.tags["verdict"] for n in range(3)] == ["baseline", "keep", "keep"]
    last = runs["night #2"]
    assert last.info.status == "FINISHED" and last.data.metrics["loss"] == pytest.approx(0.1025)
    assert last.data.params["hypothesis"] == "It should help." and last.data.params["category"] == "hyperparameter"
    history = client.get_metric_history(runs["night #0"].info.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(len(history))) and len(history) > 1
    curve = client.get_metric_history(last.info.run_id, "training_loss/trial_1")
    assert len(curve) == 3 and curve[0].value == pytest.approx(0.3)

    folders = sorted((fresh / ".research" / "tensorboard").iterdir())
    assert [folder.name.rpartition("-")[2] for folder in folders] == ["0", "1", "2"]
    read = EventAccumulator(str(folders[2]))
    read.Reload()
    assert read.Scalars("judged/loss")[0].value == pytest.approx(0.1025)
    assert len(read.Scalars("training_loss/trial_1")) == 3
    assert b"It should help." in read.Tensors("experiment/text_summary")[0].tensor_proto.string_val[0]
    assert git(fresh, "status", "--porcelain") == ""


@slow
def test_a_tracker_that_hangs_or_fails_is_said_once_and_the_night_ends_as_ever(
    fresh: Path,  # noqa: F811
    tmp_path: Path,
):
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow-skinny")
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: pip install tensorboardX")
    replies = write_replies(tmp_path / "replies", block("RATE = 0.5", "RATE = 0.3"))
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        where = f"mlflow:http://user:secret-pass@127.0.0.1:{hangs.getsockname()[1]}"
        flags = ("--track", where, "--track", f"tensorboard:{tmp_path / 'file' / 'below'}")
        said = night(fresh, "--replay", str(replies), "--experiments", "1", *flags)
    assert "1 of 1" in said
    assert said.count(f"tensorboard takes nothing now: {tmp_path / 'file' / 'below'} can't be made (") == 1
    for name in ("mlflow", "tensorboard"):
        assert said.count(f"not all of the night has reached {name}: `export --to {name}` sends what is missing") == 1
    assert "secret-pass" not in said
    assert not strays(fresh)


@slow
@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard", "trackio"])
def test_a_finished_night_is_sent_once_however_often_it_is_asked_for(
    project: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
):
    package = TRACKERS[name].package
    pytest.importorskip(package, reason=f"{package} is not installed: pip install {package}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    home = project / ".research" / "night"
    send = ("export", "--repo", str(project), "--to", name)
    assert "4 runs sent, 4 in all" in agent(*send)
    assert "0 runs sent, 4 in all" in agent(*send)
    for book in (home / "trackers").glob("*.json"):
        book.unlink()
    assert "4 runs sent, 4 in all" in agent(*send)
    if name == "mlflow":
        client, runs = mlflow_runs(project)
        assert len(runs) == 4 and "\x1b" not in runs["night #3"].data.params["hypothesis"]
        assert len(client.get_metric_history(runs["night #3"].info.run_id, "training_loss/trial_1")) == 3
    elif name == "wandb":
        assert len(list((home / "wandb").glob("offline-run-*"))) == 4
        data = next((home / "wandb").glob("offline-run-*-3")).glob("*.wandb")
        assert b"layers[/] see more." in next(data).read_bytes()
    elif name == "tensorboard":
        assert len(list((project / ".research" / "tensorboard").glob("*/events*"))) == 4
    else:
        names = "import trackio; print(sorted(run.name for run in trackio.Api().runs('project')))"
        ran = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == str([f"night #{n}" for n in range(4)])
