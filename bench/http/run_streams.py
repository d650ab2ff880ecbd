#!/usr/bin/env python3
"""256 slow streams from lockstep's HTTP server and from cpp-httplib, by turns: threads, memory, processor time, and how
long clients wait for their first event and between events.

    cmake --preset release -DLOCKSTEP_BENCH=ON && cmake --build build/release --target lockstep streams_beast streams_httplib
    python3 bench/http/run_streams.py --build build/release --out bench/results/http-streams-DATE.json

Each stream has 100 events of 100 bytes, one every 50 ms, so that the shortest run is 5 s. Every eighth client reads an
event only every 200 ms. Needs libcpp-httplib-dev.
"""

import argparse
import json
import pathlib
import selectors
import socket
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import measuring  # noqa: E402

EVENTS = 100


def status_of(pid):
    fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    ticks = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {"threads": int(fields["Threads"]), "rss_mb": int(fields["VmRSS"].split()[0]) / 1024,
            "cpu_s": (int(ticks[11]) + int(ticks[12])) / 100}


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else None


def follow(port, streams, seconds):
    """Clients of all streams at once: when each event came."""
    selector = selectors.DefaultSelector()
    begun = time.monotonic()
    clients = []
    for index in range(streams):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.setblocking(False)
        client = {"socket": connection, "slow": index % 8 == 0, "events": 0, "first": None, "last": None, "gaps": [],
                  "resume": 0.0, "tail": b""}
        clients.append(client)
        selector.register(connection, selectors.EVENT_READ, client)
    left, middle = streams, None
    asleep = []
    while left and time.monotonic() - begun < seconds:
        now = time.monotonic()
        for client in [one for one in asleep if one["resume"] <= now]:
            asleep.remove(client)
            selector.register(client["socket"], selectors.EVENT_READ, client)
        for key, _ in selector.select(0.01):
            client, now = key.data, time.monotonic()
            got = key.fileobj.recv(200 if client["slow"] else 65536)
            seen = client["tail"] + got
            events = seen.count(b"data: ")
            client["tail"] = seen[-5:]  # shorter than what is counted
            if events and client["first"] is None:
                client["first"] = now - begun
            if events and client["last"] is not None and not client["slow"]:
                client["gaps"].append(now - client["last"])
            if events:
                client["last"] = now
            client["events"] += events
            if client["events"] >= EVENTS or not got:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                left -= 1
            elif client["slow"]:
                selector.unregister(key.fileobj)
                client["resume"] = now + 0.2
                asleep.append(client)
        if middle is None and time.monotonic() - begun > 2.5:
            middle = yield
    firsts = [client["first"] for client in clients if client["first"] is not None]
    gaps = [gap for client in clients for gap in client["gaps"]]
    yield {"streams": streams, "ended": sum(client["events"] >= EVENTS for client in clients),
           "seconds": time.monotonic() - begun,
           "first_event_s": {"p50": percentile(firsts, 0.5), "p99": percentile(firsts, 0.99)},
           "between_events_s": {"p50": percentile(gaps, 0.5), "p99": percentile(gaps, 0.99)}}


def measure(command, streams, seconds):
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline())
        run = follow(port, streams, seconds)
        next(run)
        middle = status_of(server.pid)
        result = run.send(True)
        result["server"] = {**middle, "cpu_s": status_of(server.pid)["cpu_s"]}
        return result
    finally:
        server.kill()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="longest wait for all streams")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    result = measuring.origin("http-streams", options.build / "lockstep")
    contestants = {"Boost.Beast, 2 threads": ("streams_beast", 2), "cpp-httplib, 8 threads": ("streams_httplib", 8),
                   f"cpp-httplib, {options.streams} threads": ("streams_httplib", options.streams)}
    result["contestants"] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, (program, threads) in contestants.items():
            command = [str(options.build / "bench" / program), str(threads), str(EVENTS)]
            run = measure(command, options.streams, options.seconds)
            result["contestants"][name].append(run)
            print(f"{name}: {run['ended']} of {run['streams']} in {run['seconds']:.1f} s; first event p50 "
                  f"{run['first_event_s']['p50']:.3f} p99 {run['first_event_s']['p99']:.3f} s; between p99 "
                  f"{run['between_events_s']['p99'] * 1e3:.0f} ms; {run['server']['threads']} threads, "
                  f"{run['server']['rss_mb']:.1f} MB, {run['server']['cpu_s']:.2f} s of processor", flush=True)
    for name, runs in result["contestants"].items():
        print(f"{name}: median {statistics.median(run['seconds'] for run in runs):.1f} s")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
