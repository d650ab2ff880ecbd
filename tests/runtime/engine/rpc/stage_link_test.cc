// What every stage link does, whatever carries it; and who gRPC's lets in.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "collectives/secret.h"
#include "lockstep/v1/pipeline.grpc.pb.h"
#include "tests/runtime/engine/rpc/pipeline_ranks.h"

namespace lockstep {
namespace {

std::vector<std::byte> Bytes(size_t size, uint32_t seed) {
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) {
    seed = seed * 1'664'525 + 1'013'904'223;
    byte = static_cast<std::byte>(seed >> 24);
  }
  return bytes;
}

StageHeader Rows(uint64_t step, size_t bytes) { return {StageKind::kRows, step, 3, 1, bytes}; }
StageHeader Outcome(uint64_t step, size_t bytes) { return {StageKind::kResult, step, 0, 1, bytes}; }
Deadline Soon() { return Deadline::After(20'000); }

class EveryStageLink : public ::testing::TestWithParam<const char*> {
 protected:
  // Two stages of one rank: rank 0 sends rows, rank 1 outcomes.
  void OnBoth(const std::function<void(StageLink&, int rank, Group&)>& body) {
    testing::RunRanks(2, "tcp", [&](Membership& membership, Group& group) {
      auto link = testing::OpenLink(
          {.ranks = 2, .stages = 2, .link = GetParam(), .added_latency = added_latency_},
          membership, group);
      ASSERT_TRUE(link.ok()) << link.status();
      EXPECT_STREQ((*link)->name(), GetParam());
      body(**link, group.rank(), group);
      ASSERT_TRUE(Barrier(group).ok());
    });
  }

  const std::shared_ptr<AddedLatency> added_latency_ = std::make_shared<AddedLatency>();
};

TEST_P(EveryStageLink, AddsLatencyToEveryMessageFromWhenItWasSent) {
  constexpr int64_t kLatencyNs = 30'000'000;
  constexpr uint64_t kMessages = 4;
  added_latency_->ns = kLatencyNs;
  std::array<std::atomic<int64_t>, kMessages> sent_ns{};
  OnBoth([&](StageLink& link, int rank, Group&) {
    std::vector<std::byte> got;
    for (uint64_t step = 0; step < kMessages; ++step) {
      const auto rows = Bytes(100, static_cast<uint32_t>(step));
      if (rank == 0) {
        sent_ns[step] = NowNs();
        ASSERT_TRUE(link.Send(Rows(step, rows.size()), rows, Soon()).ok());
      } else {
        ASSERT_TRUE(link.Receive(Rows(step, rows.size()), Soon(), &got).ok());
        EXPECT_GE(NowNs() - sent_ns[step], kLatencyNs);
        EXPECT_EQ(got, rows);
      }
    }
    // An outcome travels as rows do.
    if (rank == 1) {
      sent_ns[0] = NowNs();
      ASSERT_TRUE(link.Send(Outcome(kMessages, 4), Bytes(4, 1), Soon()).ok());
    } else {
      ASSERT_TRUE(link.Receive(Outcome(kMessages, 4), Soon(), &got).ok());
      EXPECT_GE(NowNs() - sent_ns[0], kLatencyNs);
    }
  });
}

TEST_P(EveryStageLink, BringsWholeMessagesInOrderBothWays) {
  const std::vector<size_t> sizes = {0, 5, 1 << 20, (3 << 20) + 7, 64};
  OnBoth([&](StageLink& link, int rank, Group&) {
    std::vector<std::byte> got;
    for (uint64_t step = 0; step < 2 * sizes.size(); ++step) {
      const size_t size = sizes[step % sizes.size()];
      const auto rows = Bytes(size, 7), outcome = Bytes(size / 2, 9);
      if (rank == 0) {
        ASSERT_TRUE(link.Send(Rows(step, size), rows, Soon()).ok());
        const Status received = link.Receive(Outcome(step, size), Soon(), &got);
        ASSERT_TRUE(received.ok()) << received;
        EXPECT_EQ(got, outcome);
      } else {
        const Status received = link.Receive(Rows(step, size), Soon(), &got);
        ASSERT_TRUE(received.ok()) << received;
        EXPECT_EQ(got, rows);
        ASSERT_TRUE(link.Send(Outcome(step, size / 2), outcome, Soon()).ok());
      }
    }
  });
}

TEST_P(EveryStageLink, SendsWithoutWaitingForTheReceiver) {
  OnBoth([](StageLink& link, int rank, Group& group) {
    const auto rows = Bytes(8 << 20, 3);
    if (rank == 0) {
      for (uint64_t step = 0; step < kStageQueue; ++step)
        ASSERT_TRUE(link.Send(Rows(step, rows.size()), rows, Soon()).ok());
    }
    ASSERT_TRUE(Barrier(group).ok());  // rank 1 receives only now
    std::vector<std::byte> got;
    for (uint64_t step = 0; rank == 1 && step < kStageQueue; ++step) {
      ASSERT_TRUE(link.Receive(Rows(step, rows.size()), Soon(), &got).ok());
      EXPECT_EQ(got, rows);
    }
  });
}

TEST_P(EveryStageLink, RefusesWhatIsNotDueAndNamesTheRank) {
  OnBoth([](StageLink& link, int rank, Group&) {
    if (rank == 0) {
      ASSERT_TRUE(link.Send(Rows(5, 4), Bytes(4, 1), Soon()).ok());
      return;
    }
    std::vector<std::byte> got;
    const Status refused = link.Receive(Rows(6, 4), Soon(), &got);
    EXPECT_EQ(MessageOf(refused).rfind("rank 0 (", 0), 0u) << refused;
    EXPECT_EQ(LostRank(refused), 0);
    EXPECT_NE(MessageOf(refused).find("out of step"), std::string::npos) << refused;
  });
}

TEST_P(EveryStageLink, VerifiesTheBytesAndNamesTheRank) {
  for (const bool sent : {true, false}) {
    testing::RunRanks(2, "tcp", [&](Membership& membership, Group& group) {
      // A sender that does not verify sends the digest of other bytes.
      const testing::Way way = {
          .ranks = 2, .stages = 2, .link = GetParam(), .verify = sent || group.rank() == 1};
      auto link = testing::OpenLink(way, membership, group);
      ASSERT_TRUE(link.ok()) << link.status();
      if (group.rank() == 0) {
        for (const uint64_t step : {5, 6})
          ASSERT_TRUE((*link)->Send(Rows(step, 3 << 20), Bytes(3 << 20, 1), Soon()).ok());
      } else {
        std::vector<std::byte> got;
        for (const uint64_t step : {5, 6}) {
          const Status end = (*link)->Receive(Rows(step, 3 << 20), Soon(), &got);
          EXPECT_EQ(end.ok(), sent) << end;
          if (sent) continue;
          EXPECT_EQ(LostRank(end), 0);
          EXPECT_EQ(MessageOf(end).rfind("rank 0 (", 0), 0u) << end;
          EXPECT_NE(MessageOf(end).find("other bytes"), std::string::npos) << end;
        }
      }
      ASSERT_TRUE(Barrier(group).ok());
    });
  }
}

TEST_P(EveryStageLink, AWaitEndsByItsDeadlineAndNamesTheRank) {
  OnBoth([](StageLink& link, int rank, Group&) {
    if (rank == 0) return;
    std::vector<std::byte> got;
    const Status late = link.Receive(Rows(1, 4), Deadline::After(30), &got);
    EXPECT_EQ(LostRank(late), 0) << late;
    EXPECT_EQ(MessageOf(late).rfind("rank 0 (", 0), 0u) << late;
  });
}

TEST_P(EveryStageLink, AWaitEndsWithTheReasonThatAnotherRankGives) {
  std::atomic<bool> ended{false};
  testing::RunRanks(2, "tcp", [&](Membership& membership, Group& group) {
    auto link = testing::OpenLink({2, 2, GetParam()}, membership, group);
    ASSERT_TRUE(link.ok()) << link.status();
    ASSERT_TRUE(Barrier(group).ok());
    if (group.rank() == 0) {
      membership.Abort(ModelError("a reason of rank 0"));
      // Its end of the link stays open meanwhile.
      while (!ended) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      return;
    }
    std::vector<std::byte> got;
    const Status end = (*link)->Receive(Rows(1, 4), Soon(), &got);
    EXPECT_NE(MessageOf(end).find("a reason of rank 0"), std::string::npos) << end;
    ended = true;
  });
}

INSTANTIATE_TEST_SUITE_P(Links, EveryStageLink, ::testing::Values("grpc", "tcp", "shm"),
                         [](const ::testing::TestParamInfo<const char*>& param) {
                           return std::string(param.param);
                         });

// One end of a pair over gRPC whose proofs are made with `key`.
std::unique_ptr<GrpcStageLink> Listen(int rank, const std::string& key) {
  GrpcStageOptions options;
  options.peers = PeersOf(rank, 2, 2);
  options.peers.names = {"rank 0 (node, pid 1)", "rank 1 (node, pid 2)"};
  options.peers.health = [] { return OkStatus(); };
  options.hosts = {"127.0.0.1", "127.0.0.2"};
  options.sign = [key](std::span<const std::byte> data) { return HmacSha256(key, data); };
  options.start_timeout_ms = 20'000;
  return ListenForStage(std::move(options)).value();
}

// How a stream ends that says it is rank `from`, sends `proof` and then a message.
grpc::Status Intrude(const std::string& address, uint32_t from, const std::string& proof) {
  const auto stub =
      v1::Pipeline::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  const auto stream = stub->Pass(&context);
  v1::PassRequest request;
  request.mutable_hello()->set_from(from);
  request.mutable_hello()->set_to(1);
  request.mutable_hello()->set_nonce(std::string(32, 'n'));
  stream->Write(request);
  v1::PassResponse response;
  stream->Read(&response);
  request.set_proof(proof);
  stream->Write(request);
  request.mutable_piece()->mutable_header()->set_kind(1);
  stream->Write(request);
  EXPECT_FALSE(stream->Read(&response) && response.accepted());
  return stream->Finish();
}

TEST(GrpcStageLink, LetsNobodyInWhoCannotProveTheSession) {
  const auto first = Listen(0, "key"), second = Listen(1, "key");
  for (const uint32_t from : {0u, 1u}) {
    for (const std::string& proof : {std::string(), std::string(32, 'p')}) {
      EXPECT_EQ(Intrude(second->address(), from, proof).error_code(),
                grpc::StatusCode::UNAUTHENTICATED);
    }
  }
  {
    // Nor does a stage pass rows to whoever answers.
    const auto stranger = Listen(0, "another key");
    const Status refused = stranger->Connect(second->address());
    EXPECT_NE(MessageOf(refused).find("did not prove"), std::string::npos) << refused;
  }
  std::thread other([&] {
    const Status connected = second->Connect(first->address());
    EXPECT_TRUE(connected.ok()) << connected;
  });
  const Status connected = first->Connect(second->address());
  EXPECT_TRUE(connected.ok()) << connected;
  other.join();
  // There is one stage before: nobody comes second, even with the key.
  const auto late = Listen(0, "key");
  const Status refused = late->Connect(second->address());
  EXPECT_NE(MessageOf(refused).find("did not prove"), std::string::npos) << refused;
  ASSERT_TRUE(first->Send(Rows(1, 3), Bytes(3, 1), Soon()).ok());
  std::vector<std::byte> got;
  ASSERT_TRUE(second->Receive(Rows(1, 3), Soon(), &got).ok());
  EXPECT_EQ(got, Bytes(3, 1));
}

// What the streams of one try to get in say.
struct Call {
  std::unique_ptr<v1::Pipeline::Stub> stub;
  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReaderWriter<v1::PassRequest, v1::PassResponse>> stream;

  explicit Call(const std::string& address)
      : stub(v1::Pipeline::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    stream = stub->Pass(&context);
  }
  ~Call() {
    context.TryCancel();
    stream->Finish();
  }
  v1::PassResponse Greet(const v1::StageHello& hello) {
    v1::PassRequest request;
    *request.mutable_hello() = hello;
    stream->Write(request);
    v1::PassResponse response;
    stream->Read(&response);
    return response;
  }
  bool Prove(const std::string& proof) {
    v1::PassRequest request;
    request.set_proof(proof);
    stream->Write(request);
    v1::PassResponse response;
    return stream->Read(&response) && response.accepted();
  }
};

v1::StageHello Hello(uint32_t from, uint32_t to) {
  v1::StageHello hello;
  hello.set_from(from);
  hello.set_to(to);
  hello.set_nonce(std::string(32, 'n'));
  return hello;
}

// As docs/wire.md says.
std::string ClientProof(const v1::StageHello& hello, const std::string& server_nonce) {
  const std::string text = "lockstep stage link c " + std::to_string(hello.from()) + " " +
                           std::to_string(hello.to()) + " " + hello.nonce() + server_nonce;
  const Proof proof = HmacSha256("key", std::as_bytes(std::span(text)));
  return {reinterpret_cast<const char*>(proof.data()), proof.size()};
}

TEST(GrpcStageLink, TakesNoProofOfAnotherSpeakerOrAnotherTime) {
  std::string heard;  // the proof of one who was let in
  {
    const auto link = Listen(1, "key");
    Call call(link->address());
    heard = ClientProof(Hello(0, 1), call.Greet(Hello(0, 1)).nonce());
    EXPECT_TRUE(call.Prove(heard));
  }
  const auto link = Listen(1, "key");
  {
    Call reflects(link->address());
    const v1::PassResponse response = reflects.Greet(Hello(0, 1));
    ASSERT_EQ(response.proof().size(), 32u);
    EXPECT_FALSE(reflects.Prove(response.proof()));
  }
  {
    Call replays(link->address());
    replays.Greet(Hello(0, 1));
    EXPECT_FALSE(replays.Prove(heard));
  }
  for (const v1::StageHello& other : {Hello(1, 0), Hello(1, 1), Hello(0, 0)}) {
    Call swaps(link->address());
    EXPECT_FALSE(swaps.Prove(ClientProof(other, swaps.Greet(other).nonce())));
  }
  {
    Call swaps(link->address());  // the ranks of its hello are right, those of the proof are not
    EXPECT_FALSE(swaps.Prove(ClientProof(Hello(1, 0), swaps.Greet(Hello(0, 1)).nonce())));
  }
  Call call(link->address());
  EXPECT_TRUE(call.Prove(ClientProof(Hello(0, 1), call.Greet(Hello(0, 1)).nonce())));
}

TEST(GrpcStageLink, StreamsThatProveNothingKeepNobodyOut) {
  const auto first = Listen(0, "key"), second = Listen(1, "key");
  std::vector<std::unique_ptr<Call>> strangers;
  for (int i = 0; i < 12; ++i) {
    strangers.push_back(std::make_unique<Call>(second->address()));
    v1::PassRequest request;
    *request.mutable_hello() = Hello(0, 1);
    strangers.back()->stream->Write(request);
  }
  std::thread other([&] { EXPECT_TRUE(second->Connect(first->address()).ok()); });
  const Status connected = first->Connect(second->address());
  EXPECT_TRUE(connected.ok()) << connected;
  other.join();
}

TEST(GrpcStageLink, AClosedStreamNamesTheRank) {
  auto first = Listen(0, "key");
  const auto second = Listen(1, "key");
  std::thread other([&] { EXPECT_TRUE(second->Connect(first->address()).ok()); });
  ASSERT_TRUE(first->Connect(second->address()).ok());
  other.join();
  first.reset();
  std::vector<std::byte> got;
  const Status closed = second->Receive(Rows(1, 3), Soon(), &got);
  EXPECT_EQ(LostRank(closed), 0) << closed;
  EXPECT_EQ(MessageOf(closed).rfind("rank 0 (node, pid 1) closed", 0), 0u) << closed;
}

}  // namespace
}  // namespace lockstep
