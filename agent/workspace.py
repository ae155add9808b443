"""The git side: commits, refs and exported trees, made with plumbing.

The person's checkout, index and current branch are never touched: objects are written, refs under
refs/experiments/<tag>/ and refs/heads/research/<tag> are moved, and that is all. Nothing that a repository
can configure to run - hooks, filters, fsmonitor, textconv, signing programs - runs.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import git
from git.objects import Blob

from agent.errors import EditError, Failure

IDENTITY = {"NAME": "overnight", "EMAIL": "overnight@localhost"}
HARDENING = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.attributesFile": os.devnull,
    "core.quotePath": "false",
    "commit.gpgSign": "false",
    "protocol.allow": "never",
    "submodule.recurse": "false",
}


def git_environment() -> dict[str, str]:
    """Environment variables under which git runs nothing that a repository configures and asks nothing."""
    environment = {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_CONFIG_COUNT": str(len(HARDENING)),
    }
    for index, (key, value) in enumerate(HARDENING.items()):
        environment |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_{part}": value for part, value in IDENTITY.items()}
    return environment


def open_repository(path: Path) -> git.Repo:
    """The repository that holds `path`. Raises Failure where there is none with a commit and files."""
    try:
        repo = git.Repo(path, search_parent_directories=True)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError):
        raise Failure(f"{path} is not in a git repository: `git init`, commit train.py, and start again") from None
    if repo.bare:
        raise Failure(f"{path} is a bare repository: clone it and start there, since program.md is read from files")
    if not repo.head.is_valid():
        raise Failure(f"{path} has no commit yet: commit train.py, and start again")
    repo.git.update_environment(**git_environment())
    return repo


def project_folder(path: Path) -> Path:
    """The folder of the project that `path` is in: the nearest one with a program.md, up to the repository's root;
    where there is none, `path` itself. Raises Failure where it is in no repository."""
    top, here = Path(str(open_repository(path).working_dir)).resolve(), path.resolve()
    inside = [folder for folder in (here, *here.parents) if folder.is_relative_to(top)]
    return next((folder for folder in inside if (folder / "program.md").is_file()), here)


def write_blob(blob: Blob, folder: Path) -> None:
    """One file or symlink of a commit, at its place below `folder`."""
    target, data = folder / str(blob.path), blob.data_stream.read()
    target.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISLNK(blob.mode):
        inside = (target.parent / os.fsdecode(data)).resolve().is_relative_to(folder.resolve())
        if inside and not os.path.isabs(os.fsdecode(data)):
            target.symlink_to(os.fsdecode(data))
    else:
        target.write_bytes(data)
        target.chmod(0o755 if blob.mode & 0o100 else 0o644)


def blobs(repo: git.Repo, commit: str, folder: Path) -> Iterator[tuple[Blob, Path]]:
    """Every file of the commit, those of its submodules too, and the folder that its path counts from. Raises
    Failure."""
    for item in repo.commit(commit).tree.traverse():
        if isinstance(item, Blob):
            yield item, folder
        elif isinstance(item, git.Submodule):
            place = Path(str(repo.working_dir), str(item.path))
            try:
                with git.Repo(place) as inner:
                    inner.git.update_environment(**git_environment())
                    yield from blobs(inner, item.hexsha, folder / str(item.path))
            except (git.InvalidGitRepositoryError, git.NoSuchPathError, git.BadName, ValueError):
                how = "git submodule update --init --recursive"
                raise Failure(f"the submodule {item.path} is not checked out at its commit: `{how}` first") from None


class Workspace:
    """The refs and commits of one night in one repository.

    `base` is the commit the night starts from (HEAD when it began); `home` holds everything that is not git. The
    project may be a folder of the repository `top`: `root` is that folder, and paths are relative to it.
    """

    def __init__(self, path: Path, tag: str):
        self.repo = open_repository(path)
        self.top, self.root = Path(str(self.repo.working_dir)).resolve(), project_folder(path)
        self.prefix = "" if self.root == self.top else f"{self.root.relative_to(self.top).as_posix()}/"
        self.tag = tag
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", tag) or tag.endswith((".lock", ".")) or ".." in tag:
            raise Failure(f"{tag!r} can't name a branch: use letters, digits, dots and dashes in --tag")
        self.branch = f"refs/heads/research/{tag}"
        self.home = self.root / ".research" / tag
        checked_out = {line[7:] for line in self._git("worktree", "list", "--porcelain").splitlines()}
        if self.branch in checked_out:
            raise Failure(f"research/{tag} is checked out, and the loop moves it: check out another branch first")

    def prepare_home(self) -> None:
        """Make .research/, which ignores itself, so that `git status` stays as the person left it."""
        self.home.parent.mkdir(mode=0o700, exist_ok=True)  # prompts and logs are nobody else's
        self.home.mkdir(exist_ok=True)
        (self.home.parent / ".gitignore").write_text("*\n")

    @property
    def head(self) -> str:
        return self.repo.head.commit.hexsha

    def check(self, commit: str, paths: Sequence[str]) -> None:
        """Every path must be a plain file of the commit. Raises Failure."""
        for path in paths:
            if self._blob(commit, path) is None:
                raise Failure(f"{path} is not a committed file of this repository: commit it, or correct program.md")

    def uncommitted(self, paths: Sequence[str]) -> list[str]:
        """Those of the paths whose text on disk is not what HEAD has; the loop does not see such changes."""
        return [path for path in paths if self._on_disk(path) != self.read_bytes(self.head, path)]

    def _on_disk(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except OSError:
            return None

    def _blob(self, commit: str, path: str) -> Blob | None:
        """The plain file at this path; None where there is none, or a symlink, folder or submodule."""
        try:
            item = self.repo.commit(commit).tree / f"{self.prefix}{path}"
        except KeyError:
            return None
        return item if isinstance(item, Blob) and stat.S_ISREG(item.mode) else None

    def read_bytes(self, commit: str, path: str) -> bytes | None:
        blob = self._blob(commit, path)
        return blob.data_stream.read() if blob else None

    def read(self, commit: str, paths: Sequence[str]) -> dict[str, str]:
        """Path -> text at this commit. Raises Failure for what is no UTF-8 text."""
        texts = {}
        for path in paths:
            try:
                texts[path] = (self.read_bytes(commit, path) or b"").decode("utf-8")
            except UnicodeDecodeError:
                raise Failure(f"{path} is not UTF-8 text, so it can't be edited: leave it out of edit") from None
        return texts

    def export(self, commit: str, folder: Path) -> None:
        """Write the commit's files into an empty folder: raw blobs, no filters, no .git beside them.

        Symlinks that stay inside the tree are made; others are left out. Submodules are written as they are committed.
        """
        with git.Repo(self.top) as repo:  # its own git process: several trials may be exported at once
            repo.git.update_environment(**git_environment())
            for blob, place in blobs(repo, commit, folder):
                write_blob(blob, place)

    def check_submodules(self) -> None:
        """Every submodule must be here at the commit that this repository names. Raises Failure."""
        for _ in blobs(self.repo, self.head, Path()):
            pass

    def commit_files(self, parent: str, files: Mapping[str, str], message: str, when: float) -> str:
        """A commit on top of `parent` with these files changed; the same input gives the same sha.

        Raises EditError where a path is not a plain file of the parent (a symlink, say).
        """
        with tempfile.TemporaryDirectory(dir=self.home) as scratch:
            index = {"GIT_INDEX_FILE": str(Path(scratch, "index"))}
            self._git("read-tree", parent, env=index)
            for path, text in files.items():
                blob = self._blob(parent, path)
                if blob is None:
                    raise EditError(f"{path} is not a plain file of the repository, so it can't be edited")
                content = Path(scratch, "content")
                content.write_bytes(text.encode("utf-8"))
                sha = self._git("hash-object", "-w", "--no-filters", str(content))
                self._git("update-index", "--cacheinfo", f"{blob.mode:o},{sha},{self.prefix}{path}", env=index)
            tree = self._git("write-tree", env=index)
        return self.commit_tree(tree, parent, message, when)

    def commit_tree(self, tree: str, parent: str, message: str, when: float) -> str:
        """A commit with this tree (or a commit's tree) and parent, dated so that it can be made again."""
        date = f"@{int(when)} +0000"
        with tempfile.NamedTemporaryFile(dir=self.home) as file:
            file.write(message.encode("utf-8"))
            file.flush()
            return self._git(
                *("commit-tree", f"{tree}^{{tree}}", "-p", parent, "-F", file.name),
                env={"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date},
            )

    def merge(self, ours: str, base: str, theirs: str) -> str | None:
        """Git's three-way merge of one text; None where it conflicts."""
        with tempfile.TemporaryDirectory() as scratch:
            paths = [Path(scratch, name) for name in ("ours", "base", "theirs")]
            for path, text in zip(paths, (ours, base, theirs), strict=True):
                path.write_bytes(text.encode())
            command = ["git", "merge-file", "-p", *map(str, paths)]
            options = {"with_extended_output": True, "with_exceptions": False, "strip_newline_in_stdout": False}
            status, merged, _ = self.repo.git.execute(command, **options)  # type: ignore[arg-type,misc]
        return str(merged) if status == 0 else None

    def pins(self) -> dict[int, str]:
        """Experiment -> its pinned commit."""
        form = "--format=%(refname:lstrip=3) %(objectname)"
        lines = self._git("for-each-ref", form, f"refs/experiments/{self.tag}").splitlines()
        pairs = [line.split() for line in lines]
        return {int(name): commit for name, commit in pairs if name.isdigit()}

    def pin(self, number: int, commit: str) -> None:
        """Keep an experiment's commit for ever, whatever was decided about it."""
        self._git("update-ref", f"refs/experiments/{self.tag}/{number}", commit)

    def pin_older(self, number: int, commit: str) -> None:
        """Keep a commit that its experiment was measured on before it was put onto a newer incumbent."""
        self._git("update-ref", f"refs/experiments/{self.tag}/{number}-{commit[:12]}", commit)

    def advance(self, commit: str, ours: Sequence[str] = ()) -> str:
        """Move research/<tag> to a kept commit. A tip that is not one of `ours` was made by somebody else: it is
        saved under a ref of its own, and told. Raises Failure where git can't hold such a branch."""
        found = self._git("for-each-ref", "--format=%(objectname)", self.branch)
        if found == commit:
            return ""
        said = ""
        try:
            if found and found not in ours:
                saved = f"refs/experiments/{self.tag}/saved-{found[:12]}"
                self._git("update-ref", saved, found)
                said = f"research/{self.tag} was moved to {found[:12]} by somebody else: that is saved as {saved}"
            self._git("update-ref", self.branch, commit, found or "0" * len(commit))
        except git.GitCommandError as error:
            raise Failure(f"git can't move research/{self.tag}: {str(error.stderr).strip()}") from None
        return said

    def clear_stale_locks(self) -> None:
        """Remove what a killed git left beside the refs that only this night writes."""
        common = Path(self.repo.common_dir)
        for lock in [
            common / f"{self.branch}.lock",
            *(common / f"refs/experiments/{self.tag}").glob("*.lock"),
        ]:
            lock.unlink(missing_ok=True)

    def _git(self, *arguments: str, **options: object) -> str:
        return str(self.repo.git.execute(["git", *arguments], **options))  # type: ignore[arg-type]
