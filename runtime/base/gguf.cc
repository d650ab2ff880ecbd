#include "runtime/base/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>

namespace lockstep {
namespace {

// Far above any model there is: GLM-4.7 has about 60 keys, 1800 tensors, 151 552 tokens and 318 000
// merges. Together they bound what a lying header can ask for to a few hundred MiB.
constexpr uint64_t kMaxKeys = 65'536;
constexpr uint64_t kMaxTensors = 262'144;
constexpr uint64_t kMaxNameBytes = 1'024;
constexpr uint64_t kMaxTextBytes = uint64_t{8} << 20;
constexpr uint64_t kMaxArrayItems = 4'000'000;  // of all arrays together
constexpr int64_t kMaxWeights = int64_t{1} << 46;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint32_t kMaxDimensions = 4;
constexpr const char* kRefetch = "the file is damaged; fetch it again";

// Of those without a size only the name is known, for errors.
constexpr GgufType kTypes[] = {
    {0, "F32", 1, 4},
    {1, "F16", 1, 2},
    {30, "BF16", 1, 2},
    {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},
    {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},
    {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},
    {12, "Q4_K", 256, 144},
    {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},
    {20, "IQ4_NL", 32, 18},
    {23, "IQ4_XS", 256, 136},
    {39, "MXFP4", 32, 17},
    {40, "NVFP4", 64, 36},
    {9, "Q8_1"},
    {15, "Q8_K"},
    {16, "IQ2_XXS"},
    {17, "IQ2_XS"},
    {18, "IQ3_XXS"},
    {19, "IQ1_S"},
    {21, "IQ3_S"},
    {22, "IQ2_S"},
    {24, "I8"},
    {25, "I16"},
    {26, "I32"},
    {27, "I64"},
    {28, "F64"},
    {29, "IQ1_M"},
    {34, "TQ1_0"},
    {35, "TQ2_0"},
};

const GgufType* FindAnyType(uint32_t id) {
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                   [&](const GgufType& type) { return type.id == id; });
  return found == std::end(kTypes) ? nullptr : found;
}

std::string TypeNames() {
  std::string names;
  for (const GgufType& type : kTypes) {
    if (type.block_bytes > 0) names += (names.empty() ? "" : ", ") + std::string(type.name);
  }
  return names;
}

// The kinds of metadata values, as the format numbers them.
// clang-format off
enum class Kind : uint32_t {
  kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64, kEnd,
};
// clang-format on

// Bytes that one value takes in the file at least.
uint64_t SmallestBytes(Kind kind) {
  constexpr uint64_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return kBytes[static_cast<size_t>(kind)];
}

template <typename T>
const T* FindKind(const Gguf& gguf, const std::string& key) {
  const auto found = gguf.metadata.find(key);
  return found == gguf.metadata.end() ? nullptr : std::get_if<T>(&found->second);
}

// Reads the header from front to back. Every method that returns false has set either `more`
// (beyond the given bytes, but within the file) or an error.
class Parser {
 public:
  Parser(std::string_view bytes, uint64_t file_bytes, const std::string& name, Gguf* gguf)
      : bytes_(bytes), file_bytes_(file_bytes), name_(name), gguf_(*gguf) {}

  bool Parse();
  bool more() const { return more_; }
  const Status& status() const { return status_; }

 private:
  template <typename... Args>
  bool Bad(const Format<Args...>& format, const Args&... args) {
    if (status_.ok()) {
      status_ = ModelError("%s: %s; %s", name_, absl::StrFormat(format, args...), kRefetch);
    }
    return false;
  }
  // What the file holds may be sound, but is not read here.
  bool Refuse(const std::string& what) {
    if (status_.ok()) status_ = ModelError("%s: %s", name_, what);
    return false;
  }

