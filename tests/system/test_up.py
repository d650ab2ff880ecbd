"""`lockstep up`, `status` and `down`: two ranks on loopback addresses, with a program in place of ssh."""

import json
import os
import signal
import sys
import unittest
import urllib.request

from support import BINARY, TINY, TestCase, free_port, run, wait_for

# What ssh does, on this machine: runs a line of a shell. It writes down how it was called, and cannot reach 192.0.2.1.
# Where there is a file RECORD.once, it cannot reach anybody once a rank runs, a single time; RECORD.rival: whoever else
# runs the line of `up`, too, was a little faster.
SSH = """#!/bin/sh
printf '%s\\n' "$*" >>"{record}"
while [ "$1" = -o ]; do shift 2; done
if [ "$1" = 192.0.2.1 ]; then echo "ssh: connect to host $1 port 22: Connection timed out" >&2; exit 255; fi
case $2 in
*" status "*) if [ -e "{record}.once" ] && [ -s "{nodes}/rank-1.pid" ]; then rm "{record}.once"; exit 255; fi;;
*" up "*) if [ -e "{record}.rival" ]; then
  cat >"{record}.yaml"; /bin/sh -c "$2" <"{record}.yaml" >"{record}.rival"; exec /bin/sh -c "$2" <"{record}.yaml"; fi;;
esac
cd / && exec /bin/sh -c "$2"
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Up(TestCase):
    def setUp(self):
        super().setUp()
        self.record = self.path("record")
        self.nodes = self.path("it's a node")
        self.ssh = self.write("ssh", SSH.format(record=self.record, nodes=self.nodes))
        os.chmod(self.ssh, 0o755)
        self.addCleanup(self.end_all)

    def end_all(self):
        for name in os.listdir(self.nodes) if os.path.isdir(self.nodes) else ():
            if name.endswith(".pid"):
                with open(os.path.join(self.nodes, name), encoding="ascii") as file:
                    pid = int((file.read().split() or ["0"])[0])
                if pid > 1 and alive(pid) and b"lockstep" in open(f"/proc/{pid}/cmdline", "rb").read():
                    os.kill(pid, signal.SIGKILL)

    def config(self, second="127.0.0.2", model=TINY, **more):
        """Rank 0 is this machine's and needs no ssh; 127.0.0.2 leads here too, but is no address of an interface."""
        lines = ["nodes:", f"  - address: 127.0.0.1:{free_port()}", f"  - address: {second}", "    name: second",
                 f"model: {model}", "port: 0", "grpc-port: 0", f"ssh: {self.ssh}", f'node-directory: "{self.nodes}"']
        return self.write("pair.yaml", "\n".join(lines + [f"{key}: {value}" for key, value in more.items()]) + "\n")

    def ask(self, command, *arguments):
        """A command's exit code, what it says on stdout and on stderr."""
        result = run(command, *arguments, timeout=90)
        return result.returncode, result.stdout.decode(), result.stderr.decode()

    def states(self, config):
        code, out, _ = self.ask("status", config, "--json")
        return code, json.loads(out)

    def test_ranks_come_up_answer_are_shown_and_end(self):
        config = self.config()
        code, out, err = self.ask("up", config)
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"(?m)^0 +127\.0\.0\.1 +running +\d+ +since .* serves http://127\.0\.0\.1:\d+: ready$")
        self.assertRegex(out, r"(?m)^1 +second +running +\d+ +since ")

        code, ranks = self.states(config)
        self.assertEqual((code, [rank["state"] for rank in ranks]), (0, ["running"] * 2), ranks)
        question = json.dumps({"model": "tiny", "prompt": "The capital of France is", "max_tokens": 4}).encode()
        with urllib.request.urlopen(ranks[0]["serves"] + "/v1/completions", question, timeout=60) as answer:
            self.assertEqual(json.load(answer)["usage"]["completion_tokens"], 4)
        pids = [rank["pid"] for rank in ranks]
        for rank, pid in enumerate(pids):
            self.assertTrue(alive(pid))
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                self.assertEqual(file.read().split(b"\0")[1:-1],
                                 [[b"serve", b"worker"][rank], b"--config",
                                  os.fsencode(self.nodes + "/cluster.yaml"), b"--rank", b"%d" % rank])
            self.assertEqual(os.stat(f"{self.nodes}/rank-{rank}.log").st_mode & 0o777, 0o600)
        # Only the second node was asked by ssh, which was told never to ask back.
        with open(self.record, encoding="utf-8") as file:
            for line in file:
                self.assertRegex(line, r"^-o BatchMode=yes -o ConnectTimeout=10 127\.0\.0\.2 exec /bin/sh -c ")

        code, _, err = self.ask("up", config)
        self.assertEqual(code, 2)
        self.assertIn(f"rank 0 (127.0.0.1) runs already, as process {pids[0]}", err)

        code, out, err = self.ask("down", config)
        self.assertEqual(code, 0, err)
        # Rank 1 ends with rank 0, perhaps before it is asked to.
        self.assertRegex(out, r"(?m)^0 +127\.0\.0\.1 +ended ")
        self.assertFalse(any(map(alive, pids)))
        code, ranks = self.states(config)
        self.assertEqual((code, [rank["state"] for rank in ranks]), (4, ["ended"] * 2), ranks)
        code, out, err = self.ask("down", config)
        self.assertEqual((code, out.count("was not running")), (0, 2), out + err)

    def test_up_waits_for_a_node_that_cannot_be_reached_for_a_moment_and_status_for_an_answer(self):
        config = self.config()
        self.write("record.once", "")
        code, _, err = self.ask("up", config)
        self.assertEqual(code, 0, err)
        self.assertFalse(os.path.exists(self.path("record.once")))
        self.assertEqual([name for name in os.listdir(self.nodes) if name.startswith("new-")], [])
        # A server that does not answer runs, and does not serve.
        first = self.states(config)[1][0]
        os.kill(first["pid"], signal.SIGSTOP)
        code, out, err = self.ask("status", config)
        os.kill(first["pid"], signal.SIGCONT)
        self.assertEqual(code, 4, out)
        self.assertRegex(out, r"(?m)^0 .* running ")
        self.assertIn(f"rank 0 (127.0.0.1), {first['serves']}: ", err)
        code, _, err = self.ask("down", config)
        self.assertEqual(code, 0, err)

    def test_ranks_that_another_up_started_are_not_ended(self):
        config = self.config()
        self.write("record.rival", "")
        code, _, err = self.ask("up", config)
        self.assertEqual(code, 2)
        with open(self.record + ".rival", encoding="utf-8") as file:
            rival = json.load(file)
        self.assertIn(f"rank 1 (second): lockstep: rank 1 runs already there, as process {rival['pid']}", err)
        with open(self.record, encoding="utf-8") as file:
            self.assertNotIn(" down ", file.read())
        with open(f"{self.nodes}/rank-0.pid", encoding="ascii") as file:
            self.assertFalse(alive(int(file.read().split()[0])))

    def test_a_rank_that_is_gone_is_named_and_the_rest_ended(self):
        config = self.config()
        code, _, err = self.ask("up", config)
        self.assertEqual(code, 0, err)
        pids = [rank["pid"] for rank in self.states(config)[1]]
        os.kill(pids[1], signal.SIGKILL)
        self.assertTrue(wait_for(lambda: not alive(pids[1])))
        code, out, err = self.ask("status", config)
        self.assertEqual(code, 4)
        self.assertRegex(err, r"rank [01] \((127\.0\.0\.1|second)\) is not running")
        self.assertRegex(out, r"(?m)^1 +second +ended ")
        code, out, err = self.ask("down", config)
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"(?m)^1 +second +was not running")
        self.assertTrue(wait_for(lambda: not alive(pids[0])))

    def test_a_host_that_does_not_answer_is_named_before_anything_starts(self):
        config = self.config(second="192.0.2.1", **{"secret-file": "/nowhere/secret"})
        code, out, err = self.ask("up", config)
        self.assertEqual((code, out), (4, ""))
        self.assertIn("rank 1 (second) cannot be reached: ssh: connect to host 192.0.2.1 port 22", err)
        self.assertIn(f"{self.ssh} -o BatchMode=yes 192.0.2.1 true", err)
        self.assertFalse(os.path.exists(f"{self.nodes}/rank-0.pid"))
        code, out, err = self.ask("status", config)
        self.assertEqual(code, 4)
        self.assertRegex(out, r"(?m)^0 +127\.0\.0\.1 +absent ")
        self.assertRegex(out, r"(?m)^1 +second +unknown ")

    def test_what_keeps_a_rank_from_starting_is_told_and_no_rank_is_left(self):
        config = self.config(model="/nowhere/model")
        code, out, err = self.ask("up", config)
        self.assertEqual((code, out), (4, ""))
        self.assertIn("the end of its log", err)
        self.assertIn("/nowhere/model", err)
        code, ranks = self.states(config)
        self.assertEqual((code, [rank["state"] for rank in ranks]), (4, ["ended"] * 2), ranks)

    def test_a_node_without_the_program_is_named_and_the_rest_ended(self):
        config = self.config()
        code, _, err = self.ask("up", config, "--node-program", "/nowhere/lockstep")
        self.assertEqual(code, 2)
        self.assertIn("rank 1 (second): ", err)
        self.assertIn("/nowhere/lockstep", err)
        self.assertIn("--node-program", err)
        first, second = self.states(config)[1]
        self.assertEqual((first["state"], second["state"]), ("ended", "absent"))
        self.assertFalse(alive(first["pid"]))

    def test_what_cannot_work_is_refused_before_any_node_is_asked(self):
        for more, needle in (({"model": "models/tiny"}, "models/tiny"), ({"secret-file": "secret"}, "secret-file"),
                             ({"collective": "mpi"}, "mpirun"), ({"second": "-oProxyCommand=x"}, "no host")):
            code, _, err = self.ask("up", self.config(**more))
            self.assertEqual(code, 2, err)
            self.assertIn(needle, err)
        self.assertFalse(os.path.exists(self.record))
        self.assert_fails(run("up"), 2, "which cluster?")
        self.assert_fails(run("up", self.write("alone.yaml", "model: x\n")), 2, "lists no nodes")


if __name__ == "__main__":
    if not BINARY:
        sys.exit("LOCKSTEP_BINARY is not set")
    unittest.main()
