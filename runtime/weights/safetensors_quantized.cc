// Which arrays of safetensors files together are one tensor. Sources: compressed-tensors'
// float_quantized and nvfp4_pack_quantized, NVIDIA ModelOpt's hf export, DeepSeek's fp8 with
// weight_scale_inv, and mlx_lm's quantized checkpoints.
#include <algorithm>
#include <iterator>
#include <set>

#include "nlohmann/json.hpp"
#include "runtime/weights/bounded_json.h"
#include "runtime/weights/safetensors.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr int64_t kMaxStack = 4096;  // more experts than any checkpoint stacks
// MLX keeps equal matrices in one array of three dimensions: experts, and the heads' halves of
// kv_b_proj. `as`: what one matrix of it is called, # its number.
struct Stack {
  std::string_view mark;
  std::string_view as;
};
constexpr Stack kStacks[] = {{".switch_mlp.", ".experts.#."},
                             {".embed_q.weight", ".k_b_proj.#.weight"},
                             {".unembed_out.weight", ".v_b_proj.#.weight"}};

bool EndsWith(const std::string& text, std::string_view suffix) {
  return text.size() >= suffix.size() &&
         text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// Of activations and of the KV cache.
bool IsIgnored(const std::string& name) {
  for (const char* suffix : {".input_scale", ".input_global_scale", ".k_scale", ".v_scale",
                             ".q_scale", ".kv_scale", ".activation_scale"}) {
    if (EndsWith(name, suffix)) return true;
  }
  return false;
}

bool IsPlain(const StoredArray& array) {
  return array.type == "F32" || array.type == "F16" || array.type == "BF16";
}

DType PlainType(const StoredArray& array) {
  return array.type == "F32" ? DType::kF32 : array.type == "F16" ? DType::kF16 : DType::kBF16;
}

// -1: more than can be counted.
int64_t Elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(count, size, &count)) return -1;
  }
  return count;
}

std::vector<int64_t> Tiles(const std::vector<int64_t>& shape) {
  return {(shape[0] + kFp8Tile - 1) / kFp8Tile, (shape[1] + kFp8Tile - 1) / kFp8Tile};
}

// The integer at `key` of an object, or 0.
int64_t IntegerAt(const json& object, const char* key) {
  if (!object.is_object() || !object.contains(key) || !object[key].is_number_integer()) return 0;
  return object[key].get<int64_t>();
}

class Interpreter {
 public:
  Interpreter(const std::map<std::string, StoredArray>& arrays, const std::string& directory)
      : arrays_(arrays), directory_(directory) {}

  Status ReadConfig(const std::string& text);
  Status Run();
  std::map<std::string, TensorInfo> Take() { return std::move(tensors_); }

 private:
  // nullptr if there is none.
  const StoredArray* Find(const std::string& name) const {
    const auto found = arrays_.find(name);
    return found == arrays_.end() ? nullptr : &found->second;
  }
  // Marks it as part of another tensor.
  StoredArray Use(const std::string& name) {
    used_.insert(name);
    return arrays_.at(name);
  }
  StatusOr<StoredArray> Need(const std::string& name, const std::string& owner) {
    if (Find(name) == nullptr) {
      return ModelError("%s: tensor %s is %s, but its %s is missing; fetch the checkpoint again",
                        arrays_.at(owner).file->path(), owner, arrays_.at(owner).type, name);
    }
    return Use(name);
  }
  static Status BadShape(const std::string& name, const StoredArray& array,
                         const std::string& owner, const TensorInfo& info, const char* wanted) {
    return ModelError("%s: tensor %s is %s %s, which does not go with %s of %s: it needs %s",
                      array.file->path(), name, array.type, ShapeText(array.shape), owner,
                      ShapeText(info.shape), wanted);
  }

  Status Weight(const std::string& name, const StoredArray& array);
  Status Fp8(const std::string& module, const std::string& name, const StoredArray& array);
  Status Nvfp4(const std::string& module, const std::string& name, const StoredArray& array);
  Status Mlx(const std::string& module, const std::string& name, const StoredArray& array);
  StatusOr<WeightFormat> MlxFormat(const std::string& module, const TensorInfo& info,
                                   int64_t* inputs) const;
  // Adds a tensor; a stack of experts as one tensor each.
  Status Add(const std::string& name, const TensorInfo& info);

