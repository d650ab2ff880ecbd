"""Random weights as bytes, in the block formats of ggml, safetensors and MLX.

A `Block` says how many weights a block holds, in how many bytes, and how to make a run of random ones whose weights
have a mean near 0 and a given root mean square. Everything is done on whole runs of bytes (slices with a stride, tables
of 256), so that plain Python is faster than a disk.
"""

import dataclasses
import math
import random
import struct
import typing

POOL_BYTES = 8 << 20
PIECE_BYTES = 4 << 20

# Nibble to weight, of IQ4_NL and IQ4_XS.
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MLX_BITS = (2, 3, 4, 5, 6, 8)
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# E4M3 codes of the NVFP4 scales that are drawn from: 128 to 448, as scales of 16 weights are that a quantizer chose.
NVFP4_SCALE_CODES = range(0x70, 0x7F)


def root_mean_square(values):
    values = list(values)
    return math.sqrt(sum(value * value for value in values) / len(values))


def e4m3(code):
    """The value of a float8 code that is not a NaN."""
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
    return -value if code & 0x80 else value


IQ4_RMS = root_mean_square(IQ4_VALUES)
E2M1_RMS = root_mean_square(E2M1_VALUES)
E4M3_RMS = root_mean_square(e4m3(min(code, 0x7E)) for code in range(128))
NVFP4_SCALE_RMS = root_mean_square(e4m3(code) for code in NVFP4_SCALE_CODES)


def spread(target, signed=True):
    """256 values around `target` whose squares have the mean target^2 (about): half of them negative, if signed."""
    values = [target * (0.75 + 0.5 * (i % 128) / 127) for i in range(256)]
    return [-value if signed and i >= 128 else value for i, value in enumerate(values)]


def bfloat16(value):
    return struct.pack("<f", value)[2:]


def float16(value):
    return struct.pack("<e", value)


def put(run, at, stride, indices, values, pack=float16):
    """At byte `at` of every block: the packed values that `indices` (one byte per block) choose."""
    packed = [pack(value) for value in values]
    for byte in range(len(packed[0])):
        run[at + byte :: stride] = indices.translate(bytes(one[byte] for one in packed))


