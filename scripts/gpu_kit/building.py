"""Build the archive: programs, fixtures of the conformance tests, PyTorch's side, and this script.

The archive has the layout of a checkout, so that programs and scripts find each other where they always do.
"""

import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "altup-gpu-kit"
# All programs hold Burn: within a window over all of them, what one has need not be packed again.
FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**28}]
FIXTURES = ["crates/altup-core/tests/fixtures", "crates/altup-models/tests/fixtures"]
SCRIPTS = ["scripts/gpu-kit", "scripts/gpu_kit", "benches/pytorch/measure.py"]
# Together, so that cargo gives both packages the same dependencies, which the whole workspace has too.
PROGRAM = ["build", "-p", "altup-train", "--bin", "altup"]
TESTS = ["test", "--no-run", "-p", "altup-train", "-p", "altup-models", "--lib", "--test", "conformance"]


def add_arguments(parser):
    parser.add_argument(
        "--features",
        action="append",
        metavar="FEATURES",
        help="cargo features of a program, as in vulkan,wgpu; again for another program [default: vulkan,wgpu]",
    )
    parser.add_argument(
        "--cuda",
        action="store_true",
        help="a program with the feature cuda too; its build downloads an LLVM, and needs a C++ compiler",
    )
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--output", type=Path, default=target / f"{NAME}.tar.xz")


def run(args):
    features = [",".join(re.split("[ ,]+", names)) for names in args.features or ["vulkan,wgpu"]] + ["cuda"] * args.cuda
    features = list(dict.fromkeys(features))
    # Before the long build: what could be missing.
    commit = output_of("git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*")
    rustc = output_of("rustc", "--version")
    with tempfile.TemporaryDirectory() as scratch:
        kit = Path(scratch) / NAME
        for path in FIXTURES + SCRIPTS:
            copy(ROOT / path, kit / path)
        # Where cargo runs the tests: they look for fixtures from here.
        (kit / "crates/altup-train").mkdir()
        programs = [build_program(names, kit) for names in features]
        about = {
            "commit": commit,
            "rustc": rustc,
            "programs": programs,
        }
        (kit / "kit.json").write_text(json.dumps(about, indent=2) + "\n")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        partial = args.output.with_name(f"{args.output.name}.{os.getpid()}.partial")
        with lzma.open(partial, "wb", filters=FILTERS) as file, tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(kit, NAME)
        partial.replace(args.output)
    glibc = max((program["glibc"] for program in programs), key=lambda version: [*map(int, version.split("."))])
    size = f"{args.output.stat().st_size / 1e6:.1f} MB"
    print(f"{args.output}: {size}, {', '.join(features)}, for glibc {glibc} or later", file=sys.stderr)
    print(f"On the target: python3 -m tarfile -e {args.output.name} && {NAME}/scripts/gpu-kit run", file=sys.stderr)


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def build_program(features, kit):
    """The command line and the tests with these features, stripped, in a folder of their own."""
    folder = Path("programs") / features.replace(",", "-")
    (kit / folder).mkdir(parents=True)
    built = {}
    for command in (PROGRAM, TESTS):
        print(f"{features}: cargo {' '.join(command)}", file=sys.stderr)
        command = command + ["--release", "--features", features, "--message-format", "json-render-diagnostics"]
        built.update(executables(["cargo"] + command))
    for name, target in [("altup", "altup"), ("conformance", "conformance"), ("kernels", "altup_models")]:
        # Not by the profile: with another one cargo would build all that the tests have built once more.
        output_of("strip", "-o", kit / folder / name, built[target])
    glibc = max(
        (tuple(map(int, version)) for version in re.findall(rb"GLIBC_(\d+)\.(\d+)", (kit / folder / "altup").read_bytes())),
        default=(0, 0),
    )
    return {"features": features.split(","), "folder": str(folder), "glibc": "{}.{}".format(*glibc)}


def executables(command):
    """{target: file} of what cargo has built"""
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if process.returncode != 0:
        sys.exit(f"nothing was packed: {command[0]} {command[1]} ended with {process.returncode}")
    messages = map(json.loads, filter(lambda line: line.startswith("{"), process.stdout.splitlines()))
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def output_of(*command):
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