  const std::map<std::string, StoredArray>& arrays_;
  const std::string directory_;
  json quantization_;  // MLX's settings
  bool wrong_tiles_ = false;
  std::set<std::string> used_;
  std::map<std::string, TensorInfo> tensors_;
};

Status Interpreter::ReadConfig(const std::string& text) {
  const json config = ParseBoundedJson(text);
  if (!config.is_object()) return OkStatus();  // refused where the model's sizes are read
  const json method_owner = config.value("quantization_config", json());
  quantization_ = config.value("quantization", method_owner);
  if (!method_owner.is_object()) return OkStatus();
  if (method_owner.contains("weight_block_size"))
    wrong_tiles_ = method_owner["weight_block_size"] != json::array({kFp8Tile, kFp8Tile});
  if (!method_owner.contains("quant_method") || !method_owner["quant_method"].is_string())
    return OkStatus();
  const std::string method = method_owner["quant_method"].get<std::string>();
  for (const char* known : {"fp8", "compressed-tensors", "modelopt", "modelopt_fp4", "nvfp4"}) {
    if (method == known) return OkStatus();
  }
  return ModelError(
      "%s/config.json: quant_method is '%s'; this build reads fp8, compressed-tensors, modelopt, "
      "MLX and GGUF",
      directory_, method);
}

Status Interpreter::Run() {
  for (const auto& [name, array] : arrays_) {
    if (EndsWith(name, ".weight") || EndsWith(name, ".weight_packed"))
      LOCKSTEP_RETURN_IF_ERROR(Weight(name, array));
  }
  for (const auto& [name, array] : arrays_) {
    if (used_.contains(name) || IsIgnored(name)) continue;
    TensorInfo info;
    info.data = array;
    info.shape = array.shape;
    if (IsPlain(array)) info.format = PlainType(array);
    LOCKSTEP_RETURN_IF_ERROR(Add(name, info));
  }
  return OkStatus();
}

Status Interpreter::Weight(const std::string& name, const StoredArray& array) {
  const std::string module = name.substr(0, name.rfind('.'));
  if (EndsWith(name, ".weight_packed")) {
    if (array.type == "U8") return Nvfp4(module, name, array);
    return ModelError("%s: tensor %s is %s; of packed weights this build reads NVFP4 (U8)",
                      array.file->path(), name, array.type);
  }
  if (array.type == "F8_E4M3") return Fp8(module, name, array);
  if (array.type == "U8" && Find(module + ".weight_scale_2") != nullptr)
    return Nvfp4(module, name, array);
  if (array.type == "U32") return Mlx(module, name, array);
  return OkStatus();
}

Status Interpreter::Fp8(const std::string& module, const std::string& name,
                        const StoredArray& array) {
  TensorInfo info;
  info.data = Use(name);
  info.shape = array.shape;
  info.storage = Storage::kFp8;
  if (array.shape.size() != 2) {
    return ModelError("%s: tensor %s is F8_E4M3 %s; this build reads FP8 matrices",
                      array.file->path(), name, ShapeText(array.shape));
  }
  const bool inverse = Find(module + ".weight_scale_inv") != nullptr;
  const std::string scale = module + (inverse ? ".weight_scale_inv" : ".weight_scale");
  LOCKSTEP_ASSIGN_OR_RETURN(info.scales, Need(scale, name));
  const std::vector<int64_t>& shape = info.scales.shape;
  const int64_t outputs = array.shape[0];
  const bool rows = shape == std::vector<int64_t>{outputs, 1} ||
                    shape == std::vector<int64_t>{outputs} || Elements(shape) == 1;
  if (!IsPlain(info.scales))
    return BadShape(scale, info.scales, name, info, "scales of F32, BF16 or F16");
  if (!inverse && rows) {
    info.format = WeightFormat::Fp8(kWholeRow);
    return Add(name, info);
  }
  if (shape != Tiles(info.shape)) {
    return BadShape(scale, info.scales, name, info,
                    inverse ? "one scale per 128 x 128 weights" : "one scale per row");
  }
  if (wrong_tiles_) {
    return ModelError("%s/config.json: weight_block_size is not [128, 128], which this build reads",
                      directory_);
  }
  info.format = WeightFormat::Fp8(kFp8Tile / kBlockWeights);
  return Add(name, info);
}

