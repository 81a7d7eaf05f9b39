"""Does the Python module of `altup convert --with-python` compute what the fixtures say, and what `altup` computes?

    python scripts/reference/check_python_module.py target/release/altup

Every directory is opened by AutoModelForSeq2SeqLM.from_pretrained(DIR, trust_remote_code=True), without a tensor that
is missing or left over. Of the fixtures of altup-models, made by Hugging Face's T5 and by `altup_t5.py`: outputs,
losses, gradients, auxiliary losses and greedy tokens, with cache and without. Of tiny models of every variant, trained
a few steps by `altup`: the outputs and gradients of `altup forward`; training lowers the loss; what `save_pretrained`
writes opens in `altup` and in Python, and is the same model.

Ends with exit code 1 at the first difference above LIMITS, relative to the largest value.
"""

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

WORK = tempfile.TemporaryDirectory(prefix="altup-python-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": WORK.name, "RAYON_NUM_THREADS": "1"}

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

FIXTURES = Path(__file__).resolve().parents[2] / "crates/altup-models/tests/fixtures"
LIMITS = {"outputs": 1e-5, "gradients": 1e-4}

RUN = """
[model]
size = "tiny"
d_model = 16
d_kv = 8
num_heads = 2
d_ff = 32
num_layers = {layers[0]}
num_decoder_layers = {layers[1]}
{model}
[data]
vocab_size = 200
input_length = 32
[training]
steps = 3
batch_size = 4
eval_examples = 8
"""

ALTUP = "[model.altup]\nnum_blocks = {}\nselection = '{}'\nwidening = '{}'\n"
SEQUENCE = "[model.altup.encoder_sequence]\nmethod = '{}'\nstride = {}\nfirst_layer = 1\n"
MOE = "[model.moe]\nnum_experts = 4\nexpert_d_ff = 8\nmode = '{}'\n"
TIED_RELU = "tie_word_embeddings = true\nfeed_forward_proj = 'relu'\n"

# What is trained by `altup`, from its seed.
VARIANTS = {
    "dense": "",
    "dense-tied-relu": TIED_RELU,
    "deep-decoder": ALTUP.format(2, "alternating", "embedding"),
    "altup": ALTUP.format(2, "alternating", "embedding"),
    "altup-k3-tied-relu": TIED_RELU + ALTUP.format(3, "alternating", "embedding"),
    "sameup": ALTUP.format(2, "same", "embedding"),
    "recycled": ALTUP.format(2, "alternating", "recycled"),
    "sum": ALTUP.format(2, "alternating", "sum"),
    "sequence-altup": ALTUP.format(1, "same", "sum") + SEQUENCE.format("altup", 4),
    "sequence-skip": ALTUP.format(2, "alternating", "recycled") + SEQUENCE.format("stride_and_skip", 2),
    "sequence-pool": ALTUP.format(2, "alternating", "embedding") + SEQUENCE.format("average_pool", 3),
    "moe-partial": MOE.format("partial") + "router_jitter = 0.1\n",
    "moe-switch": MOE.format("switch") + "encoder_layers = [1, 2]\ndecoder_layers = [1]\n",
    "altup-moe-full": ALTUP.format(2, "alternating", "embedding")
    + MOE.format("partial") + "top_k = 2\neval_capacity_factor = 0.6\n",
    "altup-sequence-moe": ALTUP.format(2, "alternating", "recycled")
    + SEQUENCE.format("altup", 4) + MOE.format("switch"),
}  # fmt: skip

# Layers of the encoder and of the decoder, where they are not 4 and 2.
LAYERS = {"deep-decoder": (2, 4)}


def altup(*arguments):
    result = subprocess.run([ARGUMENTS.altup, *map(str, arguments)], capture_output=True, text=True, cwd=WORK.name)
    if result.returncode != 0:
        sys.exit(f"altup {' '.join(map(str, arguments))}: {result.stderr}")
    return result.stdout


def load(directory):
    model, info = AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=True, output_loading_info=True)
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if wrong:
        sys.exit(f"{directory}: {wrong}")
    return model.eval()


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def compare(what, limit, ours, theirs):
    """Fails above a limit. `ours` are the module's."""
    if ours.keys() != theirs.keys():
        sys.exit(f"{what}: not in both: {sorted(ours.keys() ^ theirs.keys())}")
    floor = 1e-3 * max(x.abs().max() for x in theirs.values())
    difference = max(
        ((ours[key] - x).abs().max() / x.abs().max().clamp(min=floor)).item() for key, x in theirs.items()
    )
    if not difference <= LIMITS[limit]:
        sys.exit(f"{what}: {limit} differ by {difference:.1e}, more than {LIMITS[limit]:.0e}")
    WORST[limit] = max(WORST[limit], difference)


def outputs(model, **batch):
    output = model(**batch)
    found = {"logits": output.logits, "encoder_output": output.encoder_last_hidden_state, "loss": output.loss[None]}
    return output, {key: value.detach() for key, value in found.items()}


def gradients(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: torch.zeros_like(model.get_parameter(name)) if x is None else x for name, x in grads.items()}


