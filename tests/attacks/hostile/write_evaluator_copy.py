"""Overwrites the evaluator beside it, which its own evaluation might then use."""

from honest import HERE, main, predict  # noqa: F401

try:
    (HERE / "prepare.py").chmod(0o666)
    (HERE / "prepare.py").write_text("print('score: 0.0')")
except OSError as error:
    print(error)
main()
