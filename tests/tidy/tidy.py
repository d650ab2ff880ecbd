#!/usr/bin/env python3
"""Keeps the house in order: layers, backends, foreign headers, sizes, format.

    tests/tidy/tidy.py            checks the repository that this file is in
    tests/tidy/tidy.py --root D   checks another tree
    tests/tidy/tidy.py --self-test  plants one violation of each kind and proves that it is found

Prints one line per violation, `file:line: what`, and exits with 1 if there is any.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

MOST_LINES = 500
LONGEST_LINE = 100
LONGEST_FUNCTION = 70

# Headers of foreign libraries, and the folders that own them. What is not listed (the standard library, POSIX) is free.
FOREIGN = {
    r"grpc(pp|\+\+)?/": ["runtime/engine/rpc", "runtime/serve", "deploy", "tests"],
    r"google/protobuf/": ["runtime/engine/rpc", "runtime/serve", "deploy", "tests"],
    r"lockstep/v1/": ["runtime/engine/rpc", "runtime/serve", "deploy", "tests"],
    r"mpi\.h": ["collectives/mpi", "bench"],
    r"pmix": ["collectives/pmix"],
    r"nccl\.h": ["collectives/nccl", "tests"],
    r"cuda": ["collectives/nccl", "runtime/kernels/cuda", "tests"],
    r"infiniband/": ["transport/rdma"],
    r"rdma/": ["transport/rdma"],
    r"(immintrin|arm_neon|arm_sve)": ["runtime/kernels/cpu"],
    r"pcre2": ["runtime/text"],
    r"yaml-cpp/": ["launcher"],
    r"CLI/": ["launcher"],
    r"spdlog/": ["runtime/base"],
    r"xxhash": ["runtime/base"],
    r"openssl/": ["collectives", "runtime/http", "runtime/serve", "tests"],
    r"curl/": ["runtime/weights", "launcher/load"],
    r"boost/": ["runtime/http"],
    r"(xgrammar|dlpack)/": ["runtime/grammar"],
    r"nlohmann/": ["runtime/text", "runtime/weights", "runtime/model", "runtime/serve", "launcher", "bench", "tests"],
    r"benchmark/": ["bench"],
    r"(gtest|gmock)/": ["tests"],
}
# What the build makes of proto/lockstep/v1: not in the tree, but of the folder proto.
GENERATED = re.compile(r"lockstep/v1/")
# Free of layers: they see everything, nothing includes them.
TOPS = ["tests", "bench", "deploy"]
WORDS = re.compile(r"\b(TODO|FIXME|XXX)\b")
INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]')


def read_layers(root):
    """Folder -> the folders it may include; the order of the file is the order of the floors."""
    layers = {}
    for line in (root / "cmake/layers.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        folder, _, below = line.partition(":")
        layers[folder.strip()] = below.split()
    return layers


def layer_of(path, layers):
    """The longest folder of the table that holds `path`, or None."""
    holders = [folder for folder in layers if path.startswith(folder + "/")]
    return max(holders, key=len) if holders else None


def sources(root):
    """Every C++ and CUDA source and header of the tree, by path below the root; never what a build made."""
    for pattern in ("*.h", "*.cc", "*.cuh", "*.cu"):
        for file in sorted(root.rglob(pattern)):
            path = file.relative_to(root).as_posix()
            if not path.startswith(("build", ".", "third_party/")):
                yield path, file


class Check:
    def __init__(self, root):
        self.root = root
        self.layers = read_layers(root)
        self.used = set()  # (folder, the other folder of which it includes a header)
        self.violations = []

    def report(self, path, line, what):
        self.violations.append(f"{path}:{line}: {what}")

    def table(self):
        """Arrows of the table itself point to earlier lines."""
        seen = []
        for folder, below in self.layers.items():
            for lower in below:
                if lower not in seen:
                    self.report("cmake/layers.txt", 1, f"{folder} names {lower}, which does not stand above it")
            seen.append(folder)

    def owners(self):
        """A folder that is gone owns nothing."""
        for pattern, owners in FOREIGN.items():
            for owner in owners:
                if not (self.root / owner).is_dir():
                    self.report("tests/tidy/tidy.py", 1, f"{owner}, which is to own {pattern}, does not exist")

    def permissions(self):
        """What the table allows and no source does; after all sources were read."""
        for folder, below in self.layers.items():
            for lower in below:
                if (folder, lower) not in self.used:
                    self.report("cmake/layers.txt", 1, f"{folder} may include {lower} and does not")

    def include(self, path, number, header):
        for pattern, owners in FOREIGN.items():
            if re.match(pattern, header) and not any(path.startswith(owner + "/") for owner in owners):
                self.report(path, number, f"{header} belongs to {', '.join(owners)}")
        own = layer_of(path, self.layers)
        if GENERATED.match(header):
            self.used.add((own, "proto"))
        if not (self.root / header).is_file():
            return
        target = layer_of(header, self.layers)
        self.used.add((own, target))
        # A folder below a floor is a backend: nothing outside it but tests and benchmarks includes its headers.
        folder = pathlib.PurePosixPath(header).relative_to(target).parts[0] if target else ""
        backend = f"{target}/{folder}/"
        if header.startswith(backend) and not path.startswith((backend, "tests/", "bench/")):
            self.report(path, number, f"{header} is private to its backend; include {target}/*.h")
        if own is None or target is None:
            if target is None and own is not None and header.split("/")[0] in TOPS:
                self.report(path, number, f"{own} may not include {header}: nothing sees {header.split('/')[0]}")
            return
        if target != own and target not in self.layers[own]:
            self.report(path, number, f"{own} may not include {header} (cmake/layers.txt)")

    def sizes(self, path, lines):
        if len(lines) > MOST_LINES:
            self.report(path, len(lines), f"{len(lines)} lines, at most {MOST_LINES}")
        start = None
        table_indent, table_lines = None, 0  # a static table inside a function is data, not steps to follow
        for number, line in enumerate(lines, 1):
            if start is not None and re.match(r"^ *static const .*= \{$", line):
                table_indent = line[: len(line) - len(line.lstrip())]
            elif table_indent is not None:
                table_lines += 1
                if line == table_indent + "};":
                    table_indent = None
            if len(line) > LONGEST_LINE:
                self.report(path, number, f"{len(line)} columns, at most {LONGEST_LINE}")
            if WORDS.search(line):
                self.report(path, number, f"unfinished: {WORDS.search(line).group(0)}")
            # clang-format puts a function's braces at one depth: the opening one ends a line, the closing one stands
            # alone at the same indentation. Types, namespaces and initialisers open differently.
            opened = re.match(r"^( *)(?!(?:namespace|class|struct|enum|union|extern)\b)\S.*\)[^;={]*\{$", line)
            if start is None and opened and len(opened.group(1)) <= 2:
                if not re.match(r"^ *(TEST|if|for|while|switch|else|do)\b", line):
                    start, table_lines = (number, opened.group(1)), 0
            elif start is not None and line.startswith(start[1] + "}"):  # a lambda's has more behind it
                length = number - start[0] + 1 - table_lines
                if length > LONGEST_FUNCTION:
                    self.report(path, start[0], f"a function of {length} lines, at most {LONGEST_FUNCTION}")
                start = None

    def format(self, files):
        program = shutil.which("clang-format") or shutil.which("clang-format-14")
        if program is None or not (self.root / ".clang-format").is_file():
            return
        for begin in range(0, len(files), 50):
            batch = [str(file) for _, file in files[begin : begin + 50]]
            done = subprocess.run([program, "--dry-run", *batch], capture_output=True, text=True, cwd=self.root)
            seen = set()
            for match in re.finditer(r"^(.*?):(\d+):\d+: warning: code should be clang-formatted", done.stderr, re.M):
                file = pathlib.Path(match.group(1)).resolve()
                if file not in seen:
                    seen.add(file)
                    path = file.relative_to(self.root.resolve()).as_posix()
                    self.report(path, match.group(2), "not formatted; run clang-format -i on it")

    def run(self):
        self.table()
        self.owners()
        files = list(sources(self.root))
        for path, file in files:
            lines = file.read_text(errors="replace").split("\n")
            if lines and lines[-1] == "":
                lines.pop()
            if path.endswith((".h", ".cuh")) and not any(line.startswith("#pragma once") for line in lines):
                self.report(path, 1, "no #pragma once")
            for number, line in enumerate(lines, 1):
                found = INCLUDE.match(line)
                if found:
                    self.include(path, number, found.group(1))
            self.sizes(path, lines)
        self.permissions()
        self.format(files)
        if not files:
            self.report(".", 0, "no sources found")
        return self.violations


PLANTED = {
    "an upward include": ("transport/bad.cc", '#include "collectives/group.h"\n', "transport may not include"),
    "a sideways include": ("runtime/text/bad.cc", '#include "collectives/group.h"\n', "runtime/text may not include"),
    "a test included": ("transport/bad.cc", '#include "tests/support.h"\n', "nothing sees tests"),
    "a foreign header": ("runtime/model/bad.cc", "#include <mpi.h>\n", "mpi.h belongs to"),
    "a private header": ("collectives/bad.cc", '#include "transport/tcp/link.h"\n', "private to its backend"),
    "a long line": ("transport/bad.cc", "// " + "x" * 98 + "\n", "101 columns"),
    "a long file": ("transport/bad.cc", "//\n" * 501, "501 lines"),
    "a long function": ("transport/bad.cc", "int F(int x) {\n" + "  ++x;\n" * 69 + "}\n", "a function of 71 lines"),
    "a long method": (
        "transport/bad.h",
        "#pragma once\nclass C {\n  int F(int x) const {\n" + "    ++x;\n" * 69 + "  }\n};\n",
        "a function of 71 lines",
    ),
    "a long function of a kernel": (
        "transport/bad.cu",
        "__global__ void F(int x) {\n" + "  ++x;\n" * 69 + "}\n",
        "a function of 71 lines",
    ),
    "an unguarded header": ("transport/bad.h", "int x;\n", "no #pragma once"),
    "an unused permission": (
        "cmake/layers.txt",
        "transport:\ncollectives: transport\nruntime/text: transport\nruntime/model: collectives\n",
        "runtime/text may include transport and does not",
    ),
    "an owner that is gone": ("transport/rdma", None, "transport/rdma, which is to own"),
    "a wrong arrow": ("cmake/layers.txt", "transport: collectives\ncollectives:\n", "does not stand above it"),
    "unfinished work": ("transport/bad.cc", "// TO" + "DO\n", "unfinished"),
    "bad format": ("transport/bad.cc", "int   x  ;\n", "not formatted"),
}
CLEAN = {
    "cmake/layers.txt": "transport:\ncollectives: transport\nruntime/text:\nruntime/model: collectives\n",
    "transport/link.h": "#pragma once\n",
    "transport/tcp/link.h": "#pragma once\n",
    "transport/tcp/link.cc": '#include "transport/tcp/link.h"\n',
    "collectives/group.h": '#pragma once\n#include "transport/link.h"\n',
    "tests/support.h": '#pragma once\n#include "collectives/group.h"\n#include "transport/tcp/link.h"\n',
    "runtime/model/table.cc": '#include "collectives/group.h"\n\n' + "int F(int x) {\n  static const int table[] = {\n" + "      1,  // row\n" * 90 + "  };\n  return table[x];\n}\n",
    "runtime/model/fine.cc": "int F(int x) {\n" + "  ++x;\n" * 68 + "}\n",
    "runtime/model/lambdas.cc": "TEST(A, B) {\n  const auto one = [](int x) {\n    ++x;\n    return x;\n  };\n}\n" * 20
    + "TEST(A, C) {\n  while (F()) {\n    G();\n    H();\n  }\n}\n",
}


def self_test(root):
    """A clean tree has no violation; each planted one is found and is the only one."""
    failed = 0
    for name, planted in {"nothing": None, **PLANTED}.items():
        with tempfile.TemporaryDirectory() as folder:
            tree = pathlib.Path(folder)
            for path, text in CLEAN.items():
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_text(text)
            for owner in sum(FOREIGN.values(), []):
                (tree / owner).mkdir(parents=True, exist_ok=True)
            shutil.copy(root / ".clang-format", tree / ".clang-format")
            if name == "bad format" and not (shutil.which("clang-format") or shutil.which("clang-format-14")):
                print("skipped: bad format (clang-format is not installed)")
                continue
            if planted is not None and planted[1] is None:
                shutil.rmtree(tree / planted[0])
            elif planted is not None:
                (tree / planted[0]).parent.mkdir(parents=True, exist_ok=True)
                (tree / planted[0]).write_text(planted[1])
            found = Check(tree).run()
            good = not found if planted is None else bool(found) and all(planted[2] in line for line in found)
            if name == "a wrong arrow":  # the broken table makes includes wrong, too
                good = any(planted[2] in line for line in found)
            print(("found: " if good else "NOT FOUND: ") + name + ("" if good else f" in {found}"))
            failed += not good
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return 1 if self_test(arguments.root) else 0
    violations = Check(arguments.root).run()
    print("\n".join(violations) if violations else "the house is in order")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
