#!/usr/bin/env python3
"""Whether lockstep and llama.cpp compute the same function of a GGUF file: their logits for the same tokens.

    bench/peers/compare_logits.py --model FILE.gguf [FILE.gguf ...] [--tokens 12]

Prints for every file the relative difference of the rows (median and largest) and on how many rows the best token is
the same, and exits with 1 if a median is above --limit. lockstep computes with float32 activations here; llama.cpp
rounds activations to 8 bits (F16 for F16 weights), so some 2 to 5 % are expected of quantized files and 0.1 to 0.2 % of
F16. Rows that are far off are routers on the edge that chose another expert, which random weights often make and deep
files pile up; a checkpoint with as many experts as are chosen (--experts 4 for flash, 8 for the others) has no such
rows.
"""

import argparse
import array
import json
import math
import pathlib
import random
import statistics
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import gguf_header  # noqa: E402
from measuring import ROOT  # noqa: E402


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"{command[0]}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def rows_of(data, vocab):
    values = array.array("f", data)
    return [values[at : at + vocab] for at in range(0, len(values), vocab)]


def safetensors_data(path, name):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    return data[8 + length + begin : 8 + length + end]


def compare(arguments, model, folder):
    header = gguf_header.Header(model)
    tokens = header.metadata["tokenizer.ggml.tokens"]
    real = sum(1 for kind in header.metadata["tokenizer.ggml.token_type"] if kind == 1)
    ids = random.Random(arguments.seed).sample(range(real), arguments.tokens)
    (folder / "tokens.json").write_text(json.dumps([ids]))
    run([arguments.binary, "logits", "--model", model, "--tokens", folder / "tokens.json", "--out",
         folder / "lockstep.safetensors", "--max-model-len", 512, "--log-level", "error"])
    run([arguments.llama_logits, model, folder / "llama", *ids])
    ours = rows_of(safetensors_data(folder / "lockstep.safetensors", "logits.0"), len(tokens))
    theirs = rows_of((folder / "llama").read_bytes(), len(tokens))
    if len(ours) != len(ids) or len(theirs) != len(ids):
        sys.exit(f"{model}: {len(ours)} and {len(theirs)} rows for {len(ids)} tokens")
    differences = [math.dist(a, b) / math.hypot(*b) for a, b in zip(ours, theirs)]
    same = sum(max(range(len(a)), key=a.__getitem__) == max(range(len(b)), key=b.__getitem__)
               for a, b in zip(ours, theirs))
    median = statistics.median(differences)
    print(f"{model.name}: median {median:.4f}, largest {max(differences):.4f}, best token the same on "
          f"{same} of {len(ids)} rows", flush=True)
    return not median <= arguments.limit  # true for NaN too


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--llama-logits", type=pathlib.Path,
                        default=ROOT / "build/peers/llama.cpp-build/bin/llama_logits")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=float, default=0.1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bad = [compare(arguments, model, pathlib.Path(folder)) for model in arguments.model]
    sys.exit(1 if any(bad) else 0)


if __name__ == "__main__":
    main()
