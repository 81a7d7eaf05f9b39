"""Reads the event file of a run with TensorBoard itself and compares it with metrics.jsonl.

    python check.py RUN
"""

import json
import math
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# The scalar of a row's field.
TAGS = {
    "train": {
        "loss": "loss/training",
        "learning_rate": "optimization/learning_rate",
        "grad_norm": "optimization/gradient_norm",
        "tokens_per_second": "speed/tokens_per_second",
        "data_wait_seconds": "speed/data_wait_seconds",
        "exchange_seconds": "speed/exchange_seconds",
        "flops_per_second": "speed/model_flops_per_second",
        "peak_share": "speed/share_of_peak",
        "memory_bytes": "memory/resident_bytes",
        "peak_memory_bytes": "memory/peak_bytes",
    },
    "valid": {
        "loss": "loss/validation",
        "perplexity": "validation/perplexity",
        "accuracy": "validation/accuracy",
    },
    "rollback": {
        "number": "optimization/rollbacks",
        "skipped_steps": "optimization/skipped_steps",
    },
}


def block_name(letter, *blocks):
    """p12, or p1,12 where a number has more than one digit."""
    numbers = [str(block + 1) for block in blocks]
    return letter + ("" if all(len(number) == 1 for number in numbers) else ",").join(numbers)


def expected(rows):
    """By tag, the (step, value) pairs that the rows say."""
    scalars = {}

    def add(tag, value):
        scalars.setdefault(tag, []).append((row["step"], value))

    for row in rows:
        for field, tag in TAGS.get(row["kind"], {}).items():
            if field in row:
                add(tag, row[field])
        if row["kind"] == "valid" and "text" in row:
            add("validation/text_loss", row["text"]["loss"])
            add("validation/text_accuracy", row["text"]["accuracy"])
        for layer in row.get("routing", []):
            name = f"{layer['stack']}_{layer['layer']}"
            add(f"most_chosen_expert/{name}", max(layer["loads"]) * len(layer["loads"]))
            add(f"router_entropy/{name}", layer["entropy"])
            add(f"dropped_by_full_experts/{name}", layer["dropped"])
        for source in row.get("epochs", []):
            add(f"epochs/{source['name']}", source["epochs"])
        for source in row.get("sources", []):
            add(f"validation_loss/{source['name']}", source["loss"])
            add(f"validation_accuracy/{source['name']}", source["accuracy"])
            if "text" in source:
                add(f"validation_text_accuracy/{source['name']}", source["text"]["accuracy"])
        for task in row.get("tasks", []):
            for metric, value in task["metrics"].items():
                add(f"{task['task']}/{metric}", value)
        for layer in row.get("layers", []):
            group = f"coefficients_{layer['stack']}_{layer['layer']}"
            for i, values in enumerate(layer.get("p", [])):
                for j, value in enumerate(values):
                    add(f"{group}/{block_name('p', i, j)}", value)
            for i, value in enumerate(layer.get("g", [])):
                add(f"{group}/{block_name('g', i)}", value)
            for name, value in zip(["a1", "a2", "b"], layer.get("sequence", [])):
                add(f"{group}/{name}", value)
    return scalars


def main(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    start = next(row["unix_seconds"] for row in rows if row["kind"] == "start")
    # 0: keep every event. The reader checks each record's checksums.
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = expected(rows)
    found = set(events.Tags()["scalars"])
    assert found == set(scalars), found ^ set(scalars)
    count = 0
    for tag, points in scalars.items():
        read = events.Scalars(tag)
        assert [event.step for event in read] == [step for step, _ in points], tag
        for event, (step, value) in zip(read, points):
            # Events hold 32 bits.
            assert math.isclose(event.value, value, rel_tol=1e-6), (tag, step, event.value, value)
            count += 1
    train = [row for row in rows if row["kind"] == "train"]
    for event, row in zip(events.Scalars("loss/training"), train):
        assert math.isclose(event.wall_time, start + row["elapsed_seconds"], abs_tol=1e-3), row
    assert count > 0
    print(f"{count} scalars under {len(scalars)} tags are what metrics.jsonl says")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
