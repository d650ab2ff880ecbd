// The gRPC end with a real client in the same process: real tokenizer and template of models/tiny,
// engine over a model without weights.
#include "runtime/serve/grpc_server.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "collectives/group.h"
#include "lockstep/v1/inference.grpc.pb.h"
#include "runtime/engine/tensor_parallel.h"
#include "runtime/text/streaming_decoder.h"
#include "tests/runtime/engine/fake_model.h"
#include "tests/runtime/engine/thread_group.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using lockstep::testing::FakeModel;
using lockstep::testing::ThreadGroup;
using lockstep::testing::ThreadWorld;

constexpr int64_t kVocab = 2048;
constexpr int64_t kContext = 512;

class AnswerDecoder final : public TokenDecoder {
 public:
  explicit AnswerDecoder(const Tokenizer& tokenizer) : decoder_(tokenizer, true) {}
  std::string Push(int32_t id) override { return decoder_.Push(id).value_or(""); }
  std::string Finish() override { return decoder_.Finish(); }

 private:
  StreamingDecoder decoder_;
};

// A server over an engine of one rank.
class GrpcServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* source = std::getenv("LOCKSTEP_SOURCE_DIR");
    ASSERT_NE(source, nullptr);
    auto text = LoadModelText(std::string(source) + "/models/tiny", "auto");
    ASSERT_TRUE(text.ok()) << text.status();
    text_ = std::make_unique<ModelText>(std::move(*text));
  }
  void TearDown() override {
    server_.reset();
    engine_.reset();
  }

  void Start(int64_t step_ms = 0, int64_t max_queue = 256, GrpcServerOptions options = {}) {
    const SchedulerLimits limits{.max_sequences = 8,
                                 .max_rows = 72,
                                 .max_outputs = 8,
                                 .prefill_rows = 64,
                                 .max_model_len = kContext,
                                 .kv_blocks = 400};
    group_ = std::make_unique<ThreadGroup>(std::make_shared<ThreadWorld>(1), 0);
    model_ = std::make_unique<FakeModel>(ModelLimits{72, 8, kContext, 400}, VocabSlice{0, kVocab},
                                         kVocab);
    model_->step_ms = step_ms;
    auto executor = TensorParallelExecutor::Create(*model_, *group_, {0, kVocab}, {"rank 0"});
    ASSERT_TRUE(executor.ok()) << executor.status();
    executor_ = std::move(*executor);
    EngineOptions engine;
    engine.limits = limits;
    engine.vocab_size = kVocab;
    engine.token_set.limit = text_->tokenizer->vocab_size();
    engine.max_queue = max_queue;
    engine.make_decoder = [this] { return std::make_unique<AnswerDecoder>(*text_->tokenizer); };
    engine.health = [this]() -> Status {
      return lost_ ? PeerLostError("rank 1 (spark-2, pid 7) is gone") : OkStatus();
    };
    engine_ = std::make_unique<Engine>(std::move(engine), executor_.get());
    auto server =
        StartGrpcServer(options, {"tiny", kContext, kVocab, 8, 1}, *text_, access_.get(), *engine_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::Inference::NewStub(channel_);
  }

  v1::GenerateRequest Ask(int max_tokens) {
    v1::GenerateRequest request;
    request.set_text("Hello");
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stop()->set_max_tokens(max_tokens);
    request.mutable_stop()->set_ignore_eos(true);
    return request;
  }

  struct Answer {
    std::string text;
    std::vector<int32_t> ids;
    v1::GenerateResponse last;
    grpc::Status status;
    int logprobs = 0;
  };
  Answer Generate(const v1::GenerateRequest& request, int64_t timeout_ms = 30'000,
                  int64_t pause_ms = 0) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms));
    Answer answer;
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      answer.text += response.text();
      answer.ids.insert(answer.ids.end(), response.token_ids().begin(), response.token_ids().end());
      answer.logprobs += response.logprobs_size();
      answer.last = response;
      if (pause_ms > 0) std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms));
    }
    answer.status = reader->Finish();
    return answer;
  }

  // What grpc.health.v1.Health/Check says for `service`: the raw bytes of its answer ("\x08\x01" is
  // SERVING).
  std::string Health(const std::string& service) {
    std::string request;
    if (!service.empty())
      request = std::string("\x0a") + static_cast<char>(service.size()) + service;
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const grpc::Slice slice(request);
    const grpc::ByteBuffer bytes(&slice, 1);
    const auto call =
        stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", bytes, &queue);
    grpc::ByteBuffer response;
    grpc::Status status;
    call->StartCall();
    call->Finish(&response, &status, nullptr);
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
    std::vector<grpc::Slice> slices;
    (void)response.Dump(&slices);
    std::string text;
    for (const grpc::Slice& part : slices)
      text.append(reinterpret_cast<const char*>(part.begin()), part.size());
    return status.ok() ? text : "error " + status.error_message();
  }

  void ExpectIdleSoon() {
    const Deadline deadline = Deadline::After(5'000);
    while (engine_->load().running > 0 && !deadline.Passed()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    EXPECT_EQ(engine_->load().running, 0);
  }

  std::unique_ptr<ModelText> text_;
  std::atomic<bool> lost_{false};
  std::unique_ptr<ThreadGroup> group_;
  std::unique_ptr<FakeModel> model_;
  std::unique_ptr<TensorParallelExecutor> executor_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Access> access_;  // null: nobody is asked for a key
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(GrpcServerTest, GenerateStreamsTextIdsUsageAndTimings) {
  Start();
  v1::GenerateRequest request = Ask(50);
  request.mutable_sampling()->set_logprobs(3);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.ids.size(), 50u);
  EXPECT_EQ(answer.text, text_->tokenizer->Decode(answer.ids, true));
  EXPECT_EQ(answer.logprobs, 50);
  EXPECT_EQ(answer.last.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.last.usage().completion_tokens(), 50);
  EXPECT_EQ(answer.last.usage().total_tokens(), answer.last.usage().prompt_tokens() + 50);
  EXPECT_GT(answer.last.timings().decode_tokens_per_second(), 0);
}

TEST_F(GrpcServerTest, TheSameSeedGivesTheSameAnswerForTextAndForIds) {
  Start();
  v1::GenerateRequest request = Ask(30);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(99);
  const Answer first = Generate(request);
  const std::vector<int32_t> ids = text_->tokenizer->Encode("Hello");
  request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
  EXPECT_EQ(Generate(request).ids, first.ids);
  request.mutable_sampling()->set_seed(100);
  EXPECT_NE(Generate(request).ids, first.ids);
}

TEST_F(GrpcServerTest, ChatKeepsReasoningAndContentApart) {
  Start();
  for (const bool thinking : {true, false}) {
    v1::ChatRequest request;
    v1::Message* message = request.add_messages();
    message->set_role("user");
    message->set_content("Hi");
    request.set_enable_thinking(thinking);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stop()->set_max_tokens(20);
    request.mutable_stop()->set_ignore_eos(true);
    grpc::ClientContext context;
    const auto reader = stub_->Chat(&context, request);
    v1::ChatResponse response;
    std::string content, reasoning;
    int64_t ids = 0;
    while (reader->Read(&response)) {
      content += response.content();
      reasoning += response.reasoning_content();
      ids += response.token_ids_size();
    }
    const grpc::Status status = reader->Finish();
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(ids, 20);
    // The model without weights writes noise, never </think>: everything is the one or the other.
    EXPECT_EQ(reasoning.empty(), !thinking);
    EXPECT_EQ(content.empty(), thinking);
    EXPECT_EQ(response.finish_reason(), v1::FINISH_REASON_LENGTH);
  }
}

TEST_F(GrpcServerTest, WrongFieldsAreInvalidArgumentsByName) {
  Start();
  const auto refused = [&](const v1::GenerateRequest& request, const char* field) {
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << field;
    EXPECT_NE(answer.status.error_message().find(field), std::string::npos)
        << answer.status.error_message();
  };
  v1::GenerateRequest request = Ask(5);
  request.clear_prompt();
  refused(request, "prompt");
  request = Ask(5);
  request.set_text("");
  refused(request, "prompt is empty");
  request = Ask(5);
  request.mutable_token_ids()->add_ids(999'999);
  refused(request, "token id");
  request = Ask(5);
  request.mutable_sampling()->set_temperature(-1);
  refused(request, "temperature");
  request = Ask(5);
  request.mutable_sampling()->set_logprobs(-7);
  refused(request, "logprobs");
  request = Ask(0);
  refused(request, "max_tokens");
  request = Ask(5);
  for (int i = 0; i < 10'000; ++i) request.mutable_stop()->add_texts("x");
  refused(request, "stop");
  request = Ask(5);
  std::string words;
  for (int i = 0; i < 2'000; ++i) words += "word ";
  request.set_text(words);
  refused(request, "context");
}

TEST_F(GrpcServerTest, WrongConversationsAreInvalidArgumentsByName) {
  Start();
  const auto refused = [&](const v1::ChatRequest& request, const char* field) {
    grpc::ClientContext context;
    const auto reader = stub_->Chat(&context, request);
    v1::ChatResponse response;
    while (reader->Read(&response)) {
    }
    const grpc::Status status = reader->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << field;
    EXPECT_NE(status.error_message().find(field), std::string::npos) << status.error_message();
  };
  v1::ChatRequest request;
  refused(request, "messages");
  request.add_messages()->set_role("robot");
  refused(request, "messages[0].role");
  request.mutable_messages(0)->set_role("user");
  request.add_tools("{");
  refused(request, "tools[0]");
  request.set_tools(0, "[]");
  refused(request, "tools[0]");
  request.clear_tools();
  request.mutable_messages(0)->add_tool_calls()->set_name("f");
  refused(request, "messages[0]");
}

TEST_F(GrpcServerTest, TokenizesAndTellsAboutTheModel) {
  Start();
  v1::TokenizeRequest tokenize;
  tokenize.set_text("Hello there <|user|>");
  v1::TokenizeResponse tokens;
  grpc::ClientContext first, second, third, fourth;
  ASSERT_TRUE(stub_->Tokenize(&first, tokenize, &tokens).ok());
  const std::vector<int32_t> ids(tokens.token_ids().begin(), tokens.token_ids().end());
  EXPECT_EQ(ids, text_->tokenizer->Encode("Hello there <|user|>"));
  v1::DetokenizeRequest detokenize;
  detokenize.mutable_token_ids()->Assign(ids.begin(), ids.end());
  v1::DetokenizeResponse text;
  ASSERT_TRUE(stub_->Detokenize(&second, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "Hello there <|user|>");
  detokenize.add_token_ids(-3);
  EXPECT_EQ(stub_->Detokenize(&third, detokenize, &text).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(stub_->GetModelInfo(&fourth, {}, &info).ok());
  EXPECT_EQ(info.name(), "tiny");
  EXPECT_EQ(info.max_model_len(), kContext);
  EXPECT_FALSE(info.chat_family().empty());
  EXPECT_FALSE(info.server_version().empty());
}

TEST_F(GrpcServerTest, CancellingTheCallStopsTheWork) {
  Start(/*step_ms=*/20);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Ask(400));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ExpectIdleSoon();
  EXPECT_LT(engine_->load().steps, 50u);
}

TEST_F(GrpcServerTest, ADeadlineStopsTheWork) {
  Start(/*step_ms=*/20);
  EXPECT_EQ(Generate(Ask(400), 200).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectIdleSoon();
  EXPECT_LT(engine_->load().steps, 100u);
}

TEST_F(GrpcServerTest, AFullQueueIsResourceExhausted) {
  Start(/*step_ms=*/10, /*max_queue=*/2);
  std::vector<std::thread> clients;
  std::atomic<int> exhausted{0}, answered{0};
  for (int i = 0; i < 30; ++i) {
    clients.emplace_back([&] {
      const Answer answer = Generate(Ask(60));
      if (answer.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) ++exhausted;
      if (answer.status.ok() && answer.ids.size() == 60) ++answered;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GT(exhausted, 0);
  EXPECT_GT(answered, 0);
  EXPECT_EQ(exhausted + answered, 30);
}

TEST_F(GrpcServerTest, ALostRankIsUnavailableWithItsName) {
  Start(/*step_ms=*/10);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Ask(400));
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  lost_ = true;
  while (reader->Read(&response)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "rank 1 (spark-2, pid 7) is gone");
  EXPECT_EQ(Generate(Ask(5)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GrpcServerTest, HealthFollowsTheService) {
  Start();
  for (const char* service : {"", "lockstep.v1.Inference"}) {
    EXPECT_EQ(Health(service), std::string("\x08\x01")) << service;
    server_->SetServing(false);
    EXPECT_EQ(Health(service), std::string("\x08\x02")) << service;
    server_->SetServing(true);
  }
  EXPECT_EQ(Health("no.such.Service").substr(0, 5), "error");
}

TEST_F(GrpcServerTest, ManyStreamsWithSlowReadersLoseNothing) {
  Start();
  const std::vector<int32_t> expected = Generate(Ask(200)).ids;
  std::vector<std::thread> clients;
  std::atomic<int> right{0};
  for (int i = 0; i < 32; ++i) {
    clients.emplace_back([&, i] {
      const Answer answer = Generate(Ask(200), 60'000, i % 4 == 0 ? 5 : 0);
      if (answer.status.ok() && answer.ids == expected) ++right;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(right, 32);
}

// Connections that take nothing: their receive windows are small and full.
TEST_F(GrpcServerTest, AClientThatDoesNotReadHoldsUpNobodyAndIsDropped) {
  Start(0, 256, {.part_ms = 1500});
  v1::GenerateRequest request = Ask(480);
  request.mutable_sampling()->set_logprobs(20);  // 20 KiB and more of an answer
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto channel = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                                 grpc::InsecureChannelCredentials(), arguments);
  const auto stub = v1::Inference::NewStub(channel);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (int i = 0; i < 4; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub->Generate(contexts.back().get(), request));
  }
  // Others are answered meanwhile, and the engine computes all of what nobody reads.
  for (int i = 0; i < 8; ++i) EXPECT_EQ(Generate(Ask(50)).ids.size(), 50u);
  ExpectIdleSoon();
  std::this_thread::sleep_for(std::chrono::milliseconds(3500));
  for (const auto& reader : readers) {
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
}

TEST_F(GrpcServerTest, KeysLimitsNamesAndTracesAreThoseOfHttp) {
  const testing::TemporaryDirectory directory;
  // Of "test", as sha256sum prints it.
  directory.Write("keys",
                  "alice 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 "
                  "requests=1 tokens-per-minute=400");
  const auto keys = ApiKeys::Load(directory.path() + "/keys");
  ASSERT_TRUE(keys.ok()) << keys.status();
  access_ = std::make_unique<Access>(keys->get());
  Start();
  const auto ask = [&](const char* key, int max_tokens, grpc::ClientContext* context) {
    if (*key != '\0') context->AddMetadata("authorization", std::string("Bearer ") + key);
    context->AddMetadata("x-request-id", "my-1");
    context->AddMetadata("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    const auto reader = stub_->Generate(context, Ask(max_tokens));
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  };
  const auto said = [](const grpc::ClientContext& context, const char* name) -> std::string {
    for (const auto* metadata :
         {&context.GetServerInitialMetadata(), &context.GetServerTrailingMetadata()}) {
      const auto found = metadata->find(name);
      if (found != metadata->end()) return {found->second.data(), found->second.size()};
    }
    return "";
  };
  grpc::ClientContext none, wrong, right, beyond;
  EXPECT_EQ(ask("", 5, &none).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(ask("tes", 5, &wrong).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(ask("test", 300, &right).ok());
  for (const grpc::ClientContext* context : {&none, &wrong, &right})
    EXPECT_EQ(said(*context, "x-request-id"), "my-1");
  EXPECT_EQ(said(right, "x-ratelimit-limit-tokens"), "400");
  EXPECT_EQ(said(right, "traceparent").substr(0, 36), "00-0af7651916cd43dd8448eb211c80319c-");
  EXPECT_EQ(ask("test", 300, &beyond).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_GE(std::atoi(said(beyond, "retry-after").c_str()), 25);
}

TEST_F(GrpcServerTest, ShutdownEndsOpenStreams) {
  Start(/*step_ms=*/20);
  std::thread client([&] { EXPECT_FALSE(Generate(Ask(400)).status.ok()); });
  while (engine_->load().running == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  (void)engine_->Stop(ErrorKind{0});
  server_->Shutdown(1'000);
  client.join();
}

TEST_F(GrpcServerTest, APortInUseIsAUsageErrorWithPortAndFlag) {
  Start();
  GrpcServerOptions options;
  options.port = server_->port();
  const auto second = StartGrpcServer(options, {}, *text_, nullptr, *engine_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(KindOf(second.status()), ErrorKind::kUsage);
  EXPECT_NE(MessageOf(second.status()).find(std::to_string(server_->port())), std::string::npos);
  EXPECT_NE(MessageOf(second.status()).find("--grpc-port"), std::string::npos);
}

}  // namespace
}  // namespace lockstep
