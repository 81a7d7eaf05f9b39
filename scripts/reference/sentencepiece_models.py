"""Tiny SentencePiece models of several kinds, and the ids that SentencePiece gives lines of text.

    pip install sentencepiece==0.2.3 protobuf
    python scripts/reference/sentencepiece_models.py

writes `crates/altup-data/tests/fixtures/sentencepiece/`: models `*.model`, and `expected.json` with the `lines`, the
ids of each line under the name of its model, the texts of these ids, and the lines that only `sentinels.model` is
asked for. Another run writes the same.
"""

import io
import json
import random
from pathlib import Path

import sentencepiece as spm

FIXTURES = Path(__file__).resolve().parents[2] / "crates/altup-data/tests/fixtures/sentencepiece"

WORDS = """the of and a to in was that he it his her with as for had on at by she not from but they which were there
river stone house light water morning winter mountain garden window shadow voice road running singing Caf\u00e9
na\u00efve 12 305 2024 don't (so) [it] "says" well-known e.g. fine. fine, light; water: no? yes!""".split()

LINES = [
    "the light of the river",
    "The light: 305 stones, don't you see?",
    "  two  spaces   here ",
    "a\ttab and\u00a0a hard space\u3000and a wide one",
    "\uff21\uff22 full width, \ufb01 a ligature, Cafe\u0301 and Caf\u00e9",
    "unknown \u4e16\u754c\U0001f389 and \u0416 again",
    "\u2581 is the mark itself",
    "",
    "   ",
    "x",
    "no-where to.go(now)[then]",
    "the\u200bzero width",
]

SENTINELS = ["the <extra_id_0> of <extra_id_1>", "<extra_id_2> river", "<extra_id_0> <extra_id_1>"]

# Characters that become others: a tab, a hard and a wide space; full width A and B; a ligature; e and an accent;
# a character without width becomes nothing.
RULES = {
    "\t": " ", "\u00a0": " ", "\u3000": " ", "\uff21": "A", "\uff22": "B", "\ufb01": "fi", "e\u0301": "\u00e9",
    "\u200b": "",
}  # fmt: skip

# T5's special tokens, and as many pieces as the text yields.
OPTIONS = {
    "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 160, "hard_vocab_limit": False,
    "model_type": "unigram", "character_coverage": 1.0,
}  # fmt: skip

MODELS = {
    "t5": {},
    "bytes": {"byte_fallback": True, "vocab_size": 420},
    "verbatim": {
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    },
    "across_words": {"split_by_whitespace": False, "normalization_rule_name": "identity"},
    "sentinels": {"user_defined_symbols": [f"\u2581<extra_id_{number}>" for number in (2, 1, 0)]},
    "pair": {"model_type": "bpe", "hard_vocab_limit": True, "vocab_size": 100},
}


def text():
    random.seed(0)
    return [" ".join(random.choices(WORDS, k=random.randint(4, 12))) for _ in range(800)]


def train(options, rules):
    model = io.BytesIO()
    options = OPTIONS | options
    if "normalization_rule_name" not in options:
        options["normalization_rule_tsv"] = str(rules)
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text()), model_writer=model, num_threads=1, minloglevel=2, **options
    )
    return model.getvalue()


def main():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    rules = FIXTURES / "rules.tsv"
    codes = lambda text: " ".join(f"{ord(character):X}" for character in text)
    rules.write_text("".join(f"{codes(old)}\t{codes(new)}\n" for old, new in RULES.items()))
    expected = {"lines": LINES, "sentinel_lines": SENTINELS, "ids": {}, "texts": {}, "pieces": {}}
    for name, options in MODELS.items():
        bytes = train(options, rules)
        (FIXTURES / f"{name}.model").write_bytes(bytes)
        if options.get("model_type") == "bpe":  # it is refused
            continue
        processor = spm.SentencePieceProcessor(model_proto=bytes)
        lines = LINES + (SENTINELS if name == "sentinels" else [])
        expected["ids"][name] = [processor.encode(line) for line in lines]
        expected["texts"][name] = [processor.decode(ids) for ids in expected["ids"][name]]
        expected["pieces"][name] = processor.get_piece_size()
    rules.unlink()
    (FIXTURES / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
