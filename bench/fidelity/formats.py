"""The model of smol_model.py in every weight format that lockstep reads: quantizers, and writers of checkpoints.

Quantizers are those that people's files come from: ggml's own (of the llama.cpp that ../peers builds) for GGUF,
round-to-nearest as in MLX, ModelOpt and compressed-tensors for the others (written here, in numpy). Only
`q2_k_m_imatrix` uses calibration data: llama.cpp's importance matrix, the mean square of every input over some text.
"""

import concurrent.futures
import ctypes
import json
import os
import pathlib
import struct
import sys

import gguf
import numpy

import smol_model

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from synthetic import gguf_files  # noqa: E402

E2M1 = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], numpy.float32)
E4M3_MOST = numpy.float32(448)
TILE = 128
NVFP4_GROUP = 16
GGUF_FORMATS = ("f16", "q8_0", "q6_k", "q5_1", "q5_0", "q5_k", "q4_1", "q4_0", "q4_k", "q4_k_m", "iq4_nl", "iq4_xs",
                "mxfp4", "q3_k", "q2_k_experts", "q2_k_m_imatrix", "q2_k_m", "q2_k")
IMATRIX = "_imatrix"
DIRECTORY_FORMATS = ("bf16", "fp8", "fp8_tiles", "nvfp4", "nvfp4_packed", "mlx8", "mlx6", "mlx4")
SHARD_FORMATS = ("q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "fp8")  # of `lockstep shard --quantize`


def e4m3_values():
    codes = numpy.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return numpy.where(exponent > 0, numpy.ldexp(8.0 + mantissa, exponent - 10), numpy.ldexp(1.0 * mantissa, -9))


E4M3 = e4m3_values().astype(numpy.float32)


def nearest(values, levels):
    """Indices of the nearest of ascending `levels`; ties go to the even index."""
    middles = (levels[1:] + levels[:-1]) / 2
    above = numpy.searchsorted(middles, values, side="right")
    below = numpy.searchsorted(middles, values, side="left")
    return numpy.where(below % 2 == 0, below, above).astype(numpy.uint8)


def to_e4m3(values):
    codes = nearest(numpy.minimum(numpy.abs(values), E4M3_MOST), E4M3)
    return codes | (numpy.signbit(values).astype(numpy.uint8) << 7)


def kind_of(name):
    if "norm" in name:
        return "norm"
    if name.endswith("e_score_correction_bias"):
        return "correction"
    if name.endswith("mlp.gate.weight"):
        return "router"
    return {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head"}.get(name, "matrix")


class SafetensorsWriter:
    """Collects arrays and writes one file."""

    def __init__(self):
        self.arrays = []

    def add(self, name, dtype, values):
        self.arrays.append((name, dtype, values.shape, numpy.ascontiguousarray(values)))

    def bf16(self, name, values):
        """Rounds; the result that readers see."""
        rounded = smol_model.round_to_bf16(values)
        self.add(name, "BF16", (rounded.view(numpy.uint32) >> 16).astype(numpy.uint16))
        return rounded

    def f32(self, name, values):
        self.add(name, "F32", numpy.asarray(values, numpy.float32))

    def write(self, path):
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, dtype, shape, values in self.arrays:
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + values.nbytes]}
            offset += values.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for *_, values in self.arrays:
                out.write(values.tobytes())


def add_fp8(writer, module, values):
    """compressed-tensors: one scale a row."""
    scale = numpy.abs(values).max(1, keepdims=True) / E4M3_MOST
    scale[scale == 0] = 1
    writer.add(module + ".weight", "F8_E4M3", to_e4m3(values / scale))
    writer.f32(module + ".weight_scale", scale)


