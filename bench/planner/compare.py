#!/usr/bin/env python3
"""Holds `lockstep plan` against published measurements and claims (published.json).

    bench/planner/compare.py                      prints both tables and the errors; fails beyond the limits
    bench/planner/compare.py --update FILE.md     writes the tables between the marks of docs/planner.md
    bench/planner/compare.py --fit                prints the constants that fit best

The error of a prediction is against the middle of what was published. It counts where a constant is fitted to two
figures and more: one that is fitted to a single figure meets it whatever the formula.
"""

import argparse
import collections
import concurrent.futures
import functools
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MOST_MEDIAN, MOST_WORST = 0.20, 0.40
BEGIN, END = "<!-- made by bench/planner/compare.py: begin -->\n", "<!-- made by bench/planner/compare.py: end -->\n"


def binary():
    return os.environ.get("LOCKSTEP_BINARY", str(ROOT / "build/release/lockstep"))


def middle(value):
    return sum(value) / 2 if isinstance(value, list) else value


@functools.cache
def ask(command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


def plan(row):
    """What `lockstep plan` says of the row's question."""
    hardware = str(HERE / row["hardware"]) if row["hardware"].endswith(".yaml") else row["hardware"]
    command = [binary(), "plan", "--json", "--hardware", hardware, "--model", row["model"], "--weights", row["weights"],
               "--users", row["users"], "--context", row["context"]]
    for key, flag in (("engine", "--engine"), ("ranks", "--ranks"), ("prompt", "--prompt-tokens")):
        if key in row:
            command += [flag, row[key]]
    if "draft_acceptance" in row:
        command += ["--draft-acceptance", ",".join(map(str, row["draft_acceptance"]))]
    return ask(tuple(map(str, command)))


def read_published():
    """published.json, of which every question has been asked, several at a time."""
    published = json.loads((HERE / "published.json").read_text())
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(plan, published["measurements"] + published["claims"]))
    return published


def predicted(row):
    """Tokens/s and the parts of the time, or None and the reason."""
    way = plan(row)[row["way"]]
    if way["decode_tokens_per_s"] is None:
        return None, way["reason"]
    if not way["measured"]:
        return None, "not measured with any program"
    if row["quantity"] == "prefill":
        return way["prefill_tokens_per_s"], way["prefill"]
    rate = way["decode_by_users"][-1]
    return rate["tokens_per_s"], rate["step"]


def key_of(row):
    """What one constant is fitted to."""
    said = plan(row)
    return said["hardware"]["family"], said["engine"]["name"], row["quantity"]


def errors(rows):
    """Of every row (row, prediction, error, whether it counts)."""
    count = collections.Counter(key_of(row) for row in rows)
    for row in rows:
        rate, _ = predicted(row)
        if rate is None:
            raise SystemExit(f"{row['id']}: said not to fit, but was measured: {_}")
        yield row, rate, rate / middle(row["value"]) - 1, count[key_of(row)] > 1


def ceiling(row):
    """Tokens/s if all of the bandwidth, and for prompts all of the peak, were used."""
    said = plan(row)
    rate, parts = predicted(row)
    tokens = rate * sum(parts.values())
    if row["quantity"] == "prefill":
        return tokens / (parts["arithmetic_s"] * said["engine"]["arithmetic_share"]["value"])
    return tokens / ((parts["read_s"] + parts["slow_read_s"]) * said["engine"]["read_share"]["value"])


def verdict(row):
    """What is to be thought of a claim: a word, and why. Within 20 % of its range it is as predicted."""
    rate, parts = predicted(row)
    if rate is None and plan(row)[row["way"]]["fits"]:
        return "not known", parts
    if rate is None:
        needs = re.search(r"needs ([0-9.]+ GiB).* may use ([0-9.]+ GiB)", parts)
        return "cannot be", f"does not fit: {needs.group(1)} a rank, of {needs.group(2)}" if needs else parts
    low, high = row["value"]
    most = ceiling(row)
    limit = "all of the arithmetic" if row["quantity"] == "prefill" else "all of the bandwidth"
    if low > most:
        return "cannot be", f"{limit} gives {most:.0f}"
    if (1 - MOST_MEDIAN) * low <= rate <= (1 + MOST_MEDIAN) * high:
        return "as predicted", ""
    return ("above" if low > rate else "below") + " the prediction", ""


def percent(part):
    return f"{100 * part:.0f} %"


def show(value):
    return f"{value[0]:g} to {value[1]:g}" if isinstance(value, list) else f"{value:g}"


def question(row):
    text = f"{row['model']} {row['weights']}, {row['way']}"
    if row["quantity"] == "prefill":
        return text + f", a prompt of {row.get('prompt', row['context'])}" + (
            f" behind {row['context'] - row['prompt']}" if "prompt" in row else "")
    if row["users"] > 1:
        text += f", {row['users']} users"
    if row["context"] > 128:
        text += f", context {row['context']}"
    if "draft_acceptance" in row:
        text += f", {len(row['draft_acceptance'])} draft" + ("s" if len(row["draft_acceptance"]) > 1 else "")
    return text


