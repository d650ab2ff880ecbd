"""What the figures of a weight format must keep, in nats; run_fidelity.py checks them. No imports, so that a test of
the bounds (tests/bench/test_fidelity.py) needs nothing from PyPI.
"""

ACTIVATIONS_LIMIT = 5e-3  # mean divergence of 8-bit activations from float32 ones over the same file
SAME_LIMIT = 1e-6  # largest divergence between two computations of the same in float32
SAME = ("bf16", "f16")  # both hold the model's weights without rounding
ROOM = 1.5  # times what was measured

# Mean divergence of a format's weights from the reference, with float32 activations: what quantizing costs this model.
# Measured over the first 512 tokens (bench/results/fidelity-2026-11-21.json, fidelity-2026-11-27.json and
# fidelity-2026-11-28.json, which are the table in docs/numerics.md).
MEASURED = {
    "q8_0": 1.0e-3, "q6_k": 0.0174, "q5_1": 0.123, "q5_0": 0.0888, "q5_k": 0.0274, "q4_1": 0.0671, "q4_0": 0.366,
    "q4_k": 0.0700, "q4_k_m": 0.0200, "iq4_nl": 0.265, "iq4_xs": 0.269, "mxfp4": 0.703, "q3_k": 0.983, "q2_k": 10.0,
    "q2_k_experts": 0.741, "q2_k_m_imatrix": 0.762, "q2_k_m": 2.98,
    "fp8": 0.0118, "fp8_tiles": 0.0123, "nvfp4": 0.112, "nvfp4_packed": 0.205,
    "mlx8": 2.43e-3, "mlx6": 0.0228, "mlx4": 0.407,
    "shard-q8_0": 9.5e-4, "shard-q6_k": 0.0119, "shard-q5_k": 0.0100, "shard-q4_k": 0.0100, "shard-q4_0": 0.247,
    "shard-fp8": 0.0118,
}

# Formats that miss ACTIVATIONS_LIMIT, with what they measured instead (same results): those whose weights leave little
# of this model, on which 8-bit activations turn more. They are held to ROOM times the miss. Q2_K in every matrix,
# embedding and head too, leaves nothing (an even guess among 49,152 tokens is at most 10.8 nats away): its ceiling of
# 15 nats cannot tell a wrong decoder from a right one, which is left to the tests of its values, bit for bit, and to
# the rows with Q2_K for fewer matrices.
MISSED = {"q2_k": 0.153, "q2_k_m": 0.0352}


def broken(format, entry):
    """A sentence for every bound that the figures do not keep; NaN keeps none."""
    weights = entry["exact"]["reference"]
    if format in SAME:
        if not weights["largest"] <= SAME_LIMIT:
            yield f"{format} diverges from the reference by {weights['largest']:.1e}, though nothing is rounded"
    elif not weights["mean"] <= ROOM * MEASURED[format]:
        yield (f"{format}: the weights diverge from the reference by {weights['mean']:.2e} in the mean, measured were "
               f"{MEASURED[format]:.2e}")
    if "fast" in entry:
        mean = entry["fast"]["exact"]["mean"]
        if not mean <= (ROOM * MISSED[format] if format in MISSED else ACTIVATIONS_LIMIT):
            yield f"{format}: 8-bit activations diverge by {mean:.2e} in the mean"
