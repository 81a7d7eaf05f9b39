"""What is measured, the most important first."""

import functools
from dataclasses import dataclass
from typing import Optional, Tuple

EAGER, COMPILED, TRANSFORMERS = "PyTorch eager", "PyTorch compiled", "transformers eager"
PYTORCH = {EAGER: [], COMPILED: ["--compile"], TRANSFORMERS: ["--transformers"]}

DENSE, ALTUP, RECYCLED, EXPERTS = MODELS = ("dense", "altup-k2", "recycled-k2", "moe32")


@dataclass(frozen=True)
class Step:
    """One row of the results."""

    work: str  # conformance, kernels, train or decode
    side: str  # a backend, or one of PYTORCH
    size: str = ""
    model: str = ""
    precision: str = ""
    rows: int = 0

    @property
    def name(self):
        rows = f"{self.rows} row{'s' * (self.rows > 1)}" if self.rows else ""
        return " ".join(filter(None, (self.work, self.size, self.model, self.precision, rows, "on", self.side)))


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    sizes: Tuple[str, str, str]  # in the place of altup-b, altup-s and altup-l
    lengths: Tuple[int, int]
    new_tokens: int
    train_rows: Tuple[int, ...]
    decode_rows: Tuple[int, int]
    kernel_rows: int
    vocab_size: Optional[int]
    repeats: int
    patience: float  # how much longer than on a GPU a step may take


FULL = Scale(("altup-b", "altup-s", "altup-l"), (512, 114), 64, (16, 32, 64, 128), (1, 32), 64, None, 5, 1)
# For a CPU, or a driver in software: as many programs are started, and each has next to nothing to do.
REHEARSAL = Scale(("tiny", "mini", "tiny-wide2"), (16, 8), 4, (1, 2), (1, 2), 4, 256, 1, 20)

# Seconds that a step is thought to take until one like it has been measured, and the most that it may take.
# Nobody has measured how long a real driver compiles the kernels of a large model.
SECONDS = {"conformance": (90, 240), "kernels": (25, 180), "train": (15, 240), "decode": (15, 180)}
COMPILING = (90, 240)


def seconds(step):
    return COMPILING if step.side == COMPILED else SECONDS[step.work]


def steps(scale, backends):
    """The steps on these backends, the first of which is the main one."""
    return list(dict.fromkeys(_steps(scale, backends)))


def _steps(scale, backends):
    main, others = backends[0], backends[1:]
    base, small, large = scale.sizes
    first, more = scale.train_rows[0], scale.train_rows[1:]
    one, many = scale.decode_rows
    train = functools.partial(Step, "train")
    decode = functools.partial(Step, "decode")

    yield Step("conformance", main)
    for precision in ("bf16", "f32"):
        yield Step("kernels", main, base, "", precision, scale.kernel_rows)
    for side in (main, EAGER, COMPILED):
        yield train(side, base, DENSE, "bf16", first)
    for side in (main, EAGER):
        yield train(side, base, ALTUP, "bf16", first)
        yield decode(side, base, DENSE, "bf16", one)
    for model in (RECYCLED, EXPERTS):
        yield train(main, base, model, "bf16", first)
    for model in (DENSE, ALTUP):
        yield train(main, base, model, "f32", first)
    for side in (main, EAGER):
        yield train(side, base, DENSE, "f32", first)
        yield decode(side, base, DENSE, "bf16", many)
    for rows in more:
        yield train(main, base, DENSE, "bf16", rows)
    for size in (small, large):
        for model in (DENSE, ALTUP):
            yield train(main, size, model, "bf16", first)
    for side in others:
        yield Step("conformance", side)
        yield Step("kernels", side, base, "", "bf16", scale.kernel_rows)
        for model in (DENSE, ALTUP):
            yield train(side, base, model, "bf16", first)
        yield train(side, base, DENSE, "f32", first)
        yield decode(side, base, DENSE, "bf16", one)
    for rows in more:
        yield train(main, base, ALTUP, "bf16", rows)
    for model in (ALTUP, RECYCLED):
        for rows in (one, many):
            yield decode(main, base, model, "bf16", rows)
    for rows in (one, many):
        yield decode(main, base, DENSE, "f32", rows)
    for model in (RECYCLED, EXPERTS):
        yield train(main, base, model, "f32", first)
    yield train(TRANSFORMERS, base, DENSE, "bf16", first)
    yield train(COMPILED, base, ALTUP, "bf16", first)
    for size in (small, large):
        yield train(EAGER, size, DENSE, "bf16", first)
        for model in (RECYCLED, EXPERTS):
            yield train(main, size, model, "bf16", first)
        for model in MODELS:
            yield train(main, size, model, "f32", first)
    yield train(COMPILED, base, DENSE, "f32", first)
    yield train(TRANSFORMERS, base, DENSE, "f32", first)
    for rows in more:
        yield train(EAGER, base, DENSE, "bf16", rows)
        for model in (DENSE, ALTUP):
            yield train(main, base, model, "f32", rows)
        for size in (small, large):
            for model in (DENSE, ALTUP):
                yield train(main, size, model, "bf16", rows)
