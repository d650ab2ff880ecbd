#!/usr/bin/env python3
"""Whether a second turn over a long prefix computes only what is new, and says the same as without the cache.

    bench/serve/check_prefix.py                        # 8,000 tokens, on a random checkpoint with 202,752 positions

Makes a small random checkpoint (its layers do not matter, its positions do), serves it on two ranks, and sends a prompt of
token ids, then the same with its answer and some more. `usage` must tell all of the first turn but the last, partly filled
block as cached, the engine's own count of rows must be what is left, and the answers must be those of a server with
--prefix-cache=false. Ends with 1 if not.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import measuring  # noqa: E402
from serve.server import Server  # noqa: E402

POSITIONS = 202_752
BLOCK = 16


def make_checkpoint(folder):
    model = pathlib.Path(folder) / "long"
    subprocess.run([sys.executable, measuring.ROOT / "bench/make_checkpoint.py", model, "--shape", "tiny"], check=True,
                   capture_output=True)
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = POSITIONS
    (model / "config.json").write_text(json.dumps(config))
    return model


def ask(server, prompt, tokens):
    """The token ids of the answer, its usage, and how many rows were computed for it."""
    rows = server.metric("lockstep_rows_total")
    body = {"prompt": prompt, "max_tokens": tokens, "seed": 1, "temperature": 0.8, "ignore_eos": True, "logprobs": 0}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        said = json.loads(answer.read())
    choice = said["choices"][0]
    return choice["text"], choice["logprobs"], said["usage"], server.metric("lockstep_rows_total") - rows


def talk(options, arguments, turns):
    limits = ["--ranks", options.ranks, "--max-num-seqs", 1, "--max-model-len", POSITIONS]
    with Server(options, [*limits, *arguments]) as server:
        return [ask(server, prompt, options.tokens) for prompt in turns]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=measuring.ROOT / "build/release/lockstep")
    parser.add_argument("--prefix", type=int, default=8000, help="tokens of the first turn")
    parser.add_argument("--new", type=int, default=50, help="tokens that the second turn adds")
    parser.add_argument("--tokens", type=int, default=24, help="of each answer")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    draw = random.Random(4711)
    failed = []

    def expect(what, got, want):
        print(f"{what}: {got:.0f}, expected {want:.0f}")
        if got != want:
            failed.append(what)

    with tempfile.TemporaryDirectory() as folder:
        options.model = make_checkpoint(folder)
        first = [draw.randrange(500) for _ in range(options.prefix)]
        turns = [first, first + [draw.randrange(500) for _ in range(options.new)]]
        cached = talk(options, [], turns)
        plain = talk(options, ["--prefix-cache=false"], turns)
    whole = options.prefix // BLOCK * BLOCK  # a block is shared once it is full
    for turn, (shared, prompt) in enumerate(zip((0, whole), turns)):
        rows = len(prompt) - shared + options.tokens - 1  # the last token is not computed on
        usage = cached[turn][2]
        expect(f"turn {turn + 1}, cached tokens", usage["prompt_tokens_details"]["cached_tokens"], shared)
        expect(f"turn {turn + 1}, rows computed", cached[turn][3], rows)
        expect(f"turn {turn + 1}, rows computed without the cache", plain[turn][3], len(prompt) + options.tokens - 1)
        same = cached[turn][:2] == plain[turn][:2]
        print(f"turn {turn + 1}: {usage['completion_tokens']} tokens, {'the same' if same else 'OTHERS'} without the cache")
        if not same:
            failed.append(f"turn {turn + 1}, tokens")
    for what in failed:
        print("FAILED: " + what)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
