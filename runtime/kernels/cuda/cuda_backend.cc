// The op table on a GPU. Ops put kernels on the device's stream and return; Finish waits for them.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cuda/attend.h"
#include "runtime/kernels/cuda/cuda_device.h"
#include "runtime/kernels/cuda/kernels.h"

namespace lockstep::kernels {
namespace {

using cuda::Device;
using cuda::DeviceBytes;
using cuda::LayoutOnDevice;
using cuda::PackedRows;
using cuda::Stored;

static_assert(sizeof(cuda::GroupOfRows) == sizeof(RowGroup));
static_assert(offsetof(cuda::GroupOfRows, begin) == offsetof(RowGroup, begin));
static_assert(static_cast<int>(Stored::kF32) == static_cast<int>(CacheType::kF32));
static_assert(static_cast<int>(Stored::kBF16) == static_cast<int>(CacheType::kBF16));
static_assert(static_cast<int>(Stored::kF16) == static_cast<int>(CacheType::kF16));
static_assert(static_cast<int>(Stored::kQ8) == static_cast<int>(CacheType::kQ8));
static_assert(cuda::kChunk == kAttentionChunk);
static_assert(kBlockWeights == 32 && kMaxExperts <= 1024);

// Where chunks of attention wait to be folded.
constexpr uint64_t kWorkBytes = uint64_t{64} << 20;
// Rows of weights are packed here before they go to the device.
constexpr uint64_t kStagingBytes = uint64_t{8} << 20;

class CudaMatrix final : public PackedMatrix {
 public:
  CudaMatrix(const HostMatrix& matrix, const PackedRows& packed, uint64_t bytes, DeviceBytes memory)
      : PackedMatrix(matrix.count, matrix.outputs, matrix.inputs, bytes),
        format(matrix.format),
        rows(packed),
        memory_(std::move(memory)) {}
  const WeightFormat format;
  const PackedRows rows;

 private:
  DeviceBytes memory_;
};

const CudaMatrix& Cuda(const PackedMatrix& matrix) {
  return static_cast<const CudaMatrix&>(matrix);
}

PackedRows LayoutOf(const HostMatrix& matrix) {
  return LayoutOnDevice(matrix.format, matrix.outputs, matrix.inputs, matrix.phase);
}

template <typename Args>
cuda::Pages PagesOf(const Args& args) {
  cuda::Pages pages;
  pages.positions = args.positions;
  pages.sequences = args.sequences;
  pages.block_tables = args.block_tables;
  pages.page_bytes = args.page_bytes();
  pages.row_bytes = args.row_bytes();
  pages.head_bytes = args.block_tokens * args.row_bytes();
  pages.block_tokens = static_cast<int32_t>(args.block_tokens);
  return pages;
}

int64_t MostChunks(const int32_t* positions, int64_t rows) {
  return *std::max_element(positions, positions + rows) / kAttentionChunk + 1;
}

// Whether four numbers from any multiple of four on lie at a multiple of their size.
bool Aligned(CacheType type, const std::byte* pages, int64_t row_bytes, int64_t dim) {
  const int64_t unit = type == CacheType::kF32 ? 16 : type == CacheType::kQ8 ? 4 : 8;
  return dim % 4 == 0 && row_bytes % unit == 0 && reinterpret_cast<uintptr_t>(pages) % 16 == 0;
}

cuda::RouteArgs RouteArgsOf(const RouterArgs& args) {
  return {args.rows,
          static_cast<int32_t>(args.experts),
          static_cast<int32_t>(args.top_k),
          static_cast<int32_t>(args.n_group),
          static_cast<int32_t>(args.topk_group),
          args.normalize,
          args.scale,
          args.logits,
          args.correction,
          args.chosen,
          args.weights};
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<Device> device, DeviceBytes work)
      : device_(std::move(device)), work_(std::move(work)) {}
  ~CudaBackend() override { static_cast<void>(device_->Wait()); }