Status Interpreter::Nvfp4(const std::string& module, const std::string& name,
                          const StoredArray& array) {
  const bool packed = EndsWith(name, ".weight_packed");
  TensorInfo info;
  info.data = Use(name);
  info.storage = Storage::kNvfp4;
  info.format = WeightFormat::Of(Encoding::kNvfp4);
  info.whole_scale_divides = packed;
  if (array.shape.size() != 2 || array.shape[1] % (kNvfp4Group / 2) != 0) {
    return ModelError("%s: tensor %s is U8 %s; NVFP4 needs a matrix of whole groups of 16 weights",
                      array.file->path(), name, ShapeText(array.shape));
  }
  info.shape = {array.shape[0], array.shape[1] * 2};
  LOCKSTEP_ASSIGN_OR_RETURN(info.scales, Need(module + ".weight_scale", name));
  if (info.scales.type != "F8_E4M3" ||
      info.scales.shape != std::vector<int64_t>{info.shape[0], info.shape[1] / kNvfp4Group}) {
    return BadShape(module + ".weight_scale", info.scales, name, info,
                    "one F8_E4M3 scale per 16 weights");
  }
  const std::string whole = module + (packed ? ".weight_global_scale" : ".weight_scale_2");
  LOCKSTEP_ASSIGN_OR_RETURN(info.whole_scale, Need(whole, name));
  if (info.whole_scale.type != "F32" || Elements(info.whole_scale.shape) != 1)
    return BadShape(whole, info.whole_scale, name, info, "one F32 scale");
  if (packed && Find(module + ".weight") != nullptr) {
    return ModelError("%s: holds both %s.weight and %s.weight_packed; keep one", array.file->path(),
                      module, module);
  }
  return Add(module + ".weight", info);
}

// The settings of `module`, checked against the arrays.
StatusOr<WeightFormat> Interpreter::MlxFormat(const std::string& module, const TensorInfo& info,
                                              int64_t* inputs) const {
  const std::string where = directory_ + "/config.json: quantization of " + module;
  const bool own = quantization_.is_object() && quantization_.contains(module) &&
                   quantization_[module].is_object();
  const json& settings = own ? quantization_[module] : quantization_;
  if (settings.is_object() && settings.contains("mode") && settings["mode"] != "affine")
    return ModelError("%s: mode is not affine, which is what this build reads", where);
  int64_t group = IntegerAt(settings, "group_size");
  if (group == 0) group = IntegerAt(quantization_, "group_size");
  if (group != 32 && group != 64 && group != 128) {
    return ModelError("%s: group_size is %d; this build reads 32, 64 and 128", where, group);
  }
  const int64_t words = info.data.shape.back();
  const int64_t groups = info.scales.shape.back();
  if (groups > INT32_MAX || words > INT32_MAX)
    return ModelError("%s: %d groups and %d words are too many", where, groups, words);
  *inputs = groups * group;
  const int64_t bits = *inputs == 0 ? 0 : words * 32 / *inputs;
  if (bits * *inputs != words * 32 || bits < 2 || bits > 8 || bits == 7) {
    return ModelError(
        "%s: groups of %d weights do not go with weight %s and scales %s; use the config.json "
        "that belongs to the checkpoint",
        where, group, ShapeText(info.data.shape), ShapeText(info.scales.shape));
  }
  const int64_t announced = IntegerAt(settings, "bits");
  if (announced != 0 && announced != bits) {
    return ModelError(
        "%s: bits is %d, but weight %s and scales %s hold %d; use the config.json that belongs to "
        "the checkpoint",
        where, announced, ShapeText(info.data.shape), ShapeText(info.scales.shape), bits);
  }
  return WeightFormat::Mlx(static_cast<int>(bits), static_cast<int>(group), PlainType(info.scales));
}

