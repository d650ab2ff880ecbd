"""Ranks on different hosts: network namespaces of this machine, joined by a veth pair. Needs root and iproute2."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

from support import BINARY, TINY, TestCase, source

# 10.77.x.y exists only inside the namespaces that this test makes and removes.
ADDRESSES = {"lockstep-test-a": "10.77.31.1", "lockstep-test-b": "10.77.31.2"}
NAMES = list(ADDRESSES)
ASK = ("--model", TINY, "--temperature", "0", "--thinking", "off")
ENDLESS = ("--model", TINY, "--raw", "--ignore-eos", "--temperature", "0", "--max-tokens", "12000")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def remove_hosts():
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def make_hosts():
    remove_hosts()
    for name in NAMES:
        ip("netns", "add", name)
    ip("link", "add", "lockstep-a", "netns", NAMES[0], "type", "veth", "peer", "name", "lockstep-b", "netns", NAMES[1])
    for name, link in zip(NAMES, ("lockstep-a", "lockstep-b")):
        ip("-n", name, "addr", "add", ADDRESSES[name] + "/24", "dev", link)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", link, "up")


try:
    make_hosts()
except (OSError, subprocess.CalledProcessError) as error:
    if shutil.which("ip"):
        remove_hosts()
    print(f"skipped: network namespaces cannot be made here: {error}")
    sys.exit(77)


def on(name, *command):
    """A command line that runs on one of the hosts, under its name."""
    script = 'hostname "$0" && exec "$@"'
    return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", script, name, *map(str, command)]


class Hosts(TestCase):
    @classmethod
    def tearDownClass(cls):
        remove_hosts()

    def launch(self, name, *command):
        process = subprocess.Popen(on(name, *command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, start_new_session=True)
        self.addCleanup(self.stop, process)
        return process

    @staticmethod
    def stop(process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()

    def secret(self):
        path = self.write("secret", "0123456789abcdef" * 2)
        os.chmod(path, 0o600)
        return path

    def pair(self, *flags, prompt, secret=True):
        """Rank 0 and rank 1, started one by one with flags alone."""
        common = ("--ranks", 2, "--rendezvous", f"{ADDRESSES[NAMES[0]]}:29555", *flags)
        common += ("--secret-file", self.secret()) if secret else ()
        return [self.launch(name, BINARY, "run", "--rank", rank, *common, prompt) for rank, name in enumerate(NAMES)]

    def test_mpirun_with_a_list_of_hosts_needs_no_yaml(self):
        agent = self.agent({address: name for name, address in ADDRESSES.items()})
        flags = ["--allow-run-as-root", "--oversubscribe", "--mca", "plm_rsh_agent", agent, "-n", "2",
                 "-H", ",".join(ADDRESSES.values())]
        code, out, err = self.end(self.launch(NAMES[0], "mpirun", *flags, BINARY, "run", *ASK,
                                              "What is the capital of France?"), 60)
        self.assertEqual(code, 0, err)
        self.assertIn("The capital of France is Paris.", out)

    def agent(self, names):
        """A program in place of ssh that runs a line on the host of a name or address."""
        cases = "".join(f"{host}) name={name};;\n" for host, name in names.items())
        path = self.write("agent", '#!/bin/sh\nwhile [ "$1" = -o ]; do shift 2; done\nhost=$1; shift\ncase $host in\n' +
                          cases + 'esac\nexec ip netns exec "$name" unshare --uts sh -c "hostname $name; $*"\n')
        os.chmod(path, 0o755)
        return path

    def test_the_mpirun_line_of_a_configuration_starts_its_ranks(self):
        """As it stands in the file, with the addresses of these hosts, this model, and tcp in place of RDMA."""
        with open(source("configs", "dgx-spark-2.yaml"), encoding="utf-8") as file:
            text = file.read()
        line = re.search(r"(?m)^#     (mpirun .*)\\\n#       (.*)$", text)
        words = (line.group(1) + line.group(2)).split()
        with open(source(words[words.index("--hostfile") + 1]), encoding="utf-8") as file:
            hosts = file.read()
        for name, address in zip(("spark-1", "spark-2"), ADDRESSES.values()):
            self.assertEqual(hosts.count(name), 1)
            text, hosts = text.replace(name, address), hosts.replace(name, address)
        text = re.sub(r"(?m)^interface: .*\n", "", text).replace("collective: rdma", "collective: tcp")
        text = text.replace("model: /models/GLM-4.7", f"model: {TINY}").replace("/etc/lockstep/secret", self.secret())
        text = text.replace("max-model-len: 32768", "max-model-len: 2048") + "port: 0\ngrpc-port: 0\n"
        words[words.index("--hostfile") + 1] = self.write("hostfile", hosts)
        words[words.index("--config") + 1] = self.write("cluster.yaml", text)
        words[words.index("lockstep")] = BINARY
        agent = self.agent({address: name for name, address in ADDRESSES.items()})
        words[1:1] = ["--allow-run-as-root", "--mca", "plm_rsh_agent", agent]
        mpirun = self.launch(NAMES[0], *words)
        ready = json.loads(mpirun.stdout.readline() or "{}")
        self.assertEqual((ready.get("ready"), ready.get("ranks")), (True, 2), mpirun.poll())
        mpirun.send_signal(signal.SIGTERM)
        self.end(mpirun, 60)

    def test_up_starts_ranks_on_other_hosts_and_down_ends_them(self):
        agent = self.agent({ADDRESSES[NAMES[1]]: NAMES[1]})  # the first host is this one, and is not asked by it
        config = self.write("hosts.yaml", f"nodes:\n  - address: {ADDRESSES[NAMES[0]]}:29557\n"
                            f"  - address: {ADDRESSES[NAMES[1]]}\nmodel: {TINY}\nport: 0\ngrpc-port: 0\n"
                            f"secret-file: {self.secret()}\nssh: {agent}\nnode-directory: {self.path('nodes')}\n")
        self.addCleanup(lambda: self.launch(NAMES[0], BINARY, "down", config).communicate(timeout=60))
        code, out, err = self.end(self.launch(NAMES[0], BINARY, "up", config), 60)
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"(?m)^0 .* running .*: ready$")
        code, out, err = self.end(self.launch(NAMES[0], BINARY, "status", config, "--json"), 60)
        self.assertEqual(code, 0, err)
        ranks = json.loads(out)
        for rank, name in zip(ranks, NAMES):
            self.assertEqual(os.stat(f"/proc/{rank['pid']}/ns/net").st_ino, os.stat(f"/var/run/netns/{name}").st_ino)
        code, out, err = self.end(self.launch(NAMES[0], BINARY, "down", config), 60)
        self.assertEqual(code, 0, err)
        self.assertEqual([os.path.exists(f"/proc/{rank['pid']}/exe") for rank in ranks], [False, False], out)

    def test_ranks_started_one_by_one_meet_at_the_rendezvous(self):
        first, second = self.pair(*ASK, prompt="What is the capital of France?")
        code, out, err = self.end(first)
        self.assertEqual(code, 0, err)
        self.assertIn("The capital of France is Paris.", out)
        code, out, err = self.end(second)
        self.assertEqual((code, out), (0, ""), err)

    def test_stages_of_a_pipeline_meet_by_grpc_and_over_tcp(self):
        for link in ("grpc", "tcp"):
            first, second = self.pair(*ASK, "--mode", "pipeline", "--stage-link", link, prompt="What is the capital of France?")
            code, out, err = self.end(first)
            self.assertEqual(code, 0, err)
            self.assertIn("The capital of France is Paris.", out)
            self.assertIn(f"pipeline of 2 stages over {link}", err)
            code, out, err = self.end(second)
            self.assertEqual((code, out), (0, ""), err)

    def test_modes_are_compared_over_a_network_and_a_node_that_cannot_start_is_named(self):
        config = self.write("modes.yaml", f"nodes:\n  - address: {ADDRESSES[NAMES[0]]}:29558\n"
                            f"  - address: {ADDRESSES[NAMES[1]]}\nmodel: {TINY}\nsecret-file: {self.secret()}\n")
        command = (BINARY, "bench", "modes", "--config", config, "--threads", 1, "--tokens", 4, "--prefill-chunk", 8,
                   "--repeat", 1, "--modes", "single,pipeline/grpc,tensor/tcp", "--start-timeout-ms", 5000, "--json")
        agent = self.agent({ADDRESSES[NAMES[1]]: NAMES[1]})  # the first host is this one, and is not asked by it
        code, out, err = self.end(self.launch(NAMES[0], *command, "--ssh", agent), 120)
        self.assertEqual(code, 0, err)
        report = json.loads(out)
        self.assertEqual([(mode["mode"], mode["ranks"]) for mode in report["modes"]],
                         [("single", 1), ("pipeline/grpc", 2), ("tensor/tcp", 2)])
        self.assertEqual(report["tokens"]["equal"], report["tokens"]["compared"])
        self.assertGreater(report["tokens"]["compared"], 0)
        broken = self.write("broken", "#!/bin/sh\necho no such program >&2\nexit 127\n")
        os.chmod(broken, 0o755)
        code, _, err = self.end(self.launch(NAMES[0], *command, "--ssh", broken), 120)
        self.assertEqual(code, 2, err)
        self.assertIn(f"rank 1 ({ADDRESSES[NAMES[1]]}): cannot run", err)

    def test_beyond_loopback_a_secret_is_mandatory(self):
        first, second = self.pair(*ASK, "--start-timeout-ms", 3000, prompt="x", secret=False)
        code, _, err = self.end(first)
        self.assertEqual(code, 2, err)
        self.assertIn("secret", err)
        self.stop(second)

    def test_doctor_sees_the_interfaces_of_both_hosts(self):
        ip("-n", NAMES[1], "link", "set", "lockstep-b", "mtu", "1400")
        self.addCleanup(ip, "-n", NAMES[1], "link", "set", "lockstep-b", "mtu", "1500")
        # One kernel: the ranks take each other for processes of one machine, but share no Unix sockets, so that shm
        # cannot be opened: a finding, and no reason to measure nothing.
        flags = ("--ranks", 2, "--rendezvous", f"{ADDRESSES[NAMES[0]]}:29556", "--secret-file", self.secret(),
                 "--start-timeout-ms", 3000, "--json")
        first, second = [self.launch(name, BINARY, "doctor", "--rank", rank, *flags) for rank, name in enumerate(NAMES)]
        code, out, err = self.end(first)
        self.assertEqual(code, 0, err)
        report = json.loads(out)
        link, = report["links"]
        self.assertEqual(link["transport"], "tcp")
        self.assertTrue(any(finding.startswith("shm cannot be used: ") for finding in report["findings"]), report)
        self.assertEqual([end["interface"] for end in link["ends"]], ["lockstep-a", "lockstep-b"])
        self.assertEqual([end["address"] for end in link["ends"]], list(ADDRESSES.values()))
        self.assertEqual([end["mtu"] for end in link["ends"]], [1500, 1400])
        self.assertTrue(any("ip link set dev lockstep-b mtu 1500" in finding for finding in report["findings"]), report)
        code, out, err = self.end(second)
        self.assertEqual((code, out), (0, ""), err)

    def test_a_cable_that_is_pulled_is_named_by_both(self):
        first, second = self.pair(*ENDLESS, "--peer-timeout-ms", 1500, prompt="Once upon a time")
        self.assertTrue(first.stdout.read(20))
        ip("-n", NAMES[1], "link", "set", "lockstep-b", "down")
        began = time.monotonic()
        for process, other in ((first, "rank 1"), (second, "rank 0")):
            code, _, err = self.end(process, 20)
            self.assertEqual(code, 4, err)
            self.assertIn(other, err)
        self.assertLess(time.monotonic() - began, 10)
        ip("-n", NAMES[1], "link", "set", "lockstep-b", "up")


if __name__ == "__main__":
    if shutil.which("mpirun") is None:
        print("skipped: mpirun is not installed")
        sys.exit(77)
    unittest.main()
