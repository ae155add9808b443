"""Prints terminal escape codes that retitle the window, clear the screen and write to the clipboard."""

from honest import main, predict  # noqa: F401

if __name__ == "__main__":
    print("\x1b]0;hostile\x07\x1b[2J\x1b[1;1H\x1b]52;c;aG9zdGlsZQ==\x07\x9b31m\x00\x08\x08 step 1", flush=True)
    main()
    raise SystemExit("\x1b[2Jall is well\x1b[8m")
