"""Does Hugging Face read a dense model directory written by this software, and does it compute the same?

    python scripts/reference/check_directory.py DIR [--reference DIR2]
    altup forward --model DIR --inputs inputs.json --output out.safetensors
    python scripts/reference/check_directory.py DIR --inputs inputs.json --outputs out.safetensors

Fails, with exit code 1, on a tensor that is missing, unexpected or of another shape, and on any difference above
1e-4 of the largest value. `--reference` is another directory of the same model, `--gradients` a file of the gradients
of the loss for every parameter. `inputs.json` has rows of `input_ids` and `labels`, both padded with 0.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration
from transformers.utils import logging

from altup_t5 import PAD
from generate_fixtures import SHORT, batch, gradients, hugging_face_forward, seeded

LIMIT = 1e-4


def load(directory):
    model, info = T5ForConditionalGeneration.from_pretrained(
        directory,
        attn_implementation="eager",
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # they are in `info` then
        output_loading_info=True,
    )
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if wrong:
        sys.exit(f"{directory}: {wrong}")
    return model.eval()


def padded(rows):
    """Rows of any lengths, padded with 0."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


def compare(what, theirs, ours):
    """Largest difference, relative to the largest value of the tensor; of all tensors if some are nearly 0."""
    if theirs.keys() != ours.keys():
        sys.exit(f"{what}: not in both: {sorted(theirs.keys() ^ ours.keys())}")
    for key, x in theirs.items():
        if ours[key].shape != x.shape:
            sys.exit(f"{what}: {key} is {list(ours[key].shape)}, not {list(x.shape)}")
    floor = 1e-3 * max(x.abs().max() for x in theirs.values())
    differences = {
        key: ((x - ours[key]).abs().max() / x.abs().max().clamp(min=floor)).item() for key, x in theirs.items()
    }
    worst = max(differences, key=lambda key: (differences[key] != differences[key], differences[key]))
    print(f"{what}: largest difference {differences[worst]:.1e} of the largest value, in {worst}")
    return differences[worst] <= LIMIT


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--reference", type=Path, help="another directory of the same model")
    parser.add_argument("--inputs", type=Path, help="rows of input_ids and labels, padded with 0")
    parser.add_argument("--outputs", type=Path, help="logits, encoder_output and loss of these inputs")
    parser.add_argument("--gradients", type=Path, help="gradients of the loss of these inputs")
    args = parser.parse_args()
    if (args.outputs or args.gradients) and not args.inputs:
        parser.error("--outputs and --gradients need --inputs")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    model, random, equal = load(args.directory), seeded(0), []
    if args.inputs:
        inputs = json.loads(args.inputs.read_text())
        input_ids, labels = padded(inputs["input_ids"]), padded(inputs["labels"])
    else:
        input_ids, labels = (batch(lengths, model.config.vocab_size, random) for lengths in SHORT)

    def outputs(model):
        logits, encoder_output, loss = hugging_face_forward(model, input_ids, labels)
        return {"logits": logits, "encoder_output": encoder_output, "loss": loss.reshape(1)}

    theirs = outputs(model)
    print(
        f"{args.directory}: every tensor in place; loss {theirs['loss'].item():.6f}, "
        f"checksum (sum of |logits|) {theirs['logits'].double().abs().sum().item():.4f}"
    )
    if args.reference:
        equal.append(compare(f"against {args.reference}", outputs(load(args.reference)), theirs))
    if args.outputs:
        ours = load_file(args.outputs)
        for key in theirs:
            if key not in ours:
                sys.exit(f"{args.outputs}: no {key}")
            equal.append(compare(key, {key: theirs[key]}, {key: ours[key].float()}))
    if args.gradients:
        equal.append(compare("gradients", gradients(model, theirs["loss"]), load_file(args.gradients)))
    sys.exit(0 if all(equal) else f"differs by more than {LIMIT:.0e}")


if __name__ == "__main__":
    main()
