#!/usr/bin/env python3
"""Loads a model from a cold disk and compares with what the disk gives, in turns.

    bench/load_speed.py --model /tmp/glm47-L3-q4_0.gguf

Without such a file it is made first (4.6 GB: --shape, --moe, --vocab and --format as in make_checkpoint.py). It is
loaded as it is (with --whole) and from the files of ranks that `lockstep shard` makes of it, by every number of --ranks.
A round drops the page cache before each of: reading the same files by direct reads of 4 MiB, in one stream and in as
many as loading has (4 a rank); loading; and reading both ways once more. What loading reached is held against the better
of the two in its own round, since shared disks have moods. Needs root, for the page cache. Writes
bench/results/load-HOST-DATE.json; --keep keeps the files.
"""

import argparse
import datetime
import json
import mmap
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time

from measuring import ROOT, Recorder, origin

BLOCK = 4 << 20
STREAMS_PER_RANK = 4  # ReadAheadLimits::threads


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="a .gguf file, made if it is not there")
    parser.add_argument("--shape", default="glm47")
    parser.add_argument("--moe", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--format", default="q4_0")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, help="of a rank (default: its share of the cores)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="also load the .gguf file itself")
    parser.add_argument("--keep", action="store_true", help="keep the files of ranks")
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def drop_page_cache():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")


def disk_speed(files, streams):
    """GB/s of direct reads of whole files, first byte to last, `streams` blocks at a time."""
    drop_page_cache()
    opened = [os.open(file, os.O_RDONLY | os.O_DIRECT) for file in files]
    places = [(opened[i], at) for i, file in enumerate(files) for at in range(0, file.stat().st_size, BLOCK)]
    total = sum(file.stat().st_size for file in files)
    lock, places = threading.Lock(), iter(places)

    def read():
        memory = mmap.mmap(-1, BLOCK)
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return
            os.preadv(place[0], [memory], place[1])

    start = time.monotonic()
    threads = [threading.Thread(target=read) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    speed = total / (time.monotonic() - start) / 1e9
    for file in opened:
        os.close(file)
    return speed


def load_speed(recorder, arguments, model, files, ranks):
    """GB/s of all ranks together, until the last one has its weights."""
    drop_page_cache()
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // ranks)
    _, said = recorder.run([arguments.binary, "bench", "decode", "--model", model, "--ranks", ranks, "--threads",
                            threads, "--collective", "shm", "--tokens", 1, "--context", 1, "--repeat", 1,
                            "--log-level", "debug"])
    seconds = [float(text) for text in re.findall(r"loaded \S+ \S+ in ([0-9.]+) s", said)]
    if len(seconds) != ranks:
        sys.exit(f"{ranks} ranks, but {len(seconds)} of them said how long they loaded:\n{said[-2000:]}")
    return sum(file.stat().st_size for file in files) / max(*seconds, 0.01) / 1e9


def measure(recorder, arguments, model, files, ranks):
    rounds = []
    for _ in range(arguments.rounds):
        disk = {streams: [disk_speed(files, streams)] for streams in (1, STREAMS_PER_RANK * ranks)}
        loaded = load_speed(recorder, arguments, model, files, ranks)
        for streams, speeds in disk.items():
            speeds.append(disk_speed(files, streams))
        best = max(statistics.mean(speeds) for speeds in disk.values())
        rounds.append({"load_gb_per_s": loaded, "disk_gb_per_s": disk, "share": loaded / best,
                       "load_average": os.getloadavg()[0]})
        gives = "; ".join(f"{before:.2f} and {after:.2f} GB/s in {streams} stream{'s' if streams > 1 else ''}"
                          for streams, (before, after) in disk.items())
        print(f"{model.name}, {ranks} ranks: loads {loaded:.2f} GB/s, the disk gives {gives}: "
              f"{100 * loaded / best:.0f} %", flush=True)
    share = statistics.median(entry["share"] for entry in rounds)
    print(f"{model.name}, {ranks} ranks: {100 * share:.0f} % of the disk's speed (median)", flush=True)
    return {"model": model.name, "ranks": ranks, "bytes": sum(file.stat().st_size for file in files),
            "median_share": share, "rounds": rounds}


def main():
    arguments = parse()
    if not arguments.model.exists():
        part = arguments.model.with_name(arguments.model.stem + ".part.gguf")
        subprocess.run([sys.executable, ROOT / "bench/make_checkpoint.py", part, "--shape", arguments.shape, "--moe",
                        str(arguments.moe), "--vocab", str(arguments.vocab), "--format", arguments.format], check=True)
        part.rename(arguments.model)
    recorder = Recorder()
    result = origin("load", arguments.binary)
    results = []
    for ranks in arguments.ranks:
        if arguments.whole:
            results.append(measure(recorder, arguments, arguments.model, [arguments.model], ranks))
        shards = arguments.model.with_name(f"{arguments.model.stem}-{ranks}-ranks")
        made_here = not shards.exists()
        # Goes on with what an earlier start left, and refuses files of another checkpoint.
        recorder.run([arguments.binary, "shard", "--model", arguments.model, "--ranks", ranks, "--out", shards])
        files = sorted(shards.glob("*.lockstep"))
        results.append(measure(recorder, arguments, shards, files, ranks))
        if made_here and not arguments.keep:
            shutil.rmtree(shards)
    out = arguments.out or ROOT / f"bench/results/load-{platform.node()}-{datetime.date.today()}.json"
    result |= {"results": results, "commands": recorder.commands}
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