def check_fixture(folder):
    directory = Path(WORK.name) / f"fixture-{folder.name}"
    altup("convert", "--model", folder, "--with-python", "--output", directory)
    model = load(directory)
    for prefix in ("", "masked_"):
        if not (folder / f"{prefix}inputs.json").exists():
            continue
        inputs = json.loads((folder / f"{prefix}inputs.json").read_text())
        batch = {"input_ids": padded(inputs["input_ids"]), "labels": padded(inputs["labels"])}
        if "attention_mask" in inputs:
            batch["attention_mask"] = torch.tensor(inputs["attention_mask"])
        output, found = outputs(model, **batch)
        compare(folder.name, "outputs", found, load_file(folder / f"{prefix}expected.safetensors"))
        expected = load_file(folder / f"{prefix}gradients.safetensors")
        compare(folder.name, "gradients", gradients(model, output.loss), expected)
        if not prefix and output.auxiliary_loss is not None:
            total = output.loss + output.auxiliary_loss
            expected = load_file(folder / "auxiliary.safetensors")["total_loss"]
            compare(folder.name, "outputs", {"total_loss": total.detach()[None]}, {"total_loss": expected})
            expected = load_file(folder / "total_gradients.safetensors")
            compare(folder.name, "gradients", gradients(model, total), expected)
    check_generation(folder, model)


def check_generation(folder, model):
    expected = json.loads((folder / "generation.json").read_text())
    settings = {"max_new_tokens": expected["max_new_tokens"], "do_sample": False}
    input_ids, end = padded(expected["input_ids"]), model.config.eos_token_id
    for use_cache in (True, False):
        rows = model.generate(input_ids, use_cache=use_cache, **settings)[:, 1:].tolist()
        rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
        if rows != expected["sequences"]:
            sys.exit(f"{folder.name}: use_cache={use_cache} generates {rows}, not {expected['sequences']}")
    beams = [model.generate(input_ids, use_cache=cache, num_beams=3, **settings) for cache in (True, False)]
    if not torch.equal(*beams):
        sys.exit(f"{folder.name}: a beam search with cache finds {beams[0]}, without {beams[1]}")


def corpus():
    random.seed(0)
    starts, ends = "ba cor del fen gal har jun kel".split(), "ben dar est ing ow rick sen".split()
    syllables = [start + end for start in starts for end in ends]
    lines = (" ".join(random.choices(syllables, k=24)) + "." for _ in range(310))
    return "\n\n".join(lines) + "\n"


def check_variant(name, text):
    run, directory, saved = (Path(WORK.name) / f"{kind}-{name}" for kind in ("run", "model", "saved"))
    config = Path(WORK.name) / f"{name}.toml"
    config.write_text(RUN.format(model=VARIANTS[name], layers=LAYERS.get(name, (4, 2))))
    altup("train", "--config", config, "--train", text, "--output", run, "--quiet")
    altup("convert", "--model", run, "--with-python", "--output", directory)
    model = load(directory)
    vocabulary = model.config.vocab_size
    random.seed(1)
    row = lambda length: random.choices(range(3, vocabulary), k=length) + [1]
    inputs = {"input_ids": [row(12), row(5), row(9)], "labels": [row(7), row(2), row(4)]}
    batch = {key: padded(rows) for key, rows in inputs.items()}

    theirs, their_gradients = forward(name, directory, inputs, with_gradients=True)
    output, ours = outputs(model, **batch)
    compare(name, "outputs", ours, theirs)
    compare(name, "gradients", gradients(model, output.loss), their_gradients)

    check_calls(name, model, batch)
    torch.manual_seed(0)
    model.train()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(12):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not losses[-1] < 0.9 * losses[0]:
        sys.exit(f"{name}: training leaves the loss at {losses}")

    model.eval().save_pretrained(saved)
    AutoTokenizer.from_pretrained(directory).save_pretrained(saved)
    with torch.no_grad():
        _, ours = outputs(model, **batch)
        _, again = outputs(load(saved), **batch)
    compare(name, "outputs", again, ours)
    compare(name, "outputs", ours, forward(name, saved, inputs)[0])
    altup("generate", "--model", saved, "--max-new-tokens", "4", "corben <extra_id_0> galow")
    print(f"{name}: loss {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps", flush=True)


