"""A model of bytes that counts what follows each context, the longer ones first."""

import time
from collections import Counter, defaultdict

from prepare import TIME_BUDGET, evaluate_bpb, training_text

ORDER = 2  # bytes of context
DISCOUNT = 2.0  # how much a longer context must have been seen before it is trusted

started, text = time.monotonic(), training_text()
counts: list[dict[bytes, Counter[int]]] = []
for order in range(ORDER + 1):
    table: dict[bytes, Counter[int]] = defaultdict(Counter)
    for i in range(order, len(text)):
        table[text[i - order : i]][text[i]] += 1
    counts.append(table)
    print(f"step {order} loss {8 / (order + 1):.4f} {100 * (order + 1) / (ORDER + 1):.0f}%", flush=True)
    if time.monotonic() - started > TIME_BUDGET:
        break
totals = [{context: sum(found.values()) for context, found in table.items()} for table in counts]


def probability(context: bytes, byte: int) -> float:
    likely = 1 / 256
    for order, table in enumerate(counts):
        if order > len(context):
            break
        key = context[len(context) - order :]
        if key in table:
            likely = (table[key][byte] + DISCOUNT * likely) / (totals[order][key] + DISCOUNT)
    return likely


print("---")
print(f"val_bpb:          {evaluate_bpb(probability):.6f}")
print(f"training_seconds: {time.monotonic() - started:.1f}")
