#!/usr/bin/env python3
"""lockstep serve under load, with the small model on two ranks.

    bench/serve/run_load.py --minutes 20 --out bench/results/serve-load-DATE.json

First `--streams` requests are held open for `--minutes`: as soon as one ends, the next begins. Some read slowly, some hang
up after a few tokens or before the first, some do not stream. Every whole answer is compared with the one that the same request
got alone. The memory of all ranks is sampled, and its slope told. Then requests come at a given rate, whatever becomes of
them, from below the capacity to four times as much: how many end rightly and within `--limit` seconds (goodput), how many
are refused, and how. Ends with 1 if an answer is lost or wrong, if memory grows, or if goodput falls below 90 % of its
peak at twice or four times the capacity.
"""

import argparse
import collections
import json
import pathlib
import random
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import measuring  # noqa: E402
from serve.server import Server  # noqa: E402
from serve.streams import Loop, Questions  # noqa: E402

SHARES = (0.5, 0.8, 1, 1.5, 2, 3, 4)  # of the capacity
KINDS = (("normal", 0.74), ("whole", 0.06), ("slow", 0.08), ("vanishing", 0.06), ("cancelled", 0.06))


def percentiles(values):
    ordered = sorted(values)
    if not ordered:
        return None
    return {f"p{share}": ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] for share in (50, 90, 99)} | {
        "most": ordered[-1], "count": len(ordered)}


