"""Checkpoints as directories of safetensors: BF16, FP8 (compressed-tensors), NVFP4 (ModelOpt) and MLX 4 bits."""

import itertools
import json
import math
import pathlib
import shutil
import struct
import sys

from . import blocks, shapes

FORMATS = ("bf16", "fp8", "nvfp4", "mlx4")
MLX_GROUP = 64
NVFP4_GROUP = 16


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
            size = {"F8_E4M3": 1, "U8": 1, "BF16": 2}.get(dtype, 4) * math.prod(shape)
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


def add_plain(writer, tensor):
    if tensor.kind == "norm":
        writer.add(tensor.name, "BF16", tensor.shape, "ones_bf16", tensor.inputs)
    elif tensor.kind == "correction":
        writer.add(tensor.name, "F32", tensor.shape, "zeros_f32", tensor.inputs)
    elif tensor.kind == "bias":
        writer.add(tensor.name, "BF16", tensor.shape, "bf16", 2048)
    else:
        writer.add(tensor.name, "BF16", tensor.shape, "bf16", tensor.inputs)


def add_fp8(writer, tensor):
    module = tensor.name.removesuffix(".weight")
    writer.add(tensor.name, "F8_E4M3", tensor.shape, "fp8_codes", tensor.inputs)
    writer.add(module + ".weight_scale", "F32", (tensor.shape[0], 1), "fp8_scales", tensor.inputs)


def add_nvfp4(writer, tensor):
    module = tensor.name.removesuffix(".weight")
    rows, inputs = tensor.shape
    whole = 1 / math.sqrt(inputs) / blocks.E2M1_RMS / blocks.NVFP4_SCALE_RMS
    writer.add(tensor.name, "U8", (rows, inputs // 2), "nibbles", inputs)
    writer.add(module + ".weight_scale", "F8_E4M3", (rows, inputs // NVFP4_GROUP), "nvfp4_scales", inputs)
    writer.add(module + ".weight_scale_2", "F32", (), struct.pack("<f", whole), inputs)
    writer.add(module + ".input_scale", "F32", (), struct.pack("<f", 0.004), inputs)


def add_mlx(writer, tensor):
    module = tensor.name.removesuffix(".weight")
    *rows, inputs = tensor.shape
    writer.add(tensor.name, "U32", (*rows, inputs // 8), "codes", inputs)
    for part in ("scales", "biases"):  # one key: a bias goes with its scale
        writer.add(f"{module}.{part}", "BF16", (*rows, inputs // MLX_GROUP), "mlx_" + part, inputs, module)


def add_quantized(writer, tensor, format):
    """`tensor` is one matrix of one expert or of none."""
    linear = tensor.kind in ("matrix", "latent", "experts")
    if format == "fp8" and linear:
        add_fp8(writer, tensor)
    elif format == "nvfp4" and linear and ".mlp." in tensor.name:  # attention stays BF16, as NVIDIA ships GLM-4.7
        add_nvfp4(writer, tensor)
    elif format == "mlx4" and (linear or tensor.kind in ("embedding", "head")):
        add_mlx(writer, tensor)
    else:
        add_plain(writer, tensor)


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


def quantization(format, ignored):
    """What config.json says about the format."""
    if format == "fp8":
        activations = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
        weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
        group = {"input_activations": activations, "output_activations": None, "targets": ["Linear"],
                 "weights": weights}
        return {"quantization_config": {
            "config_groups": {"group_0": group}, "format": "float-quantized", "ignore": ignored,
            "quant_method": "compressed-tensors", "quantization_status": "compressed"}}
    if format == "nvfp4":
        four_bits = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": NVFP4_GROUP}
        group = {"input_activations": four_bits, "weights": four_bits, "targets": ["Linear"]}
        return {"quantization_config": {
            "config_groups": {"group_0": group}, "ignore": ignored, "quant_algo": "NVFP4",
            "producer": {"name": "modelopt"}, "quant_method": "modelopt"}}
    if format == "mlx4":
        settings = {"group_size": MLX_GROUP, "bits": 4, "mode": "affine"}
        return {"quantization": settings, "quantization_config": settings}
    return {}


def write(folder, shape, format, source, tiny, shard_bytes):
    """Writes the checkpoint and the files around it; returns its bytes. `tiny`: where the tokenizer comes from."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(folder, shard_bytes, source)
    plain = set()
    tensors = mlx_tensors(shape) if format == "mlx4" else expand_experts(shapes.tensors(shape))
    for tensor in tensors:
        add_quantized(writer, tensor, format)
        if tensor.name.endswith(".weight") and writer.current[-1][0] == tensor.name:
            plain.add(tensor.name.removesuffix(".weight"))
    total = writer.write()
    config = shapes.config(shape, json.loads((tiny / "config.json").read_text()))
    ignored = sorted(name for name in plain if "norm" not in name)
    (folder / "config.json").write_text(json.dumps(config | quantization(format, ignored), indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (tiny / name).exists():
            shutil.copy(tiny / name, folder / name)
    return total
