#include "transport/rdma/packet.h"

#include <cstring>

#include "runtime/base/digest.h"

namespace lockstep::rdma {
namespace {

constexpr size_t kChecksumBytes = sizeof(PacketHeader::checksum);

uint64_t ChecksumOf(std::span<const std::byte> packet) {
  return Digest64(packet.subspan(kChecksumBytes));
}

}  // namespace

void SealPacket(std::span<std::byte> packet) {
  const uint64_t checksum = ChecksumOf(packet);
  std::memcpy(packet.data(), &checksum, kChecksumBytes);
}

std::optional<PacketHeader> OpenPacket(std::span<const std::byte> packet, bool sealed) {
  PacketHeader header;
  if (packet.size() < sizeof(header)) return std::nullopt;
  std::memcpy(&header, packet.data(), sizeof(header));
  if (header.bytes != packet.size() - sizeof(header)) return std::nullopt;
  if (sealed && header.checksum != ChecksumOf(packet)) return std::nullopt;
  return header;
}

}  // namespace lockstep::rdma
