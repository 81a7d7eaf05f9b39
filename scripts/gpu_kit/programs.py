"""The programs of a kit, what they find on this machine, and how they are run."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = re.compile("llvmpipe|lavapipe|swiftshader|softpipe|the CPU", re.IGNORECASE)


class Failure(Exception):
    """Why a step has no figures, in one line."""


class TimedOut(Failure):
    """It took longer than it may."""


class LeftOut(Failure):
    """This machine can't have it; nothing was tried."""


def start(command, seconds, cwd=None, env=None):
    """What a program wrote and how it ended; it and what it started are ended after so many seconds."""
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise TimedOut(f"ended after {seconds:.0f} s") from None
        raise
    return process.returncode, output, errors


def output_of(command, seconds, **options):
    """What a program printed. It must end well."""
    code, output, errors = start(command, seconds, **options)
    if code != 0:
        raise Failure(reason(code, errors))
    return output


def without_folders(text):
    """Where things lie on this machine is nobody's business: of a path, its last part."""
    # First those that may have spaces in them.
    for folder in (ROOT, Path.home()):
        text = text.replace(str(folder), "…")
    return re.sub(r"…?(?:/[^/\s'\":]+)+/", "…/", text)


def reason(code, errors):
    """Why a program failed, in one line: the first error that it told, else its last line."""
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if re.match("error|panicked|.*(out of|OutOf) ?[Mm]emory", line)]
    # Behind the place of a panic stands what it says.
    for at, line in enumerate(lines[:-1]):
        if line.startswith("thread ") and "panicked at" in line:
            told.insert(0, lines[at + 1])
            break
    return without_folders((told + lines[-1:] + [f"ended with code {code}, without a word"])[0])[:300]


class Program:
    """One set of cargo features."""

    def __init__(self, about):
        self.features, self.folder = about["features"], ROOT / about["folder"]
        self.altup, self.conformance, self.kernels = (self.folder / n for n in ("altup", "conformance", "kernels"))
        self.glibc = about["glibc"]

    def backends(self):
        """[(name, hardware, bf16)] of its GPUs, and what it says where there is none."""
        try:
            listed = output_of([self.altup, "backends", "--json"], 120)
        except (Failure, OSError) as error:
            needs = f" (it needs glibc {self.glibc} or later)" if "GLIBC" in str(error) else ""
            raise Failure(f"{self.folder.name}/altup does not run here{needs}: {error}") from None
        listed = {backend["backend"]: backend for backend in map(json.loads, listed.splitlines())}
        # With `vulkan` compiled in, wgpu's kernels on Vulkan are the same.
        name = next((name for name in ("cuda", "vulkan", "wgpu") if name in self.features), "flex")
        devices = [(d["name"], d["hardware"] or "the CPU", d["bf16"]) for d in listed[name]["devices"]]
        return devices, f"{name}: {listed[name]['missing']}"


def offer_libdevice(folder, python):
    """CUDA's library of functions, which kernels are linked with: without the toolkit, that of PyTorch's triton."""
    path = "nvvm/libdevice/libdevice.10.bc"
    roots = ("/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr")  # as in altup-train's device.rs
    if "CUDA_PATH" in os.environ or any(Path(root, path).exists() for root in roots):
        return
    for python in [python] if python else [sys.executable, "python3"]:
        with contextlib.suppress(Failure, OSError):
            found = output_of([python, "-c", "import triton; print(*triton.__path__)"], 60)
            library = Path(found.splitlines()[-1], "backends/nvidia/lib/libdevice.10.bc")
            if library.exists():
                (folder / path).parent.mkdir(parents=True)
                (folder / path).symlink_to(library)
                os.environ["CUDA_PATH"] = str(folder)
                return


def find_backends(programs, rehearses):
    """{a backend's name: (its program, its hardware, whether it computes in bf16)}: the first device of each program, those
    with bf16 first."""
    found, missing = {}, []
    for program in programs:
        try:
            devices, why = program.backends()
        except Failure as error:
            # Another program of the kit may.
            missing.append(str(error))
            continue
        # A rehearsal takes what there is; a measurement only hardware.
        usable = [device for device in devices if rehearses or not NO_GPU.search(device[1])]
        if usable:
            name, hardware, bf16 = usable[0]
            found.setdefault(name, (program, hardware, bf16))
        elif devices:
            missing.append(f"{devices[0][0]}: {devices[0][1]} is no GPU; --rehearse takes it")
        else:
            missing.append(why)
    if not found:
        sys.exit("\n".join(["error: there is no GPU that a program of this kit could use"] + missing + diagnosis()))
    return dict(sorted(found.items(), key=lambda backend: not backend[1][2]))


def diagnosis():
    """What is there of a GPU and its drivers."""
    lines = []
    if gpu := nvidia():
        lines.append(f"nvidia-smi finds: {gpu['name']}, driver {gpu['driver']}")
    else:
        lines.append("nvidia-smi finds nothing")
    try:
        ctypes.CDLL("libvulkan.so.1")
        lines.append("Vulkan's loader, libvulkan.so.1, is there")
    except OSError:
        lines.append("Vulkan's loader, libvulkan.so.1, is missing (Debian, Ubuntu: apt-get install libvulkan1)")
    folders = ["/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d"]
    drivers = sorted(file.name for folder in folders for file in Path(folder).glob("*.json"))
    lines.append(f"Vulkan's drivers: {', '.join(drivers) or 'none'}")
    if gpu and not any("nvidia" in driver for driver in drivers):
        lines.append("NVIDIA's is not among them; a container gets it with NVIDIA_DRIVER_CAPABILITIES=all")
    return lines


def nvidia():
    """The first GPU of nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        name, driver, memory = output_of(query, 30).splitlines()[0].split(", ")
        # A part of a GPU has no memory of its own to tell: "[N/A]".
        return {"name": name, "driver": driver, "memory_bytes": int(memory) * 2**20}
    except (Failure, OSError, IndexError, ValueError):
        return None


class PyTorch:
    """PyTorch's side, or why there is none."""

    VERSIONS = """
import importlib.metadata, json, torch
import safetensors.torch
version = lambda name: importlib.metadata.version(name)
try: transformers = version("transformers")
except importlib.metadata.PackageNotFoundError: transformers = None
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps({"torch": torch.__version__, "transformers": transformers, "gpu": gpu}))
"""

    def __init__(self, python, rehearses):
        self.versions, self.missing = None, None
        for self.python in [python] if python else [sys.executable, "python3"]:
            try:
                found = output_of([self.python, "-c", self.VERSIONS], 120)
                self.versions, self.missing = json.loads(found.splitlines()[-1]), None
                break
            except (Failure, OSError) as error:
                error = without_folders(str(error))
                self.missing = self.missing or f"no PyTorch with safetensors in {Path(self.python).name}: {error}"
        self.device = "cpu" if rehearses else "cuda"
        if self.versions and not self.versions["gpu"] and not rehearses:
            self.missing = f"PyTorch {self.versions['torch']} finds no CUDA device"

    def command(self, flags):
        if self.missing:
            raise LeftOut(self.missing)
        if "--transformers" in flags and not self.versions["transformers"]:
            raise LeftOut("there is no transformers beside PyTorch")
        return [self.python, ROOT / "benches/pytorch/measure.py", "--device", self.device] + flags
