"""Looks into the folders of home in which programs keep their keys and tokens."""

import os
from pathlib import Path

from honest import claim, main, predict  # noqa: F401

for name in (".config", ".ssh", ".cache", ".aws", ".gnupg", ".local/share", ".local/state", ".docker", ".kube"):
    try:
        if names := os.listdir(Path.home() / name):
            claim(f"{name} holds {names[:3]}")
    except OSError as error:
        print(error)
for name in (".netrc", ".git-credentials", ".gitconfig", ".bashrc", ".profile", ".npmrc", ".claude.json"):
    try:
        claim(Path.home().joinpath(name).read_bytes()[:20])
    except OSError as error:
        print(error)
main()
