"""bench/fidelity/bounds.py: what was measured keeps the bounds, and garbage breaks them."""

import copy
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))

from support import source  # noqa: E402

sys.path.insert(0, source("bench", "fidelity"))

import bounds  # noqa: E402


def recorded():
    """Every format's figures from the results that docs/numerics.md names."""
    formats = {}
    for date in ("2026-11-21", "2026-11-27", "2026-11-28"):
        with open(source("bench", "results", f"fidelity-{date}.json"), encoding="utf-8") as file:
            formats |= json.load(file)["formats"]
    return formats


def broken(format, entry, *path, value):
    """How many bounds break once the figure at `path` is `value`."""
    entry = copy.deepcopy(entry)
    figures = entry
    for key in path[:-1]:
        figures = figures[key]
    figures[path[-1]] = value
    return len(list(bounds.broken(format, entry)))


class Bounds(unittest.TestCase):
    def test_what_was_measured_keeps_them(self):
        for format, entry in recorded().items():
            with self.subTest(format=format):
                self.assertEqual(list(bounds.broken(format, entry)), [])

    def test_the_ceilings_are_of_what_was_measured(self):
        formats = recorded()
        self.assertEqual(set(formats), set(bounds.MEASURED) | set(bounds.SAME))
        for format, mean in bounds.MEASURED.items():
            with self.subTest(format=format):
                self.assertAlmostEqual(mean / formats[format]["exact"]["reference"]["mean"], 1, delta=0.01)
        for format, mean in bounds.MISSED.items():
            self.assertAlmostEqual(mean / formats[format]["fast"]["exact"]["mean"], 1, delta=0.01)

    def test_weights_decoded_to_garbage_break_one(self):
        for format, entry in recorded().items():
            for nats in (16.0, float("nan"), *([3.0] if format not in bounds.MISSED else [])):
                with self.subTest(format=format, nats=nats):
                    figure = "largest" if format in bounds.SAME else "mean"
                    self.assertEqual(broken(format, entry, "exact", "reference", figure, value=nats), 1)

    def test_activations_that_go_astray_break_one(self):
        for format, entry in recorded().items():
            for nats in (0.25, float("nan")) if "fast" in entry else ():
                with self.subTest(format=format, nats=nats):
                    self.assertEqual(broken(format, entry, "fast", "exact", "mean", value=nats), 1)


if __name__ == "__main__":
    unittest.main()
