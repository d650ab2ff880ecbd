#!/usr/bin/env python3
"""Writes a synthetic checkpoint with the true layer shapes of GLM-4.7 or GLM-4.7-Flash, for measuring speed.

    bench/make_checkpoint.py OUT [--shape glm47] [--format FORMAT] [--dense 1] [--moe 1] [--vocab 2048] [--mtp]

OUT is a directory (safetensors: bf16, fp8, nvfp4, mlx4 and more) or a FILE.gguf, which llama.cpp loads too (f16, bf16,
q8_0, q4_0, q4_k_m and more). Shapes: glm47, flash (GLM-4.7-Flash), mid (glm4_moe with 32 experts, small layers), tiny
and tiny-flash (a few MB, for tests). --mtp adds the layer for drafts. Weights are random blocks of a sane scale, about
1 / sqrt(inputs); config and tokenizer are there, so that `lockstep run --raw` works. One MoE layer of GLM-4.7 is 7.7
GB in BF16 and 2.2 GB in Q4_0. Needs only Python; memory stays below 300 MB and the disk sets the speed. The weights of
a tensor are cut from a pool of random blocks at random places: no two rows are alike, which is all that a measurement
of speed needs.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from synthetic import blocks, gguf_files, safetensors_files, shapes  # noqa: E402


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--shape", choices=shapes.SHAPES, default="glm47")
    parser.add_argument("--format", help=f"directory: {safetensors_files.FORMATS_TEXT} (default bf16); "
                        f"file: {', '.join(gguf_files.FORMATS)} (default q4_0)")
    parser.add_argument("--dense", type=int, help="dense layers (GLM-4.7: 3, Flash: 1; default 1, mid: 0)")
    parser.add_argument("--moe", type=int, help="MoE layers (GLM-4.7: 89, Flash: 46; default 1, mid: 4)")
    parser.add_argument("--experts", type=int, help="default: the shape's (160, Flash: 64, mid: 32)")
    parser.add_argument("--vocab", type=int, help="rows of embedding and head (GLM-4.7: 151552, default 2048; Flash: "
                        "154880, the default; mid: 4096)")
    parser.add_argument("--mtp", action="store_true",
                        help="with a layer for drafts and its copies of embedding and head")
    parser.add_argument("--shard-gb", type=float, default=4.0, help="size of a safetensors file")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    is_gguf = arguments.out.suffix == ".gguf"
    known = gguf_files.FORMATS if is_gguf else safetensors_files.FORMATS
    names = ", ".join(known) if is_gguf else safetensors_files.FORMATS_TEXT
    arguments.format = arguments.format or ("q4_0" if is_gguf else "bf16")
    if arguments.format not in known:
        parser.error(f"--format {arguments.format} is none of {names}, which "
                     f"{'a .gguf file' if is_gguf else 'a directory'} can have")
    return parser, arguments, is_gguf


def chosen_shape(parser, arguments, least_vocab):
    shape = shapes.SHAPES[arguments.shape]
    given = {"dense_layers": arguments.dense, "moe_layers": arguments.moe, "experts": arguments.experts,
             "vocab": arguments.vocab}
    shape = dataclasses.replace(shape, **{key: value for key, value in given.items() if value is not None})
    if shape.vocab < least_vocab:
        parser.error(f"--vocab must be at least {least_vocab}, the small tokenizer's ids")
    if shape.dense_layers < 0 or shape.moe_layers < 0 or shape.layers == 0:
        parser.error("at least one layer is needed")
    if shape.experts < 1:
        parser.error("--experts must be at least 1")
    return dataclasses.replace(shape, top_k=min(shape.top_k, shape.experts), drafts=arguments.mtp)


def main():
    parser, arguments, is_gguf = parse()
    tiny = pathlib.Path(__file__).resolve().parents[1] / "models/tiny"
    shape = chosen_shape(parser, arguments, json.loads((tiny / "config.json").read_text())["vocab_size"])
    source = blocks.Source(arguments.seed)
    start = time.monotonic()
    if is_gguf:
        total = gguf_files.write(arguments.out, shape, arguments.format, source, tiny)
    else:
        total = safetensors_files.write(arguments.out, shape, arguments.format, source, tiny,
                                        int(arguments.shard_gb * 1e9))
    seconds = time.monotonic() - start
    print(f"{total / 1e9:.2f} GB in {seconds:.1f} s ({total / 1e9 / seconds:.2f} GB/s)", file=sys.stderr)


if __name__ == "__main__":
    main()
