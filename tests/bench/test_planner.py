"""bench/planner: `lockstep plan` meets what was published, and docs/planner.md says what it said."""

import os
import pathlib
import re
import statistics
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))

from support import TestCase, source  # noqa: E402

sys.path[:0] = [source("bench"), source("bench", "planner")]

import compare  # noqa: E402


class Planner(TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.published = compare.read_published()

    def test_published_measurements_are_met(self):
        found = [abs(error) for _, _, error, counts in compare.errors(self.published["measurements"]) if counts]
        self.assertGreaterEqual(len(found), 27)
        self.assertLessEqual(statistics.median(found), 0.20)
        self.assertLessEqual(max(found), 0.40)

    def test_claims_that_cannot_be_are_named(self):
        refused = {(row["hardware"], row["weights"], row["quantity"]) for row in self.published["claims"]
                   if compare.verdict(row)[0] == "cannot be"}
        self.assertEqual(refused, {
            ("rtx-pro-6000", "q4_k_m", "decode"), ("strix-halo-1", "q4_k_m", "decode"),
            ("dgx-spark-1", "q4_k_m", "decode"), ("m2-ultra-1", "q4_k_m", "decode"), ("a100-4", "q4_k_m", "decode"),
            ("h100-8", "bf16", "decode"), ("m3-ultra-1", "mlx8-g32", "prefill")})

    def test_ways_that_no_program_has_are_not_judged(self):
        unknown = {row["hardware"] for row in self.published["claims"] if compare.verdict(row)[0] == "not known"}
        self.assertEqual(unknown, {"strix-halo-4-rdma"})

    def test_every_preset_has_a_claim(self):
        text = pathlib.Path(source("configs/hardware/presets.yaml")).read_text().partition("\npresets:\n")[2]
        presets = re.findall(r"^  ([a-z0-9-]+):", text, re.MULTILINE)
        self.assertEqual(len(presets), 14)
        self.assertEqual(set(presets), {row["hardware"] for row in self.published["claims"]})

    def test_the_constants_are_those_that_fit(self):
        for row in self.published["measurements"]:
            said = compare.plan(row)["engine"]
            share = said["arithmetic_share" if row["quantity"] == "prefill" else "read_share"]
            self.assertIn("fitted", share["source"], row["id"])
        for (family, engine, name), best, _ in compare.fits(self.published):
            row = next(row for row in self.published["measurements"]
                       if compare.key_of(row)[:2] == (family, engine))
            self.assertAlmostEqual(compare.plan(row)["engine"][name]["value"], best, delta=0.011, msg=engine + family)

    def test_the_document_has_what_the_program_says(self):
        text, _ = compare.tables(self.published)
        document = pathlib.Path(source("docs/planner.md")).read_text()
        between = document.partition(compare.BEGIN)[2].partition(compare.END)[0]
        self.assertEqual(between, text, "run bench/planner/compare.py --update docs/planner.md")

    def test_measurements_are_told_apart(self):
        names = [row["id"] for row in self.published["measurements"]]
        self.assertEqual(len(names), len(set(names)))
        self.assertTrue(all(set(row) >= {"what", "source", "why"} for row in self.published["left_out"]))
        self.assertTrue(all(set(row) >= {"what", "why"} for row in self.published["not_judged"]))


if __name__ == "__main__":
    unittest.main()
