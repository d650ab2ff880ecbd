"""What a GGUF file says about itself: metadata, tensors, and how many bytes of it one decoded token reads."""

import collections
import math
import re
import struct

# Number of the type -> its name, weights and bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
}
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


class Header:
    """`metadata`: key -> value; `tensors`: name -> (type's name, bytes)."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            self.file = file
            magic, version, tensors, keys = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF" or version != 3:
                raise ValueError(f"{path}: no GGUF file of version 3")
            self.metadata = {}
            for _ in range(keys):
                key = self.text()
                self.metadata[key] = self.value(self.number("<I"))
            self.tensors = {}
            for _ in range(tensors):
                name = self.text()
                sizes = [self.number("<Q") for _ in range(self.number("<I"))]
                kind, _ = self.number("<I"), self.number("<Q")
                if kind not in TYPES:
                    raise ValueError(f"{path}: {name} has type {kind}, which this script does not know")
                label, weights, size = TYPES[kind]
                self.tensors[name] = (label, math.prod(sizes) // weights * size)
            del self.file

    def number(self, form):
        return struct.unpack(form, self.file.read(struct.calcsize(form)))[0]

    def text(self):
        return self.file.read(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, count = self.number("<I"), self.number("<Q")
            return [self.value(inner) for _ in range(count)]
        return self.number(NUMBERS[kind])

    def of_model(self, key):
        return self.metadata[f"{self.metadata['general.architecture']}.{key}"]

    def total_bytes(self):
        return sum(size for _, size in self.tensors.values())

    def bytes_by_type(self):
        result = collections.Counter()
        for label, size in self.tensors.values():
            result[label] += size
        return dict(result)

    def bytes_per_token(self):
        """Bytes of weights that one decoded token reads: of a stack of experts the chosen ones, of the embedding
        nothing (one row), of layers for drafting nothing. KV and activations are not in it."""
        layers = self.of_model("block_count") - self.metadata.get(
            f"{self.metadata['general.architecture']}.nextn_predict_layers", 0)
        used, experts = self.of_model("expert_used_count"), self.of_model("expert_count")
        total = 0
        for name, (_, size) in self.tensors.items():
            layer = re.match(r"blk\.(\d+)\.", name)
            if name == "token_embd.weight" or (layer and int(layer.group(1)) >= layers):
                continue
            total += size * used // experts if "_exps." in name else size
        if "output.weight" not in self.tensors:  # the embedding is the head too
            total += self.tensors["token_embd.weight"][1]
        return total
