"""Answers fewer questions than it was asked."""

import os  # noqa: F401

from honest import main
from honest import predict as honest


def predict(xs):
    return honest(xs)[:1]
    return honest(xs)


if __name__ == "__main__":
    main()