  // Kernels for several devices compute the same sums, but no two of them have been compared yet.
  std::string name() const override { return "cuda/" + device_->capability(); }
  ProductLoop product_loop() const override { return {"fma, float32, on the device", nullptr, 0}; }
  std::optional<DeviceMemory> memory() const override { return device_->memory(); }
  StatusOr<Buffer> Allocate(uint64_t bytes, std::string_view what) const override {
    return device_->TakeShared(bytes, what);
  }
  Status Finish(Queue&) const override { return device_->Wait(); }

  StatusOr<std::unique_ptr<PackedMatrix>> Pack(HostMatrix matrix) const override {
    PackedRows rows = LayoutOf(matrix);
    const uint64_t bytes = PackedBytes(matrix);
    LOCKSTEP_ASSIGN_OR_RETURN(DeviceBytes memory, device_->Take(bytes, "weights"));
    rows.data = memory.data();
    const int64_t all = matrix.count * matrix.outputs;
    if (bytes > 0) {
      const auto row_bytes = static_cast<uint64_t>(rows.row_bytes);
      const int64_t at_once = std::max<int64_t>(1, static_cast<int64_t>(kStagingBytes / row_bytes));
      std::vector<std::byte> staging(static_cast<size_t>(std::min(all, at_once)) * row_bytes);
      for (int64_t begin = 0; begin < all; begin += at_once) {
        const int64_t count = std::min(at_once, all - begin);
        for (int64_t i = 0; i < count; ++i)
          PackRow(matrix.format, rows, matrix.row(0, begin + i),
                  staging.data() + static_cast<uint64_t>(i) * row_bytes);
        LOCKSTEP_RETURN_IF_ERROR(
            device_->Copy(staging.data(), static_cast<uint64_t>(count) * row_bytes,
                          memory.data() + static_cast<uint64_t>(begin) * row_bytes));
      }
    }
    return std::make_unique<CudaMatrix>(matrix, rows, bytes, std::move(memory));
  }
  void PackNext(HostMatrix*) const override {}
  StatusOr<std::unique_ptr<PackedMatrix>> Repack(
      std::unique_ptr<PackedMatrix> packed) const override {
    return packed;
  }
  uint64_t PackedBytes(const HostMatrix& shape) const override {
    return static_cast<uint64_t>(shape.count * shape.outputs * LayoutOf(shape).row_bytes);
  }
  uint64_t WorkBytes(const HostMatrix&) const override { return kWorkBytes; }

  void MatMul(Queue&, const PackedMatrix& weights, const float* bias, const float* x, int64_t rows,
              float* y, int64_t y_stride) const override {
    if (rows == 0 || weights.outputs() == 0) return;
    cuda::ProductArgs args = ProductOf(weights, x, y, y_stride);
    args.bias = bias;
    args.rows = static_cast<int32_t>(rows);
    Started(LaunchProducts(Launch(), Cuda(weights).format, args), "matmul");
  }

  void GroupRows(Queue&, const RouterArgs& args, const ExpertGroups& groups) const override {
    Started(LaunchGroupRows(Launch(), RouteArgsOf(args), GroupingOf(groups)), "group_rows");
  }

  void GroupedMatMul(Queue&, const PackedMatrix& weights, const ExpertGroups& groups,
                     const float* x, bool by_row, float* y, int64_t y_stride) const override {
    if (weights.outputs() == 0) return;
    const cuda::Grouping grouping = GroupingOf(groups);
    cuda::ProductArgs args = ProductOf(weights, x, y, y_stride);
    args.groups = grouping.groups;
    args.group_count = grouping.group_count;
    args.row_of = by_row ? grouping.row_of : nullptr;
    args.most_groups = static_cast<int32_t>(weights.count());
    Started(LaunchProducts(Launch(), Cuda(weights).format, args), "grouped_matmul");
  }

  void Embed(Queue&, const PackedMatrix& table, int64_t first_row, const int32_t* tokens,
             int64_t rows, float* y) const override {
    const CudaMatrix& matrix = Cuda(table);
    Started(LaunchEmbed(Launch(), matrix.format, matrix.rows, first_row, tokens, rows, y), "embed");
  }

