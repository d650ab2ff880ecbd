// One ordered, reliable, bidirectional channel to one peer. Backends: tcp and shm. A link
// belongs to one thread at a time; none of its calls blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/status.h"

namespace lockstep {

// What differs between backends, as facts.
struct LinkTraits {
  const char* name;              // "tcp", "shm"
  bool needs_registered_memory;  // buffers given to Post* must have been registered before
  bool detects_peer_death;  // a dead peer turns Poll into an error without the control channel's
                            // help
};

// Posts completed so far, in the order in which they were posted.
struct LinkProgress {
  uint64_t sends = 0;
  uint64_t receives = 0;
};

class Link {
 public:
  virtual ~Link() = default;  // closes
  virtual const LinkTraits& traits() const = 0;

  // Makes memory known to the device; a no-op where traits().needs_registered_memory is false. The
  // memory must outlive the link.
  virtual Status Register(std::span<std::byte> memory) = 0;
  // Queues `data` for sending; it must stay untouched until progress().sends counts it. Lengths of
  // a send and of the receive that it meets must be equal (a stream backend cannot tell, the layer
  // above guarantees it).
  virtual Status PostSend(std::span<const std::byte> data) = 0;
  // Queues a buffer for the next message.
  virtual Status PostReceive(std::span<std::byte> buffer) = 0;
  // Moves what can be moved without blocking. An error is final: the peer closed, the network
  // failed.
  virtual StatusOr<LinkProgress> Poll() = 0;
  // Sleeps until Poll could do something or `timeout_us` passed; for waits between requests, never
  // in a step.
  virtual void WaitReadable(int64_t timeout_us) = 0;
  // Ends both directions; pending posts never complete. Idempotent.
  virtual void Close() = 0;
};

}  // namespace lockstep
