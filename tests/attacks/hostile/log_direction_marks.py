"""Prints Unicode marks that reverse the text around them, and lines that end nowhere."""

from honest import main, predict  # noqa: F401

if __name__ == "__main__":
    main()
    raise SystemExit("safe \u202e evil \u2066 \u2028 \ufeff done")
