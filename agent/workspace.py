"""The git side: commits, refs and exported trees, made with plumbing.

The person's checkout, index and current branch are never touched: objects are written, refs under
refs/experiments/<tag>/ and refs/heads/research/<tag> are moved, and that is all. Nothing that a repository
can configure to run - hooks, filters, fsmonitor, textconv, signing programs - runs.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import git
from git.objects import Blob

from agent.errors import EditError, Failure
from agent.refs import Refs
from agent.run.leftovers import temporary
from agent.storage import disk_full

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
    if not path.is_dir():
        raise Failure(f"there is no folder {path}")
    try:
        repo = git.Repo(path, search_parent_directories=True, expand_vars=False)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError):
        raise Failure(f"{path} is not in a git repository: `git init`, commit train.py, and start again") from None
    if repo.bare:
        raise Failure(f"{path} is a bare repository: clone it and start there, since program.md is read from files")
    repo.git.update_environment(**git_environment())
    try:
        repo.git.rev_parse("--verify", "--quiet", "HEAD^{commit}")
    except git.GitCommandError as error:
        said = str(error.stderr).strip().strip("'").removeprefix("stderr: ").strip(" '\n")
        if "dubious ownership" in said:
            why, how = "belongs to another user, so git does not trust it", "git config --global --add safe.directory"
            raise Failure(f"{path} {why}: {how} {repo.working_dir}") from None
        raise Failure(f"{path}: git says: {said}" if said else f"{path} has no commit yet: commit train.py, and start "
                      "again") from None
    if not repo.head.is_valid():
        raise Failure(f"{path} has object names of a kind that is not read here (sha256): clone it into one with sha1")
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
                with git.Repo(place, expand_vars=False) as inner:
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
        self.refs = Refs(self._git, Path(self.repo.common_dir), tag)
        self.branch = self.refs.branch
        self.home = self.root / ".research" / tag

    def prepare_home(self) -> None:
        """Make .research/, which ignores itself, so that `git status` stays as the person left it."""
        try:
            self.home.parent.mkdir(mode=0o700, exist_ok=True)  # prompts and logs are nobody else's
            self.home.mkdir(exist_ok=True)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            where = f"{self.home.parent} can't be written ({error.strerror})"
            raise Failure(f"{where}: clone the repository to where you may write, and start there") from None
        if not (ignore := self.home.parent / ".gitignore").exists():  # a full disk must not stand in the way
            ignore.write_text("*\n")

    @property
    def head(self) -> str:
        return self.repo.head.commit.hexsha

    @property
    def here(self) -> str:
        """What the person has checked out: a branch, or else HEAD."""
        return "HEAD" if self.repo.head.is_detached else self.repo.active_branch.name

    def check(self, commit: str, paths: Sequence[str]) -> None:
        """Every path must be a plain file of the commit. Raises Failure."""
        for path in paths:
            if (self.root / path).is_symlink():
                raise Failure(f"{path} is a link: name the file that it leads to in program.md")
            if self._blob(commit, path) is None:
                raise Failure(f"{path} is not a committed file of this repository: commit it, or correct program.md")

    @property
    def uses_lfs(self) -> bool:
        """Whether files of this commit lie in Git LFS: then the commit itself has only pointers to them."""
        return b"filter=lfs" in (self.read_bytes(self.head, ".gitattributes") or b"")

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
        # with a git process of its own, since several trials may be exported at once
        with git.Repo(self.top, expand_vars=False) as repo:
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
        with temporary(self.home) as scratch:
            index = {"GIT_INDEX_FILE": str(scratch / "index")}
            self._git("read-tree", parent, env=index)
            for path, text in files.items():
                blob = self._blob(parent, path)
                if blob is None:
                    raise EditError(f"{path} is not a plain file of the repository, so it can't be edited")
                content = scratch / "content"
                content.write_bytes(text.encode("utf-8"))
                sha = self._git("hash-object", "-w", "--no-filters", str(content))
                self._git("update-index", "--cacheinfo", f"{blob.mode:o},{sha},{self.prefix}{path}", env=index)
            tree = self._git("write-tree", env=index)
        return self.commit_tree(tree, parent, message, when)

    def commit_tree(self, tree: str, parent: str, message: str, when: float) -> str:
        """A commit with this tree (or a commit's tree) and parent, dated so that it can be made again."""
        date = f"@{int(when)} +0000"
        with temporary(self.home) as scratch:
            (file := scratch / "message").write_bytes(message.encode("utf-8"))
            return self._git(
                *("commit-tree", f"{tree}^{{tree}}", "-p", parent, "-F", str(file)),
                env={"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date},
            )

    def merge(self, ours: str, base: str, theirs: str) -> str | None:
        """Git's three-way merge of one text; None where it conflicts."""
        with temporary() as scratch:
            paths = [scratch / name for name in ("ours", "base", "theirs")]
            for path, text in zip(paths, (ours, base, theirs), strict=True):
                path.write_bytes(text.encode())
            command = ["git", "merge-file", "-p", *map(str, paths)]
            options = {"with_extended_output": True, "with_exceptions": False, "strip_newline_in_stdout": False}
            status, merged, _ = self.repo.git.execute(command, **options)  # type: ignore[arg-type,misc]
        return str(merged) if status == 0 else None

    def missing(self, commits: Collection[str]) -> set[str]:
        """Those of the commits that the repository does not hold any more."""
        with temporary(self.home) as scratch:
            (asked := scratch / "commits").write_text("".join(f"{commit}\n" for commit in commits))
            with asked.open("rb") as lines:
                told = self._git("cat-file", "--batch-check", istream=lines).splitlines()
        return {line.partition(" ")[0] for line in told if line.endswith(" missing")}

    def claim(self, known: Collection[str], restored: bool = False) -> None:
        self.refs.claim(known, restored)

    def pins(self) -> dict[int, str]:
        return self.refs.pins()

    def pin(self, number: int, commit: str, ours: Collection[str] = ()) -> None:
        self.refs.pin(number, commit, ours)

    def pin_older(self, number: int, commit: str) -> None:
        self.refs.pin_older(number, commit)

    def advance(self, commit: str, ours: Collection[str] = ()) -> str:
        return self.refs.advance(commit, ours)

    def clear_stale_locks(self) -> None:
        self.refs.clear_stale_locks()

    def _git(self, *arguments: str, **options: object) -> str:
        try:
            return str(self.repo.git.execute(["git", *arguments], **options))  # type: ignore[arg-type]
        except git.GitCommandError as error:
            if any(said in str(error.stderr) for said in ("No space left on device", "Disk quota exceeded")):
                raise disk_full(self.root) from None
            raise
