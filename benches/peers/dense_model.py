"""Writes a dense T5 v1.1 of size `altup-s` with seeded random weights, as a Hugging Face directory.

    python benches/peers/dense_model.py --seed 0 --output DIR

Speed doesn't depend on the values; that programs agree on the tokens does.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import logging

logging.disable_progress_bar()

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", type=Path, required=True)
args = parser.parse_args()

torch.manual_seed(args.seed)
config = T5Config(
    vocab_size=32128,
    d_model=512,
    d_kv=64,
    num_heads=8,
    d_ff=2048,
    num_layers=4,
    num_decoder_layers=4,
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    decoder_start_token_id=0,
)
model = T5ForConditionalGeneration(config)
# transformers 5 ties every fresh T5; a parameter of its own unties this one. Its scale makes logits of
# the order of 1.
model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5)

# candle counts distances in the decoder with the encoder's buckets, which are its own only up to a
# distance of 7. Where all buckets from 8 on hold the same bias, both ways of counting are the same model.
bias = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
torch.nn.init.normal_(bias)
with torch.no_grad():
    bias[8:] = bias[8]

model.save_pretrained(args.output)

# As the published T5 v1.1 checkpoints say it: transformers 5 writes `true` for every T5, and candle
# believes it.
path = args.output / "config.json"
fields = json.loads(path.read_text())
del fields["scale_decoder_outputs"]
fields["tie_word_embeddings"] = False
path.write_text(json.dumps(fields, indent=2) + "\n")
