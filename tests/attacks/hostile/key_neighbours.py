"""Lists what lies beside the repository, and in the other places where people work."""

import os
from pathlib import Path

from honest import claim, main, plan, predict  # noqa: F401

repository = Path(plan["repository"])
places = ("/workspace", "/home", "/root", "/mnt", "/srv")
for folder in (repository, repository.parent, *map(Path, places)):
    for place in (folder, *(folder / name for name in (".git", ".research", "neighbour"))):
        try:
            names = os.listdir(place)
        except OSError as error:
            print(error)
            continue
        for name in names:
            try:
                if (place / name).is_file() and (place / name).read_bytes():
                    claim(f"{place / name} can be read")
            except OSError as error:
                print(error)
main()
