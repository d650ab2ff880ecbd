"""`lockstep logits` against transformers' float32 logits: every exchange, 1 to 5 ranks, even and uneven."""

import json
import os
import unittest

from support import GOLDENS, MODELS, TestCase, Tensors, mpirun, relative_error, run


class Logits(TestCase):
    def logits(self, model, sequences, *flags, prefix=()):
        tokens = self.write("tokens.json", json.dumps(sequences))
        out = self.path("out.safetensors")
        if os.path.exists(out):
            os.remove(out)
        result = run("logits", "--model", os.path.join(MODELS, model), "--tokens", tokens, "--out", out, *flags,
                     prefix=prefix)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.assertEqual(result.stdout, b"")
        return Tensors(out)

    def check(self, model, kernels, *flags, prefix=()):
        golden = Tensors(os.path.join(GOLDENS, model + ".safetensors"))
        limit = 1e-5 if kernels == "ref" else 2e-5
        sequences = [list(golden.values("main.input_ids"))]
        sequences += [list(golden.values(f"batch.{b}.input_ids")) for b in range(3)]
        flags = ("--kernels", kernels, *flags)
        whole = self.logits(model, sequences, *flags, "--dump-hidden", prefix=prefix)
        self.assertEqual(whole.shape("logits.0"), golden.shape("main.logits"))
        self.assertLessEqual(relative_error(whole.values("logits.0"), golden.values("main.logits")), limit)
        vocab = whole.shape("logits.0")[1]
        for b in range(3):
            last = whole.values(f"logits.{b + 1}")[-vocab:]
            self.assertLessEqual(relative_error(last, golden.values(f"batch.{b}.last_logits")), limit)
        for name in whole.names():
            if ".rank" in name:
                self.assertEqual(whole.raw(name), whole.raw(name.rpartition(".")[0]), "ranks hold other bits")
        for extra in (("--step", 1), ("--step", 7), ("--together",), ("--together", "--step", 3)):
            again = self.logits(model, sequences, *flags, *extra, prefix=prefix)
            for index in range(len(sequences)):
                self.assertEqual(again.raw(f"logits.{index}"), whole.raw(f"logits.{index}"), extra)

    def test_one_rank_with_either_kernels(self):
        for model in ("tiny-a", "tiny-b", "tiny-k"):
            for kernels in ("ref", "cpu"):
                with self.subTest(model=model, kernels=kernels):
                    self.check(model, kernels)

    def test_two_to_five_ranks_over_tcp(self):
        for model in ("tiny-a", "tiny-b", "tiny-k"):
            for ranks in (2, 3, 4, 5):
                with self.subTest(model=model, ranks=ranks):
                    self.check(model, "cpu", "--ranks", ranks)

    def test_drafts_agree_with_transformers_however_they_are_computed(self):
        golden = Tensors(os.path.join(GOLDENS, "tiny-b.safetensors"))
        sequences = [list(golden.values("main.input_ids")) + [golden.values("mtp.next_ids")[-1]], [5], [7, 8]]
        whole = self.logits("tiny-b", sequences, "--draft")
        self.assertEqual(whole.shape("draft.0"), golden.shape("mtp.logits"))
        self.assertLessEqual(relative_error(whole.values("draft.0"), golden.values("mtp.logits")), 2e-5)
        self.assertEqual([list(whole.shape(f"draft.{i}"))[0] for i in (1, 2)], [0, 1])
        plain = self.logits("tiny-b", sequences)
        self.assertEqual(plain.raw("logits.0"), whole.raw("logits.0"))
        self.assertNotIn("draft.0", plain.names())
        for extra in (("--step", 1), ("--step", 7), ("--together",), ("--together", "--step", 3)):
            again = self.logits("tiny-b", sequences, "--draft", *extra)
            for index in range(len(sequences)):
                self.assertEqual(again.raw(f"draft.{index}"), whole.raw(f"draft.{index}"), extra)
        for shares in ("1,1", "5,1,2"):
            sliced = self.logits("tiny-b", sequences, "--draft", "--ranks", shares.count(",") + 1, "--shares", shares)
            self.assertLessEqual(relative_error(sliced.values("draft.0"), golden.values("mtp.logits")), 2e-5)

    def test_drafts_of_a_model_without_a_draft_layer_are_refused(self):
        tokens = self.write("tokens.json", "[[1, 2, 3]]")
        result = run("logits", "--model", os.path.join(MODELS, "tiny-a"), "--tokens", tokens, "--out",
                     self.path("out.safetensors"), "--draft", "--ranks", 2)
        self.assertEqual(result.returncode, 3, result.stderr.decode())
        self.assertIn("num_nextn_predict_layers", result.stderr.decode())

    def test_uneven_shares_over_shared_memory(self):
        for model, shares in (("tiny-a", "3,2"), ("tiny-b", "1,5,2"), ("tiny-k", "1,0,2,1")):
            with self.subTest(model=model, shares=shares):
                self.check(model, "cpu", "--ranks", shares.count(",") + 1, "--shares", shares,
                           "--collective", "shm")

    def test_ref_kernels_on_uneven_ranks(self):
        self.check("tiny-b", "ref", "--ranks", 2, "--shares", "1,3")

    def test_mpi_starts_itself_under_mpirun(self):
        self.check("tiny-a", "cpu", "--ranks", 2, "--collective", "mpi")

    def test_under_mpirun_every_exchange_works(self):
        for collective in ("tcp", "shm", "mpi"):
            with self.subTest(collective=collective):
                self.check("tiny-a", "cpu", "--collective", collective, "--shares", "2,1,1", prefix=mpirun(3))

    def test_bad_token_files_are_named(self):
        model = os.path.join(MODELS, "tiny-a")
        cases = {"[[1, 2], [1000]]": "1000", "[[-1]]": "-1", "[[]]": "empty", "{}": "list", "[[1.5]]": "whole",
                 "[[1": "JSON", '[["a"]]': "whole"}
        for text, needle in cases.items():
            with self.subTest(text=text):
                tokens = self.write("tokens.json", text)
                result = run("logits", "--model", model, "--tokens", tokens, "--out", self.path("out"))
                self.assert_fails(result, 2, "tokens.json")
                self.assertFalse(os.path.exists(self.path("out")), needle)


if __name__ == "__main__":
    unittest.main()