  bool Take(uint64_t count, const char** data) {
    if (count > file_bytes_ - at_) {
      return Bad("the header runs beyond the end of the file (%d bytes)", file_bytes_);
    }
    if (at_ > bytes_.size() || count > bytes_.size() - at_) {
      more_ = true;
      return false;
    }
    *data = bytes_.data() + at_;
    at_ += count;
    return true;
  }
  template <typename T>
  bool Get(T* value) {
    const char* data = nullptr;
    if (!Take(sizeof(T), &data)) return false;
    std::memcpy(value, data, sizeof(T));
    return true;
  }
  bool GetText(uint64_t limit, const std::string& what, std::string* text);
  bool GetName(const std::string& what, std::string* name);
  bool GetKind(const std::string& key, Kind* kind);
  bool CheckItems(const std::string& key, Kind kind, uint64_t count);
  template <typename T>
  bool GetItem(const std::string& key, T* value);
  bool GetItem(const std::string& key, bool* value);
  bool GetItem(const std::string& key, std::string* value) {
    return GetText(kMaxTextBytes, key, value);
  }
  // One value of type Raw (as the file has it), or an array of them, kept as Kept.
  template <typename Raw, typename Kept>
  bool GetItems(const std::string& key, bool array, uint64_t count, GgufValue* value);
  bool GetValue(const std::string& key, GgufValue* value);
  bool GetMetadata(uint64_t count);
  bool GetTensor();
  bool GetShape(const std::string& what, const GgufType& type, GgufTensor* tensor);
  bool GetAlignment();
  bool PlaceTensors();

  std::string_view bytes_;
  uint64_t file_bytes_;
  const std::string& name_;
  Gguf& gguf_;
  uint64_t at_ = 0;
  uint64_t items_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  bool more_ = false;
  Status status_;
};

bool Parser::GetText(uint64_t limit, const std::string& what, std::string* text) {
  uint64_t size = 0;
  if (!Get(&size)) return false;
  if (size > limit) {
    return Bad("%s: a text of %d bytes, more than the %d that it may have", what, size, limit);
  }
  const char* data = nullptr;
  if (!Take(size, &data)) return false;
  text->assign(data, size);
  return true;
}

bool Parser::GetName(const std::string& what, std::string* name) {
  if (!GetText(kMaxNameBytes, what, name)) return false;
  const bool printable = std::all_of(name->begin(), name->end(),
                                     [](unsigned char byte) { return byte > 0x20 && byte < 0x7F; });
  if (name->empty() || !printable) return Bad("%s is empty or not printable ASCII", what);
  return true;
}

bool Parser::GetKind(const std::string& key, Kind* kind) {
  uint32_t number = 0;
  if (!Get(&number)) return false;
  if (number >= static_cast<uint32_t>(Kind::kEnd)) {
    return Bad("%s is of the unknown kind %d", key, number);
  }
  *kind = static_cast<Kind>(number);
  return true;
}

bool Parser::CheckItems(const std::string& key, Kind kind, uint64_t count) {
  if (count > kMaxArrayItems - items_) {
    return Bad("%s has %d items; all arrays together may have %d", key, count, kMaxArrayItems);
  }
  items_ += count;
  // Before memory is taken for them: the file must be able to hold them.
  if (count > (file_bytes_ - at_) / SmallestBytes(kind)) {
    return Bad("%s has %d items, more than the rest of the file can hold", key, count);
  }
  if (at_ > bytes_.size() || count * SmallestBytes(kind) > bytes_.size() - at_) {
    more_ = true;
    return false;
  }
  return true;
}

template <typename T>
bool Parser::GetItem(const std::string& key, T* value) {
  if (!Get(value)) return false;
  if constexpr (std::is_same_v<T, uint64_t>) {
    if (*value > static_cast<uint64_t>(INT64_MAX)) return Bad("%s is above 2^63 - 1", key);
  }
  return true;
}

bool Parser::GetItem(const std::string& key, bool* value) {
  uint8_t byte = 0;
  if (!Get(&byte)) return false;
  if (byte > 1) return Bad("%s is a boolean of value %d", key, byte);
  *value = byte == 1;
  return true;
}

template <typename Raw, typename Kept>
bool Parser::GetItems(const std::string& key, bool array, uint64_t count, GgufValue* value) {
  std::vector<Kept> items;
  if (array) items.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    Raw raw{};
    if (!GetItem(key, &raw)) return false;
    if (!array) {
      *value = static_cast<Kept>(std::move(raw));
      return true;
    }
    items.push_back(static_cast<Kept>(std::move(raw)));
  }
  *value = std::move(items);
  return true;
}

