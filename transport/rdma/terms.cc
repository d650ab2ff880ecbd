#include "transport/rdma/terms.h"

#include <algorithm>

#include "runtime/base/bytes.h"
#include "transport/socket.h"

namespace lockstep::rdma {
namespace {

constexpr uint64_t kMagic = 0x31616d64'726b736cULL;  // "lskrdma1"
constexpr size_t kMostNameBytes = 255;
// An Ethernet frame carries so much beside an RDMA packet's payload (IP, UDP, transport, checksum).
constexpr uint32_t kPacketOverhead = 104;

const char* NameOf(Mode mode) { return mode == Mode::kReliable ? "rc" : "uc"; }

std::string Where(const Terms& terms) {
  return absl::StrFormat("%s on %s", terms.device, terms.host);
}

}  // namespace

std::vector<std::byte> WriteTerms(const Terms& terms) {
  ByteWriter writer;
  writer.Put(kMagic);
  writer.Put(terms.mode);
  writer.Put(terms.queue_pair);
  writer.Put(terms.first_packet);
  for (const std::byte value : terms.gid) writer.Put(value);
  writer.Put(terms.mtu);
  writer.Put(terms.megabits);
  writer.Put(terms.slots);
  writer.Put(terms.slot_bytes);
  writer.Put(terms.largest_message);
  writer.Put(terms.window_bytes);
  writer.Put(terms.view_address);
  writer.Put(terms.view_key);
  for (const std::string* text : {&terms.host, &terms.device, &terms.interface}) {
    writer.PutString(std::string_view(*text).substr(0, kMostNameBytes));
  }
  return writer.bytes();
}

StatusOr<Terms> ParseTerms(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  Terms terms;
  const bool known = reader.Get<uint64_t>() == kMagic;
  terms.mode = reader.Get<Mode>();
  terms.queue_pair = reader.Get<uint32_t>();
  terms.first_packet = reader.Get<uint32_t>();
  for (std::byte& value : terms.gid) value = reader.Get<std::byte>();
  terms.mtu = reader.Get<uint32_t>();
  terms.megabits = reader.Get<uint32_t>();
  terms.slots = reader.Get<uint32_t>();
  terms.slot_bytes = reader.Get<uint32_t>();
  terms.largest_message = reader.Get<uint64_t>();
  terms.window_bytes = reader.Get<uint64_t>();
  terms.view_address = reader.Get<uint64_t>();
  terms.view_key = reader.Get<uint32_t>();
  for (std::string* text : {&terms.host, &terms.device, &terms.interface}) {
    *text = reader.GetString();
  }
  const Status complete = reader.Finish("terms of an RDMA connection");
  const bool mode_exists = terms.mode == Mode::kReliable || terms.mode == Mode::kUnreliable;
  const bool mtu_exists = terms.mtu >= 256 && terms.mtu <= 4096 && !(terms.mtu & (terms.mtu - 1));
  if (!complete.ok() || !known || !mode_exists || !mtu_exists || terms.largest_message == 0 ||
      terms.first_packet > 0xffffff || terms.queue_pair > 0xffffff) {
    return PeerLostError("sent terms of an RDMA connection that make no sense");
  }
  return terms;
}

Status CompareTerms(const Terms& own, const Terms& peer) {
  if (own.mode != peer.mode) {
    return UsageError(
        "%s uses RDMA in mode %s, %s in mode %s: start all ranks with the same --rdma-mode",
        Where(own), NameOf(own.mode), Where(peer), NameOf(peer.mode));
  }
  if (own.mtu != peer.mtu) {
    const Terms& low = own.mtu < peer.mtu ? own : peer;
    const Terms& high = own.mtu < peer.mtu ? peer : own;
    return UsageError(
        "%s sends RDMA packets of %d bytes, %s of %d: on %s run 'ip link set dev %s mtu %d'",
        Where(low), low.mtu, Where(high), high.mtu, low.host, low.interface,
        high.mtu + kPacketOverhead);
  }
  if (own.window_bytes != peer.window_bytes || own.slots != peer.slots ||
      own.slot_bytes != peer.slot_bytes) {
    return UsageError(
        "%s has an exchange window of %d bytes and %d RDMA slots of %d bytes, %s %d, %d and %d: "
        "install the same build on every node",
        Where(own), own.window_bytes, own.slots, own.slot_bytes, Where(peer), peer.window_bytes,
        peer.slots, peer.slot_bytes);
  }
  return OkStatus();
}

StatusOr<Terms> ExchangeTerms(int socket, const Terms& own, Deadline deadline) {
  const std::vector<std::byte> body = WriteTerms(own);
  const uint32_t own_size = static_cast<uint32_t>(body.size());
  LOCKSTEP_RETURN_IF_ERROR(SendAll(socket, std::as_bytes(std::span(&own_size, 1)), deadline));
  LOCKSTEP_RETURN_IF_ERROR(SendAll(socket, body, deadline));
  uint32_t size = 0;
  LOCKSTEP_RETURN_IF_ERROR(
      ReceiveAll(socket, std::as_writable_bytes(std::span(&size, 1)), deadline));
  if (size > kMostTermsBytes) {
    return PeerLostError("announced %d bytes of RDMA terms, at most %d", size, kMostTermsBytes);
  }
  std::vector<std::byte> bytes(size);
  LOCKSTEP_RETURN_IF_ERROR(ReceiveAll(socket, bytes, deadline));
  return ParseTerms(bytes);
}

}  // namespace lockstep::rdma
