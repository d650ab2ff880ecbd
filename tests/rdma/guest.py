#!/usr/bin/env python3
"""Runs a command in a throw-away virtual machine that has an RDMA device.

    tests/rdma/guest.py [--seconds N] [--cache FOLDER] -- COMMAND [ARGUMENT...]

The machine is QEMU without KVM, Debian's stock kernel (whose rdma_rxe speaks RoCE v2 over any network card) and an
initramfs that this program packs. Its root is this machine's, read-only, so what was built here runs there as it is;
/tmp is empty and writable. Device rxe0 stands on the interface rdma0 with 10.99.0.1, rxe1 on rdma1 with 10.99.0.2; one
kernel carries nothing from one of its rxe devices to the other, so whoever talks uses the same one.

Prints what the command printed, and exits as it did; 77 where this machine cannot have the guest (the reason is
printed), 124 when the time was up. The first use downloads the kernel (70 MB) into the cache. A guest lives about five
seconds longer than its command. Everything in it is emulated: what it measures is no performance of RDMA.
"""

import argparse
import lzma
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODULES = ["virtio_pci", "9p", "9pnet_virtio", "dummy", "crc32_generic", "crc32_pclmul", "rdma_rxe", "ib_uverbs"]
SIGNATURE = b"~Module signature appended~\n"
SKIPPED, OUT_OF_TIME = 77, 124


class CannotHaveGuest(Exception):
    """Why this machine has none; not an error of what is tested."""


def run(*command, **keywords):
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, **keywords)


# --- the kernel and its modules, from Debian's package ---