Status Interpreter::Mlx(const std::string& module, const std::string& name,
                        const StoredArray& array) {
  TensorInfo info;
  info.data = Use(name);
  info.shape = array.shape;
  info.storage = Storage::kMlx;
  LOCKSTEP_ASSIGN_OR_RETURN(info.scales, Need(module + ".scales", name));
  LOCKSTEP_ASSIGN_OR_RETURN(info.biases, Need(module + ".biases", name));
  std::vector<int64_t> rows = array.shape, scale_rows = info.scales.shape;
  if (rows.size() < 2 || rows.size() > 3 || scale_rows.size() != rows.size())
    return BadShape(module + ".scales", info.scales, name, info, "as many dimensions");
  rows.pop_back();
  scale_rows.pop_back();
  if (!IsPlain(info.scales) || rows != scale_rows)
    return BadShape(module + ".scales", info.scales, name, info, "scales for every row");
  if (info.biases.type != info.scales.type || info.biases.shape != info.scales.shape)
    return BadShape(module + ".biases", info.biases, name, info, "as many biases as scales");
  LOCKSTEP_ASSIGN_OR_RETURN(info.format, MlxFormat(module, info, &info.shape.back()));
  return Add(name, info);
}

// Matrix `index` of a stack of `count`.
StoredArray Slice(const StoredArray& array, int64_t index, int64_t count) {
  StoredArray slice = array;
  if (!array.present()) return slice;
  slice.shape.erase(slice.shape.begin());
  slice.bytes = array.bytes / static_cast<uint64_t>(count);
  slice.offset += static_cast<uint64_t>(index) * slice.bytes;
  return slice;
}

Status Interpreter::Add(const std::string& name, const TensorInfo& info) {
  const auto insert = [&](const std::string& as, const TensorInfo& tensor) -> Status {
    if (tensors_.emplace(as, tensor).second) return OkStatus();
    return ModelError("%s: tensor %s makes up %s, which the checkpoint holds a second time",
                      info.data.file->path(), name, as);
  };
  const auto* stack = std::find_if(std::begin(kStacks), std::end(kStacks), [&](const Stack& known) {
    return name.find(known.mark) != std::string::npos;
  });
  const bool stacked = stack != std::end(kStacks) && info.shape.size() == 3;
  const int64_t count = stacked ? info.shape[0] : 1;
  if (count < 1 || count > kMaxStack) {
    return ModelError("%s: tensor %s stacks %d matrices; up to %d are read", info.data.file->path(),
                      name, count, kMaxStack);
  }
  if (static_cast<uint64_t>(count) > kMostTensors - tensors_.size()) {
    return ModelError(
        "%s: with tensor %s the checkpoint has more than %d, too many for any model; fetch it "
        "again",
        info.data.file->path(), name, kMostTensors);
  }
  if (!stacked) return insert(name, info);
  // Such a stack costs its file nothing, and here every matrix of it takes room.
  if (info.data.bytes < static_cast<uint64_t>(count)) {
    return ModelError("%s: tensor %s is %s, a stack of matrices without bytes; fetch it again",
                      info.data.file->path(), name, info.ShapeText());
  }
  for (int64_t index = 0; index < count; ++index) {
    TensorInfo one = info;
    one.shape.erase(one.shape.begin());
    one.data = Slice(info.data, index, count);
    one.scales = Slice(info.scales, index, count);
    one.biases = Slice(info.biases, index, count);
    std::string as = name;
    as.replace(as.find(stack->mark), stack->mark.size(), stack->as);
    as.replace(as.find('#'), 1, std::to_string(index));
    LOCKSTEP_RETURN_IF_ERROR(insert(as, one));
  }
  return OkStatus();
}

}  // namespace

StatusOr<std::map<std::string, TensorInfo>> TensorsOfArrays(
    const std::map<std::string, StoredArray>& arrays, const std::string& config,
    const std::string& directory) {
  Interpreter interpreter(arrays, directory);
  LOCKSTEP_RETURN_IF_ERROR(interpreter.ReadConfig(config));
  LOCKSTEP_RETURN_IF_ERROR(interpreter.Run());
  return interpreter.Take();
}

}  // namespace lockstep
