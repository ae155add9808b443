"""How many pairs of points are nearer than a distance: points are sorted into cells, and only those of neighbouring
cells are compared. `python close_pairs.py FILE` reads JSON, {"distance": d, "points": [[x, y], ...]}, all in 0..1."""

from __future__ import annotations

import json
import sys
from collections import defaultdict

CELLS = 4  # along each side, at most; a cell is never smaller than the distance


def close_pairs(points: list[list[float]], distance: float) -> int:
    cells = max(1, min(CELLS, int(1 / distance)))
    grid = defaultdict(list)
    for x, y in points:
        grid[min(cells - 1, int(x * cells)), min(cells - 1, int(y * cells))].append((x, y))
    count = 0
    for (column, row), here in list(grid.items()):
        for across in (-1, 0, 1):
            for down in (-1, 0, 1):
                for x, y in here:
                    for u, v in grid.get((column + across, row + down), ()):
                        if (x - u) ** 2 + (y - v) ** 2 < distance**2:
                            count += 1
    return (count - len(points)) // 2  # each pair was seen from both ends, and each point met itself


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with open(sys.argv[1]) as file:
            asked = json.load(file)
        print(close_pairs(asked["points"], asked["distance"]))
    else:
        print("close pairs:", close_pairs([[0.1, 0.1], [0.1, 0.15], [0.9, 0.9]], 0.1))