bool Parser::GetValue(const std::string& key, GgufValue* value) {
  Kind kind{};
  if (!GetKind(key, &kind)) return false;
  const bool array = kind == Kind::kArray;
  uint64_t count = 1;
  if (array) {
    if (!GetKind(key, &kind) || !Get(&count)) return false;
    if (kind == Kind::kArray) return Refuse(key + ": arrays within arrays are not read");
    if (!CheckItems(key, kind, count)) return false;
  }
  switch (kind) {
    case Kind::kU8:
      return GetItems<uint8_t, int64_t>(key, array, count, value);
    case Kind::kI8:
      return GetItems<int8_t, int64_t>(key, array, count, value);
    case Kind::kU16:
      return GetItems<uint16_t, int64_t>(key, array, count, value);
    case Kind::kI16:
      return GetItems<int16_t, int64_t>(key, array, count, value);
    case Kind::kU32:
      return GetItems<uint32_t, int64_t>(key, array, count, value);
    case Kind::kI32:
      return GetItems<int32_t, int64_t>(key, array, count, value);
    case Kind::kU64:
      return GetItems<uint64_t, int64_t>(key, array, count, value);
    case Kind::kI64:
      return GetItems<int64_t, int64_t>(key, array, count, value);
    case Kind::kF32:
      return GetItems<float, double>(key, array, count, value);
    case Kind::kF64:
      return GetItems<double, double>(key, array, count, value);
    case Kind::kBool:
      return GetItems<bool, bool>(key, array, count, value);
    case Kind::kString:
      return GetItems<std::string, std::string>(key, array, count, value);
    case Kind::kArray:
    case Kind::kEnd:
      break;
  }
  return Bad("%s is of an unknown kind", key);
}

bool Parser::GetMetadata(uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    std::string key;
    GgufValue value;
    if (!GetName(absl::StrFormat("metadata key %d", i), &key) || !GetValue(key, &value)) {
      return false;
    }
    if (!gguf_.metadata.emplace(key, std::move(value)).second) return Bad("%s stands twice", key);
  }
  return true;
}

bool Parser::GetShape(const std::string& what, const GgufType& type, GgufTensor* tensor) {
  int64_t weights = 1;
  for (const int64_t size : tensor->shape) {
    if (size < 1 || size > kMaxWeights / weights) {
      return Bad("%s has an impossible shape (a size of %d)", what, size);
    }
    weights *= size;
  }
  if (tensor->shape[0] % type.block_weights != 0) {
    return Bad("%s has rows of %d weights, but %s comes in blocks of %d", what, tensor->shape[0],
               type.name, type.block_weights);
  }
  tensor->bytes = static_cast<uint64_t>(weights / type.block_weights) * type.block_bytes;
  return true;
}

bool Parser::GetTensor() {
  std::string tensor_name;
  GgufTensor tensor;
  uint32_t dimensions = 0;
  if (!GetName("the name of a tensor", &tensor_name) || !Get(&dimensions)) return false;
  const std::string what = "tensor " + tensor_name;
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return Bad("%s has %d dimensions, not 1 to %d", what, dimensions, kMaxDimensions);
  }
  for (uint32_t i = 0; i < dimensions; ++i) {
    int64_t size = 0;
    if (!Get(&size)) return false;
    tensor.shape.push_back(size);
  }
  if (!Get(&tensor.type) || !Get(&tensor.offset)) return false;
  const GgufType* type = FindGgufType(tensor.type);
  if (type == nullptr) {
    return Refuse(absl::StrFormat(
        "%s is of type %s, which is not read; use a file of the types %s (for example one named "
        "Q4_K_M, Q6_K or Q8_0)",
        what, GgufTypeName(tensor.type), TypeNames()));
  }
  if (!GetShape(what, *type, &tensor)) return false;
  if (!gguf_.tensors.emplace(tensor_name, std::move(tensor)).second) {
    return Bad("%s stands twice", what);
  }
  return true;
}

bool Parser::GetAlignment() {
  const auto found = gguf_.metadata.find("general.alignment");
  if (found == gguf_.metadata.end()) return true;
  const int64_t* alignment = std::get_if<int64_t>(&found->second);
  if (alignment == nullptr || *alignment < 1 || static_cast<uint64_t>(*alignment) > kMaxAlignment ||
      !std::has_single_bit(static_cast<uint64_t>(*alignment))) {
    return Bad("general.alignment is not a power of two up to %d", kMaxAlignment);
  }
  alignment_ = static_cast<uint64_t>(*alignment);
  return true;
}

