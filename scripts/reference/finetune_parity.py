"""Fine-tunes a dense T5 in PyTorch on the batches that `altup finetune` trains on, and compares the losses:

    python scripts/reference/finetune_parity.py fixture --altup target/release/altup
    python scripts/reference/finetune_parity.py compare --altup target/release/altup \
        --model DIR --task sst2 --data FOLDER --batch-size 32 --steps 20
    python scripts/reference/finetune_parity.py score --altup target/release/altup \
        --model DIR --task sst2 --data FOLDER --batch-size 32 --steps 400 --seeds 0 1 2 --output results.json

The first regenerates `crates/altup-train/tests/fixtures/fine_tuning`: a tiny dense T5 of Hugging Face with a tokenizer
of the words in `examples/reviews`, 20 batches of these rows, and the losses of 20 steps of Hugging Face's
`T5ForConditionalGeneration` under Hugging Face's `Adafactor` on them. `fixture` and `compare` fail if a loss of altup's differs
by more than 1e-3. There is no dropout on either side: its masks can't be the same. `score` trains from several seeds of
the batches, altup and PyTorch in turns, and scores what both end with by `altup evaluate`: the metrics, and the examples a
second of both.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import T5Config, T5ForConditionalGeneration
from transformers.optimization import Adafactor

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "crates/altup-train/tests/fixtures/fine_tuning"
REVIEWS = ROOT / "examples/reviews"
TOLERANCE = 1e-3
LEARNING_RATE = 1e-3
STEPS = 20
BATCH_SIZE = 8


def tokenizer():
    """Unigram over the words of the made rows and their letters, with T5's special tokens where T5 has them."""
    rows = [line.split("\t")[0] for line in (REVIEWS / "train.tsv").read_text().splitlines()[1:]]
    words = {word for row in rows for word in row.split()} | {"sst2", "sentence:", "negative", "positive"}
    pieces = ["\u2581" + word for word in sorted(words)] + ["\u2581"] + [chr(code) for code in range(ord("a"), ord("z") + 1)]
    special = ["<pad>", "</s>", "<unk>"]
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(100))]
    vocab = [(token, 0.0) for token in special]
    vocab += [(piece, -float(len(piece) == 1) * 10 - 1) for piece in pieces]
    vocab += [(sentinel, 0.0) for sentinel in sentinels]
    made = Tokenizer(models.Unigram(vocab, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    made.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    made.add_special_tokens(special + sentinels)
    return made


def write_model(path):
    """A tiny T5 v1.1 with Hugging Face's initial weights."""
    path.mkdir(parents=True, exist_ok=True)
    made = tokenizer()
    made.save(str(path / "tokenizer.json"))
    torch.manual_seed(5)
    fields = {
        "vocab_size": (made.get_vocab_size() + 63) // 64 * 64,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.1,
        "decoder_start_token_id": 0,
    }
    model = T5ForConditionalGeneration(T5Config(**fields, tie_word_embeddings=False))
    names = [name for name in model.state_dict() if "embed_tokens" not in name]
    tensors = {name: model.state_dict()[name].clone().contiguous() for name in names}
    # Transformers 5 ties the two tables of a fresh model; published v1.1 models have two.
    tensors["lm_head.weight"] = torch.randn(fields["vocab_size"], fields["d_model"]) * fields["d_model"] ** -0.5
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": False, **fields}
    config |= {"is_gated_act": True, "dense_act_fn": "gelu_new", "eos_token_id": 1, "pad_token_id": 0}
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_model(path):
    """Transformers 5 takes the truth about the output layer from the tensors that are there."""
    model = T5ForConditionalGeneration.from_pretrained(path, dropout_rate=0.0)
    return model.float().train()


def train(model, batches, learning_rate):
    """Trains a model; the loss of each batch before the step on it, and the seconds that all steps took."""
    optimizer = Adafactor(
        model.parameters(), lr=learning_rate, scale_parameter=True, relative_step=False, warmup_init=False
    )
    found, started = [], time.perf_counter()
    for batch in batches:
        input_ids = torch.tensor(batch["input_ids"])
        labels = torch.tensor(batch["labels"])
        output = model(
            input_ids=input_ids,
            attention_mask=(input_ids != 0).long(),
            labels=labels.masked_fill(labels == 0, -100),
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        found.append(output.loss.item())
    return found, time.perf_counter() - started


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def altup_run(args, task, data, run_folder, seed=0):
    """Fine-tunes with altup: its batches, the loss of each step, and the seconds that all took."""
    altup, steps = args.altup, args.steps
    flags = ["--set", "model.dropout_rate=0", "--set", "training.log_every=1", "--steps", steps]
    flags += ["--batch-size", args.batch_size, "--seed", seed, "--set", f"optimizer.learning_rate={args.learning_rate}"]
    source = ["--model", args.model, "--task", task, "--data", data, "--output", run_folder]
    run(altup, "finetune", *source, *flags, "--eval-every", steps, "--set", "training.eval_examples=1", "--quiet")
    batches = run(altup, "tasks", "batches", run_folder, "--count", steps)
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    return batches, [row["loss"] for row in train], train[-1]["elapsed_seconds"]


def compare(args, folder):
    task = (args.task, args.data) if args.command == "compare" else ("sst2", REVIEWS)
    batches, ours, our_seconds = altup_run(args, *task, Path(folder) / "run")
    parsed = [json.loads(line) for line in batches.splitlines()]
    theirs, their_seconds = train(load_model(args.model), parsed, args.learning_rate)
    for step, (mine, reference) in enumerate(zip(ours, theirs, strict=True), start=1):
        print(f"step {step:>3}  altup {mine:.6f}  torch {reference:.6f}  {mine - reference:+.1e}")
    worst = max(abs(mine - reference) for mine, reference in zip(ours, theirs, strict=True))
    examples = sum(len(batch["input_ids"]) for batch in parsed)
    print(f"largest difference {worst:.1e}; examples/s: altup {examples / our_seconds:.1f}, torch {examples / their_seconds:.1f}")
    if worst > TOLERANCE:
        sys.exit(f"the losses differ by more than {TOLERANCE}")
    return batches, theirs


def score(args, folder):
    """Fine-tunes from each seed with altup and with PyTorch, in turns, and scores both."""
    rows = []
    for seed in args.seeds:
        run_folder, torch_folder = Path(folder) / f"altup-{seed}", Path(folder) / f"torch-{seed}"
        batches, ours, our_seconds = altup_run(args, args.task, args.data, run_folder, seed)
        parsed = [json.loads(line) for line in batches.splitlines()]
        model = load_model(args.model)
        theirs, their_seconds = train(model, parsed, args.learning_rate)
        model.save_pretrained(torch_folder)
        shutil.copy(run_folder / "model/tokenizer.json", torch_folder)
        scored = ["--task", args.task, "--data", args.data, "--evaluate-by", args.evaluate_by, "--json"]
        evaluate = lambda path: json.loads(run(args.altup, "evaluate", "--model", path, *scored))["metrics"]
        examples = sum(len(batch["input_ids"]) for batch in parsed)
        of_altup = {"metrics": evaluate(run_folder / "model"), "last_loss": ours[-1], "examples_per_second": examples / our_seconds}
        of_torch = {"metrics": evaluate(torch_folder), "last_loss": theirs[-1], "examples_per_second": examples / their_seconds}
        rows.append({"seed": seed, "altup": of_altup, "torch": of_torch})
        print(json.dumps(rows[-1]))
    of_all = {}
    for side in ("altup", "torch"):
        for metric in rows[0][side]["metrics"]:
            values = [row[side]["metrics"][metric] for row in rows]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            of_all[f"{side} {metric}"] = {"mean": statistics.mean(values), "standard_deviation": deviation}
    ratios = [row["altup"]["examples_per_second"] / row["torch"]["examples_per_second"] for row in rows]
    of_all["examples per second, altup / torch"] = {"median": statistics.median(ratios), "all": ratios}
    for what, figures in of_all.items():
        print(what, json.dumps(figures))
    if args.output:
        versions = {"torch": torch.__version__, "altup": run(args.altup, "--version").strip()}
        found = {"command": " ".join(sys.argv), "versions": versions, "threads": torch.get_num_threads()}
        args.output.write_text(json.dumps({**found, "rows": rows, "together": of_all}, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fixture = commands.add_parser("fixture")
    both, scored = commands.add_parser("compare"), commands.add_parser("score")
    for command in (fixture, both, scored):
        command.add_argument("--altup", required=True, type=lambda path: Path(path).resolve())
    for command in (both, scored):
        command.add_argument("--model", required=True, type=Path)
        command.add_argument("--task", required=True)
        command.add_argument("--data", required=True, type=Path)
        command.add_argument("--batch-size", type=int, default=BATCH_SIZE)
        command.add_argument("--steps", type=int, default=STEPS)
        command.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
        command.add_argument("--threads", type=int, default=os.cpu_count())
    scored.add_argument("--seeds", type=int, nargs="+", default=[0])
    scored.add_argument("--evaluate-by", default="generation", help="or ranking")
    scored.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(getattr(args, "threads", 1))
    if args.command != "fixture":
        os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        if args.command != "fixture":
            {"compare": compare, "score": score}[args.command](args, folder)
            return
        args.model, args.batch_size, args.steps = FIXTURE / "model", BATCH_SIZE, STEPS
        args.learning_rate = LEARNING_RATE
        write_model(args.model)
        batches, reference = compare(args, folder)
        (FIXTURE / "batches.jsonl").write_text(batches)
        (FIXTURE / "losses.json").write_text(json.dumps({"learning_rate": LEARNING_RATE, "losses": reference}, indent=1) + "\n")


if __name__ == "__main__":
    main()
