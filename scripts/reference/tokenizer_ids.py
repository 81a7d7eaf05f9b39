"""Token ids of the first lines of a text, by Hugging Face, as a checksum of each line:

    python scripts/reference/tokenizer_ids.py tokenizer.json text.txt ids.json

Lines end at "\\n"; empty ones don't count. The ids are without special tokens: no `</s>` behind a line; they count as little-endian u32.
What else lies beside tokenizer.json is compared with it: the `AutoTokenizer` of its folder, and spiece.model
if the `sentencepiece` package is installed.
"""

import argparse
import itertools
import json
import os
import struct
import zlib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging


def compare(what, ids, others):
    differing = [number for number, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b]
    print(f"  {what}: {len(differing)} of {len(ids)} lines differ" + (f", at {differing[:10]}" if differing else ""))
    for number in differing[:3]:
        print(f"    {ids[number]}\n    {others[number]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--lines", type=int, default=1000)
    args = parser.parse_args()
    logging.set_verbosity_error()

    with args.text.open(encoding="utf-8", newline="\n") as text:
        lines = list(itertools.islice((line for line in (line.rstrip("\n") for line in text) if line), args.lines))
    encode = lambda tokenizer: [tokenizer.encode(line, add_special_tokens=False) for line in lines]
    ids = encode(PreTrainedTokenizerFast(tokenizer_file=str(args.tokenizer)))

    fields = {
        "tokens": sum(map(len, ids)),
        "text_crc32": [zlib.crc32(line.encode()) for line in lines],
        "ids_crc32": [zlib.crc32(struct.pack(f"<{len(row)}I", *row)) for row in ids],
    }
    args.output.write_text(json.dumps(fields) + "\n")
    print(f"{fields['tokens']} ids of {len(lines)} lines")

    folder = args.tokenizer.parent
    if (folder / "tokenizer_config.json").exists():
        compare("AutoTokenizer", ids, encode(AutoTokenizer.from_pretrained(folder)))
    if (folder / "spiece.model").exists():
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            print("  spiece.model: not compared, no sentencepiece package")
        else:
            compare("spiece.model", ids, SentencePieceProcessor(str(folder / "spiece.model")).encode(lines))


if __name__ == "__main__":
    main()