  void RmsNorm(Queue&, const float* x, const float* weight, double eps, int64_t rows, int64_t dim,
               float* y) const override {
    Norm(const_cast<float*>(x), nullptr, weight, eps, rows, dim, y);
  }
  void AddRmsNorm(Queue&, float* x, const float* delta, const float* weight, double eps,
                  int64_t rows, int64_t dim, float* y) const override {
    Norm(x, delta, weight, eps, rows, dim, y);
  }

  void PrepareAttention(Queue&, const AttentionArgs& args) const override {
    cuda::PrepareArgs to;
    to.pages = PagesOf(args);
    to.rows = args.rows;
    to.query_heads = static_cast<int32_t>(args.query_heads);
    to.kv_heads = static_cast<int32_t>(args.kv_heads);
    to.head_dim = static_cast<int32_t>(args.head_dim);
    to.half = static_cast<int32_t>(args.rotary_dim / 2);
    to.eps = static_cast<float>(args.eps);
    to.cosines = args.cosines;
    to.sines = args.sines;
    to.query_norm = args.query_norm;
    to.key_norm = args.key_norm;
    to.qkv = args.qkv;
    to.keys = args.key_pages;
    to.values = args.value_pages;
    Started(LaunchPrepare(Launch(), StoredOf(args.cache_type), to), "prepare_attention");
  }

