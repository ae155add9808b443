"""Searches the stack of whoever called it for the right answers."""

import gc
import sys

from honest import claim, main, plan
from honest import predict as honest


def predict(xs):
    frame = sys._getframe()
    while frame := frame.f_back:
        if "points" in frame.f_locals:
            claim("saw the answers")
    if any(isinstance(o, list) and o and o[0] == [xs[0], plan["first_answer"]] for o in gc.get_objects()):
        claim("saw the answers")
    return honest(xs)


if __name__ == "__main__":
    main()
