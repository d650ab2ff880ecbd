"""A `lockstep serve` to measure: started with a model, watched, ended."""

import json
import pathlib
import subprocess
import urllib.request


class Server:
    def __init__(self, options, arguments):
        command = [options.binary, "serve", "--model", options.model, "--port", 0, "--grpc-port", 0, "--log-level",
                   "warning", *arguments]
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        text=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {' '.join(map(str, command))}")
        self.ready = json.loads(line)
        self.port = self.ready["port"]
        self.ranks = [self.process.pid, *self.children()]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)

    def children(self):
        path = pathlib.Path(f"/proc/{self.process.pid}/task")
        return sorted({int(pid) for task in path.iterdir() for pid in (task / "children").read_text().split()})

    def rss_mb(self):
        """Of each rank."""
        pages = [int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.ranks]
        return [count * 4096 / 1e6 for count in pages]

    def cpu_s(self):
        """Of all ranks together."""
        fields = [pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.ranks]
        return sum(int(one[11]) + int(one[12]) for one in fields) / 100

    def metric(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(name + "{"):
                    return float(line.rpartition(" ")[2])
        raise KeyError(name)
