#!/usr/bin/env python3
"""Registers, stack and spills of every kernel for GPUs, as ptxas said while they were compiled.

    bench/cuda_resources.py                  writes bench/cuda_resources.json from build/release
    bench/cuda_resources.py --check          compares with that file: 1 if a kernel needs more than kept there
    bench/cuda_resources.py --build DIR      another build

A figure may change with the toolkit: another version than the kept one's is not compared (exit 77).
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEPT = ROOT / "bench/cuda_resources.json"
SKIPPED = 77
# Another order of instructions takes a few more or less; more than that is worth a look.
REGISTERS_OF_GRACE = 8
FIELDS = ["registers", "stack_bytes", "spill_bytes"]
ENTRY = re.compile(
    r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.S)


def readable(names):
    """Products<Q4_K, 1, 2> for what the compiler calls it."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    source = (ROOT / "runtime/tensor/weight_format.h").read_text()
    body = re.search(r"enum class Encoding[^{]*\{(.*?)\}", source, re.S).group(1)
    encodings = [name[1:] for name in re.findall(r"k\w+", body)]
    result = {}
    for name, line in zip(names, text.splitlines()):
        line = re.sub(r"lockstep::|kernels::|cuda::|\(anonymous namespace\)::|^void ", "", line)
        line = re.sub(r"Codec<\(Encoding\)(\d+), (\d+)>",
                      lambda m: encodings[int(m.group(1))].upper() + (m.group(2) if m.group(2) != "0" else ""), line)
        line = re.sub(r"\(Stored\)(\d)", lambda m: ["f32", "bf16", "f16", "q8"][int(m.group(1))], line)
        result[name] = re.sub(r"\(.*", "", line)
    return result


def read_build(build):
    """{kernel: {architecture: {field: figure}}} of the logs that the build kept."""
    logs = sorted((build / "runtime/kernels/cuda").glob("*.ptxas"))
    if not logs:
        sys.exit(f"no *.ptxas in {build}/runtime/kernels/cuda: build there with CUDA first (docs/cuda.md)")
    entries = [entry for log in logs for entry in ENTRY.findall(log.read_text())]
    names = readable(sorted({entry[0] for entry in entries}))
    kernels = {}
    for name, architecture, stack, stores, loads, registers in entries:
        figures = [int(registers), int(stack), int(stores) + int(loads)]
        kernels.setdefault(names[name], {})[architecture] = dict(zip(FIELDS, figures))
    return kernels


def toolkit(build):
    for line in (build / "CMakeCache.txt").read_text().splitlines():
        if line.startswith("LOCKSTEP_NVCC:"):
            said = subprocess.run([line.split("=", 1)[1], "--version"], capture_output=True, text=True, check=True)
            return re.search(r"release ([\d.]+), V([\d.]+)", said.stdout).group(2)
    sys.exit(f"{build} was configured without nvcc")


def compare(now, kept):
    """What is worse than what was kept, a line each."""
    worse = [f"{name}: not kept" for name in now if name not in kept]
    worse += [f"{name}: kept, and no longer there" for name in kept if name not in now]
    for name in now.keys() & kept.keys():
        for architecture, figures in now[name].items():
            before = kept[name].get(architecture)
            if before is None:
                worse.append(f"{name}, {architecture}: not kept")
                continue
            for field in FIELDS:
                grace = REGISTERS_OF_GRACE if field == "registers" else 0
                if figures[field] > before[field] + grace:
                    worse.append(f"{name}, {architecture}: {figures[field]} {field}, {before[field]} were kept")
    return sorted(worse)


def write(version, kernels):
    """One line a kernel, so that a change is read as one."""
    lines = [f"    {json.dumps(name)}: {json.dumps(kernels[name], sort_keys=True)}" for name in sorted(kernels)]
    KEPT.write_text(f'{{\n  "toolkit": {json.dumps(version)},\n  "kernels": {{\n' + ",\n".join(lines) + "\n  }\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    kernels, version = read_build(arguments.build), toolkit(arguments.build)
    if not arguments.check:
        write(version, kernels)
        print(f"{len(kernels)} kernels, nvcc {version}: {KEPT.relative_to(ROOT)}")
        return 0
    kept = json.loads(KEPT.read_text())
    if kept["toolkit"] != version:
        print(f"nvcc {version}, kept are figures of {kept['toolkit']}: not compared")
        return SKIPPED
    worse = compare(kernels, kept["kernels"])
    print("\n".join(worse) if worse else f"{len(kernels)} kernels need no more than was kept")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