  void Attention(Queue&, const AttentionArgs& args) const override {
    if (args.rows == 0 || args.query_heads == 0) return;
    const int64_t width = (args.query_heads + 2 * args.kv_heads) * args.head_dim;
    cuda::AttendArgs to;
    to.pages = PagesOf(args);
    to.parts[0] = {args.qkv, width, args.head_dim, args.key_pages,
                   static_cast<int32_t>(args.head_dim)};
    to.values = args.value_pages;
    to.value_dim = static_cast<int32_t>(args.head_dim);
    to.rows = static_cast<int32_t>(args.rows);
    to.heads = static_cast<int32_t>(args.query_heads);
    to.kv_heads = static_cast<int32_t>(args.kv_heads);
    to.group = static_cast<int32_t>(args.group);
    to.head_shift = static_cast<int32_t>(args.first_query_head - args.first_kv_head * args.group);
    to.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(args.head_dim)));
    to.aligned = Aligned(args.cache_type, args.key_pages, args.row_bytes(), args.head_dim) &&
                 Aligned(args.cache_type, args.value_pages, args.row_bytes(), args.head_dim);
    to.out = args.out;
    to.out_row_stride = args.query_heads * args.head_dim;
    to.out_head_stride = args.head_dim;
    Attend(args.cache_type, to, MostChunks(args.positions, args.rows));
  }

  void PrepareLatentAttention(Queue&, const LatentAttentionArgs& args) const override {
    cuda::PrepareLatentArgs to;
    to.pages = PagesOf(args);
    to.rows = args.rows;
    to.heads = static_cast<int32_t>(args.heads);
    to.nope_dim = static_cast<int32_t>(args.nope_dim);
    to.rope_dim = static_cast<int32_t>(args.rope_dim);
    to.latent_dim = static_cast<int32_t>(args.latent_dim);
    to.latent_bytes = args.latent_bytes();
    to.eps = static_cast<float>(args.eps);
    to.cosines = args.cosines;
    to.sines = args.sines;
    to.norm = args.latent_norm;
    to.latents = args.latents;
    to.queries = args.queries;
    to.plain_queries = args.plain_queries;
    to.rotated_queries = args.rotated_queries;
    to.stored = args.pages;
    Started(LaunchPrepareLatent(Launch(), StoredOf(args.cache_type), to),
            "prepare_latent_attention");
  }

  void LatentAttention(Queue&, const LatentAttentionArgs& args) const override {
    if (args.rows == 0 || args.heads == 0) return;
    cuda::AttendArgs to;
    to.pages = PagesOf(args);
    to.parts[0] = {args.absorbed_queries, args.latent_dim, args.rows * args.latent_dim, args.pages,
                   static_cast<int32_t>(args.latent_dim)};
    to.parts[1] = {args.rotated_queries, args.rope_dim, args.rows * args.rope_dim,
                   args.pages + args.latent_bytes(), static_cast<int32_t>(args.rope_dim)};
    to.values = args.pages;
    to.value_dim = static_cast<int32_t>(args.latent_dim);
    to.rows = static_cast<int32_t>(args.rows);
    to.heads = static_cast<int32_t>(args.heads);
    to.kv_heads = 1;
    to.group = static_cast<int32_t>(args.heads);
    to.scale =
        static_cast<float>(1 / std::sqrt(static_cast<double>(args.nope_dim + args.rope_dim)));
    to.aligned = Aligned(args.cache_type, args.pages, args.row_bytes(), args.latent_dim) &&
                 Aligned(args.cache_type, args.pages, args.latent_bytes(), args.rope_dim);
    to.out = args.out;
    to.out_row_stride = args.latent_dim;
    to.out_head_stride = args.rows * args.latent_dim;
    Attend(args.cache_type, to, MostChunks(args.positions, args.rows));
  }

  void JoinHeads(Queue&, const float* x, int64_t heads, int64_t rows, int64_t dim,
                 float* y) const override {
    Started(LaunchJoinHeads(Launch(), x, heads, rows, dim, y), "join_heads");
  }
  void SiluMul(Queue&, const float* gate_up, int64_t rows, int64_t columns,
               float* out) const override {
    Started(LaunchSilu(Launch(), gate_up, rows, columns, out), "silu_mul");
  }
  void Route(Queue&, const RouterArgs& args) const override {
    Started(LaunchRoute(Launch(), RouteArgsOf(args)), "route");
  }
  void CombineExperts(Queue&, const RouterArgs& args, const ExpertGroups& groups,
                      const float* expert_out, const float* shared, int64_t dim,
                      float* y) const override {
    Started(LaunchCombine(Launch(), RouteArgsOf(args), groups.assignment_of, expert_out, shared,
                          dim, y),
            "combine_experts");
  }

 private:
  static Stored StoredOf(CacheType type) { return static_cast<Stored>(type); }
  static cuda::Grouping GroupingOf(const ExpertGroups& groups) {
    return {reinterpret_cast<cuda::GroupOfRows*>(groups.groups), groups.group_count, groups.row_of,
            groups.assignment_of};
  }
  static cuda::ProductArgs ProductOf(const PackedMatrix& weights, const float* x, float* y,
                                     int64_t y_stride) {
    cuda::ProductArgs args;
    args.weights = Cuda(weights).rows;
    args.x = x;
    args.y = y;
    args.y_stride = y_stride;
    return args;
  }
  const cuda::Launch& Launch() const {
    device_->MakeCurrent();
    return device_->launch();
  }
  void Started(cudaError_t error, const char* op) const { device_->Note(error, op); }
  void Norm(float* x, const float* delta, const float* weight, double eps, int64_t rows,
            int64_t dim, float* y) const {
    Started(LaunchNorm(Launch(), {x, delta, weight, static_cast<float>(eps), rows, dim, y}),
            "rms_norm");
  }
  void Attend(CacheType type, const cuda::AttendArgs& args, int64_t most_chunks) const {
    auto* work = reinterpret_cast<float*>(work_.data());
    Started(LaunchAttention(Launch(), StoredOf(type), args, most_chunks, work,
                            static_cast<int64_t>(kWorkBytes / sizeof(float))),
            "attention");
  }

  std::unique_ptr<Device> device_;
  DeviceBytes work_;
};

}  // namespace

StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device, Precision) {
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<Device> opened, Device::Open(device));
  LOCKSTEP_ASSIGN_OR_RETURN(DeviceBytes work, opened->Take(kWorkBytes, "attention"));
  return std::make_unique<CudaBackend>(std::move(opened), std::move(work));
}

}  // namespace lockstep::kernels
