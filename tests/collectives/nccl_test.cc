// The group over NCCL without a GPU: everything that the host decides, over FakeNccl.
#include <gtest/gtest.h>

#include <atomic>
#include <ostream>

#include "runtime/base/clock.h"
#include "tests/collectives/checks.h"
#include "tests/collectives/nccl_ranks.h"

namespace lockstep {
namespace {

void ExpectAllOk(const std::vector<Status>& results) {
  for (size_t rank = 0; rank < results.size(); ++rank) {
    EXPECT_TRUE(results[rank].ok()) << "rank " << rank << ": " << results[rank];
  }
}

void ExpectError(const Status& status, ErrorKind kind, const std::vector<std::string>& texts) {
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(static_cast<int>(KindOf(status)), static_cast<int>(kind)) << status;
  for (const std::string& text : texts) {
    EXPECT_NE(MessageOf(status).find(text), std::string::npos) << text << " in " << status;
  }
}

// A group at work: NCCL has connected, so that kernels wait on the GPU and nobody else.
Status Work(Group& group, int exchanges) {
  for (int i = 0; i < exchanges; ++i) LOCKSTEP_RETURN_IF_ERROR(CheckAllReduce(group, 100, 3));
  return OkStatus();
}

class NcclGroups : public ::testing::TestWithParam<int> {};

TEST_P(NcclGroups, MoveAndAddEverySizeRightly) {
  FakeNccl fake;
  NcclRanks ranks(GetParam());
  ExpectAllOk(ranks.Run(CheckEverything));
  EXPECT_EQ(fake.Faults(), "");
  EXPECT_EQ(fake.Count("ncclCommDestroy"), GetParam());
  EXPECT_EQ(fake.Count("ncclCommAbort"), 0);
}

TEST_P(NcclGroups, DoNotDriftOverManyExchanges) {
  FakeNccl fake;
  NcclRanks ranks(GetParam());
  ExpectAllOk(ranks.Run([](Group& group) { return CheckManyExchanges(group, 300); }));
  EXPECT_EQ(fake.Faults(), "");
}

INSTANTIATE_TEST_SUITE_P(Sizes, NcclGroups, ::testing::Range(1, 6));

TEST(NcclGroup, WaitsForWhateverNcclDoesInTheBackground) {
  FakeNccl fake;
  fake.polls = 3;
  NcclRanks ranks(3);
  ExpectAllOk(ranks.Run([](Group& group) -> Status {
    LOCKSTEP_RETURN_IF_ERROR(CheckEverything(group));
    group.set_sum_order(SumOrder::kAny);
    return Barrier(group);
  }));
  EXPECT_EQ(fake.Faults(), "");
  EXPECT_EQ(fake.Count("ncclCommDestroy"), 3);
}

TEST(NcclGroup, StatesItsTraits) {
  FakeNccl fake;
  NcclRanks ranks(2);
  ExpectAllOk(ranks.Run([](Group& group) {
    EXPECT_STREQ(group.traits().name, "nccl");
    EXPECT_FALSE(group.traits().any_order_is_fixed);
    EXPECT_FALSE(group.traits().reads_in_place);
    EXPECT_FALSE(group.traits().slots_in_parts);
    return OkStatus();
  }));
}

TEST(NcclGroup, AddsInAnyOrderByItself) {
  FakeNccl fake;
  NcclRanks ranks(3);
  std::vector<std::vector<float>> sums(3);
  ExpectAllOk(ranks.Run([&](Group& group) -> Status {
    group.set_sum_order(SumOrder::kAny);
    std::vector<float>& sum = sums[group.rank()];
    sum = Contribution(group.rank(), 20'000, 8);  // in two exchanges
    LOCKSTEP_RETURN_IF_ERROR(AllReduceSum(group, sum));
    LOCKSTEP_RETURN_IF_ERROR(AllReduceSum(group, std::span<float>()));
    LOCKSTEP_RETURN_IF_ERROR(CheckSumSlots(group, 500, 4, WireFormat::kBF16));  // in rank order
    return CheckAllGather(group, 1000, 5);
  }));
  std::vector<float> expected(20'000);
  for (int rank = 2; rank >= 0; --rank) {
    const std::vector<float> values = Contribution(rank, 20'000, 8);
    for (size_t i = 0; i < values.size(); ++i)
      expected[i] = rank == 2 ? values[i] : expected[i] + values[i];
  }
  for (const std::vector<float>& sum : sums) EXPECT_EQ(sum, expected);
  EXPECT_NE(expected, ExpectedSum(3, 20'000, 8, WireFormat::kF32));
  EXPECT_EQ(fake.Count("ncclAllReduce"), 9);
  EXPECT_EQ(fake.Faults(), "");
}

TEST(NcclGroup, IsUsedByOneThreadAfterAnother) {
  FakeNccl fake;
  NcclRanks ranks(2);
  ExpectAllOk(ranks.Run([](Group& group) {
    Status result;
    std::thread([&] { result = CheckManyExchanges(group, 20); }).join();
    return result.ok() ? Work(group, 3) : result;
  }));
  EXPECT_EQ(fake.Faults(), "");
}

// Rank 1 stays away from exchange `exchange`.
std::vector<Status> RunWithoutRankOne(FakeNccl& fake, NcclRanks& ranks, int exchange) {
  ranks.common.exchange_timeout_ms = 500;
  ranks.tells = false;
  std::atomic<int> done{0};
  return ranks.Run([&](Group& group) -> Status {
    Status result = Work(group, exchange - 1);
    if (result.ok() && group.rank() != 1) {
      result = Barrier(group);
      EXPECT_GE(fake.Count("ncclCommAbort"), 1) << "the GPU is free at once";
      EXPECT_EQ(group.Begin(4).status(), result) << "an error stays";
      EXPECT_EQ(group.Wait(1).status(), result);
      EXPECT_EQ(group.End(), result);
      EXPECT_EQ(group.Send(1, {}), result);
    }
    ++done;
    while (done < ranks.size) std::this_thread::yield();
    return result;
  });
}

TEST(NcclGroup, ASilentRankIsNamedAndNothingIsLeftOnTheGpu) {
  for (const int exchange : {1, 4}) {  // while NCCL connects, and while a kernel waits
    FakeNccl fake;
    fake.slow_abort_looks = 5;
    NcclRanks ranks(2);
    const std::vector<Status> results = RunWithoutRankOne(fake, ranks, exchange);
    ExpectError(results[0], ErrorKind::kPeerLost,
                {"sent nothing for 500 ms in exchange " + std::to_string(exchange) + ":",
                 "slower than rank 0 (test, pid 4700)", "--exchange-timeout-ms"});
    EXPECT_EQ(MessageOf(results[0]).rfind("rank 1 (test, pid 4701) sent", 0), 0u) << results[0];
    EXPECT_EQ(LostRank(results[0]), 1);
    // Rank 1 is well and finds its peer gone when it ends.
    EXPECT_EQ(fake.Count("ncclCommAbort"), 2);
    EXPECT_EQ(fake.Count("ncclCommDestroy"), 0);
    EXPECT_EQ(fake.Faults(), "");
  }
}

TEST(NcclGroup, OfSeveralPeersAllAreNamed) {
  FakeNccl fake;
  NcclRanks ranks(3);
  const std::vector<Status> results = RunWithoutRankOne(fake, ranks, 2);
  ExpectError(results[0], ErrorKind::kPeerLost,
              {"rank 1 (test, pid 4701) or rank 2 (test, pid 4702) sent nothing for 500 ms in "
               "exchange 2 (NCCL does not say which of them)"});
  EXPECT_EQ(LostRank(results[0]), -1);
  EXPECT_EQ(fake.Faults(), "");
}

TEST(NcclGroup, AnErrorInTheBackgroundEndsAWait) {
  for (const bool ends_kernels : {false, true}) {
    FakeNccl fake;
    NcclRanks ranks(2);
    const std::vector<Status> results = ranks.Run([&](Group& group) -> Status {
      LOCKSTEP_RETURN_IF_ERROR(Work(group, 3));
      if (group.rank() == 1) {
        while (!ranks.lifeline(1).broken()) std::this_thread::yield();
        return Barrier(group);
      }
      LOCKSTEP_RETURN_IF_ERROR(group.Begin(8).status());
      LOCKSTEP_RETURN_IF_ERROR(group.Publish());
      fake.FailCommunicator(0, ncclRemoteError, "socket closed by 10.0.0.2<4711>\n", ends_kernels);
      return group.Wait(1).status();
    });
    ExpectError(results[0], ErrorKind::kPeerLost,
                {"rank 1 (test, pid 4701) cannot be reached by NCCL", "rank 0 (test, pid 4700)",
                 "in exchange 4, moving slots", "(socket closed by 10.0.0.2<4711>)"});
    EXPECT_EQ(LostRank(results[0]), 1);
    ExpectError(results[1], ErrorKind::kPeerLost, {"socket closed"});
    EXPECT_EQ(fake.Count("ncclCommAbort"), 2);
    EXPECT_EQ(fake.Faults(), "");
  }
}

Status WaitWhileAnotherThreadAborts(Group& group) {
  std::thread helper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    group.Abort(ModelError("layer 3 has NaN weights"));
  });
  const Status result = Barrier(group);
  helper.join();
  return result;
}

std::vector<Status> RunWhileAThreadAborts(NcclRanks& ranks) {
  ranks.tells = false;
  std::atomic<bool> ended{false};
  return ranks.Run([&](Group& group) -> Status {
    while (group.rank() == 1) {
      if (ended) return OkStatus();
      std::this_thread::yield();
    }
    Status result = WaitWhileAnotherThreadAborts(group);
    ended = true;
    return result;
  });
}

TEST(NcclGroup, AnAbortFromAnotherThreadEndsAWait) {
  FakeNccl fake;
  NcclRanks ranks(2);
  const std::vector<Status> results = RunWhileAThreadAborts(ranks);
  ExpectError(results[0], ErrorKind::kModel, {"layer 3 has NaN weights"});
  EXPECT_EQ(fake.Faults(), "");
}

TEST(NcclGroup, AReasonThatTheControlChannelKnowsCountsMore) {
  FakeNccl fake;
  NcclRanks ranks(2);
  const std::vector<Status> results = ranks.Run([&](Group& group) -> Status {
    LOCKSTEP_RETURN_IF_ERROR(Work(group, 1));
    if (group.rank() == 1) return PeerLostError("rank 1 was killed");
    fake.FailCommunicator(0, ncclRemoteError, "", false);
    return Barrier(group);
  });
  for (const Status& result : results) {
    EXPECT_EQ(MessageOf(result), "rank 1 was killed");
  }
  EXPECT_EQ(fake.Faults(), "");
}

TEST(NcclGroup, WhoDoesNotJoinInTimeIsNamed) {
  FakeNccl fake;
  fake.joins_complete = false;
  NcclRanks ranks(2);
  ranks.start_timeout_ms = 100;
  const std::vector<Status> results = ranks.Run([](Group&) { return OkStatus(); });
  ExpectError(results[0], ErrorKind::kPeerLost,
              {"NCCL's communicator within 100 ms", "NCCL_SOCKET_IFNAME", "--start-timeout-ms"});
  EXPECT_EQ(fake.Count("ncclCommAbort"), 2);
  EXPECT_EQ(fake.Faults(), "");
}

TEST(NcclGroup, ARankThatIsLostWhileOthersJoinIsToldByTheLifeline) {
  FakeNccl fake;
  fake.joins_complete = false;
  NcclRanks ranks(3);
  const std::vector<Status> results = ranks.RunAlone([&](int rank) -> Status {
    if (rank == 1) {
      std::thread([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        (void)ranks.lifeline(0).Break(PeerLostError("rank 2 was killed"));
        (void)ranks.lifeline(1).Break(PeerLostError("rank 2 was killed"));
        (void)ranks.lifeline(2).Break(PeerLostError("rank 2 was killed"));
      }).join();
    }
    return ranks.Open(rank).status();
  });
  for (const Status& result : results) {
    ExpectError(result, ErrorKind::kPeerLost, {"rank 2 was"});
  }
  EXPECT_EQ(fake.Faults(), "");
}

TEST(NcclGroup, AfterALostRankTheSameThreadsMakeANewGroup) {
  FakeNccl fake;
  NcclRanks ranks(2);
  ranks.common.exchange_timeout_ms = 500;
  std::atomic<int> failed{0};
  ExpectAllOk(ranks.RunAlone([&](int rank) -> Status {
    {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, ranks.Open(rank));
      LOCKSTEP_RETURN_IF_ERROR(Work(*group, 2));
      if (rank == 0) {
        EXPECT_FALSE(Barrier(*group).ok());
      }
      ++failed;
      while (failed < 2) std::this_thread::yield();
    }
    LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, ranks.Open(rank));
    return CheckManyExchanges(*group, 20);
  }));
  EXPECT_EQ(fake.ids(), 2);
  EXPECT_EQ(fake.Count("ncclCommInitRankConfig"), 4);
  EXPECT_EQ(fake.Count("ncclCommDestroy"), 2);
  EXPECT_EQ(fake.Faults(), "");
}

TEST(NcclGroup, AGroupIsLeftWithItsExchangeOpen) {
  FakeNccl fake;
  NcclRanks ranks(2);
  ranks.tells = false;
  const int64_t start_ns = NowNs();
  const std::vector<Status> results = ranks.Run([](Group& group) -> Status {
    LOCKSTEP_RETURN_IF_ERROR(Work(group, 1));
    LOCKSTEP_RETURN_IF_ERROR(group.Begin(8).status());
    if (group.rank() == 0) LOCKSTEP_RETURN_IF_ERROR(group.Publish());
    return ModelError("out of pages");
  });
  for (const Status& result : results) {
    ExpectError(result, ErrorKind::kModel, {"out of pages"});
  }
  EXPECT_LT(NowNs() - start_ns, int64_t{4'000'000'000})
      << "nobody waited for the other to finalize";
  EXPECT_EQ(fake.Faults(), "");
}

// The nth call of each function fails on rank 1: as an error, with nothing left behind.
TEST(NcclGroup, EveryCallMayFail) {
  struct Row {
    const char* function;
    int nth;
    int code;
    ErrorKind kind;
  };
  const Row rows[] = {
      {"cudaSetDevice", 1, cudaErrorDevicesUnavailable, ErrorKind::kInternal},
      {"cudaHostAlloc", 1, cudaErrorMemoryAllocation, ErrorKind::kUsage},
      {"cudaMalloc", 1, cudaErrorMemoryAllocation, ErrorKind::kUsage},
      {"cudaStreamCreateWithFlags", 1, cudaErrorUnknown, ErrorKind::kInternal},
      {"cudaEventCreateWithFlags", 1, cudaErrorUnknown, ErrorKind::kInternal},
      {"ncclCommInitRankConfig", 1, ncclSystemError, ErrorKind::kPeerLost},
      {"ncclCommInitRankConfig", 1, ncclInvalidUsage, ErrorKind::kUsage},
      {"ncclCommGetAsyncError", 1, ncclInternalError, ErrorKind::kInternal},
      {"ncclGroupStart", 2, ncclInternalError, ErrorKind::kInternal},
      {"ncclSend", 2, ncclUnhandledCudaError, ErrorKind::kInternal},
      {"ncclSend", 3, ncclInvalidArgument, ErrorKind::kInternal},
      {"ncclRecv", 3, ncclUnhandledCudaError, ErrorKind::kInternal},
      {"ncclGroupEnd", 2, ncclRemoteError, ErrorKind::kPeerLost},
      {"cudaMemcpyAsync", 4, cudaErrorIllegalAddress, ErrorKind::kInternal},
      {"cudaMemcpyAsync", 5, cudaErrorIllegalAddress, ErrorKind::kInternal},
      {"cudaEventRecord", 2, cudaErrorIllegalAddress, ErrorKind::kInternal},
      {"cudaEventQuery", 2, cudaErrorLaunchFailure, ErrorKind::kInternal},
      {"ncclCommGetAsyncError", 6, ncclRemoteError, ErrorKind::kPeerLost},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(std::string(row.function) + " " + std::to_string(row.nth));
    FakeNccl fake;
    NcclRanks ranks(3);
    fake.FailCall(row.function, 1, row.nth, row.code);
    const std::vector<Status> results =
        ranks.Run([](Group& group) { return CheckManyExchanges(group, 10); });
    ExpectError(results[1], row.kind, {});
    for (const Status& result : results) EXPECT_FALSE(result.ok());
    EXPECT_EQ(fake.Faults(), "");
  }
}

TEST(NcclGroup, OfRankZeroTheIdMayFail) {
  FakeNccl fake;
  NcclRanks ranks(2);
  fake.FailCall("ncclGetUniqueId", 0, 1, ncclSystemError);
  const std::vector<Status> results = ranks.Run([](Group&) { return OkStatus(); });
  ExpectError(results[0], ErrorKind::kPeerLost, {"making a communicator's id"});
  EXPECT_FALSE(results[1].ok());
  EXPECT_EQ(fake.Faults(), "");
}

TEST(NcclGroup, AnAbortThatDoesNotReturnIsLeftBehind) {
  FakeNccl fake;
  fake.stuck_rank = 0;
  NcclRanks ranks(2);
  const int64_t start_ns = NowNs();
  const std::vector<Status> results = RunWithoutRankOne(fake, ranks, 2);
  EXPECT_LT(NowNs() - start_ns, int64_t{20'000'000'000});
  ExpectError(results[0], ErrorKind::kPeerLost, {"rank 1 (test, pid 4701) sent nothing"});
  // What the GPU may still write to is not given back.
  EXPECT_NE(fake.Faults().find("1 blocks of pinned memory left"), std::string::npos)
      << fake.Faults();
  EXPECT_EQ(fake.Faults().find("freed"), std::string::npos) << fake.Faults();
}

TEST(NcclGroup, MoreRanksThanGpusAreRefused) {
  FakeNccl fake;
  fake.devices = 2;
  NcclRanks ranks(3);
  for (const Status& result : ranks.Run([](Group&) { return OkStatus(); })) {
    ExpectError(result, ErrorKind::kUsage, {"3 ranks run on this machine", "2 GPUs", "tcp"});
  }
  ranks.NewLifelines();
  ranks.local_size = 1;  // of three machines with two GPUs each; the third GPU is not there
  const std::vector<Status> results = ranks.Run([](Group&) { return OkStatus(); });
  EXPECT_FALSE(results[2].ok());
  EXPECT_EQ(fake.Faults(), "");
}

TEST(NcclHello, CarriesTheIdAndTheVersion) {
  ncclUniqueId id{};
  for (size_t i = 0; i < sizeof(id.internal); ++i) id.internal[i] = static_cast<char>(i * 37 - 1);
  const std::vector<std::string> names = {"rank 0 (a)", "rank 1 (b)"};
  const std::string first = nccl::EncodeHello(22809, &id),
                    other = nccl::EncodeHello(22809, nullptr);
  EXPECT_EQ(other, "nccl 22809 -");
  const std::string both[] = {first, other};
  const StatusOr<ncclUniqueId> decoded = nccl::DecodeHellos(both, names);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(std::memcmp(&*decoded, &id, sizeof(id)), 0);

  std::string not_hex = first, signs = first;
  not_hex.back() = 'g';
  signs.replace(signs.size() - 2, 2, "-1");
  for (const std::string& bad :
       {std::string(), other, first.substr(0, first.size() - 1), first + "0", first + " ", not_hex,
        signs, "mpi" + first.substr(4), "nccl -1" + first.substr(10)}) {
    const std::string texts[] = {bad, other};
    ExpectError(nccl::DecodeHellos(texts, names).status(), ErrorKind::kPeerLost, {"rank 0 (a)"});
  }
  for (const std::string& bad : {std::string(), first, std::string("nccl 22809"),
                                 std::string("nccl x -"), std::string("nccl 22809 - ")}) {
    const std::string texts[] = {first, bad};
    ExpectError(nccl::DecodeHellos(texts, names).status(), ErrorKind::kPeerLost, {"rank 1 (b)"});
  }
  const std::string differ[] = {first, nccl::EncodeHello(22703, nullptr)};
  ExpectError(nccl::DecodeHellos(differ, names).status(), ErrorKind::kUsage,
              {"rank 0 (a) has NCCL 2.28.9 and rank 1 (b) has 2.27.3", "same version"});
}

TEST(NcclLibrary, ErrorsSayWhatToDo) {
  FakeNccl fake;
  const nccl::Attempt attempt = {.rank = "rank 0 (a, pid 1)",
                                 .peers = "rank 1 (b, pid 2)",
                                 .doing = "in exchange 7, moving slots"};
  const auto error = [&](int result) {
    return nccl::NcclFailed(FakeNccl::Table(), nullptr, static_cast<ncclResult_t>(result), attempt);
  };
  for (const int result : {ncclRemoteError, ncclSystemError}) {
    ExpectError(error(result), ErrorKind::kPeerLost, {attempt.rank, attempt.doing});
    EXPECT_EQ(MessageOf(error(result)).rfind("rank 1 (b, pid 2) ", 0), 0u) << error(result);
  }
  ExpectError(error(ncclSystemError), ErrorKind::kPeerLost, {"NCCL_SOCKET_IFNAME", "/dev/shm"});
  ExpectError(error(ncclUnhandledCudaError), ErrorKind::kInternal, {attempt.doing, "dmesg"});
  ExpectError(error(ncclInternalError), ErrorKind::kInternal, {"the same NCCL and driver"});
  ExpectError(error(ncclInvalidArgument), ErrorKind::kInternal, {"bug of lockstep"});
  ExpectError(error(ncclInvalidUsage), ErrorKind::kUsage, {"a GPU of its own"});
  ExpectError(error(77), ErrorKind::kInternal, {attempt.rank, "NCCL_DEBUG"});
  ExpectError(nccl::CudaFailed(FakeNccl::Table(), cudaErrorMemoryAllocation, "pin memory", 3),
              ErrorKind::kUsage, {"cannot pin memory on GPU 3", "nvidia-smi"});
}

TEST(NcclLibrary, AnOldOneOrAMachineWithoutGpuIsRefused) {
  FakeNccl fake;
  EXPECT_TRUE(nccl::CheckLibrary(FakeNccl::Table()).ok());
  fake.version = 21304;
  ExpectError(nccl::CheckLibrary(FakeNccl::Table()), ErrorKind::kUsage, {"2.13.4", "2.19.1"});
  fake.version = 22000;
  fake.devices = 0;
  ExpectError(nccl::CheckLibrary(FakeNccl::Table()), ErrorKind::kUsage,
              {"none (the driver says: no CUDA-capable device", "--collective tcp, shm or rdma"});
}

// With the libraries of this machine, if it has any.
TEST(NcclLibrary, ThisMachineHasItOrSaysWhatIsMissing) {
  const StatusOr<const nccl::Library*> loaded = nccl::LoadNccl();
  if (loaded.ok()) GTEST_SKIP() << "this machine has NCCL and a GPU";
  const bool no_library = MessageOf(loaded.status()).rfind("cannot load lib", 0) == 0;
  ExpectError(loaded.status(), ErrorKind::kUsage,
              {no_library ? "install" : "NCCL needs a CUDA device and this machine has none",
               "use --collective tcp"});
  std::printf("%s\n", MessageOf(loaded.status()).c_str());
}

}  // namespace
}  // namespace lockstep
