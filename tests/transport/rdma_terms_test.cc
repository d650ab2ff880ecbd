// What is decided before two queue pairs are connected, over made-up machines.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <thread>

#include "transport/rdma/packet.h"
#include "transport/rdma/ports.h"
#include "transport/rdma/terms.h"
#include "transport/socket.h"

namespace lockstep::rdma {
namespace {

GidFacts MakeGid(int index, const std::string& address, GidType type = GidType::kRoceV2) {
  return {index, *GidOfAddress(address), type, "eth" + std::to_string(index / 10)};
}

PortFacts MakePort(const std::string& device, std::vector<GidFacts> gids) {
  PortFacts port;
  port.device = device;
  port.active = port.ethernet = true;
  port.mtu = 4096;
  port.megabits = 100'000;
  port.largest_message = size_t{1} << 30;
  port.gids = std::move(gids);
  return port;
}

// As a real card lists them: every address twice, once for RoCE v1.
std::vector<PortFacts> TwoCards() {
  return {MakePort("mlx5_0", {MakeGid(0, "fe80::1", GidType::kOther), MakeGid(1, "fe80::1"),
                              MakeGid(2, "10.0.0.1", GidType::kOther), MakeGid(3, "10.0.0.1")}),
          MakePort("mlx5_1", {MakeGid(10, "fe80::2", GidType::kOther), MakeGid(11, "fe80::2"),
                              MakeGid(14, "10.0.1.1"), MakeGid(15, "fd00::7")})};
}

TEST(APort, IsChosenByAddressAndType) {
  const std::vector<PortFacts> ports = TwoCards();
  EXPECT_EQ(ChoosePort(ports, "10.0.0.1")->gid->index, 3);
  EXPECT_EQ(ChoosePort(ports, "10.0.1.1")->port->device, "mlx5_1");
  EXPECT_EQ(ChoosePort(ports, "10.0.1.1")->gid->index, 14);
  EXPECT_EQ(ChoosePort(ports, "fd00::7")->gid->index, 15);
}

TEST(APort, IsChosenAlikeWhereverTheAddressStandsInTheTable) {
  std::vector<PortFacts> ports = TwoCards();
  std::reverse(ports[0].gids.begin(), ports[0].gids.end());
  ports[0].gids.erase(ports[0].gids.begin() + 1);
  EXPECT_EQ(ChoosePort(ports, "10.0.0.1")->gid->index, 3);
}

std::string Refusal(std::span<const PortFacts> ports, const std::string& address) {
  const StatusOr<Choice> choice = ChoosePort(ports, address);
  EXPECT_EQ(KindOf(choice.status()), ErrorKind::kUsage);
  return MessageOf(choice.status());
}

TEST(APort, ThatIsMissingIsExplained) {
  std::vector<PortFacts> ports = TwoCards();
  EXPECT_NE(Refusal(ports, "10.0.0.9").find("mlx5_0 port 1 (eth0) has fe80::1, 10.0.0.1"),
            std::string::npos)
      << Refusal(ports, "10.0.0.9");
  ports[1].active = false;
  EXPECT_NE(Refusal(ports, "10.0.1.1").find("mlx5_1 port 1 (eth1) is down"), std::string::npos);
  ports[0].gids.pop_back();
  EXPECT_NE(Refusal(ports, "10.0.0.1").find("for RoCE v1 only"), std::string::npos);
  ports[0].ethernet = false;
  EXPECT_NE(Refusal(ports, "10.0.0.1").find("InfiniBand"), std::string::npos);
  ports.clear();
  EXPECT_NE(Refusal(ports, "10.0.0.1").find("has no RDMA device"), std::string::npos);
  EXPECT_FALSE(GidOfAddress("spark-1").ok());
}

TEST(Hosts, AreThoseWithAPortTheFasterFirst) {
  std::vector<PortFacts> ports = TwoCards();
  ports[1].megabits = 200'000;
  const auto hosts = HostsWithPort(ports, {"192.168.1.5", "10.0.0.1", "10.0.1.1"});
  ASSERT_TRUE(hosts.ok()) << hosts.status();
  EXPECT_EQ(*hosts, (std::vector<std::string>{"10.0.1.1", "10.0.0.1"}));
  const Status none = HostsWithPort(ports, {"192.168.1.5"}).status();
  EXPECT_NE(MessageOf(none).find("--interface"), std::string::npos) << none;
}

Terms SomeTerms() {
  Terms terms;
  terms.queue_pair = 0x1234;
  terms.first_packet = 0xabcdef;
  terms.gid = *GidOfAddress("10.0.0.1");
  terms.mtu = 4096;
  terms.megabits = 200'000;
  terms.slots = kSlots;
  terms.slot_bytes = kSlotBytes;
  terms.largest_message = size_t{1} << 30;
  terms.window_bytes = 12345;
  terms.view_address = 0x7fff12345678;
  terms.view_key = 77;
  terms.host = "spark-1";
  terms.device = "mlx5_0";
  terms.interface = "enp1s0f0";
  return terms;
}

TEST(TheTerms, ArriveAsTheyWereSent) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
  const UniqueFd a(ends[0]), b(ends[1]);
  Terms other = SomeTerms();
  other.mode = Mode::kUnreliable;
  other.host = "spark-2";
  StatusOr<Terms> at_b = InternalError("not yet");
  std::thread peer([&] { at_b = ExchangeTerms(b.get(), other, Deadline::After(5000)); });
  const StatusOr<Terms> at_a = ExchangeTerms(a.get(), SomeTerms(), Deadline::After(5000));
  peer.join();
  ASSERT_TRUE(at_a.ok() && at_b.ok()) << at_a.status() << at_b.status();
  EXPECT_EQ(WriteTerms(*at_a), WriteTerms(other));
  EXPECT_EQ(WriteTerms(*at_b), WriteTerms(SomeTerms()));
  EXPECT_EQ(at_b->view_address, 0x7fff12345678u);
  EXPECT_EQ(at_b->interface, "enp1s0f0");
}

TEST(TheTerms, AreRefusedWhenCutShortOrAbsurd) {
  const std::vector<std::byte> whole = WriteTerms(SomeTerms());
  ASSERT_TRUE(ParseTerms(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(ParseTerms(std::span(whole).first(size)).ok()) << size;
  }
  std::vector<std::byte> more = whole;
  more.emplace_back();
  EXPECT_FALSE(ParseTerms(more).ok());
  for (void (*const spoil)(Terms*) :
       {+[](Terms* t) { t->mode = Mode{3}; }, +[](Terms* t) { t->mtu = 1500; },
        +[](Terms* t) { t->mtu = 8192; }, +[](Terms* t) { t->first_packet = 1u << 24; },
        +[](Terms* t) { t->largest_message = 0; }}) {
    Terms terms = SomeTerms();
    spoil(&terms);
    EXPECT_FALSE(ParseTerms(WriteTerms(terms)).ok());
  }
}

TEST(TheTerms, ThatDoNotFitAreRefusedOnBothSidesWithTheCommandThatMendsThem) {
  const Terms own = SomeTerms();
  Terms peer = SomeTerms();
  peer.host = "spark-2";
  peer.interface = "enp2s0";
  EXPECT_TRUE(CompareTerms(own, peer).ok());
  peer.mtu = 1024;
  EXPECT_NE(
      MessageOf(CompareTerms(own, peer)).find("on spark-2 run 'ip link set dev enp2s0 mtu 4200'"),
      std::string::npos)
      << CompareTerms(own, peer);
  EXPECT_EQ(CompareTerms(own, peer), CompareTerms(peer, own));
  peer = SomeTerms();
  peer.mode = Mode::kUnreliable;
  EXPECT_NE(MessageOf(CompareTerms(own, peer)).find("--rdma-mode"), std::string::npos);
  peer = SomeTerms();
  peer.window_bytes = 1;
  EXPECT_FALSE(CompareTerms(own, peer).ok());
}

TEST(APacket, OpensOnlyUndamaged) {
  std::vector<std::byte> packet(sizeof(PacketHeader) + 100, std::byte{5});
  PacketHeader header;
  header.sequence = 9;
  header.bytes = 100;
  std::memcpy(packet.data(), &header, sizeof(header));
  EXPECT_FALSE(OpenPacket(packet, true).has_value());
  EXPECT_TRUE(OpenPacket(packet, false).has_value());
  SealPacket(packet);
  ASSERT_TRUE(OpenPacket(packet, true).has_value());
  EXPECT_EQ(OpenPacket(packet, true)->sequence, 9u);
  for (size_t bit = 0; bit < packet.size() * 8; ++bit) {
    std::vector<std::byte> damaged = packet;
    damaged[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    EXPECT_FALSE(OpenPacket(damaged, true).has_value()) << "bit " << bit;
  }
  for (size_t size = 0; size < packet.size(); ++size) {
    EXPECT_FALSE(OpenPacket(std::span(packet).first(size), true).has_value());
    EXPECT_FALSE(OpenPacket(std::span(packet).first(size), false).has_value());
  }
}

}  // namespace
}  // namespace lockstep::rdma
