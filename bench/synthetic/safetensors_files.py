"""Checkpoints as directories of safetensors, in every layout that runtime/weights/safetensors_quantized.cc reads."""

import dataclasses
import itertools
import json
import math
import pathlib
import re
import shutil
import struct
import sys

from . import blocks, gguf_files, shapes

PLAIN_FORMATS = ("bf16", "f16", "f32")
MLX_GROUPS = (32, 64, 128)
FORMATS = (*PLAIN_FORMATS, "fp8", "fp8_tiles", "nvfp4", "nvfp4_packed", "mlx-mixed",
           *(f"mlx{bits}" for bits in blocks.MLX_BITS),
           *(f"mlx{bits}-g{group}" for bits in blocks.MLX_BITS for group in MLX_GROUPS if group != 64))
FORMATS_TEXT = ("bf16, f16, f32, fp8, fp8_tiles, nvfp4, nvfp4_packed, mlx2 to mlx8 (7 is none), with -g32 or -g128 "
                "behind for groups of another size than 64, mlx-mixed")
NVFP4_GROUP = 16
TILE = 128


@dataclasses.dataclass(frozen=True)
class Mlx:
    """Bits and group of a matrix."""

    bits: int
    group: int

    @property
    def settings(self):
        return {"group_size": self.group, "bits": self.bits, "mode": "affine"}


def mlx_of(format):
    """What most matrices of an MLX format have; None of the others."""
    if format == "mlx-mixed":
        return Mlx(4, 64)
    found = re.fullmatch(r"mlx(\d)(?:-g(\d+))?", format)
    return Mlx(int(found.group(1)), int(found.group(2) or 64)) if found else None


class Writer:
    """One safetensors file after another, each filled up to a size."""

    def __init__(self, folder, shard_bytes, source):
        self.folder, self.shard_bytes, self.source = folder, shard_bytes, source
        self.shards, self.current, self.current_bytes = [], [], 0

    def add(self, name, dtype, shape, block, inputs, key=None):
        """An array of blocks named in blocks.BLOCKS, or with `block` as its bytes. `inputs` sets the scale."""
        if isinstance(block, bytes):
            size = len(block)
        else:
            size = {"F8_E4M3": 1, "U8": 1, "BF16": 2, "F16": 2}.get(dtype, 4) * math.prod(shape)
        if self.current and self.current_bytes + size > self.shard_bytes:
            self.end_shard()
        self.current.append((name, dtype, shape, size, block, inputs, key or name))
        self.current_bytes += size

    def end_shard(self):
        if self.current:
            self.shards.append(self.current)
        self.current, self.current_bytes = [], 0

    def write(self):
        self.end_shard()
        weight_map, total = {}, 0
        for number, shard in enumerate(self.shards, 1):
            file = f"model-{number:05d}-of-{len(self.shards):05d}.safetensors"
            header, offset = {}, 0
            for name, dtype, shape, size, *_ in shard:
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
                weight_map[name] = file
                offset += size
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with open(self.folder / file, "wb") as out:
                out.write(struct.pack("<Q", len(text)) + text)
                for _, _, _, size, block, inputs, key in shard:
                    if isinstance(block, bytes):
                        out.write(block)
                        continue
                    for piece in self.source.pieces(block, inputs, size, key):
                        out.write(piece)
            total += offset
            print(f"{file}: {offset / 1e9:.2f} GB", file=sys.stderr)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        return total


def add_plain(writer, tensor, type):
    if tensor.kind == "norm":
        writer.add(tensor.name, type.upper(), tensor.shape, "ones_" + type, tensor.inputs)
    elif tensor.kind == "correction":
        writer.add(tensor.name, "F32", tensor.shape, "zeros_f32", tensor.inputs)
    elif tensor.kind == "bias":
        writer.add(tensor.name, type.upper(), tensor.shape, type, 2048)
    else:
        writer.add(tensor.name, type.upper(), tensor.shape, type, tensor.inputs, tensor.copy_of)


