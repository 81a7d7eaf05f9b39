"""Greedy decoding with Hugging Face transformers (PyTorch, eager mode): the peer of the bench `decoding`.

    python benches/peers/hf_decoding.py --model DIR --inputs inputs.json --new-tokens 64 --batch-size 1 \
        --repeats 3 --json

`inputs.json` holds rows of token ids of one length; the first `--batch-size` of them are decoded.
Seconds are those of a whole `generate`, encoder included, after one that warms up.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import T5ForConditionalGeneration
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--inputs", type=Path, required=True)
parser.add_argument("--new-tokens", type=int, default=64)
parser.add_argument("--batch-size", type=int, default=1)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
parser.add_argument("--json", action="store_true", help="print one JSON line")
args = parser.parse_args()

torch.set_num_threads(args.threads)
model = T5ForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
input_ids = torch.tensor(json.loads(args.inputs.read_text())[: args.batch_size])
assert len(input_ids) == args.batch_size, f"{args.inputs} has only {len(input_ids)} rows"


def decode():
    # As many tokens at least as at most: the end-of-sequence token is suppressed throughout.
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        min_new_tokens=args.new_tokens,
        max_new_tokens=args.new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
    )
    return output[:, 1:].tolist()  # without the start token


tokens = decode()
seconds = []
for _ in range(args.repeats):
    started = time.perf_counter()
    repeated = decode()
    seconds.append(time.perf_counter() - started)
    assert repeated == tokens, "a repeat decoded other tokens"

program = f"transformers {transformers.__version__} (PyTorch {torch.__version__})"
if args.json:
    print(
        json.dumps(
            {
                "program": program,
                "batch_size": args.batch_size,
                "new_tokens": args.new_tokens,
                "seconds": seconds,
                "tokens": tokens,
            }
        )
    )
else:
    rate = args.batch_size * args.new_tokens / statistics.median(seconds)
    print(f"{program}, batch size {args.batch_size}: {rate:.1f} tokens/s")
