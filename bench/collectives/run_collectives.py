#!/usr/bin/env python3
"""lockstep's all-reduce beside Open MPI's and beside bare ping-pongs, by turns.

    cmake --preset release -DLOCKSTEP_BENCH=ON && cmake --build --preset release --target lockstep baseline_bench
    sudo bench/collectives/run_collectives.py

Shared memory, TCP over loopback, and TCP between two network namespaces joined by a veth pair; 2 and 4 ranks; 4 B to
20 MB. In every round all contestants run once, one after the other; a figure is the median over the rounds, of the
round's p50 or p99. Writes bench/results/collectives-DATE.json: machine, load, commit, commands, all rounds, and how the
medians compare with what is wanted (`TARGETS`). Ends with 1 if a comparison with Open MPI at 2 ranks is missed.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from measuring import ROOT, origin, shorten  # noqa: E402
from places import Place, run  # noqa: E402

SIZES = [4, 1024, 10240, 20480, 81920, 1 << 20, 5 << 20, 20 << 20]
LAYER = [10240, 20480]  # what one token's exchange is, in bfloat16 and in float32
LARGE = [1 << 20, 5 << 20, 20 << 20]
UCX = ["--mca", "pml", "ucx", "--mca", "pml_ucx_tls", "any", "--mca", "pml_ucx_devices", "any"]


class Target:
    """`what` of lockstep at a size must be at most `most` times that of the best of `others`."""

    def __init__(self, place, ranks, sizes, others, most, what="p50_us"):
        self.place, self.ranks, self.sizes, self.others, self.most, self.what = place, ranks, sizes, others, most, what


TCP_OTHERS = ["Open MPI tcp", "Open MPI ucx"]
SHM_OTHERS = ["Open MPI vader", "Open MPI ucx"]
TARGETS = [
    Target("memory", 2, LAYER, ["Open MPI vader"], 0.45),
    Target("memory", 2, LAYER, ["Open MPI ucx"], 0.8),
    Target("memory", 2, LARGE, SHM_OTHERS, 1 / 1.2),
    Target("memory", 4, SIZES, SHM_OTHERS, 1.5),
]
for tcp in ("loopback", "namespaces"):
    TARGETS += [
        Target(tcp, 2, [10240], ["Open MPI tcp"], 0.85),
        Target(tcp, 2, [20480], ["Open MPI tcp"], 0.65),
        Target(tcp, 2, LAYER, ["ping-pong"], 1.4),
        Target(tcp, 2, LARGE, TCP_OTHERS, 1 / 1.2),
        Target(tcp, 4, SIZES, TCP_OTHERS, 1.5),
    ]
TARGETS += [Target(place, 2, LAYER, ["lockstep"], 2.5, "p99_us") for place in ("memory", "loopback", "namespaces")]


class Comparison:
    def __init__(self, arguments):
        self.arguments = arguments
        self.sizes = [int(size) for size in arguments.sizes.split(",")]
        self.samples = {}  # (place, ranks, contestant, bytes) -> {"p50_us": [...], "p99_us": [...]}
        self.commands = {}

    def add(self, place, ranks, contestant, rows):
        for row in rows:
            entry = self.samples.setdefault((place, ranks, contestant, row["bytes"]), {"p50_us": [], "p99_us": [], "reps": 0})
            entry["p50_us"].append(round(row["p50_us"], 3))
            entry["p99_us"].append(round(row["p99_us"], 3))
            entry["reps"] = row["reps"]

    def run(self, place, ranks, contestant, commands):
        self.commands.setdefault(f"{place}, {ranks} ranks, {contestant}", [" ".join(map(shorten, command)) for command in commands])
        return run(commands)

    def lines(self, place, ranks, contestant, commands):
        rows = [json.loads(line) for line in self.run(place, ranks, contestant, commands).splitlines()]
        self.add(place, ranks, contestant, rows)

    def lockstep(self, place, ranks, where, transport):
        sizes = ",".join(map(str, self.sizes))
        arguments = ["bench", "collectives", "--transports", transport, "--sizes", sizes, "--repeat", "1", "--json",
                     "--log-level", "error"]
        rows = json.loads(self.run(place, ranks, "lockstep", where.lockstep(self.arguments.binary, ranks, arguments)))
        for row in rows:
            name = "lockstep"
            if row["algorithm"] == "ping-pong":
                name = "lockstep's links, ping-pong"
            elif "slot" in row["algorithm"]:
                name = "lockstep, in slot"
            if not row["chosen"]:
                name = f"lockstep, {row['algorithm']}, not chosen"
            self.add(place, ranks, name, [row])

    def mpi(self, place, ranks, where, name, flags):
        sizes = ",".join(map(str, self.sizes))
        commands = where.mpi(self.arguments.baseline, ranks, flags, ["allreduce", sizes])
        self.lines(place, ranks, f"Open MPI {name}", commands)

    def round(self, ranks, one, two):
        plan = [",".join(map(str, self.sizes))]
        tcp = ["--mca", "pml", "ob1", "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include"]
        self.lockstep("memory", ranks, one, "shm")
        self.mpi("memory", ranks, one, "vader", ["--mca", "pml", "ob1", "--mca", "btl", "self,vader"])
        self.mpi("memory", ranks, one, "ucx", UCX)
        if ranks == 2:
            self.lines("memory", ranks, "ping-pong", [one.inside(one.names[0]) + [self.arguments.baseline, "memory", *plan]])
        for place, where in (("loopback", one), ("namespaces", two)):
            self.lockstep(place, ranks, where, "tcp")
            self.mpi(place, ranks, where, "tcp", tcp + [where.interface])
            if place == "loopback":  # UCX wants a device by name, and a namespace's has another on either side
                self.mpi(place, ranks, where, "ucx", UCX + ["-x", "UCX_TLS=tcp,self", "-x", "UCX_NET_DEVICES=lo"])
            if ranks == 2:
                self.lines(place, ranks, "ping-pong", where.ping_pong(self.arguments.baseline, plan))

    def median(self, place, ranks, contestant, size, what="p50_us"):
        entry = self.samples.get((place, ranks, contestant, size))
        return statistics.median(entry[what]) if entry else None

    def verdicts(self):
        for target in TARGETS:
            for size in target.sizes:
                own = self.median(target.place, target.ranks, "lockstep", size, target.what)
                others = [(self.median(target.place, target.ranks, other, size), other) for other in target.others]
                others = [other for other in others if other[0]]
                if not own or not others:
                    continue
                best, name = min(others)
                yield {"place": target.place, "ranks": target.ranks, "bytes": size, "lockstep": target.what,
                       "lockstep_us": own, "other": name if target.what == "p50_us" else "its p50", "other_us": best,
                       "ratio": round(own / best, 3), "wanted": round(target.most, 3), "met": own / best <= target.most}


def print_medians(comparison):
    print(f"{'place':11} {'ranks':>5} {'bytes':>9}  medians of p50 (p99), microseconds")
    for place, ranks, size in sorted({key[:2] + key[3:] for key in comparison.samples}):
        texts = []
        for other_place, other_ranks, contestant, bytes_ in comparison.samples:
            if (other_place, other_ranks, bytes_) == (place, ranks, size):
                p50 = comparison.median(place, ranks, contestant, size)
                p99 = comparison.median(place, ranks, contestant, size, "p99_us")
                texts.append(f"{contestant} {p50:.2f} ({p99:.2f})")
        print(f"{place:11} {ranks:5} {size:9}  " + "; ".join(texts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/release/lockstep"))
    parser.add_argument("--baseline", default=str(ROOT / "build/release/bench/baseline_bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--out", default=str(ROOT / f"bench/results/collectives-{datetime.date.today()}.json"))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run_collectives.py: making network namespaces needs root: run it with sudo")

    comparison = Comparison(arguments)
    result = origin("collectives", arguments.binary)
    load = result["machine"]["load_before"]
    if load > 0.5:
        print(f"the machine is busy (load {load:.1f}): expect whole time slices in the figures",
              file=sys.stderr)
    with Place(1) as one, Place(2) as two:
        for ranks in map(int, arguments.ranks.split(",")):
            for number in range(arguments.rounds):
                print(f"{ranks} ranks, round {number + 1} of {arguments.rounds}", file=sys.stderr)
                comparison.round(ranks, one, two)
    verdicts = list(comparison.verdicts())
    result |= {"load_after": os.getloadavg()[0], "congestion_control": "reno", "rounds": arguments.rounds,
               "commands": comparison.commands, "verdicts": verdicts,
               "rows": [{"place": key[0], "ranks": key[1], "contestant": key[2], "bytes": key[3], **entry}
                        for key, entry in comparison.samples.items()]}
    pathlib.Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    print_medians(comparison)
    for verdict in verdicts:
        print("{place}, {ranks} ranks, {bytes} bytes: lockstep's {lockstep} {lockstep_us:.2f}, {other} {other_us:.2f}: "
              "{ratio:.2f} x, wanted {wanted:.2f} x: ".format(**verdict) + ("met" if verdict["met"] else "MISSED"))
    print(arguments.out)
    return 0 if all(verdict["met"] for verdict in verdicts if verdict["ranks"] == 2) else 1


if __name__ == "__main__":
    sys.exit(main())