// Offsets count from the first aligned byte after the header.
bool Parser::PlaceTensors() {
  const uint64_t begin = (at_ + alignment_ - 1) / alignment_ * alignment_;
  std::vector<std::pair<const std::string*, const GgufTensor*>> order;
  order.reserve(gguf_.tensors.size());
  for (auto& [tensor_name, tensor] : gguf_.tensors) {
    if (tensor.offset % alignment_ != 0) {
      return Bad("tensor %s begins at offset %d, which is not a multiple of the alignment %d",
                 tensor_name, tensor.offset, alignment_);
    }
    if (begin > file_bytes_ || tensor.offset > file_bytes_ - begin ||
        tensor.bytes > file_bytes_ - begin - tensor.offset) {
      return Bad("tensor %s (%d bytes at offset %d) ends beyond the file (%d bytes)", tensor_name,
                 tensor.bytes, tensor.offset, file_bytes_);
    }
    tensor.offset += begin;
    order.emplace_back(&tensor_name, &tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const auto& a, const auto& b) { return a.second->offset < b.second->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor& before = *order[i - 1].second;
    if (before.offset + before.bytes > order[i].second->offset) {
      return Bad("tensors %s and %s overlap", *order[i - 1].first, *order[i].first);
    }
  }
  return true;
}

bool Parser::Parse() {
  const char* magic = nullptr;
  uint32_t version = 0;
  if (file_bytes_ < 24) return Bad("%d bytes, too short for a GGUF file", file_bytes_);
  if (!Take(4, &magic)) return false;
  if (std::memcmp(magic, "GGUF", 4) != 0) {
    return Refuse("does not begin with 'GGUF', so it is no GGUF file; give another file");
  }
  if (!Get(&version)) return false;
  if (version == 0x03000000) return Refuse("is big-endian; use the little-endian file");
  if (version != 3) {
    return Refuse(absl::StrFormat(
        "is of GGUF version %d; only version 3 is read: convert the checkpoint again", version));
  }
  uint64_t tensors = 0, keys = 0;
  if (!Get(&tensors) || !Get(&keys)) return false;
  // A key takes at least 13 bytes, a tensor 33.
  if (keys > kMaxKeys || keys > file_bytes_ / 13) return Bad("claims %d metadata keys", keys);
  if (tensors > kMaxTensors || tensors > file_bytes_ / 33) return Bad("claims %d tensors", tensors);
  if (!GetMetadata(keys) || !GetAlignment()) return false;
  for (uint64_t i = 0; i < tensors; ++i) {
    if (!GetTensor()) return false;
  }
  return PlaceTensors();
}

}  // namespace

const GgufType* FindGgufType(uint32_t id) {
  const GgufType* type = FindAnyType(id);
  return type != nullptr && type->block_bytes > 0 ? type : nullptr;
}

std::string GgufTypeName(uint32_t id) {
  const GgufType* type = FindAnyType(id);
  return type != nullptr ? type->name : absl::StrFormat("number %d", id);
}

const int64_t* Gguf::Integer(const std::string& key) const { return FindKind<int64_t>(*this, key); }
const double* Gguf::Number(const std::string& key) const { return FindKind<double>(*this, key); }
const bool* Gguf::Flag(const std::string& key) const { return FindKind<bool>(*this, key); }
const std::string* Gguf::Text(const std::string& key) const {
  return FindKind<std::string>(*this, key);
}
const std::vector<int64_t>* Gguf::Integers(const std::string& key) const {
  return FindKind<std::vector<int64_t>>(*this, key);
}
const std::vector<std::string>* Gguf::Texts(const std::string& key) const {
  return FindKind<std::vector<std::string>>(*this, key);
}

Status ParseGgufBeginning(std::string_view header, uint64_t file_bytes, const std::string& name,
                          Gguf* gguf, bool* more) {
  Parser parser(header, file_bytes, name, gguf);
  const bool parsed = parser.Parse();
  *more = !parsed && parser.status().ok();
  return parser.status();
}

Status ParseGgufHeader(std::string_view header, uint64_t file_bytes, const std::string& name,
                       Gguf* gguf) {
  bool more = false;
  LOCKSTEP_RETURN_IF_ERROR(ParseGgufBeginning(header, file_bytes, name, gguf, &more));
  if (more) {
    return ModelError("%s: the header is longer than %d bytes; %s", name, header.size(), kRefetch);
  }
  return OkStatus();
}

}  // namespace lockstep