def add_fp8_tiles(writer, module, values):
    """One scale per 128 x 128 weights, as DeepSeek's checkpoints have it."""
    outputs, inputs = values.shape
    tiles = numpy.zeros((-(-outputs // TILE) * TILE, -(-inputs // TILE) * TILE), numpy.float32)
    tiles[:outputs, :inputs] = values
    tiles = tiles.reshape(len(tiles) // TILE, TILE, -1, TILE)
    scale = numpy.abs(tiles).max((1, 3)) / E4M3_MOST
    scale[scale == 0] = 1
    codes = to_e4m3(tiles / scale[:, None, :, None]).reshape(-1, tiles.shape[2] * TILE)
    writer.add(module + ".weight", "F8_E4M3", codes[:outputs, :inputs])
    writer.f32(module + ".weight_scale_inv", scale)


def add_nvfp4(writer, module, values, packed=False):
    """E2M1 with E4M3 scales of 16 weights and one F32 scale; `packed`: compressed-tensors' names and its reciprocal."""
    groups = values.reshape(len(values), -1, NVFP4_GROUP)
    most = numpy.abs(groups).max(2)
    whole = numpy.float32(most.max() / (E4M3_MOST * E2M1[-1]))
    scale_codes = to_e4m3(most / E2M1[-1] / whole)
    scale = E4M3[scale_codes] * whole
    scaled = numpy.divide(groups, scale[:, :, None], out=numpy.zeros_like(groups), where=scale[:, :, None] > 0)
    codes = nearest(numpy.minimum(numpy.abs(scaled), E2M1[-1]), E2M1) | (numpy.signbit(scaled).astype(numpy.uint8) << 3)
    codes = codes.reshape(len(values), -1, 2)
    writer.add(module + (".weight_packed" if packed else ".weight"), "U8", codes[:, :, 0] | codes[:, :, 1] << 4)
    writer.add(module + ".weight_scale", "F8_E4M3", scale_codes)
    if packed:
        writer.f32(module + ".weight_global_scale", numpy.array([1 / whole]))
    else:
        writer.f32(module + ".weight_scale_2", numpy.array(whole))


def add_mlx(writer, module, values, bits, group=64):
    """MLX's affine quantization: the larger end of a group's range falls on a code."""
    groups = values.reshape(*values.shape[:-1], -1, group)
    low, high = groups.min(-1), groups.max(-1)
    steps = 2**bits - 1
    scale = numpy.maximum((high - low) / steps, 1e-7)
    low_is_larger = numpy.abs(low) > numpy.abs(high)
    scale = numpy.where(low_is_larger, scale, -scale)
    edge = numpy.where(low_is_larger, low, high)
    at = numpy.rint(edge / scale)
    scale = numpy.where(at != 0, edge / numpy.where(at != 0, at, 1), scale).astype(numpy.float32)
    bias = numpy.where(at != 0, edge, 0).astype(numpy.float32)
    codes = numpy.clip(numpy.rint((groups - bias[..., None]) / scale[..., None]), 0, steps).astype(numpy.uint8)
    places = numpy.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    words = numpy.packbits(places.reshape(*values.shape[:-1], -1), axis=-1, bitorder="little").view(numpy.uint32)
    writer.add(module + ".weight", "U32", words)
    writer.bf16(module + ".scales", scale)
    writer.bf16(module + ".biases", bias)


def quantization(format, plain):
    """What config.json says about a format; `plain`: modules that are not quantized."""
    if format == "fp8_tiles":
        return {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                        "weight_block_size": [TILE, TILE]}}
    if format == "fp8":
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
        return {"quantization_config": {
            "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
            "ignore": plain, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}}
    if format.startswith("nvfp4"):
        weights = {"num_bits": 4, "type": "float", "group_size": NVFP4_GROUP}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
        if format == "nvfp4":
            return {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": plain,
                                            "config_groups": groups}}
        return {"quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
                                        "ignore": plain, "config_groups": groups}}
    if format.startswith("mlx"):
        return {"quantization": {"group_size": 64, "bits": int(format[3:]), "mode": "affine"}}
    return {}


def one_by_one(tensors):
    """With every expert as a tensor of its own."""
    for name, values in tensors.items():
        if ".experts.*." not in name:
            yield name, values
            continue
        for expert, one in enumerate(values):
            yield name.replace("*", str(expert)), one


def add_tensor(writer, name, values, format):
    """True if it was quantized."""
    kind, module = kind_of(name), name.removesuffix(".weight")
    if kind in ("norm", "correction"):
        writer.f32(name, values)
    elif format.startswith("mlx") and kind != "router":
        add_mlx(writer, module.replace(".experts.*.", ".switch_mlp."), values, int(format[3:]))
        return True
    elif format == "fp8" and kind == "matrix":
        add_fp8(writer, module, values)
        return True
    elif format == "fp8_tiles" and kind == "matrix":
        add_fp8_tiles(writer, module, values)
        return True
    elif format == "nvfp4_packed" and kind == "matrix" or format == "nvfp4" and ".mlp." in name and kind == "matrix":
        add_nvfp4(writer, module, values, packed=format == "nvfp4_packed")
        return True
    else:
        writer.bf16(name, values)
    return False


def write_directory(folder, llama, tensors, format):
    folder.mkdir(parents=True, exist_ok=True)
    writer, plain = SafetensorsWriter(), []
    pairs = tensors.items() if format.startswith("mlx") else one_by_one(tensors)
    for name, values in pairs:
        if not add_tensor(writer, name, values, format) and kind_of(name) in ("embedding", "head", "router", "matrix"):
            plain.append(name.removesuffix(".weight"))
    writer.write(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(smol_model.config(llama) | quantization(format, plain), indent=1))
    smol_model.write_texts(llama, folder)


class Ggml:
    """The quantizers of the libggml-base.so that ../peers/install_llama_cpp.sh builds."""

    def __init__(self, library):
        self.function = ctypes.CDLL(str(library)).ggml_quantize_chunk
        self.function.restype = ctypes.c_size_t
        self.function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                  ctypes.c_int64, ctypes.c_void_p]

    def quantize(self, values, type, importance=None):
        """`importance`: of every input, or of every input of every expert."""
        if importance is not None and importance.ndim == 2:
            return numpy.stack([self.quantize(one, type, squares) for one, squares in zip(values, importance)])
        inputs = values.shape[-1]
        weights, size = gguf.GGML_QUANT_SIZES[type]
        rows = numpy.ascontiguousarray(values, numpy.float32).reshape(-1, inputs)
        blocks = numpy.empty((len(rows), inputs // weights * size), numpy.uint8)
        squares = None if importance is None else numpy.ascontiguousarray(importance, numpy.float32)

        def part(piece):
            here, there = rows[piece], blocks[piece]
            written = self.function(int(type), here.ctypes.data, there.ctypes.data, 0, len(here), inputs,
                                    None if squares is None else squares.ctypes.data)
            if written != there.nbytes:
                raise ValueError(f"ggml wrote {written} bytes of {type.name}, not {there.nbytes}")

        pieces = [slice(at, at + 256) for at in range(0, len(rows), 256)]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(part, pieces))
        return blocks.reshape(*values.shape[:-1], -1)


def gguf_name(name):
    if name in gguf_files.TOP_NAMES:
        return gguf_files.TOP_NAMES[name], -1
    layer, suffix = name.removeprefix("model.layers.").split(".", 1)
    known = gguf_files.NAMES | {"post_attention_layernorm.weight": "post_attention_norm.weight"}
    return f"blk.{layer}.{known[suffix]}", int(layer)


def gguf_metadata(writer, llama, format):
    config = smol_model.config(llama)
    writer.add_name("SmolLM2-135M-Instruct as glm4moe")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf_files.FORMATS[format])
    writer.add_quantization_version(2)
    integers = {
        "block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim", "attention.value_length": "head_dim", "rope.dimension_count": "head_dim",
        "expert_count": "n_routed_experts", "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size", "expert_shared_count": "n_shared_experts",
        "leading_dense_block_count": "first_k_dense_replace", "vocab_size": "vocab_size"}
    for key, name in integers.items():
        writer.add_uint32(f"glm4moe.{key}", config[name])
    writer.add_uint32("glm4moe.expert_gating_func", 2)
    writer.add_bool("glm4moe.expert_weights_norm", True)
    writer.add_float32("glm4moe.expert_weights_scale", config["routed_scaling_factor"])
    writer.add_float32("glm4moe.rope.freq_base", config["rope_theta"])
    writer.add_float32("glm4moe.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    for key, value in llama.tokenizer.items():
        if key == "chat_template":
            writer.add_chat_template(value)
        elif key in ("ggml.tokens", "ggml.token_type", "ggml.merges"):
            writer.add_array("tokenizer." + key, value)
        elif isinstance(value, bool):
            writer.add_bool("tokenizer." + key, value)
        elif isinstance(value, int):
            writer.add_uint32("tokenizer." + key, value)
        else:
            writer.add_string("tokenizer." + key, value)


def write_gguf(path, llama, tensors, format, ggml, importance):
    """One GGUF file as llama.cpp's quantizer makes it: routers, norms and biases F32. `importance`: by tensor, for the
    formats that use it; embedding and head have none."""
    format = format.removesuffix(IMATRIX)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "glm4moe")
    gguf_metadata(writer, llama, format)
    heads = {}  # by type: embedding and head are the same numbers
    for name, values in tensors.items():
        as_name, layer = gguf_name(name)
        kind, squares = kind_of(name), importance.get(name)
        if kind in ("norm", "correction", "router"):
            writer.add_tensor(as_name, values)
            continue
        type = gguf.GGMLQuantizationType[
            gguf_files.type_of(as_name, values.shape[-1], kind, layer, llama.layers, format).upper()]
        if type.name == "F16":
            writer.add_tensor(as_name, values.astype(numpy.float16))
        elif kind in ("embedding", "head"):
            if type not in heads:
                heads[type] = ggml.quantize(values, type)
            writer.add_tensor(as_name, heads[type], raw_dtype=type)
        elif values.ndim == 3:  # experts 2j and 2j + 1 are the same
            squares = None if squares is None else squares[::2]
            writer.add_tensor(as_name, numpy.repeat(ggml.quantize(values[::2], type, squares), 2, 0), raw_dtype=type)
        else:
            writer.add_tensor(as_name, ggml.quantize(values, type, squares), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