def add_fp8(writer, tensor):
    module = tensor.name.removesuffix(".weight")
    writer.add(tensor.name, "F8_E4M3", tensor.shape, "fp8_codes", tensor.inputs)
    writer.add(module + ".weight_scale", "F32", (tensor.shape[0], 1), "fp8_scales", tensor.inputs)


def add_fp8_tiles(writer, tensor):
    """One scale per 128 x 128 weights, as DeepSeek's checkpoints have it."""
    module = tensor.name.removesuffix(".weight")
    tiles = tuple(-(-size // TILE) for size in tensor.shape)
    writer.add(tensor.name, "F8_E4M3", tensor.shape, "fp8_codes", tensor.inputs)
    writer.add(module + ".weight_scale_inv", "F32", tiles, "fp8_scales", tensor.inputs)


def add_nvfp4(writer, tensor, packed):
    """`packed`: compressed-tensors' names, and global scales that divide; otherwise ModelOpt's, which multiply."""
    module = tensor.name.removesuffix(".weight")
    rows, inputs = tensor.shape
    whole = 1 / math.sqrt(inputs) / blocks.E2M1_RMS / blocks.NVFP4_SCALE_RMS
    writer.add(module + (".weight_packed" if packed else ".weight"), "U8", (rows, inputs // 2), "nibbles", inputs)
    writer.add(module + ".weight_scale", "F8_E4M3", (rows, inputs // NVFP4_GROUP), "nvfp4_scales", inputs)
    if packed:
        writer.add(module + ".weight_global_scale", "F32", (1,), struct.pack("<f", 1 / whole), inputs)
        writer.add(module + ".input_global_scale", "F32", (1,), struct.pack("<f", 250), inputs)
    else:
        writer.add(module + ".weight_scale_2", "F32", (), struct.pack("<f", whole), inputs)
        writer.add(module + ".input_scale", "F32", (), struct.pack("<f", 0.004), inputs)


def add_mlx(writer, tensor, mlx):
    module = tensor.name.removesuffix(".weight")
    *rows, inputs = tensor.shape
    key = tensor.copy_of.removesuffix(".weight") or module
    writer.add(tensor.name, "U32", (*rows, inputs * mlx.bits // 32), "codes", inputs, key + ".weight")
    for part in ("scales", "biases"):  # one key: a bias goes with its scale
        writer.add(f"{module}.{part}", "BF16", (*rows, inputs // mlx.group), f"mlx{mlx.bits}_{part}", inputs, key)


def mixed_mlx(shape, name):
    """mlx_lm's recipe mixed_4_6: 6 bits for the head, and for v_proj and down_proj of the layers q4_k_m favours."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    favoured = layer and gguf_files.uses_more_bits(int(layer.group(1)), shape.layers)
    more = "lm_head" in name or (favoured and ("v_proj" in name or "down_proj" in name))
    return Mlx(6 if more else 4, 64)


def mlx_for(shape, tensor, format):
    """How MLX quantizes a tensor; None: not at all, as where the groups do not divide the rows."""
    if tensor.kind not in ("matrix", "experts", "embedding", "head"):
        return None
    chosen = mixed_mlx(shape, tensor.name) if format == "mlx-mixed" else mlx_of(format)
    return None if tensor.inputs % chosen.group else chosen


def add_quantized(writer, tensor, format):
    """`tensor` is one matrix of one expert or of none. False if it is not quantized but plain."""
    linear = tensor.kind in ("matrix", "latent", "experts")
    if format == "fp8" and linear:
        add_fp8(writer, tensor)
    elif format == "fp8_tiles" and linear:
        add_fp8_tiles(writer, tensor)
    elif format == "nvfp4_packed" and linear:
        add_nvfp4(writer, tensor, True)
    elif format == "nvfp4" and linear and ".mlp." in tensor.name:  # attention stays BF16, as NVIDIA ships GLM-4.7
        add_nvfp4(writer, tensor, False)
    else:
        add_plain(writer, tensor, format if format in PLAIN_FORMATS else "bf16")
        return False
    return True


def expand_experts(tensors):
    """One tensor per expert; the three matrices of an expert side by side."""
    for is_stack, run in itertools.groupby(tensors, lambda tensor: tensor.kind == "experts"):
        run = list(run)
        if not is_stack:
            yield from run
            continue
        for expert in range(run[0].shape[0]):
            for stack in run:
                yield shapes.Tensor(stack.name.replace("*", str(expert)), stack.shape[1:], "experts")


def mlx_tensors(shape):
    """mlx_lm's names: experts as stacks, the latent's matrix as one to read with and one to write with."""
    for tensor in shapes.tensors(shape):
        if tensor.kind == "latent":
            prefix = tensor.name.removesuffix("kv_b_proj.weight")
            yield shapes.Tensor(prefix + "embed_q.weight", (shape.heads, shape.kv_lora, shape.nope))
            yield shapes.Tensor(prefix + "unembed_out.weight", (shape.heads, shape.value, shape.kv_lora))
        elif tensor.kind == "experts":
            yield shapes.Tensor(tensor.name.replace("experts.*", "switch_mlp"), tensor.shape, "experts")
        else:
            yield tensor


def quantization(format, ignored, own):
    """What config.json says about the format. `ignored`: modules that are plain; `own`: those with settings of their
    own."""
    if format in PLAIN_FORMATS:
        return {"dtype": {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[format]}
    if format == "fp8_tiles":
        return {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                        "weight_block_size": [TILE, TILE]}}
    if format == "fp8":
        activations = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
        group = {"input_activations": activations, "output_activations": None, "targets": ["Linear"],
                 "weights": weights}
        return {"quantization_config": {
            "config_groups": {"group_0": group}, "format": "float-quantized", "ignore": ignored,
            "quant_method": "compressed-tensors", "quantization_status": "compressed"}}
    if format in ("nvfp4", "nvfp4_packed"):
        four_bits = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": NVFP4_GROUP}
        group = {"input_activations": four_bits, "weights": four_bits, "targets": ["Linear"]}
        if format == "nvfp4_packed":
            return {"quantization_config": {
                "config_groups": {"group_0": group}, "format": "nvfp4-pack-quantized", "ignore": ignored,
                "quant_method": "compressed-tensors", "quantization_status": "compressed"}}
        return {"quantization_config": {
            "config_groups": {"group_0": group}, "ignore": ignored, "quant_algo": "NVFP4",
            "producer": {"name": "modelopt"}, "quant_method": "modelopt"}}
    settings = mlx_of(format).settings | own
    return {"quantization": settings, "quantization_config": settings}


def write(folder, shape, format, source, tiny, shard_bytes):
    """Writes the checkpoint and the files around it; returns its bytes. `tiny`: where the tokenizer comes from."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(folder, shard_bytes, source)
    usual = mlx_of(format)
    plain, own = set(), {}
    for tensor in mlx_tensors(shape) if usual else expand_experts(shapes.tensors(shape)):
        module = tensor.name.removesuffix(".weight")
        mlx = mlx_for(shape, tensor, format) if usual else None
        if mlx:
            add_mlx(writer, tensor, mlx)
            if mlx != usual:
                own[module] = mlx.settings
        elif not add_quantized(writer, tensor, format) and tensor.name.endswith(".weight"):
            plain.add(module)
    total = writer.write()
    config = shapes.config(shape, json.loads((tiny / "config.json").read_text()))
    ignored = sorted(name for name in plain if "norm" not in name)
    (folder / "config.json").write_text(json.dumps(config | quantization(format, ignored, own), indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (tiny / name).exists():
            shutil.copy(tiny / name, folder / name)
    return total