def download_kernel(cache):
    """Unpacks the kernel package below `cache`/kernel, once."""
    unpacked = cache / "kernel"
    if unpacked.is_dir():
        return unpacked
    try:
        depends = run("apt-cache", "depends", "linux-image-amd64", capture_output=True, text=True).stdout
        package = next(line.split()[-1] for line in depends.splitlines() if "Depends:" in line)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            run("apt-get", "download", package, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            archive = next(pathlib.Path(folder).glob("*.deb"))
            run("dpkg-deb", "--extract", archive, f"{folder}/all")
            os.rename(f"{folder}/all", unpacked)
    except subprocess.CalledProcessError as error:
        raise CannotHaveGuest(f"{shlex.join(map(str, error.cmd))} failed: {error.stderr or ''}") from error
    except (OSError, StopIteration) as error:
        raise CannotHaveGuest(f"apt has no linux-image-amd64: {error}") from error
    return unpacked


def uncompressed(vmlinuz):
    """The ELF image inside: booting it spares the guest an unpacking of many emulated seconds."""
    image = vmlinuz.read_bytes()
    begin = image.find(b"\xfd7zXZ\x00")
    if begin < 0:
        raise CannotHaveGuest(f"{vmlinuz} is not compressed with xz")
    return lzma.LZMADecompressor().decompress(image[begin:])


def module_closure(folder):
    """The files of MODULES and of all they depend on, each after what it needs."""
    files = {file.stem.replace("-", "_"): file for file in folder.rglob("*.ko")}
    order = {}

    def add(name):
        if name in order:
            return
        if name not in files:
            raise CannotHaveGuest(f"the kernel package has no module {name}")
        data = files[name].read_bytes()
        begin = data.index(b"\0depends=") + len(b"\0depends=")
        for needed in filter(None, data[begin : data.index(b"\0", begin)].decode().split(",")):
            add(needed.replace("-", "_"))
        if data.endswith(SIGNATURE):  # checking it would take the emulated processor long
            trailer = len(SIGNATURE) + 12
            signature = int.from_bytes(data[-len(SIGNATURE) - 4 : -len(SIGNATURE)], "big")
            data = data[: -trailer - signature]
        order[name] = data

    for name in MODULES:
        add(name)
    return order


# --- the initramfs ---


def pack(files):
    """A cpio archive of {path: (mode, content)}."""
    archive = bytearray()
    for inode, (path, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        name = path.encode() + b"\0"
        fields = [inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += b"\0" * (-len(archive) % 4) + content
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)


INIT = """#!/busybox sh
b=/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
while read m o; do $b insmod /modules/$m.ko $o || echo "guest: no module $m"; done </modules/order
share=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o ro,cache=loose,$share root /host
for d in proc sys dev; do $b mount --bind /$d /host/$d; done
for d in tmp run var/tmp; do $b mount -t tmpfs tmp /host/$d; done
$b mkdir -p /host/dev/shm; $b mount -t tmpfs shm /host/dev/shm; $b ln -s /proc/self/fd /host/dev/fd
$b mkdir -p "/host@REPOSITORY@"; $b mount -t 9p -o ro,cache=loose,$share repository "/host@REPOSITORY@"
$b mount -t 9p -o rw,cache=none,$share talk /host/run
$b hostname guest; $b ip link set lo up
i=0; while [ $i -lt 2 ]; do
  $b ip link add rdma$i type dummy; $b ip link set rdma$i mtu 4200 up; $b ip addr add 10.99.0.$((i + 1))/24 dev rdma$i
  $b chroot /host /usr/bin/env rdma link add rxe$i type rxe netdev rdma$i; i=$((i + 1)); done
ulimit -l unlimited
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8
$b chroot /host /bin/sh /run/command </dev/null >/host/run/output 2>&1
echo $? >/host/run/status
$b sync; echo o >/proc/sysrq-trigger; $b sleep 10
"""


def prepare(cache):
    """Fills the cache; returns the kernel and the initramfs."""
    if platform.machine() != "x86_64":
        raise CannotHaveGuest(f"the guest is an x86-64 machine, this is {platform.machine()}")
    for program, package in {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "rdma": "iproute2",
                             "apt-get": "apt", "dpkg-deb": "dpkg"}.items():
        if shutil.which(program) is None:
            raise CannotHaveGuest(f"{program} is not installed (Debian: {package})")
    cache.mkdir(parents=True, exist_ok=True)
    kernel, initramfs = cache / "vmlinux", cache / "initramfs"
    if not initramfs.exists() or initramfs.stat().st_mtime < pathlib.Path(__file__).stat().st_mtime:
        unpacked = download_kernel(cache)
        kernel.write_bytes(uncompressed(next((unpacked / "boot").glob("vmlinuz-*"))))
        modules = module_closure(unpacked / "lib/modules")
        order = "".join(f"{name} {'numdummies=0' if name == 'dummy' else ''}\n" for name in modules)
        folder, program = (0o040755, b""), 0o100755
        files = {name: folder for name in ("proc", "sys", "dev", "host", "modules")}
        files |= {f"modules/{name}.ko": (program, data) for name, data in modules.items()}
        files["modules/order"] = (program, order.encode())
        files["busybox"] = (program, pathlib.Path(shutil.which("busybox")).read_bytes())
        files["init"] = (program, INIT.replace("@REPOSITORY@", str(REPOSITORY)).encode())
        initramfs.write_bytes(pack(files))
    return kernel, initramfs


# --- one guest ---


def run_in_guest(command, seconds, cache):
    """The exit status of `command`, a list; its output goes to this program's."""
    kernel, initramfs = prepare(cache)
    with tempfile.TemporaryDirectory(prefix="lockstep-guest-") as talk:
        script = pathlib.Path(talk, "command")
        script.write_text(f"cd {shlex.quote(str(REPOSITORY))}\nexec {shlex.join(command)}\n")
        pathlib.Path(talk, "output").touch()
        machine = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "2048",
                   "-M", "q35,hpet=off", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
                   "-serial", f"file:{talk}/console", "-kernel", kernel, "-initrd", initramfs, "-append",
                   "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check rdinit=/init"]
        for tag, path, access in (("root", "/", ",readonly=on"), ("repository", REPOSITORY, ",readonly=on"),
                                  ("talk", talk, "")):
            machine += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{access}",
                        "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        in_time = True
        try:
            subprocess.run(machine, stdin=subprocess.DEVNULL, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            in_time = False
        sys.stdout.write(pathlib.Path(talk, "output").read_text(errors="replace"))
        status = pathlib.Path(talk, "status")
        if status.exists() and status.read_text().strip():
            return int(status.read_text())
        console = pathlib.Path(talk, "console")
        print("guest: " + ("the machine ended without a status" if in_time else f"not done after {seconds} s"))
        print(console.read_text(errors="replace")[-3000:] if console.exists() else "")
        return 1 if in_time else OUT_OF_TIME


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--cache", type=pathlib.Path, default=REPOSITORY / "build/rdma-guest")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    try:
        return run_in_guest(arguments.command, arguments.seconds, arguments.cache)
    except CannotHaveGuest as reason:
        print(f"SKIPPED: no guest with an RDMA device on this machine: {reason}")
        return SKIPPED


if __name__ == "__main__":
    sys.exit(main())
