"""Measure the GPU of this machine, and go on where the last run of this folder ended."""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from . import plan, report
from .programs import ROOT, Failure, LeftOut, Program, PyTorch, TimedOut
from .programs import find_backends, nvidia, offer_libdevice, output_of, reason, start

MINUTES = 10
# Losses of two right programs are as close as this, as in `altup bench`.
LOSS_TOLERANCE = {"f32": 1e-4, "bf16": 1e-2}
FLOAT_BYTES = {"f32": 4, "bf16": 2}
# Begins the name of a folder for models, behind which the process stands.
SCRATCH = "altup-gpu-kit-"


def add_arguments(parser):
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no step begins that would end later [%(default)s]")
    parser.add_argument("--python", help="the Python that has PyTorch [default: the one that runs this]")
    parser.add_argument("--retry", action="store_true", help="measure once more what failed")
    parser.add_argument("--rehearse", action="store_true", help="tiny models, on the CPU too")


def run(args):
    started = time.monotonic()
    try:
        kit = json.loads((ROOT / "kit.json").read_text())
    except FileNotFoundError:
        sys.exit("error: this is no unpacked archive: make one with `scripts/gpu-kit build`, and run it from there")
    if args.rehearse:
        os.environ["CUBECL_AUTOTUNE_LEVEL"] = "minimal"
    remove_left_overs()
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as scratch:
        run_in(Path(scratch), args, kit, started)


