"""bench/cuda_resources.py: what it reads of ptxas, and that a kernel which needs more shows."""

import copy
import os
import pathlib
import sys
import unittest

ROOT = pathlib.Path(os.environ["LOCKSTEP_SOURCE_DIR"])
sys.path.insert(0, str(ROOT / "bench"))

import cuda_resources  # noqa: E402

SAID = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8lockstep7kernels4cuda4SiluEPKf' for 'sm_90'
ptxas info    : Function properties for _ZN8lockstep7kernels4cuda4SiluEPKf
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size
ptxas info    : Compiling entry function '_ZN8lockstep7kernels4cuda4SiluEPKf' for 'sm_121'
ptxas info    : Function properties for _ZN8lockstep7kernels4cuda4SiluEPKf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


class CudaResources(unittest.TestCase):
    def test_figures_and_names_are_those_of_ptxas(self):
        found = cuda_resources.ENTRY.findall(SAID)
        self.assertEqual([entry[1:] for entry in found], [("sm_90", "16", "8", "4", "40"), ("sm_121", "0", "0", "0", "32")])
        self.assertEqual(list(cuda_resources.readable([found[0][0]]).values()), ["Silu"])

    def test_more_registers_a_spill_and_an_unknown_kernel_show(self):
        kept = {"Silu": {"sm_90": {"registers": 40, "stack_bytes": 0, "spill_bytes": 0}}}
        self.assertEqual(cuda_resources.compare(kept, kept), [])
        for field, worse in (("registers", 49), ("stack_bytes", 8), ("spill_bytes", 4)):
            now = copy.deepcopy(kept)
            now["Silu"]["sm_90"][field] = worse
            self.assertEqual(len(cuda_resources.compare(now, kept)), 1, field)
        slightly = copy.deepcopy(kept)
        slightly["Silu"]["sm_90"]["registers"] = 48
        self.assertEqual(cuda_resources.compare(slightly, kept), [])
        self.assertEqual(len(cuda_resources.compare({}, kept)), 1)
        self.assertEqual(len(cuda_resources.compare(kept, {})), 1)


if __name__ == "__main__":
    unittest.main()
