"""The rate at which all threads together read memory: a sum over 1 GiB of f32, far more than any cache.

Prints GB/s of each repeat as JSON.
"""

import json
import os
import time

import torch

REPEATS = 7

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
values = torch.ones(2**28)
values.sum()
rates = []
for _ in range(REPEATS):
    started = time.perf_counter()
    values.sum()
    rates.append(values.nbytes / (time.perf_counter() - started) / 1e9)
print(json.dumps(rates))
