#include "runtime/weights/read_ahead.h"

#include <algorithm>
#include <cstring>

#include "runtime/base/check.h"

namespace lockstep {
namespace {

// Between neighbours that are read at once: cheaper than another read.
constexpr uint64_t kMostGapBytes = uint64_t{64} << 10;

}  // namespace

StatusOr<std::unique_ptr<ReadAhead>> ReadAhead::Start(const std::vector<PlannedRead>& plan,
                                                      const ReadAheadLimits& limits) {
  LOCKSTEP_CHECK(limits.block_bytes % kDirectBytes == 0);
  auto ahead = std::unique_ptr<ReadAhead>(new ReadAhead(limits));
  ahead->AddPieces(plan);
  const size_t blocks = ahead->Blocks();
  LOCKSTEP_ASSIGN_OR_RETURN(
      ahead->memory_, Buffer::Allocate(blocks * limits.block_bytes, "blocks to read files ahead"));
  for (size_t block = 0; block < blocks; ++block)
    ahead->free_.push_back(ahead->memory_.data() + block * limits.block_bytes);
  const size_t threads = std::min(blocks, static_cast<size_t>(limits.threads));
  for (size_t thread = 0; thread < threads; ++thread)
    ahead->threads_.emplace_back([&reader = *ahead] { reader.ReadPieces(); });
  return ahead;
}

uint64_t ReadAhead::BytesFor(const std::vector<PlannedRead>& plan, const ReadAheadLimits& limits) {
  ReadAhead ahead(limits);
  ahead.AddPieces(plan);
  return ahead.Blocks() * limits.block_bytes;
}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
}

void ReadAhead::AddPieces(const std::vector<PlannedRead>& plan) {
  for (const PlannedRead& read : plan) {
    const uint64_t end = read.offset + read.bytes;
    for (uint64_t begin = read.offset; begin < end;) {
      const uint64_t block_end = (begin / limits_.block_bytes + 1) * limits_.block_bytes;
      const uint64_t piece_end = std::min(end, block_end);
      Piece* last = pieces_.empty() ? nullptr : &pieces_.back();
      const bool joins = last != nullptr && last->file == read.file && begin >= last->end &&
                         begin - last->end <= kMostGapBytes &&
                         last->begin / limits_.block_bytes == begin / limits_.block_bytes;
      if (!joins) {
        last = &pieces_.emplace_back();
        last->file = read.file;
        last->begin = begin;
      }
      last->end = piece_end;
      last->left += piece_end - begin;
      begin = piece_end;
    }
  }
}

void ReadAhead::ReadPieces() {
  std::unique_lock lock(mutex_);
  while (true) {
    while (next_ < pieces_.size() && pieces_[next_].state != State::kPlanned) ++next_;
    if (stop_ || next_ == pieces_.size()) return;
    if (free_.empty()) {
      changed_.wait(lock);
      continue;
    }
    Piece& piece = pieces_[next_++];
    piece.state = State::kReading;
    piece.block = free_.back();
    free_.pop_back();
    piece.first = piece.begin / kDirectBytes * kDirectBytes;
    const uint64_t bytes =
        (piece.end - piece.first + kDirectBytes - 1) / kDirectBytes * kDirectBytes;
    lock.unlock();
    const Status status = piece.file->ReadDirect(piece.first, {piece.block, bytes});
    lock.lock();
    piece.status = status;
    piece.state = State::kReady;
    changed_.notify_all();
  }
}

ReadAhead::Piece* ReadAhead::Find(const RandomAccessFile& file, uint64_t offset) {
  for (Piece& piece : pieces_) {
    const bool holds = piece.file == &file && piece.begin <= offset && offset < piece.end;
    if (holds && piece.state != State::kTaken) return &piece;
  }
  return nullptr;
}

bool ReadAhead::WaitFor(Piece& piece, std::unique_lock<std::mutex>& lock) {
  changed_.wait(lock, [&] {
    return piece.state != State::kReading && (piece.state != State::kPlanned || free_.empty());
  });
  if (piece.state == State::kPlanned) piece.state = State::kLeftOut;
  return piece.state == State::kReady;
}

Status ReadAhead::Read(const RandomAccessFile& file, uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    std::unique_lock lock(mutex_);
    Piece* const piece = Find(file, offset);
    const size_t bytes =
        piece == nullptr ? out.size() : std::min<uint64_t>(out.size(), piece->end - offset);
    const bool ready = piece != nullptr && WaitFor(*piece, lock);
    lock.unlock();
    if (ready) {
      LOCKSTEP_RETURN_IF_ERROR(piece->status);
      std::memcpy(out.data(), piece->block + (offset - piece->first), bytes);
    } else {
      LOCKSTEP_RETURN_IF_ERROR(file.Read(offset, out.first(bytes)));
    }
    if (piece != nullptr) Take(piece, bytes);
    offset += bytes;
    out = out.subspan(bytes);
  }
  return OkStatus();
}

void ReadAhead::Take(Piece* piece, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  piece->left -= std::min(piece->left, bytes);
  if (piece->left > 0) return;
  piece->state = State::kTaken;
  if (piece->block != nullptr) free_.push_back(piece->block);
  while (!pieces_.empty() && pieces_.front().state == State::kTaken) {
    pieces_.pop_front();
    next_ -= std::min<size_t>(next_, 1);
  }
  changed_.notify_all();
}

}  // namespace lockstep
