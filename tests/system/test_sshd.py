"""`lockstep up` over the real ssh: an sshd for this test alone, on a loopback address. Skipped where there is none."""

import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import unittest

from support import BINARY, TINY, TestCase, free_port, run, wait_for

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")


class Sshd(TestCase):
    def setUp(self):
        super().setUp()
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.path(name)], check=True)
        shutil.copy(self.path("user.pub"), self.path("authorized"))
        self.port = free_port()
        config = self.write("sshd_config", f"ListenAddress 127.0.0.2:{self.port}\nHostKey {self.path('host')}\n"
                            f"AuthorizedKeysFile {self.path('authorized')}\nStrictModes no\nUsePAM no\nPidFile none\n"
                            "PasswordAuthentication no\nPermitRootLogin yes\n")
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        self.log = open(self.path("sshd.log"), "wb")
        self.sshd = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stdout=self.log,
                                     stderr=self.log, start_new_session=True)
        self.addCleanup(self.stop)
        with open(self.path("host.pub"), encoding="ascii") as key:
            self.write("known", f"[127.0.0.2]:{self.port} {key.read()}")

    def stop(self):
        os.killpg(self.sshd.pid, signal.SIGKILL)
        self.sshd.wait()
        self.log.close()

    def test_a_rank_starts_over_ssh_outlives_the_connection_and_ends(self):
        ssh = f"ssh -F none -p {self.port} -l {getpass.getuser()} -i {self.path('user')} -o IdentitiesOnly=yes " \
              f"-o UserKnownHostsFile={self.path('known')}"
        config = self.write("pair.yaml", f"nodes:\n  - address: 127.0.0.1:{free_port()}\n  - address: 127.0.0.2\n"
                            f"model: {TINY}\nport: 0\ngrpc-port: 0\nssh: {ssh}\nnode-directory: {self.path('nodes')}\n")
        question = [*ssh.split(), "-o", "BatchMode=yes", "127.0.0.2", "true"]
        self.assertTrue(wait_for(lambda: subprocess.run(question, check=False, capture_output=True).returncode == 0))
        up = run("up", config, timeout=90)
        self.addCleanup(run, "down", config)
        self.assertEqual(up.returncode, 0, up.stderr.decode())
        ranks = json.loads(run("status", config, "--json").stdout)
        self.assertEqual([rank["state"] for rank in ranks], ["running"] * 2)
        self.assertEqual(ranks[0]["health"], "ready")
        self.assertEqual(run("down", config).returncode, 0)
        ranks = json.loads(run("status", config, "--json").stdout)
        self.assertEqual([rank["state"] for rank in ranks], ["ended"] * 2)

    def test_a_key_that_is_not_known_is_an_error_and_no_question(self):
        config = self.write("pair.yaml", f"nodes:\n  - address: 127.0.0.1\n  - address: 127.0.0.2\nmodel: {TINY}\n"
                            f"ssh: ssh -F none -p {self.port} -o UserKnownHostsFile=/dev/null\n"
                            f"node-directory: {self.path('nodes')}\n")
        self.assert_fails(run("up", config), 4, "rank 1 (127.0.0.2) cannot be reached: ", "BatchMode=yes 127.0.0.2")


if __name__ == "__main__":
    if SSHD is None or shutil.which("ssh") is None or not BINARY:
        print("skipped: there is no sshd (apt-get install openssh-server)")
        sys.exit(77)
    unittest.main()
