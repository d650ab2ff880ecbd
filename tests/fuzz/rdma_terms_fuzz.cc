// What a peer says before an RDMA connection, and the packets that come over it.
#include "transport/rdma/packet.h"
#include "transport/rdma/terms.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const lockstep::StatusOr<lockstep::rdma::Terms> terms = lockstep::rdma::ParseTerms(bytes);
  if (terms.ok()) (void)lockstep::rdma::CompareTerms(*terms, lockstep::rdma::Terms());
  (void)lockstep::rdma::OpenPacket(bytes, false);
  (void)lockstep::rdma::OpenPacket(bytes, true);
  return 0;
}
