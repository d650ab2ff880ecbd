#!/usr/bin/env python3
"""Runs `lockstep shard` with a limit on its memory, and says what it took.

    bench/make_checkpoint.py /tmp/glm47-L10-E64.gguf --moe 9 --experts 64
    bench/shard_memory.py --model /tmp/glm47-L10-E64.gguf --limit-gib 2

The limit is a control group's: of resident memory, page cache included, which the kernel gives back first. `ulimit -v`
(RLIMIT_AS) would count the address space too that threads reserve; lockstep heeds groups and `ulimit -v` alike when it decides whether the probe
prompt fits. Where systemd runs, `systemd-run --scope` makes the group (MemoryMax, no swap); elsewhere it is made in
the memory hierarchy of cgroup v1, which needs root. With `--limit-gib 0` there is none. In all cases the peak is what
the kernel says of the process afterwards (ru_maxrss: resident pages and mapped files; pages of the program that were
in memory before are in it, but in no group's account, so a small limit can stand below the peak).

Writes bench/results/shard-memory-MODEL-HOST-DATE.json: peak, limit, bytes, seconds, whether the probe prompt was
recorded, machine, commit, command. Ends with 1 if sharding fails. The files of ranks are removed, but for --keep.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

from measuring import ROOT, Recorder, origin, shorten_in

MEMORY_V1 = pathlib.Path("/sys/fs/cgroup/memory")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="directory or .gguf file")
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/lockstep")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--quantize", help="as in lockstep shard")
    parser.add_argument("--limit-gib", type=float, default=2.0, help="0: no limit")
    parser.add_argument("--files", type=pathlib.Path, help="new directory for the files; default: beside the model")
    parser.add_argument("--keep", action="store_true", help="keep the files of ranks")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.files = arguments.files or arguments.model.with_name(f"{arguments.model.stem}-shard-memory")
    if arguments.files.exists():
        parser.error(f"{arguments.files} exists; remove it, since sharding would go on where it was left")
    return arguments


@contextlib.contextmanager
def limited(limit_bytes):
    """(words in front of a command, what to do in the child before it) for a limit; the group is gone afterwards."""
    if not limit_bytes:
        yield [], None
    elif pathlib.Path("/run/systemd/system").exists():
        own = [] if os.geteuid() == 0 else ["--user"]
        yield ["systemd-run", *own, "--scope", "--quiet", "-p", f"MemoryMax={limit_bytes}", "-p", "MemorySwapMax=0",
               "--"], None
    else:
        own = re.search(r"^\d+:memory:(.*)$", pathlib.Path("/proc/self/cgroup").read_text(), re.MULTILINE)
        if own is None or not os.access(MEMORY_V1, os.W_OK):
            sys.exit("no control group can be made here: neither systemd nor, as root, cgroup v1's memory hierarchy; "
                     "--limit-gib 0 measures without a limit")
        group = pathlib.Path(tempfile.mkdtemp(prefix="lockstep-", dir=MEMORY_V1 / own.group(1).lstrip("/")))
        try:
            (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
            yield [], lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
        finally:
            group.rmdir()


def source_bytes(model):
    files = [model] if model.is_file() else [*model.glob("*.safetensors"), *model.glob("*.gguf")]
    return sum(file.stat().st_size for file in files)


def shard(recorder, arguments):
    command = [arguments.binary, "shard", "--model", arguments.model, "--ranks", arguments.ranks, "--out",
               arguments.files]
    if arguments.quantize:
        command += ["--quantize", arguments.quantize]
    recorder.note(command)
    limit_bytes = int(arguments.limit_gib * 2**30)
    with limited(limit_bytes) as (words, enter), tempfile.TemporaryFile("w+") as said:
        begin = time.monotonic()
        process = subprocess.Popen([str(word) for word in (*words, *command)], stdin=subprocess.DEVNULL,
                                   stdout=said, stderr=said, preexec_fn=enter)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    probe = re.search(r"probe prompt \(([0-9.]+) s\)", text)
    return {
        "exit_code": process.returncode,
        "limit_bytes": limit_bytes or None,
        "peak_resident_bytes": usage.ru_maxrss * 1024,
        "source_bytes": source_bytes(arguments.model),
        "written_bytes": sum(file.stat().st_size for file in arguments.files.glob("*.lockstep")),
        "disk_read_bytes": usage.ru_inblock * 512,
        "disk_written_bytes": usage.ru_oublock * 512,
        "seconds": round(seconds, 2),
        "probe_seconds": float(probe.group(1)) if probe else None,
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "said": shorten_in(text, command).splitlines()[-arguments.ranks - 8:],
    }


def main():
    arguments = parse()
    recorder = Recorder()
    result = origin("shard memory", arguments.binary)
    try:
        result |= {"model": arguments.model.name, "ranks": arguments.ranks, "quantize": arguments.quantize}
        result |= shard(recorder, arguments) | {"commands": recorder.commands}
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.files, ignore_errors=True)
    name = f"shard-memory-{arguments.model.stem}-{platform.node()}-{result['date'][:10]}.json"
    out = arguments.out or ROOT / "bench/results" / name
    out.write_text(json.dumps(result, indent=1) + "\n")
    limit = f"{arguments.limit_gib:g} GiB" if result["limit_bytes"] else "none"
    print(f"peak {result['peak_resident_bytes'] / 2**30:.2f} GiB, limit {limit}; "
          f"{result['source_bytes'] / 1e9:.2f} GB made into {arguments.ranks} files of together "
          f"{result['written_bytes'] / 1e9:.2f} GB in {result['seconds']:.1f} s, of which the probe prompt {result['probe_seconds'] or 0:.1f} s")
    print(out)
    if result["exit_code"] != 0:
        sys.exit(f"lockstep shard ended with {result['exit_code']}: " + " | ".join(result["said"][-3:]))


if __name__ == "__main__":
    main()