def slope_per_minute(samples):
    """Of (second, MB), by least squares over what comes after the first third."""
    late = samples[len(samples) // 3:]
    if len(late) < 3:
        return None
    return 60 * statistics.linear_regression([at for at, _ in late], [mb for _, mb in late]).slope


class Held:
    """`streams` requests at any time."""

    def __init__(self, server, questions, streams, seed):
        self.server, self.questions = server, questions
        self.draw = random.Random(seed)
        self.loop = Loop(server.port, self.ended)
        self.streams = streams
        self.ends = collections.Counter()
        self.wrong = []
        self.first, self.gaps, self.events = [], [], 0
        self.going = True

    def begin(self):
        kind = self.draw.choices([name for name, _ in KINDS], [share for _, share in KINDS])[0]
        stream = kind != "whole"
        self.loop.start(self.questions.call(self.draw.randrange(1 << 20), stream=stream,
                                            kind=kind if stream else "normal",
                                            leave_after=self.draw.uniform(0, 1) if kind == "cancelled" else
                                            self.draw.randrange(1, 20)))

    def ended(self, call):
        name = call.kind if call.stream else "whole"
        self.events += call.events
        if call.left:
            self.ends[name + ", left"] += 1
        elif call.status == 429 and call.retry_after:
            self.ends["refused"] += 1
        elif call.right():
            self.ends[name + ", right"] += 1
            if name == "normal":
                self.first.append(call.first - call.begun)
                self.gaps += call.gaps
        else:
            self.ends[name + ", WRONG"] += 1
            self.wrong.append(f"{name}: {call.status} {call.error} {bytes(call.got)[-300:]!r}")
        if self.going:
            self.begin()

    def run(self, seconds):
        begun, cpu = time.monotonic(), time.process_time()
        cpu_before = self.server.cpu_s()
        for _ in range(self.streams):
            self.begin()
        memory, least = [], self.streams
        while time.monotonic() - begun < seconds:
            self.loop.turn(0.05)
            least = min(least, len(self.loop.calls))
            if time.monotonic() - begun >= len(memory) * seconds / 120:
                memory.append((time.monotonic() - begun, self.server.rss_mb()))
        wall = time.monotonic() - begun
        server_cpu = (self.server.cpu_s() - cpu_before) / wall
        client_cpu = (time.process_time() - cpu) / wall
        self.going = False
        while self.loop.calls and time.monotonic() - begun < seconds + 60:
            self.loop.turn(0.05)
        lost = len(self.loop.calls)
        ranks = range(len(memory[0][1]))
        return {"seconds": wall, "streams": self.streams, "fewest_streams": least, "ends": dict(self.ends), "lost": lost,
                "wrong": self.wrong[:20], "tokens_per_s": self.events / wall,
                "first_token_s": percentiles(self.first), "between_tokens_s": percentiles(self.gaps),
                "client_cpus": client_cpu, "server_cpus": server_cpu,
                "memory_mb": [{"first": memory[0][1][rank], "last": memory[-1][1][rank],
                               "most": max(sample[rank] for _, sample in memory),
                               "slope_per_minute": slope_per_minute([(at, sample[rank]) for at, sample in memory])}
                              for rank in ranks]}


def capacity(server, questions, seconds, at_once):
    """Requests per second that `at_once` clients get who ask again at once."""
    ends = []
    loop = Loop(server.port, ends.append)
    begun, index = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        while len(loop.calls) < at_once:
            loop.start(questions.call(index))
            index += 1
        loop.turn(0.05)
    rate = len(ends) / (time.monotonic() - begun)
    wrong = [call for call in ends if not call.right()]
    if wrong:
        raise SystemExit(f"an answer is wrong: {bytes(wrong[0].got)[-500:]}")
    while loop.calls:
        loop.turn(0.05)
    return rate, statistics.median(call.ended - call.begun for call in ends)


def offered(server, questions, rate, seconds, limit_s, draw):
    """Requests come at random, `rate` a second in the mean, and nobody waits longer than the limit."""
    ends = []
    loop = Loop(server.port, ends.append)
    begun, cpu, cpu_before = time.monotonic(), time.process_time(), server.cpu_s()
    due, index = 0.0, 0
    late = 0.0  # of the client itself
    while (now := time.monotonic() - begun) < seconds:
        while due <= now:
            late = max(late, now - due)
            loop.start(questions.call(index))
            index += 1
            due += draw.expovariate(rate)
        loop.turn(min(due - now, 0.05))
        loop.give_up(lambda _: limit_s)
    wall = time.monotonic() - begun
    used = {"client_cpus": (time.process_time() - cpu) / wall, "server_cpus": (server.cpu_s() - cpu_before) / wall}
    while loop.calls:
        loop.turn(0.05)
        loop.give_up(lambda _: limit_s)
    good = [call for call in ends if call.error is None and call.status == 200 and call.ended - call.begun <= limit_s]
    wrong = [call for call in good if not call.right()]
    refused = [call for call in ends if call.status in (429, 503)]
    return {"offered_per_s": index / wall, "good_per_s": (len(good) - len(wrong)) / wall, "wrong": len(wrong),
            "refused_per_s": len(refused) / wall, "by_status": collections.Counter(str(call.status) for call in refused),
            "without_retry_after": sum(call.retry_after is None for call in refused),
            "retry_after_s": percentiles([call.retry_after for call in refused if call.retry_after is not None]),
            "too_late_per_s": sum(isinstance(call.error, TimeoutError) for call in ends) / wall,
            "broken": [str(call.error) for call in ends
                       if call.error is not None and not isinstance(call.error, TimeoutError)][:5],
            "refusal_s": percentiles([call.ended - call.begun for call in refused]),
            "answer_s": percentiles([call.ended - call.begun for call in good]),
            "first_token_s": percentiles([call.first - call.begun for call in good]),
            "client_late_s": late, **used}


def overload(server, questions, options):
    rate, alone_s = capacity(server, questions, options.seconds, options.at_once)
    print(f"capacity: {rate:.1f} requests/s ({options.at_once} at once, {alone_s:.2f} s each)")
    print("  offered/s   good/s  refused/s  too late/s  answer p50/p99 s  refusal p99 ms  processors: client, server")
    rows = []
    draw = random.Random(options.seed)
    for share in SHARES:
        row = {"share": share, **offered(server, questions, share * rate, options.seconds, options.limit, draw)}
        rows.append(row)
        answer, refusal = row["answer_s"] or {"p50": 0, "p99": 0}, row["refusal_s"] or {"p99": 0}
        print(f"{row['offered_per_s']:8.1f} ({share:3g}) {row['good_per_s']:7.1f} {row['refused_per_s']:9.1f} "
              f"{row['too_late_per_s']:10.1f} {answer['p50']:10.2f} {answer['p99']:6.2f} {refusal['p99'] * 1e3:13.1f} "
              f"{row['client_cpus']:15.2f} {row['server_cpus']:.2f}", flush=True)
    peak = max(row["good_per_s"] for row in rows)
    kept = {str(row["share"]): row["good_per_s"] / peak for row in rows if row["share"] in (2, 4)}
    print("goodput: " + ", ".join(f"{100 * part:.0f} % of its peak at {times} times the capacity"
                                  for times, part in kept.items()))
    return {"capacity_per_s": rate, "at_once": options.at_once, "limit_s": options.limit, "rows": rows,
            "peak_good_per_s": peak, "kept_of_peak": kept}


def verdicts(held, over, options):
    """What was wanted and is not so."""
    if held:
        if held["wrong"] or held["lost"] or held["fewest_streams"] < options.streams:
            yield f"of the held streams {len(held['wrong'])} answers were wrong, {held['lost']} lost; fewest {held['fewest_streams']}"
        if held["ends"].get("refused"):
            yield f"{held['ends']['refused']} of the held streams were refused, although there is a place for each"
        for name, _ in KINDS:
            wanted = ", left" if name in ("cancelled", "vanishing") else ", right"
            if not held["ends"].get(name + wanted):
                yield f"no {name} stream ended as it should"
        for rank, memory in enumerate(held["memory_mb"]):
            if (memory["slope_per_minute"] or 0) > options.most_slope:
                yield f"rank {rank} grows by {memory['slope_per_minute']:.2f} MB a minute"
    if over:
        for times, share in over["kept_of_peak"].items():
            if share < 0.9:
                yield f"goodput at {times} times the capacity is {share:.2f} of its peak"
        if any(row["wrong"] or row["broken"] or row["without_retry_after"] for row in over["rows"]):
            yield "under overload answers were wrong or connections broken, or a refusal had no Retry-After"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=measuring.ROOT / "build/release/lockstep")
    parser.add_argument("--model", type=pathlib.Path, default=measuring.ROOT / "models/tiny")
    parser.add_argument("--minutes", type=float, default=20, help="of the held streams; 0: without")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20, help="of each rate of the overload; 0: without")
    parser.add_argument("--at-once", type=int, default=32, help="requests at once that measure the capacity")
    parser.add_argument("--limit", type=float, default=10, help="seconds after which an answer is no good")
    parser.add_argument("--most-slope", type=float, default=0.5, help="MB a minute that count as flat")
    parser.add_argument("--tokens", type=int, default=48, help="most tokens of an answer")
    parser.add_argument("--seed", type=int, default=4711)
    parser.add_argument("--server-arguments", default="--ranks 2", help="beside model, ports and limits")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def main():
    options = parse()
    result = measuring.origin("serve-load", options.binary)
    held = over = None
    extra = options.server_arguments.split()
    if options.minutes:
        with Server(options, ["--max-num-seqs", 256, "--max-model-len", 512, *extra]) as server:
            questions = Questions(server.port, 32, options.tokens, 2, options.seed)
            held = Held(server, questions, options.streams, options.seed).run(60 * options.minutes)
        print(json.dumps({name: value for name, value in held.items() if name != "wrong"}, indent=1))
    if options.seconds:
        with Server(options, ["--max-num-seqs", 16, "--max-model-len", 512, *extra]) as server:
            over = overload(server, Questions(server.port, 32, options.tokens, 2, options.seed), options)
    result |= {"held": held, "overload": over}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    failed = list(verdicts(held, over, options))
    for what in failed:
        print("MISSED: " + what)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
