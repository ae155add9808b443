"""The honest experiment that follows every attack."""

from honest import main, predict  # noqa: F401

if __name__ == "__main__":
    main()