def remove_left_overs():
    """The models of a run that was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        if not Path("/proc", folder.name.removeprefix(SCRATCH).split("-")[0]).exists():
            shutil.rmtree(folder, ignore_errors=True)


def run_in(scratch, args, kit, started):
    scale = plan.REHEARSAL if args.rehearse else plan.FULL
    offer_libdevice(scratch / "cuda", args.python)
    backends = find_backends([Program(about) for about in kit["programs"]], args.rehearse)
    args.output.mkdir(parents=True, exist_ok=True)
    # Two calls at once would spoil each other's times, and each other's rows.
    folder = os.open(args.output, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"error: another run is measuring into {args.output}")
    pytorch = PyTorch(args.python, args.rehearse)
    results = Results(args.output, kit, machine(backends, pytorch, args.rehearse))
    session = Session(args, scale, backends, pytorch, results, scratch, started)
    # A connection that breaks ends what was started too, and the scratch folder.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has it ignored, and so it stays.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        session.run()
    print(f"{session.said()}: {args.output / 'README.md'}", file=sys.stderr)
    if args.rehearse and results.failed():
        sys.exit("error: a rehearsal has failed rows")


def machine(backends, pytorch, rehearses):
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    memory = re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())
    return {
        "rehearsal": rehearses,
        "backends": {name: {"hardware": hardware, "bf16": bf16} for name, (_, hardware, bf16) in backends.items()},
        "nvidia": nvidia(),
        "pytorch": pytorch.versions,
        "pytorch_missing": pytorch.missing,
        "cpu": next((line.split(": ")[1] for line in cpuinfo if line.startswith("model name")), "unknown processor"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(memory[1]) * 1024,
        "system": " ".join((os.uname().sysname, os.uname().release, os.uname().machine)),
    }


class Results:
    """The folder of results: written anew after every row, and read when a run goes on."""

    def __init__(self, folder, kit, machine):
        self.folder, self.path = folder, folder / "results.json"
        self.report = {"kit": kit, "machine": machine, "calls": [], "rows": []}
        if self.path.exists():
            earlier = json.loads(self.path.read_text())
            same = lambda report: (report["kit"]["commit"], report["machine"]["backends"], report["machine"]["rehearsal"])
            if same(earlier) != same(self.report):
                sys.exit(f"error: {self.path} is of another kit or another GPU: choose another --output")
            # PyTorch may be there by now.
            self.report = {**earlier, "machine": machine}
        self.report["calls"].append({"started": time.strftime("%Y-%m-%d %H:%M:%S %z"), "seconds": 0})

    def row(self, step):
        return next((row for row in self.report["rows"] if row["step"] == vars(step)), None)

    def measured(self, matches):
        return [row for row in self.report["rows"] if row["status"] == "measured" and matches(row["step"])]

    def failed(self):
        return [row for row in self.report["rows"] if row["status"] == "failed"]

    def save(self, step, status, seconds, **fields):
        rows = [row for row in self.report["rows"] if row["step"] != vars(step)]
        row = {"step": vars(step), "status": status, "seconds": round(seconds, 1), **fields}
        self.report["rows"] = rows + [row]
        return row

    def write(self, seconds):
        self.report["calls"][-1]["seconds"] = round(seconds, 1)
        for path, text in [
            (self.path, json.dumps(self.report, indent=1) + "\n"),
            (self.folder / "README.md", report.readme(self.report)),
        ]:
            partial = path.with_name(path.name + ".partial")
            partial.write_text(text)
            partial.replace(path)


class Session:
    """One call of `run`."""

    def __init__(self, args, scale, backends, pytorch, results, scratch, started):
        self.args, self.scale, self.backends, self.pytorch = args, scale, backends, pytorch
        self.results, self.scratch, self.started = results, scratch, started
        self.steps = plan.steps(scale, list(backends))
        self.main, self.reasons = next(iter(backends.values()))[0], set()

    def elapsed(self):
        return time.monotonic() - self.started

    def left(self):
        return 60 * self.args.minutes - self.elapsed()

    def run(self):
        for number, step in enumerate(self.steps):
            earlier = self.results.row(step)
            done = ["measured"] if self.args.retry else ["measured", "failed"]
            if not earlier or earlier["status"] not in done:
                began = self.elapsed()
                row = self.row(step, began)
                self.results.write(self.elapsed())
                self.say(row, began)
            self.forget_models(self.steps[number + 1 :])
        self.results.write(self.elapsed())

    def say(self, row, began):
        """What cannot be had is said once."""
        if row["status"] != "left out" or row["reason"] not in self.reasons:
            print(f"{began // 60:3.0f}:{began % 60:02.0f}  {report.line(row)}", file=sys.stderr)
        self.reasons.add(row.get("reason"))

    def row(self, step, began):
        needed = self.expected_seconds(step)

        def save(status, **fields):
            return self.results.save(step, status, self.elapsed() - began, **fields)

        try:
            self.check_sense(step)
            if needed > self.left():
                return save("no time", reason=f"it takes about {needed:.0f} s")
            return save("measured", **getattr(self, step.work)(step))
        except LeftOut as error:
            return save("left out", reason=str(error))
        except TimedOut as error:
            # By the end of the call, or by a limit of its own.
            return save("no time" if self.left() < 1 else "failed", reason=str(error), timed_out=True)
        except Failure as error:
            return save("failed", reason=str(error))
        except OSError as error:
            # A disk that is full, mostly. The next call tries again.
            return save("no time", reason=error.strerror or str(error))

    def expected_seconds(self, step):
        """What steps like this one took, or what is thought so far."""
        like = lambda other: all(other[key] == vars(step)[key] for key in ("work", "side", "size"))
        taken = [row["seconds"] for row in self.results.measured(like)]
        return max(taken) if taken else plan.seconds(step)[0]

    def limit(self, step):
        return max(1, min(self.left(), self.scale.patience * plan.seconds(step)[1]))

    def check_sense(self, step):
        """Fails if the row can't be had."""
        if step.precision == "bf16" and step.side in self.backends and not self.backends[step.side][2]:
            raise LeftOut(f"{step.side} does not compute in bf16 on this device")
        if step.side in plan.PYTORCH:
            self.pytorch.command(plan.PYTORCH[step.side])
        same = lambda other: all(other[key] == vars(step)[key] for key in ("work", "side", "size", "model", "precision"))
        for row in self.results.report["rows"]:
            # Kernels that took too long to compile say nothing of a larger batch.
            failed = row["status"] == "failed" and "timed_out" not in row
            if failed and same(row["step"]) and row["step"]["rows"] < step.rows:
                raise LeftOut(f"{row['step']['rows']} rows failed already")
        gpu = self.results.report["machine"]["nvidia"]
        if step.work == "train" and gpu and not self.args.rehearse:
            needed = self.memory_estimate(step)
            if needed > gpu["memory_bytes"]:
                needed, there = needed / 1e9, gpu["memory_bytes"] / 1e9
                raise LeftOut(f"a step holds {needed:.0f} GB by arithmetic, the GPU has {there:.0f} GB")

    def memory_estimate(self, step):
        inputs, targets = self.scale.lengths
        command = [self.main.altup, "inspect", "--size", step.size, "--variant", step.model, "--json", "--on-gpu"]
        command += ["--precision", step.precision, "--optimizer", "adamw", "--batch-size", step.rows]
        command += ["--input-length", inputs, "--target-length", targets]
        return json.loads(output_of(command, 60))["training_memory"]["peak"]

    # --- The works -------------------------------------------------------------------------------

    def conformance(self, step):
        """Every variant of the models, and the kernels in f16 and bf16, against what is known to be right."""
        program = self.backends[step.side][0]
        backend = step.side.split(":")[0]
        suites = [[program.conformance, f"{backend}::"]]
        # Where `wgpu` is not compiled in, a GPU of CubeCL's is CUDA's.
        gpu = "on_wgpu" if "wgpu" in program.features or "vulkan" in program.features else "on_cuda"
        suites.append([program.kernels, *(["on_flex"] if backend == "flex" else [gpu, "half_types"])])
        tests, skipped = {}, []
        for suite in suites:
            command = suite + ["--test-threads", "1", "--show-output"]
            env = {"CUBECL_AUTOTUNE_LEVEL": "minimal", "ALTUP_TEST_DEVICE": step.side}
            code, output, errors = start(command, self.limit(step), cwd=ROOT / "crates/altup-train", env=env)
            found = dict(re.findall(r"^test (\S+) \.\.\. (\S+)$", output, re.MULTILINE))
            tests.update(found)
            skipped += re.findall("^skipped: (.*)$", output + errors, re.MULTILINE)
            failed = [name for name, outcome in found.items() if outcome != "ok"]
            if failed:
                raise Failure(f"{len(failed)} of {len(found)} tests failed: {', '.join(failed)}: {reason(code, output)}")
            if code != 0 or not found:
                begun = re.findall(r"^test (\S+) \.\.\. $", output, re.MULTILINE)
                raise Failure(f"{reason(code, errors)}, in {begun[-1] if begun else suite[0].name}")
        return {"tests": tests, "skipped": sorted(set(skipped))}

    def kernels(self, step):
        inputs, targets = self.scale.lengths
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            command = [self.backends[step.side][0].altup, "bench", "--quiet", "--works", "kernels"]
            command += ["--backends", step.side, "--sizes", step.size, "--precision", step.precision]
            command += ["--batch-size", step.rows, "--input-length", inputs, "--target-length", targets]
            command += ["--rounds", 1, "--repeats", self.scale.repeats, "--output", folder] + self.vocabulary()
            output_of(command, self.limit(step))
            return {"measured": json.loads((Path(folder) / "kernels.json").read_text())}

    def train(self, step):
        return self.measure(step, "train")

    def decode(self, step):
        return self.measure(step, "prefill,decode")

    def measure(self, step, works):
        if step.side in self.backends:
            side = [self.backends[step.side][0].altup, "measure", "--backend", step.side]
        else:
            side = self.pytorch.command(plan.PYTORCH[step.side])
        case = self.model(step)
        batch = json.loads((case / "batch.json").read_text())
        floor = json.loads((case / "floors.json").read_text())[step.work]
        if step.work == "train":
            floor *= step.rows / len(batch["labels"])
        else:
            floor *= FLOAT_BYTES[step.precision] / FLOAT_BYTES["f32"]
        rows = {name: batch[name][: step.rows] for name in ("input_ids", "labels")}
        file = case / f"{step.rows} rows.json"
        file.write_text(json.dumps({**rows, "new_tokens": batch["new_tokens"]}))
        options = ["--model", case / "model", "--batch", file, "--works", works]
        options += ["--repeats", self.scale.repeats, "--precision", step.precision]
        printed = output_of(side + options, self.limit(step))
        lines = [line for line in printed.splitlines() if line.startswith("{")]
        if not lines:
            raise Failure("it printed no figures")
        measured = json.loads(lines[-1])
        measured.pop("tokens", None)
        self.check_loss(step, measured["loss"])
        tokens = step.rows * (sum(self.scale.lengths) if step.work == "train" else batch["new_tokens"] - 1)
        return {"measured": measured, "tokens": tokens, "floor": floor}

    def check_loss(self, step, loss):
        """A step on the same model and batch computed the same loss, or one of the two is wrong."""
        if loss is None or not math.isfinite(loss):
            raise Failure("its loss is no number")
        same = lambda other: all(other[key] == vars(step)[key] for key in ("size", "model", "precision", "rows"))
        for row in self.results.measured(lambda other: other["work"] in ("train", "decode") and same(other)):
            other = row["measured"]["loss"]
            if not abs(loss - other) <= LOSS_TOLERANCE[step.precision] * abs(other):
                raise Failure(f"its loss is {loss:.6f}, that on {row['step']['side']} {other:.6f}: one of them is wrong")

    # --- Models ----------------------------------------------------------------------------------

    def vocabulary(self):
        return ["--vocab-size", self.scale.vocab_size] if self.scale.vocab_size else []

    def model(self, step):
        """The folder of a model with a batch, made from a seed when it is first needed."""
        case = self.scratch / "models" / f"{step.size}-{step.model}"
        if not (case / "floors.json").exists():
            shutil.rmtree(case, ignore_errors=True)
            inputs, targets = self.scale.lengths
            rows = max(self.scale.train_rows + self.scale.decode_rows)
            command = [self.main.altup, "bench", "--prepare", self.scratch / "models", "--works", "train,decode"]
            command += ["--sizes", step.size, "--models", step.model, "--batch-size", rows, "--input-length", inputs]
            command += ["--target-length", targets, "--new-tokens", self.scale.new_tokens] + self.vocabulary()
            output_of(command, max(1, self.left()))
        return case

    def forget_models(self, steps):
        """Removes what no further step needs: a large model takes gigabytes."""
        needed = {f"{step.size}-{step.model}" for step in steps}
        for case in (self.scratch / "models").glob("*"):
            if case.name not in needed:
                shutil.rmtree(case)

    def said(self):
        rows = [self.results.row(step) for step in self.steps]
        count = lambda status: sum(1 for row in rows if row and row["status"] == status)
        left = len(rows) - sum(map(count, ("measured", "failed", "left out")))
        more = f", {left} without time: the same command goes on" if left else ""
        return f"{count('measured')} rows measured, {count('failed')} failed, {count('left out')} left out{more}"
