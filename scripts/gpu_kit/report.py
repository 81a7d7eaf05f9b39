"""The README of a folder of results, and a line for each row."""

from statistics import median

from . import plan


def line(row):
    """What a row says, for those who wait."""
    name = plan.Step(**row["step"]).name
    if row["status"] != "measured":
        return f"{name}: {row['status']}: {row['reason']}"
    work = row["step"]["work"]
    if work == "conformance":
        return f"{name}: {len(row['tests'])} tests passed"
    if work == "kernels":
        measured = row["measured"]
        return f"{name}: copies {rate(measured['copy']) / 1e9:.0f} GB/s, multiplies {product_rate(row) / 1e12:.1f} TFLOP/s"
    return f"{name}: {1e3 * seconds(row):.1f} ms, {row['tokens'] / seconds(row):.0f} tokens/s"


def seconds(row):
    return median(row["measured"]["measurements"][row["step"]["work"]]["seconds"])


def rate(timed):
    return timed["amount"] / median(timed["seconds"])


def product_rate(row):
    """The highest rate of a product of matrices, attention aside."""
    return max(rate(product) for product in row["measured"]["products"] if not product["name"].startswith("attention"))


class Rows:
    """The measured rows of a report."""

    def __init__(self, report):
        self.rows = [row for row in report["rows"] if row["status"] == "measured"]

    def of(self, **fields):
        return [row for row in self.rows if all(row["step"][key] == value for key, value in fields.items())]

    def one(self, **fields):
        return next(iter(self.of(**fields)), None)


def table(head, rows):
    lines = [head, ["---"] * len(head)] + rows
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def readme(report):
    rows = Rows(report)
    parts = [introduction(report), conformance(report, rows)]
    parts += [device_rates(rows), kernels(rows), training(rows), decoding(rows), missing(report)]
    return "\n\n".join(filter(None, parts)) + "\n"


def introduction(report):
    kit, machine, calls = report["kit"], report["machine"], report["calls"]
    rehearsal = machine["rehearsal"]
    title = " and ".join(sorted({backend["hardware"] for backend in machine["backends"].values()}))
    lines = [f"# {'A rehearsal on ' if rehearsal else ''}{title}", ""]
    if rehearsal:
        lines += ["Tiny models, not on a GPU: that every row is there is what this shows. **No figure means anything.**", ""]
    flag = " --rehearse" if rehearsal else ""
    programs = [program["features"] for program in kit["programs"]]
    built = "".join(f" --features {','.join(features)}" for features in programs)
    lines += [f"    scripts/gpu-kit build{built}", f"    altup-gpu-kit/scripts/gpu-kit run{flag}", ""]
    backends = [
        f"`{name}` on {backend['hardware']} ({'f32, bf16' if backend['bf16'] else 'f32'})"
        for name, backend in machine["backends"].items()
    ]
    features = "; ".join(map(",".join, programs))
    lines.append(f"Commit {kit['commit']}, {kit['rustc']}, features {features}. {'; '.join(backends)}.")
    if machine["nvidia"]:
        gpu = machine["nvidia"]
        lines.append(f"{gpu['name']} with {gpu['memory_bytes'] / 1e9:.0f} GB, driver {gpu['driver']}.")
    lines.append(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, {machine['system']}."
    )
    if machine["pytorch"]:
        versions = machine["pytorch"]
        lines.append(f"PyTorch {versions['torch']}, transformers {versions['transformers'] or 'none'}.")
    if machine["pytorch_missing"]:
        lines.append(f"No figure of PyTorch: {machine['pytorch_missing']}.")
    taken = " and ".join(f"{call['seconds'] / 60:.1f} minutes from {call['started']}" for call in calls)
    counts = [f"{sum(1 for row in report['rows'] if row['status'] == s)} {s}" for s in ("measured", "failed", "left out")]
    lines += ["", f"Measured in {taken}: {', '.join(counts)}."]
    return "\n".join(lines)


def conformance(report, rows):
    lines = ["## Conformance", ""]
    for row in report["rows"]:
        if row["step"]["work"] != "conformance":
            continue
        side = row["step"]["side"]
        if row["status"] == "measured":
            skipped = f" Skipped: {'; '.join(row['skipped'])}." if row["skipped"] else ""
            lines.append(f"- {side}: all {len(row['tests'])} tests passed.{skipped}")
        else:
            lines.append(f"- **{side}: {row['status']}, so no figure of it counts: {row['reason']}**")
    if len(lines) == 2:
        return None
    about = "Operations and models of every variant (outputs, loss, all gradients, an optimizer step, greedy tokens) against"
    return "\n".join(lines + ["", f"{about} Hugging Face transformers and a PyTorch program; kernels against plain operations."])


def device_rates(rows):
    cells = []
    for row in rows.of(work="kernels"):
        step, copy = row["step"], row["measured"]["copy"]
        cells.append([step["side"], step["precision"], "copy", f"{rate(copy) / 1e9:.1f} GB/s"])
        for product in row["measured"]["products"]:
            cells.append([step["side"], step["precision"], product["name"], f"{rate(product) / 1e12:.3g} TFLOP/s"])
    if not cells:
        return None
    return "## The device's own rates\n\n" + table(["side", "type", "what", "rate"], cells)


