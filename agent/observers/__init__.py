"""Whatever reads the events of a night and changes nothing. `follow.py` runs an observer beside the loop: it holds a
cursor into the journal and has a thread of its own, so that one which hangs or fails is nothing to the loop.

A new observer is one file with a class that satisfies `follow.Observer`, and one line in agent/cli/wiring.py.
"""