def check_calls(name, model, batch):
    """What `altup` has no counterpart of: other ways to call the model, other precisions."""
    expected = model(**batch)
    losses = {"loss": expected.loss, "auxiliary_loss": expected.auxiliary_loss}
    losses = {key: loss.detach()[None] for key, loss in losses.items() if loss is not None}

    # As DataCollatorForSeq2Seq prepares a batch.
    decoder_input_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    prepared = model(**batch, decoder_input_ids=decoder_input_ids)
    compare(name, "outputs", {key: prepared[key].detach()[None] for key in losses}, losses)

    cached, uncached = (
        model.generate(batch["input_ids"], use_cache=cache, max_new_tokens=5, do_sample=False) for cache in (True, False)
    )
    # A capacity is a share of the tokens of a call, which with a cache are fewer.
    has_capacity = (model.config.moe or {}).get("eval_capacity_factor") is not None
    if not has_capacity and not torch.equal(cached, uncached):
        sys.exit(f"{name}: with cache it generates {cached.tolist()}, without {uncached.tolist()}")

    # An encoder's output without a mask is read by the attention mask.
    mask = batch["input_ids"] != 0
    encoded = model.encoder(batch["input_ids"], mask)
    if encoded.memory_mask.shape == mask.shape:
        call = {"encoder_outputs": (encoded.last_hidden_state,), "decoder_input_ids": decoder_input_ids}
        logits = model(**call, attention_mask=mask.long()).logits
        whole = model(batch["input_ids"], decoder_input_ids=decoder_input_ids).logits
        compare(name, "outputs", {"logits": logits.detach()}, {"logits": whole.detach()})
    for words, call in [
        ("output_attentions", lambda: model(**batch, output_attentions=True)),
        ("static cache", lambda: model.generate(batch["input_ids"], cache_implementation="static", max_new_tokens=2)),
    ]:
        try:
            call()
            sys.exit(f"{name}: no error names {words}")
        except ValueError as error:
            if words not in str(error):
                raise

    unlabelled = model(input_ids=batch["input_ids"], labels=torch.full_like(batch["labels"], -100)).loss
    if unlabelled.item() != 0:
        sys.exit(f"{name}: without a label the loss is {unlabelled}")
    check_precision(name, model, batch)
    check_replica(name, model, batch)


def check_precision(name, model, batch):
    """Under autocast, AltUp's state and the router stay in f32; in f16, a bias that f16 can't hold hides nothing."""
    states, routers = [], []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, state: states.append(state.dtype))
        for module in model.modules()
        if type(module).__name__ == "AltUp"
    ]
    for module in model.modules():
        if type(module).__name__ == "MixtureOfExperts":
            module.losses = lambda logits, *rest, of=type(module).losses, module=module: (
                routers.append(logits.dtype) or of(module, logits, *rest)
            )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    for hook in hooks:
        hook.remove()
    for module in model.modules():
        module.__dict__.pop("losses", None)
    if len(states) < len(hooks) or {*states, *routers} - {torch.float32}:
        sys.exit(f"{name}: under autocast, states are {states} and router logits {routers}")
    with torch.no_grad():
        expected = model(**batch).loss
    if not (loss - expected).abs() < 0.02 * expected:
        sys.exit(f"{name}: the loss is {expected}, under autocast {loss}")

    # A row of scores and the bias together go beyond the range of f16, and are the same as in f32.
    half = copy.deepcopy(model).half()
    for stack in (half.encoder, half.decoder):
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data.fill_(60000.0)
    with torch.no_grad():
        loss = half(**batch).loss
        whole = half.float()(**batch).loss
    if not (loss - whole).abs() < 0.02 * whole:
        sys.exit(f"{name}: the loss is {whole}, in f16 {loss}")


def check_replica(name, model, batch):
    """DataParallel calls copies with weights of their own: the stacks of a copy must look tokens up in its table."""

    def replica(module):
        copied = module._replicate_for_data_parallel()
        for key, child in module._modules.items():
            setattr(copied, key, child if child is None else replica(child))
        for key, weight in module._parameters.items():
            setattr(copied, key, None if weight is None else weight.detach() + 0.01)
        return copied

    moved = copy.deepcopy(model)
    with torch.no_grad():
        for weight in moved.parameters():
            weight += 0.01
        logits, expected = replica(model)(**batch).logits, moved(**batch).logits
    compare(name, "outputs", {"logits": logits}, {"logits": expected})
    if model.encoder.shared is not model.shared or model.decoder.shared is not model.shared:
        sys.exit(f"{name}: a replica changes the original")


def forward(name, directory, inputs, with_gradients=False):
    """What `altup forward` computes: outputs, and gradients if they are asked for."""
    paths = {key: Path(WORK.name) / f"{name}-{key}" for key in ("inputs", "outputs", "gradients")}
    paths["inputs"].write_text(json.dumps(inputs))
    flags = ["--gradients", paths["gradients"]] if with_gradients else []
    altup("forward", "--model", directory, "--inputs", paths["inputs"], "--output", paths["outputs"], "--overwrite", *flags)
    return load_file(paths["outputs"]), load_file(paths["gradients"]) if with_gradients else None


def main():
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folders = sorted(folder for folder in FIXTURES.iterdir() if folder.is_dir())
    for folder in folders:
        check_fixture(folder)
    print(f"{len(folders)} fixtures: as Hugging Face and the reference compute them", flush=True)
    text = Path(WORK.name) / "corpus.txt"
    text.write_text(corpus())
    for name in VARIANTS:
        check_variant(name, text)
    worst = ", ".join(f"{kind} {value:.1e}" for kind, value in WORST.items())
    print(f"largest differences, of the largest value: {worst}")
    print(f"{len(folders) + len(VARIANTS)} passed, 0 failed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("altup", type=Path, help="the program `altup`")
    ARGUMENTS, WORST = parser.parse_args(), dict.fromkeys(LIMITS, 0.0)
    ARGUMENTS.altup = ARGUMENTS.altup.resolve()
    main()