def tables(published):
    """The text between the marks, and the errors that count."""
    lines = engines() + ["", "Every row below was asked with `lockstep plan --hardware H --engine E --model M --weights W "
                         "--context 128` and the `--users`, `--context`, `--ranks`, `--prompt-tokens` and "
                         "`--draft-acceptance` that it names, and nothing else.", "",
                         "| machines, program | what | published | predicted | error | source |", "|---|---|---|---|---|---|"]
    counted = collections.defaultdict(list)
    for row, rate, error, counts in errors(published["measurements"]):
        said = plan(row)
        machines = f"{said['hardware']['nodes']} x {said['hardware']['node']}, {row['engine']}"
        if said["hardware"]["link"].endswith("sockets"):
            machines += " over sockets"
        shown = f"{100 * error:+.0f} %" if counts else f"({100 * error:+.0f} %)"
        notes = [row["note"]] if "note" in row else []
        if "or_weights" in row:
            other, _ = predicted(row | {"weights": row["or_weights"]})
            notes.append(f"were it {row['or_weights']}: {other:.1f}, {100 * (other / middle(row['value']) - 1):+.0f} %")
        what = question(row) + (f" ({'; '.join(notes)})" if notes else "")
        lines.append(f"| {machines} | {what} | {show(row['value'])} | {rate:.1f} | {shown} | {row['source']} |")
        if counts:
            counted[row["quantity"]].append(abs(error))
    all_errors = [error for part in counted.values() for error in part]
    parts = ", ".join(f"{name} {percent(statistics.median(part))} and {percent(max(part))}"
                      for name, part in sorted(counted.items()))
    lines += ["", f"Of {len(all_errors)} figures that count the median error is {percent(statistics.median(all_errors))} and"
              f" the worst {percent(max(all_errors))} ({parts}). In brackets: fitted to this figure alone.", "",
              "| preset | claim, tokens/s | predicted | verdict |", "|---|---|---|---|"]
    for row in published["claims"]:
        rate, _ = predicted(row)
        word, why = verdict(row)
        lines.append(f"| {row['hardware']} | {question(row)}: {show(row['value'])} | "
                     f"{'-' if rate is None else f'{rate:.1f}'} | {word}{': ' + why if why else ''} |")
    lines += ["", "Claims that were not judged:", ""]
    lines += [f"- {row['what']}: {row['why']}." for row in published["not_judged"]]
    lines += ["", "Measurements that were left out:", ""]
    lines += [f"- {row['what']} ({row['source']}): {row['why']}." for row in published["left_out"]]
    return "\n".join(lines) + "\n", all_errors


def engines():
    """The table of all engines: what is fitted, and what each does."""
    catalogue = (ROOT / "configs/hardware/presets.yaml").read_text()
    families = {}
    for family, node in re.findall(r"^  (\S+):\n    family: (\S+)$", catalogue, re.MULTILINE):
        families.setdefault(node, family)
    lines = ["| family | engine | ways | read-share | arithmetic-share | sums | cache, wire, chunk |", "|" + "---|" * 7]
    part = catalogue.partition("\nengines:\n")[2].partition("\npresets:\n")[0]
    family = None
    for word in re.findall(r"^  (\S+):$|^    - name: (\S+)$", part, re.MULTILINE):
        family = word[0] or family
        if not word[1]:
            continue
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            node = families.get(family, f"{{family: {family}, memory-gib: 1, gb-per-s: 1}}")
            file.write(f"node: {node}\n")
            file.flush()
            said = ask((binary(), "plan", "--json", "--hardware", file.name, "--engine", word[1], "--model",
                        "GLM-4.7-Flash", "--weights", "mlx4"))["engine"]
        ring = ("ring" if said["ring"] else "to all at once") + f": {said['ring_source']}" if said["ring_source"] else "-"
        shares = [f"{said[name]['value']:g} ({said[name]['source']})" for name in ("read_share", "arithmetic_share")]
        lines.append(f"| {family} | {word[1]}{', in turns' if said['in_turns'] else ''} | "
                     f"{', '.join(said['ways']) or 'all'} | {shares[0]} | {shares[1]} | {ring} | "
                     f"{said['kv_cache_dtype']}, {said['wire']}, {said['prefill_chunk']} |")
    return lines


def fits(published):
    """Of each constant (its family, engine and name) the value whose predictions have the smallest mean square of
    logarithms of their ratios, and the errors with it."""
    groups = collections.defaultdict(list)
    for row in published["measurements"]:
        groups[key_of(row)].append(row)
    for (family, engine, quantity), rows in groups.items():
        prompts = quantity == "prefill"
        name, scaled = ("arithmetic_share", ["arithmetic_s"]) if prompts else ("read_share", ["read_s", "slow_read_s"])
        best = None
        for step in range(1, 101):
            share, found = step / 100, []
            for row in rows:
                rate, parts = predicted(row)
                now = plan(row)["engine"][name]["value"]
                time = sum(value * (now / share if part in scaled else 1) for part, value in parts.items())
                found.append(rate * sum(parts.values()) / time / middle(row["value"]) - 1)
            square = statistics.mean(math.log1p(error) ** 2 for error in found)
            if best is None or square < best[0]:
                best = square, share, found
        yield (family, engine, name), best[1], best[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--update", type=pathlib.Path)
    arguments = parser.parse_args()
    published = read_published()
    if arguments.fit:
        for (family, engine, name), share, found in fits(published):
            print(f"{family}, {engine}: {name} {share:.2f}, errors " + " ".join(f"{100 * e:+.0f}%" for e in found))
        return 0
    text, found = tables(published)
    if arguments.update:
        before, _, rest = arguments.update.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        arguments.update.write_text(before + BEGIN + text + END + after)
    print(text)
    within = statistics.median(found) <= MOST_MEDIAN and max(found) <= MOST_WORST
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