def kernels(rows):
    cells = []
    for row in rows.of(work="kernels"):
        step, copy = row["step"], rate(row["measured"]["copy"])
        for kernel in row["measured"]["passes"]:
            ms, share = 1e3 * median(kernel["seconds"]), 100 * rate(kernel) / copy
            megabytes = f"{kernel['amount'] / 1e6:.1f}"
            cells.append([kernel["name"], step["side"], step["precision"], megabytes, f"{ms:.3f}", f"{share:.0f} %"])
    if not cells:
        return None
    about = "Bytes are the least that a kernel reads and writes; the share is of the copy of the same side and type."
    head = ["kernel", "side", "type", "MB", "ms", "of the copy's rate"]
    return f"## Kernels that pass over memory\n\n{about}\n\n{table(head, cells)}"


def ratio(seconds_of_row, other):
    return f"{seconds_of_row / seconds(other):.3f}" if other else ""


def training(rows):
    cells = []
    key = lambda row: [row["step"][name] for name in ("size", "precision", "rows", "model", "side")]
    order = {size: at for at, size in enumerate(plan.FULL.sizes + plan.REHEARSAL.sizes)}
    model_order = {model: at for at, model in enumerate(plan.MODELS)}
    for row in sorted(rows.of(work="train"), key=lambda row: (order[row["step"]["size"]], key(row)[1:3], model_order[row["step"]["model"]])):
        step, took = row["step"], seconds(row)
        timing = row["measured"]["measurements"]["train"]
        fastest, slowest = (1e3 * f(timing["seconds"]) for f in (min, max))
        # PyTorch's steps too are related to the rate that the main backend multiplies at.
        products = rows.of(work="kernels", precision=step["precision"])
        products = [r for r in products if r["step"]["side"] == step["side"]] or products
        share = f"{100 * row['floor'] / took / product_rate(products[0]):.0f} %" if products else ""
        same = {name: step[name] for name in ("work", "size", "precision", "rows")}
        dense = rows.one(side=step["side"], model=plan.DENSE, **same)
        floor = f"{row['floor'] / dense['floor']:.3f}" if dense else ""
        peak = timing["peak_bytes"]
        cells.append(
            [
                *(step[name] for name in ("size", "precision", "rows", "model", "side")),
                f"{1e3 * took:.1f} ({fastest:.1f} – {slowest:.1f})",
                f"{row['tokens'] / took:.0f}",
                f"{peak / 1e9:.2f}" if peak else "",
                f"{row['floor'] / took / 1e12:.3g}",
                share,
                f"{ratio(took, dense)} ({floor})" if dense else "",
                *(ratio(took, rows.one(side=side, model=step["model"], **same)) for side in (plan.EAGER, plan.COMPILED)),
            ]
        )
    if not cells:
        return None
    head = ["size", "type", "rows", "model", "side", "ms, median (min – max)", "tokens/s", "peak GB", "TFLOP/s"]
    head += ["of the matrix rate", "to dense (arithmetic)", "to PyTorch eager", "compiled"]
    some = rows.of(work="train")[0]
    about = f"""Forward and backward pass and AdamW, without dropout. Operations are those of the products by arithmetic (three times the
forward pass), tokens those of inputs and targets, {some['tokens'] // some['step']['rows']} a row. The matrix rate is the highest of a product above. Peak memory is what the
backend's pool took of the device, on PyTorch's side what its tensors held at the most. bf16 is that of the passes; weights
and AdamW are f32 on every side."""
    return f"## Training steps\n\n{about}\n\n{table(head, cells)}"


def decoding(rows):
    cells = []
    for row in rows.of(work="decode"):
        step, took = row["step"], seconds(row)
        copy = [rate(r["measured"]["copy"]) for r in rows.of(work="kernels", precision=step["precision"])]
        reached = row["floor"] / took
        same = {name: step[name] for name in ("work", "size", "precision", "rows", "model")}
        prefill = median(row["measured"]["measurements"]["prefill"]["seconds"])
        each = took / (row["tokens"] / step["rows"])
        cells.append(
            [
                *(step[name] for name in ("size", "precision", "rows", "model", "side")),
                f"{1e3 * prefill:.1f}",
                f"{1e3 * each:.2f}",
                f"{row['tokens'] / took:.0f}",
                f"{reached / 1e9:.1f}",
                f"{100 * reached / copy[0]:.0f} %" if copy else "",
                ratio(took, rows.one(side=plan.EAGER, **same)),
            ]
        )
    if not cells:
        return None
    head = ["size", "type", "rows", "model", "side", "prefill, ms", "ms a token", "tokens/s", "GB/s of weights"]
    head += ["of the copy's rate", "to PyTorch eager"]
    about = """Greedy, with cached keys and values; the prefill (encoder, first token) is timed apart. At the least a token reads
the weights of the decoder and the output table once."""
    return f"## Decoding\n\n{about}\n\n{table(head, cells)}"


def missing(report):
    lines = ["## What is not here", ""]
    for status in ("failed", "left out", "no time"):
        reasons = {}
        for row in report["rows"]:
            if row["status"] == status:
                reasons.setdefault(row["reason"], []).append(plan.Step(**row["step"]).name)
        if status == "no time" and reasons:
            names = [name for names in reasons.values() for name in names]
            reasons = {"the same command measures these, the first ones first": names}
        lines += [f"- {status}, {reason}: {'; '.join(names)}" for reason, names in reasons.items()]
    return "\n".join(lines) if len(lines) > 2 else None
