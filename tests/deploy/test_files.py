"""The files of deploy/ and configs/: their command lines, paths and packages, the units, the Slurm script."""

import glob
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

SOURCE = os.environ.get("LOCKSTEP_SOURCE_DIR", os.path.join(os.path.dirname(__file__), "..", ".."))
BINARY = os.environ["LOCKSTEP_BINARY"]


def source(*parts):
    return os.path.join(SOURCE, *parts)


def text_of(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def texts():
    """Path and text of every file that tells people what to do."""
    patterns = ("README.md", "deploy/**/*", "configs/*.yaml")
    for pattern in patterns:
        for path in sorted(glob.glob(source(pattern), recursive=True)):
            if os.path.isfile(path) and not path.endswith(".py"):
                yield os.path.relpath(path, SOURCE), text_of(path)


def command_lines(text):
    """`lockstep COMMAND ...` with what follows up to the end of the line or of the quotation."""
    joined = re.sub(r"\\\n#? *", " ", text)
    for match in re.finditer(r"(?:^|[\s`/])lockstep ([a-z]+)((?: [^\n`|;&#]*)?)", joined):
        yield match.group(1), match.group(2)


def ranks_of_group(group):
    """What processes of lockstep in a process group have behind --rank."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
                words = file.read().split("\0")
            if os.getpgid(int(pid)) == group and words[0] == BINARY:
                yield words[words.index("--rank") + 1] if "--rank" in words else "none"
        except OSError:
            pass


class Files(unittest.TestCase):
    def help(self, command, known={}):
        if command not in known:
            done = subprocess.run([BINARY, "help", command], capture_output=True, text=True, check=False)
            known[command] = done.stdout if done.returncode == 0 else ""
        return known[command]

    def test_every_command_line_has_a_command_and_flags_that_exist(self):
        overview = self.help("")
        commands = set(re.findall(r"(?m)^  ([a-z]+) ", subprocess.run(
            [BINARY, "help"], capture_output=True, text=True, check=True).stdout))
        self.assertIn("serve", commands, overview)
        seen = set()
        for path, text in texts():
            for command, rest in command_lines(text):
                if command not in commands:
                    self.assertNotIn(" --", rest, f"{path}: lockstep {command}{rest}")
                    continue
                seen.add(command)
                for flag in re.findall(r"(?<= )--[a-z][a-z-]*", rest):
                    self.assertRegex(self.help(command), rf"(?m){flag}\b(?!-)", f"{path}: lockstep {command}{rest}")
        self.assertGreaterEqual(seen, {"up", "down", "status", "serve", "worker", "doctor", "bench"})

    def test_the_flags_of_the_kubernetes_job_exist(self):
        text = text_of(source("deploy/kubernetes/mpijob.yaml"))
        arguments = text[text.index("- serve\n"):text.index("resources:")]
        flags = re.findall(r"- (--[a-z-]+)\n", arguments)
        self.assertIn("--model", flags)
        for flag in flags:
            self.assertIn(flag + " ", self.help("serve"))
        ranks = re.search(r'- -n\n +- "(\d+)"', text).group(1)
        self.assertEqual(re.findall(r"replicas: (\d+)", text), ["1", ranks])

    def test_every_path_that_is_named_exists(self):
        found = 0
        for path, text in texts():
            for named in re.findall(r"(?<![\w/.-])(?:deploy|configs|docs)/[\w./-]*[\w/]", text):
                found += 1
                # The beginning of a name stands for those that begin so.
                self.assertTrue(glob.glob(source(named) + "*"), f"{path}: {named}")
            for link in re.findall(r"\]\(([\w./-]+)\)", text):
                self.assertTrue(os.path.exists(source(os.path.dirname(path), link)), f"{path}: {link}")
        self.assertGreater(found, 50)

    def test_every_platform_page_says_first_what_never_ran(self):
        for name in ("dgx-spark", "mac-studio", "strix-halo"):
            self.assertRegex(text_of(source(f"deploy/{name}.md")), r"^# .*\n\n\*\*Never (built and never )?run on a")

    def test_the_image_has_the_packages_that_install_has(self):
        install = text_of(source("deploy/install.sh"))
        wanted = install[install.index("# Build\n"):install.index("# Run and test")]
        names = set(re.sub(r"#.*", "", wanted).split()) - {"ccache", '"$boost"'} | {"libboost1.81-dev"}
        lock = text_of(source("deploy/packages.lock"))
        locked = dict(re.findall(r"(?m)^build ([^=\s]+)=(\S+)$", lock))
        # python3 fetches the sources of xgrammar.
        self.assertEqual(set(locked), names | {"python3", "python3-venv"})
        for line in lock.splitlines():
            self.assertRegex(line, r"^(#.*|(build|run) [a-z0-9.+-]+=[A-Za-z0-9.:~+-]+)$")

    def test_the_dockerfile_copies_what_is_there_and_reads_both_lists(self):
        text = text_of(source("deploy/Dockerfile"))
        for copied in re.findall(r"(?m)^COPY (?:--from=build /lockstep/)?(\S+) ", text):
            if not copied.startswith(("--from", "build/image")):
                self.assertTrue(os.path.exists(source(copied)), copied)
        for part in ("build", "run"):
            self.assertIn(f"'s/^{part} //p' /etc/lockstep/packages.lock", text)
        stages = re.findall(r"(?m)^FROM (\S+)(?: AS (\w+))?$", text)
        self.assertEqual(stages[-1], ("run", ""))
        for base, _ in stages[1:]:
            self.assertIn(base, {name for _, name in stages})

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    def test_the_units_are_sound(self):
        for unit in ("serve", "worker"):
            with tempfile.TemporaryDirectory() as folder:
                text = text_of(source(f"deploy/systemd/lockstep-{unit}@.service"))
                self.assertIn("\nRestartPreventExitStatus=2\n", text)
                self.assertIn(f"ExecStart=/usr/local/bin/lockstep {unit} --config /etc/lockstep/%i.yaml", text)
                path = os.path.join(folder, f"lockstep-{unit}@x.service")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text.replace("/usr/local/bin/lockstep", BINARY))
                done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
                self.assertEqual((done.returncode, done.stderr), (0, ""))

    @unittest.skipUnless(shutil.which("mpirun"), "mpirun is not installed")
    def test_the_mpirun_lines_for_this_machine_start_their_ranks(self):
        for name, ranks in (("local-2", 2), ("local-4", 4)):
            line = re.search(r"(?m)^#     (mpirun .*)$", text_of(source(f"configs/{name}.yaml"))).group(1).split()
            line[line.index("lockstep")] = BINARY
            line[1:1] = ["--allow-run-as-root"]
            with subprocess.Popen(line + ["--port", "0", "--grpc-port", "0"], cwd=SOURCE, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
                try:
                    ready = json.loads(job.stdout.readline() or "{}")
                    self.assertEqual((ready.get("ready"), ready.get("ranks")), (True, ranks))
                finally:
                    job.send_signal(signal.SIGTERM)
                    job.communicate(timeout=60)

    def test_the_slurm_script_starts_a_rank_a_task(self):
        """With an srun that starts all tasks here, and a scontrol that knows this machine alone."""
        flags = re.findall(r"(?m)^#SBATCH (\S+)$", text_of(source("deploy/slurm/lockstep.sbatch")))
        self.assertGreaterEqual(set(flags), {"--ntasks-per-node=1", "--exclusive", "--mem=0"})
        with tempfile.TemporaryDirectory() as folder:
            tasks = 'for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i "$@" & done'
            for name, script in (("scontrol", 'test "$1 $2" = "show hostnames" && echo 127.0.0.1'),
                                 ("srun", 'test "$1 $2" = "--kill-on-bad-exit=1 --cpu-bind=none" || exit 9\n'
                                  f"shift 2\n{tasks}\nwait")):
                path = os.path.join(folder, name)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(f"#!/bin/bash\n{script}\n")
                os.chmod(path, 0o755)
            environment = {**os.environ, "PATH": folder + ":" + os.environ["PATH"], "HOME": folder, "LOCKSTEP": BINARY,
                           "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
            script = ["bash", source("deploy/slurm/lockstep.sbatch"), source("models/tiny"),
                      "--port", "0", "--grpc-port", "0"]
            with subprocess.Popen(script, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, start_new_session=True, text=True) as job:
                try:
                    self.assertIn("rank 0 is on 127.0.0.1", job.stdout.readline())
                    ready = json.loads(job.stdout.readline() or "{}")
                    self.assertEqual((ready.get("ready"), ready.get("ranks")), (True, 2))
                    self.assertEqual(sorted(ranks_of_group(job.pid)), ["0", "1"])
                    secret = os.path.join(folder, ".lockstep-secret-7")
                    self.assertEqual(os.stat(secret).st_mode & 0o777, 0o600)
                    self.assertEqual(len(text_of(secret)), 64)
                finally:
                    os.killpg(job.pid, signal.SIGTERM)
                    job.communicate(timeout=60)
            self.assertFalse(os.path.exists(secret))
            usage = subprocess.run(script[:2], env=environment, capture_output=True, text=True, check=False)
            self.assertEqual(usage.returncode, 2)
            self.assertIn("usage", usage.stderr)


if __name__ == "__main__":
    unittest.main()
