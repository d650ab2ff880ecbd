// One reliable, bidirectional channel to one peer. Backends: tcp, shm, rdma. A link belongs to one
// thread at a time; none of its calls blocks.
//
// Two ways to move bytes, each in the order of its calls:
// - Puts, for exchanges: every rank has one window (Mesh::window), and a put makes a range of it
//   readable at the same place of the peer's view() of it. The peer says with Expect() which range
//   comes next. Nothing is acknowledged: when a range may be written again is for the layer above.
// - Messages, for everything else: any memory, any length; a send meets a receive.
//
// Both sides know what comes next: Expect and PostReceive are called here in the order in which the
// peer calls Put and PostSend. A link ends with an error as soon as it can tell that something else
// came, and nothing is ever written outside the expected range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "runtime/base/status.h"

namespace lockstep {

// How far a rank's puts may be ahead of what the peer has polled. The layer above stays within; a
// link that finds the peer further ahead ends with an error.
inline constexpr uint64_t kPutsAhead = 64;

// What differs between backends, as facts.
struct LinkTraits {
  const char* name;         // "tcp", "shm", "rdma"
  bool detects_peer_death;  // a dead peer turns Poll into an error without the control channel's
                            // help
  bool put_copies;  // the peer reads a copy: bytes of a completed put may change without its seeing
                    // it. False: it reads this side's window, and only the layer above knows when
                    // it has done so
  bool puts_need_polls;  // what could not leave within Put() leaves in Poll() only, so a rank that
                         // turns to something else must see its puts complete first
};

// Where a link leaves this machine; empty and 0 where there is no such thing.
struct LinkPath {
  std::string address;    // the own one, numeric
  std::string device;     // rdma: "mlx5_0 (enp1s0f0), GID 3"
  uint32_t mtu = 0;       // rdma: bytes of a packet
  uint32_t megabits = 0;  // rdma: per second, nominal
};

// What was completed so far, in the order in which it was asked for.
struct LinkProgress {
  uint64_t sends = 0;     // PostSend: `data` may change again
  uint64_t receives = 0;  // PostReceive: `buffer` is filled
  uint64_t puts = 0;      // Put: the link needs the bytes no more (but see put_copies)
  uint64_t arrivals = 0;  // Expect: the range is readable in view()
};

class Link {
 public:
  virtual ~Link() = default;  // closes
  virtual const LinkTraits& traits() const = 0;
  // This side's end, for people.
  virtual LinkPath path() const { return {}; }

  // The peer's window as it is seen here, as long as the own one. What no completed arrival covers
  // is undefined.
  virtual std::span<const std::byte> view() const = 0;
  // Bytes [offset, offset + bytes) of the own window are to appear in the peer's view. They must
  // stay untouched until progress().puts counts it. `bytes` may be 0: a signal.
  virtual Status Put(size_t offset, size_t bytes, uint32_t tag) = 0;
  // The next put of the peer is of this range. It may have arrived already.
  virtual Status Expect(size_t offset, size_t bytes) = 0;
  // The tag of arrival number `number` (from 0), one of the last kPutsAhead.
  virtual uint32_t put_tag(uint64_t number) const = 0;

  // Queues `data` for sending; it must stay untouched until progress().sends counts it.
  virtual Status PostSend(std::span<const std::byte> data, uint32_t tag) = 0;
  // Queues a buffer for the next message, which must be exactly as long.
  virtual Status PostReceive(std::span<std::byte> buffer) = 0;
  // The tag of received message number `number` (from 0), one of the last kPutsAhead.
  virtual uint32_t message_tag(uint64_t number) const = 0;

  // Moves what can be moved without blocking. An error is final: the peer closed, the network
  // failed, something else came than was expected.
  virtual StatusOr<LinkProgress> Poll() = 0;
  // Sleeps until Poll could do something or `timeout_us` passed; for waits between requests, never
  // in a step.
  virtual void WaitReadable(int64_t timeout_us) = 0;
  // Ends both directions; what is pending never completes. Idempotent.
  virtual void Close() = 0;
};

}  // namespace lockstep
