"""Prints the pieces whose rows of a model's tables are nearest to those of words, by cosine: what pre-training took to be alike.

    scripts/transformers python scripts/glue/neighbours.py runs/dense/model terrible wonderful good bad

A word that is not one piece of the vocabulary is an error.
"""

import sys
from pathlib import Path

import numpy
from safetensors.numpy import load_file
from tokenizers import Tokenizer

TABLES = {"shared.weight": "input table", "lm_head.weight": "output table"}
SHOWN = 6


def main(model, *words):
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tensors = load_file(model / "model.safetensors")
    for name, label in TABLES.items():
        if name not in tensors:
            continue  # A tied output table is the input table.
        table = tensors[name][: tokenizer.get_vocab_size()].astype(numpy.float64)
        table /= numpy.linalg.norm(table, axis=1, keepdims=True)
        for word in words:
            number = tokenizer.token_to_id(f"\u2581{word}")
            if number is None:
                sys.exit(f"error: {word} is not one piece of {model / 'tokenizer.json'}")
            likeness = table @ table[number]
            nearest = [other for other in numpy.argsort(-likeness) if other != number][:SHOWN]
            shown = (f"{tokenizer.id_to_token(int(other)).removeprefix(chr(0x2581))} {likeness[other]:.2f}" for other in nearest)
            print(f"{label}, {word}: {', '.join(shown)}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:])