def uniform_float(pack, width):
    """Numbers of which a table gives the upper half, so that they lie evenly in +-sqrt(3) * rms; the rest is random."""

    def fill(draw, run, rms):
        values = [pack(rms * math.sqrt(3) * (i - 127.5) / 127.5) for i in range(256)]
        upper = draw.randbytes(len(run) // width)
        run[width - 1 :: width] = upper.translate(bytes(value[-1] for value in values))

    return fill


def bf16_numbers(draw, run, rms):
    """The upper byte of a bfloat16 spans a factor of four; two neighbouring ones are mixed to meet `rms`."""
    spans = [(byte, math.ldexp(2.415, 2 * byte - 127)) for byte in range(0x60)]  # rms over all lower bytes
    below, above = max(i for i, span in enumerate(spans) if span[1] <= rms), 0
    above = below + 1
    low, high = spans[below][1], spans[above][1]
    share = (rms * rms - low * low) / (high * high - low * low)
    table = bytes((spans[above][0] if i % 128 < round(share * 128) else spans[below][0]) | (i & 0x80)
                  for i in range(256))
    run[1::2] = draw.randbytes(len(run) // 2).translate(table)


def f32_numbers(draw, run, rms):
    wide = bytearray(draw.randbytes(len(run) // 2))
    bf16_numbers(draw, wide, rms)
    run[2::4], run[3::4] = wide[0::2], wide[1::2]


def one_scale(at, block, unit_rms):
    """Blocks with one float16 scale at byte `at` and codes whose own root mean square is `unit_rms`."""

    def fill(draw, run, rms):
        put(run, at, block, draw.randbytes(len(run) // block), spread(rms / unit_rms))

    return fill


def scale_and_minimum(block, middle, unit_rms):
    """float16 scale and minimum in front: the minimum is what makes the codes' `middle` zero."""

    def fill(draw, run, rms):
        indices = draw.randbytes(len(run) // block)
        values = spread(rms / unit_rms)
        put(run, 0, block, indices, values)
        put(run, 2, block, indices, [-middle * value for value in values])

    return fill


def q8_0_block(draw, run, rms):
    run[:] = run.translate(bytes(0x81 if i == 0x80 else i for i in range(256)))  # no quantizer writes -128
    one_scale(0, 34, 73.6)(draw, run, rms)


def super_block(block, middle, code_rms):
    """Q4_K and Q5_K: 6-bit scales and minima of 8 sub-blocks, the same number for both, all of them 32 to 63, so that
    one dmin = middle * d centres all of them."""

    def fill(draw, run, rms):
        count = len(run) // block
        for i in range(4):
            packed = draw.randbytes(count).translate(bytes(byte | 0xA0 for byte in range(256)))
            run[4 + i :: block] = packed
            run[8 + i :: block] = packed
            run[12 + i :: block] = draw.randbytes(count).translate(bytes((byte & 15) * 17 for byte in range(256)))
        indices = draw.randbytes(count)
        values = spread(rms / (48.4 * code_rms), signed=False)
        put(run, 0, block, indices, values)
        put(run, 2, block, indices, [middle * value for value in values])

    return fill


def q6_k_block(draw, run, rms):
    scales = bytes((32 + (byte & 31)) if byte < 128 else (256 - 32 - (byte & 31)) for byte in range(256))
    for i in range(16):
        run[192 + i :: 210] = draw.randbytes(len(run) // 210).translate(scales)
    one_scale(208, 210, 48.4 * 18.5)(draw, run, rms)


def q2_k_block(draw, run, rms):
    for i in range(16):
        run[i::84] = draw.randbytes(len(run) // 84).translate(bytes((8 | byte & 7) * 17 for byte in range(256)))
    indices = draw.randbytes(len(run) // 84)
    values = spread(rms / (11.7 * 1.118), signed=False)
    put(run, 80, 84, indices, values)
    put(run, 82, 84, indices, [1.5 * value for value in values])


def mxfp4_block(draw, run, rms):
    exponent = math.floor(math.log2(rms / E2M1_RMS))
    share = ((rms / E2M1_RMS / 2.0**exponent) ** 2 - 1) / 3  # of blocks with the larger scale
    run[0::17] = draw.randbytes(len(run) // 17).translate(
        bytes(127 + exponent + (byte < round(share * 256)) for byte in range(256)))


def nvfp4_block(draw, run, rms):
    """ggml's: four E4M3 scales, then the nibbles of 64 weights. The scales are small: two codes are mixed."""
    wanted = rms / E2M1_RMS
    low = max(code for code in range(0x7E) if e4m3(code) <= wanted)
    below, above = e4m3(low), e4m3(low + 1)
    share = (wanted * wanted - below * below) / (above * above - below * below)
    for i in range(4):
        run[i::36] = draw.randbytes(len(run) // 36).translate(
            bytes(low + (byte < round(share * 256)) for byte in range(256)))


def e4m3_codes(draw, run, rms):
    """Any code but the two NaNs; the scale is apart."""
    run[:] = run.translate(bytes((i & 0x80) | min(i & 0x7F, 0x7E) for i in range(256)))


def e4m3_scales(draw, run, rms):
    codes = list(NVFP4_SCALE_CODES)
    run[:] = run.translate(bytes(codes[i % len(codes)] for i in range(256)))


def f32_scales(unit_rms):
    def fill(draw, run, rms):
        put(run, 0, 4, draw.randbytes(len(run) // 4), spread(rms / unit_rms, signed=False),
            lambda value: struct.pack("<f", value))

    return fill


def mlx_scales(bits, factor):
    """Scales (factor 1) and biases (minus the middle code) of groups: drawn from the same bytes, so that they belong
    together if both runs start from the same draw."""
    code_rms = math.sqrt((4**bits - 1) / 12)

    def fill(draw, run, rms):
        put(run, 0, 2, draw.randbytes(len(run) // 2), [factor * value for value in spread(rms / code_rms)], bfloat16)

    return fill


@dataclasses.dataclass(frozen=True)
class Block:
    weights: int
    bytes: int
    fill: typing.Callable = lambda draw, run, rms: None
    ggml: int = -1  # number of the type in GGUF


BLOCKS = {
    "f32": Block(1, 4, f32_numbers, 0),
    "f16": Block(1, 2, uniform_float(float16, 2), 1),
    "bf16": Block(1, 2, bf16_numbers, 30),
    "q4_0": Block(32, 18, one_scale(0, 18, 4.64), 2),
    "q4_1": Block(32, 20, scale_and_minimum(20, 7.5, 4.61), 3),
    "q5_0": Block(32, 22, one_scale(0, 22, 9.25), 6),
    "q5_1": Block(32, 24, scale_and_minimum(24, 15.5, 9.23), 7),
    "q8_0": Block(32, 34, q8_0_block, 8),
    "q2_k": Block(256, 84, q2_k_block, 10),
    "q3_k": Block(256, 110, one_scale(108, 110, 18.48 * 2.345), 11),
    "q4_k": Block(256, 144, super_block(144, 7.5, 4.61), 12),
    "q5_k": Block(256, 176, super_block(176, 15.5, 9.23), 13),
    "q6_k": Block(256, 210, q6_k_block, 14),
    "iq4_nl": Block(32, 18, one_scale(0, 18, IQ4_RMS), 20),
    "iq4_xs": Block(256, 136, one_scale(0, 136, 18.48 * IQ4_RMS), 23),
    "mxfp4": Block(32, 17, mxfp4_block, 39),
    "nvfp4": Block(64, 36, nvfp4_block, 40),
    "ones_f32": Block(1, 4, lambda draw, run, rms: put(run, 0, 4, bytes(len(run) // 4), [1.0] * 256,
                                                       lambda value: struct.pack("<f", value)), 0),
    "ones_bf16": Block(1, 2, lambda draw, run, rms: put(run, 0, 2, bytes(len(run) // 2), [1.0] * 256, bfloat16)),
    "ones_f16": Block(1, 2, lambda draw, run, rms: put(run, 0, 2, bytes(len(run) // 2), [1.0] * 256)),
    "zeros_f32": Block(1, 4, lambda draw, run, rms: run.__init__(len(run)), 0),
    # Parts of tensors of safetensors files.
    "fp8_codes": Block(1, 1, e4m3_codes),
    "fp8_scales": Block(1, 4, f32_scales(E4M3_RMS)),
    "codes": Block(8, 4),
    "nibbles": Block(2, 1),
    "nvfp4_scales": Block(1, 1, e4m3_scales),
}
for bits in MLX_BITS:
    BLOCKS[f"mlx{bits}_scales"] = Block(1, 2, mlx_scales(bits, 1))
    BLOCKS[f"mlx{bits}_biases"] = Block(1, 2, mlx_scales(bits, -(2**bits - 1) / 2))


class Source:
    """Random bytes in any of the formats, without end: pieces cut at random places from a pool per format and scale.
    So no two rows are alike, which is all that a measurement of speed needs, and memory stays small."""

    def __init__(self, seed):
        self.seed = seed
        self.pools = {}

    def pool(self, name, rms):
        if (name, rms) not in self.pools:
            block = BLOCKS[name]
            draw = random.Random(f"{self.seed}/{name.replace('_biases', '_scales')}/{rms}")
            run = bytearray(draw.randbytes(POOL_BYTES // block.bytes * block.bytes))
            block.fill(draw, run, rms)
            self.pools[name, rms] = bytes(run)
        return self.pools[name, rms]

    def pieces(self, name, inputs, count_bytes, key):
        """`count_bytes` of blocks `name` for a matrix of `inputs` columns; the same `key` cuts at the same places."""
        pool, block = self.pool(name, 1 / math.sqrt(inputs)), BLOCKS[name].bytes
        most = PIECE_BYTES // block
        draw = random.Random(f"{self.seed}/{key}")
        blocks = count_bytes // block
        if blocks * block != count_bytes:
            raise ValueError(f"{key}: {count_bytes} bytes are no whole blocks of {name}")
        while blocks > 0:
            piece = min(blocks, most)
            start = draw.randrange(0, len(pool) // block - piece + 1)
            yield pool[start * block : (start + piece) * block]
            blocks -= piece
