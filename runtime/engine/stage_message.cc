#include "runtime/engine/stage_message.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/bytes.h"
#include "runtime/decode/sampling_params.h"

namespace lockstep {
namespace {

constexpr uint32_t kMagic = 0x4754534C;       // "LSTG"
constexpr uint64_t kMostBest = kMaxLogprobs;  // that come with a token
constexpr uint64_t kBestBytes = sizeof(int32_t) + sizeof(double);

}  // namespace

std::array<std::byte, kStageHeaderBytes> EncodeStageHeader(const StageHeader& header) {
  ByteWriter writer;
  writer.Put(kMagic);
  writer.Put(header.kind);
  writer.Put(header.step);
  writer.Put(header.part);
  writer.Put(header.rows);
  writer.Put(header.bytes);
  writer.Put(header.digest);
  std::array<std::byte, kStageHeaderBytes> bytes{};
  std::copy(writer.bytes().begin(), writer.bytes().end(), bytes.begin());
  return bytes;
}

StatusOr<StageHeader> DecodeStageHeader(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  const bool known = reader.Get<uint32_t>() == kMagic;
  StageHeader header;
  header.kind = static_cast<StageKind>(reader.Get<uint32_t>());
  header.step = reader.Get<uint64_t>();
  header.part = reader.Get<uint32_t>();
  header.rows = reader.Get<uint32_t>();
  header.bytes = reader.Get<uint64_t>();
  header.digest = reader.Get<uint64_t>();
  if (!reader.Finish("stage header").ok() || !known)
    return InternalError("sent no message of a stage where one is due");
  return header;
}

Status CheckStageHeader(const StageHeader& got, const StageHeader& expected,
                        const std::string& name) {
  const bool bytes_fit = expected.kind == StageKind::kResult ? got.bytes <= expected.bytes
                                                             : got.bytes == expected.bytes;
  if (got.kind == expected.kind && got.step == expected.step && got.part == expected.part &&
      got.rows == expected.rows && bytes_fit)
    return OkStatus();
  return PeerLostError(
      "%s sent kind %d of step %d, part %d with %d rows in %d bytes, where kind %d of step %d, "
      "part %d with %d rows in %d bytes is due: the ranks are out of step",
      name, static_cast<uint32_t>(got.kind), got.step, got.part, got.rows, got.bytes,
      static_cast<uint32_t>(expected.kind), expected.step, expected.part, expected.rows,
      expected.bytes);
}

std::vector<std::byte> EncodeOutcome(const StepOutcome& outcome) {
  ByteWriter writer;
  writer.PutVector(outcome.slots);
  for (const SampledToken& token : outcome.tokens) {
    writer.Put(token.id);
    writer.Put(token.logprob);
    writer.Put(static_cast<uint32_t>(token.best.size()));
    for (const TokenLogprob& best : token.best) {
      writer.Put(best.id);
      writer.Put(best.logprob);
    }
  }
  writer.PutVector(outcome.too_slow);
  writer.PutVector(outcome.raw_logits);
  writer.Put(static_cast<uint32_t>(outcome.raw_hidden.size()));
  for (const std::vector<float>& hidden : outcome.raw_hidden) writer.PutVector(hidden);
  return writer.bytes();
}

uint64_t OutcomeShape::most_bytes() const {
  const auto count = static_cast<uint64_t>(slots.size());
  const auto rows = static_cast<uint64_t>(raw_rows);
  const uint64_t values = rows * static_cast<uint64_t>(vocab_size + hidden_ranks * hidden_size);
  return 16 + 4 * static_cast<uint64_t>(hidden_ranks) + values * sizeof(float) +
         count * (4 + 16 + kMostBest * kBestBytes + 4);
}

StatusOr<StepOutcome> DecodeOutcome(std::span<const std::byte> bytes, const OutcomeShape& shape) {
  ByteReader reader(bytes);
  StepOutcome outcome;
  outcome.slots = reader.GetVector<int32_t>();
  bool fits = outcome.slots == shape.slots;
  const auto is_token = [&](int32_t id) { return id >= 0 && id < shape.vocab_size; };
  for (size_t i = 0; i < outcome.slots.size() && fits; ++i) {
    SampledToken token;
    token.id = reader.Get<int32_t>();
    token.logprob = reader.Get<double>();
    const uint32_t best = reader.Get<uint32_t>();
    fits = reader.ok() && is_token(token.id) && best <= kMostBest;
    for (uint32_t k = 0; k < best && fits; ++k) {
      TokenLogprob other;
      other.id = reader.Get<int32_t>();
      other.logprob = reader.Get<double>();
      fits = is_token(other.id);
      token.best.push_back(other);
    }
    outcome.tokens.push_back(std::move(token));
  }
  if (fits) {
    outcome.too_slow = reader.GetVector<int32_t>();
    for (const int32_t slot : outcome.too_slow)
      fits = fits && std::find(shape.slots.begin(), shape.slots.end(), slot) != shape.slots.end();
    outcome.raw_rows = shape.raw_rows;
    outcome.raw_logits = reader.GetVector<float>();
    const uint32_t ranks = reader.Get<uint32_t>();
    fits = fits && ranks == shape.hidden_ranks &&
           std::ssize(outcome.raw_logits) == shape.raw_rows * shape.vocab_size;
    for (uint32_t r = 0; r < ranks && fits; ++r) {
      outcome.raw_hidden.push_back(reader.GetVector<float>());
      fits = std::ssize(outcome.raw_hidden.back()) == shape.raw_rows * shape.hidden_size;
    }
  }
  if (!fits || !reader.Finish("outcome of a step").ok())
    return InternalError("says of a step what was not asked of it");
  return outcome;
}

}  // namespace lockstep
