"""Where ranks stand for a comparison: in one network namespace, or in two joined by a veth pair. Needs root.

Everything TCP runs in namespaces of its own, so that both sides can be given the same congestion control without
touching the machine's: reno, which is the one that a namespace may always choose. lockstep would choose cubic where
it has the right to, so it runs without CAP_NET_ADMIN there and takes reno as well.
"""

import os
import pathlib
import secrets
import stat
import subprocess
import tempfile

SAME_CONGESTION = ["setpriv", "--bounding-set", "-net_admin"]
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
PORT = 29411

# Open MPI starts its daemon for a host through this: in that host's namespace, under a name of its own.
AGENT = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
shift
exec ip netns exec {namespace} unshare --uts sh -c 'hostname {namespace} && exec sh -c "$0"' "$*"
"""


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Place:
    """One or two namespaces; `with` makes and removes them."""

    def __init__(self, count):
        mark = secrets.token_hex(2)
        self.names = [f"lockstep-{mark}-{i}" for i in range(count)]
        self.addresses = [f"10.77.0.{i + 1}" for i in range(count)] if count > 1 else ["127.0.0.1"]
        self.links = [f"ls{mark}{i}" for i in range(count)] if count > 1 else ["lo"]

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        try:
            self.make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
        self.folder.cleanup()

    def make(self):
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            subprocess.run(self.inside(name) + ["sysctl", "-q", "-w", "net.ipv4.tcp_congestion_control=reno"], check=True)
        if len(self.names) > 1:
            ip("link", "add", self.links[0], "netns", self.names[0], "type", "veth", "peer", "name", self.links[1], "netns",
               self.names[1])
            for name, link, address in zip(self.names, self.links, self.addresses):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
                ip("-n", name, "link", "set", link, "up")
        self.secret = pathlib.Path(self.folder.name, "secret")
        self.secret.write_text(secrets.token_hex(32))
        self.secret.chmod(stat.S_IRUSR | stat.S_IWUSR)
        self.agent = pathlib.Path(self.folder.name, "agent")
        self.agent.write_text(AGENT.format(namespace=self.names[-1]))
        self.agent.chmod(stat.S_IRWXU)

    def limit(self, gigabits):
        """So much and no more passes the veth pair either way. Segments leave it as they come, up to 64 KiB each."""
        for name, link in zip(self.names, self.links):
            subprocess.run(["tc", "-n", name, "qdisc", "add", "dev", link, "root", "tbf", "rate", f"{int(gigabits * 1e6)}kbit",
                            "burst", "256kb", "limit", "4mb"], check=True)

    def inside(self, name):
        return ["ip", "netns", "exec", name]

    def lockstep(self, binary, ranks, arguments):
        """The commands of all processes that are started by hand; the last one's output counts."""
        if len(self.names) == 1:
            return [self.inside(self.names[0]) + SAME_CONGESTION + [binary, *arguments, "--ranks", str(ranks)]]
        commands = []
        for rank in reversed(range(ranks)):
            name = self.names[rank * len(self.names) // ranks]
            join = ["--ranks", str(ranks), "--rank", str(rank), "--secret-file", str(self.secret), "--rendezvous",
                    f"{self.addresses[0]}:{PORT}"]
            commands.append(self.inside(name) + SAME_CONGESTION + [binary, *arguments, *join])
        return commands

    def mpi(self, binary, ranks, flags, arguments):
        command = self.inside(self.names[0]) + MPIRUN + ["-n", str(ranks)]
        if len(self.names) > 1:
            hosts = ",".join(f"{address}:{ranks // len(self.names)}" for address in self.addresses)
            command += ["--host", hosts, "--mca", "plm_rsh_agent", str(self.agent), "--mca", "oob_tcp_if_include",
                        "10.77.0.0/24"]
        return [command + flags + [binary, *arguments]]

    def ping_pong(self, binary, arguments):
        side = [self.addresses[-1], str(PORT + 1), *arguments]
        return [self.inside(self.names[-1]) + [binary, "listen", *side],
                self.inside(self.names[0]) + [binary, "connect", *side]]

    @property
    def interface(self):
        return "10.77.0.0/24" if len(self.names) > 1 else "lo"


def run(commands, timeout_s=600):
    """Starts all, waits for all, and returns what the last one printed."""
    environment = {**os.environ, "OMPI_MCA_btl_base_warn_component_unused": "0"}
    running = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=environment) for command in commands]
    try:
        ended = [(*process.communicate(timeout=timeout_s), process.returncode) for process in reversed(running)]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
    for command, (_, error, code) in zip(reversed(commands), ended):
        if code != 0:
            raise RuntimeError(f"{' '.join(command)}: exit code {code}\n{error[-2000:]}")
    return ended[0][0]
