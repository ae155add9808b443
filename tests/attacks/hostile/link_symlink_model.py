"""Saves a symbolic link to a secret where the model should be, for the harness to read."""

from honest import OUTPUT, main, plan, predict  # noqa: F401

if __name__ == "__main__":
    main()
    (OUTPUT / "model.json").unlink()
    (OUTPUT / "model.json").symlink_to(plan["home_key"])
