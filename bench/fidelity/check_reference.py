#!/usr/bin/env python3
"""Writes expected.json: what Hugging Face's transformers makes of the text and the prompts.

    python bench/fidelity/check_reference.py --wheel WHEEL --checkpoint build/fidelity/work/bf16

For a Python with torch, transformers, numpy, gguf and tokenizers (3 GB, which is why run.sh leaves it out). Both models
must agree: the Llama one from the weights as they came, and the Glm4Moe one from the checkpoint that lockstep reads.
"""

import argparse
import json
import pathlib
import sys

import tokenizers

import bounds
import reference
import run_fidelity
import smol_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=pathlib.Path, required=True)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=int, default=1 << 20, help="of text.txt; default: all")
    arguments = parser.parse_args()
    llama = smol_model.read_llama(arguments.wheel, arguments.checkpoint.parent)
    tokenizer = tokenizers.Tokenizer.from_file(str(arguments.checkpoint / "tokenizer.json"))
    text = (run_fidelity.HERE / "text.txt").read_text()
    ids = tokenizer.encode(text, add_special_tokens=False).ids[: arguments.tokens]
    prompts = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in run_fidelity.PROMPTS]
    rows, greedy = [], []
    for make in (lambda: reference.hugging_face_llama(llama),
                 lambda: reference.hugging_face_glm(arguments.checkpoint)):
        logits, follow, versions = reference.hugging_face(make, [ids], prompts, run_fidelity.GREEDY_TOKENS)
        rows.append(logits[0])
        greedy.append([tokenizer.decode(one[len(start):]) for start, one in zip(prompts, follow)])
        print(f"perplexity {run_fidelity.perplexity(rows[-1], ids):.6f}, {versions}", flush=True)
    difference = run_fidelity.against(rows[0], rows[1])
    ours = run_fidelity.against(rows[0], reference.plain_logits(llama, ids))
    print(f"Glm4Moe from Llama: {difference}\nplain_logits from Llama: {ours}")
    if greedy[0] != greedy[1] or max(difference["largest"], ours["largest"]) > bounds.SAME_LIMIT:
        sys.exit("they differ")
    expected = {"versions": versions, "tokens": len(ids), "perplexity": run_fidelity.perplexity(rows[0], ids),
                "greedy": dict(zip(run_fidelity.PROMPTS, greedy[0]))}
    (run_fidelity.HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
