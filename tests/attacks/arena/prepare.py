"""The arena's evaluation: mean absolute error on points that training has not seen.

Like the real one it gives the model inputs only, in a child process, and computes the error itself.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
CHILD = """
import json, os, sys
sys.path.insert(0, os.getcwd())
import train
answers = train.predict(json.loads(sys.argv[2]))
os.write(int(sys.argv[1]), json.dumps(answers).encode())
"""


def main() -> None:
    plan = json.loads((HERE / "plan.json").read_text())
    points = json.loads(Path(plan["heldout"], "val.json").read_text())["points"]
    inputs = json.dumps([x for x, _ in points])
    prefix = json.loads(os.environ.get("RESEARCH_MODEL_SANDBOX") or "[]")
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [*prefix, sys.executable, "-P", "-c", CHILD, str(writer), inputs],
        pass_fds=[writer],
        stdout=sys.stderr,
        stdin=subprocess.DEVNULL,
    )
    os.close(writer)
    with open(reader, "rb") as answers:
        said = answers.read(1 << 20)
    if child.wait():
        sys.exit(f"the model ended with exit code {child.returncode}")
    predicted = json.loads(said)
    if len(predicted) != len(points):
        print(f"violation: {len(predicted)} answers to {len(points)} questions")
        sys.exit(3)
    error = sum(abs(y - float(p)) for (_, y), p in zip(points, predicted, strict=True)) / len(points)
    print(f"score: {error:.6f}")


if __name__ == "__main__":
    main()
