// `lockstep files` and `lockstep shard --from`, over a real server on loopback.
#include "launcher/files/shard_source.h"

#include <sys/stat.h>

#include <atomic>
#include <cstring>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/file.h"
#include "tests/launcher/files/serving.h"
#include "tests/launcher/program.h"
#include "tests/support/fake_http.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

std::string ModelPath(const std::string& name) {
  return SourceFile("tests/goldens/models/" + name);
}

std::string ReadAll(const std::string& path) { return ReadTextFile(path).value(); }

std::vector<std::string> Names(const std::string& directory) { return NamesIn(directory).value(); }

std::vector<std::string> ShardNames(const std::string& directory) {
  std::vector<std::string> names;
  for (const std::string& name : Names(directory)) {
    if (name.ends_with(".lockstep")) names.push_back(name);
  }
  return names;
}

void ExpectSameFiles(const std::string& one, const std::string& other) {
  ASSERT_EQ(ShardNames(one), ShardNames(other));
  for (const std::string& name : Names(other))
    EXPECT_TRUE(ReadAll(one + "/" + name) == ReadAll(other + "/" + name)) << name;
}

Program Shard(const std::vector<std::string>& flags) {
  std::vector<std::string> arguments = {"shard"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return Program(arguments);
}

void RunShard(const std::vector<std::string>& flags, std::string* error = nullptr) {
  Program program = Shard(flags);
  const int code = program.Wait();
  EXPECT_EQ(code, 0) << program.error();
  if (error != nullptr) *error = program.error();
}

std::vector<std::string> Cut(std::vector<std::string> flags) {
  flags.insert(flags.end(), {"--ranks", "3", "--shares", "3,1,2"});
  return flags;
}

class ShardFrom : public ::testing::TestWithParam<const char*> {};

TEST_P(ShardFrom, MakesTheFilesThatTheLocalCheckpointMakes) {
  const std::string name = GetParam();
  const bool directory = std::filesystem::is_directory(ModelPath(name));
  const TemporaryDirectory out;
  const Serving serving(directory ? ModelPath(name) : ModelPath(""));
  const std::string url = serving.url() + (directory ? "" : "/" + name);
  RunShard(Cut({"--model", ModelPath(name), "--out", out.File("local")}));
  RunShard(Cut({"--from", url, "--out", out.File("remote")}));
  ExpectSameFiles(out.File("local"), out.File("remote"));
  for (const char* rank : {"2", "0", "1"})
    RunShard(Cut({"--from", url, "--out", out.File("ranks"), "--rank", rank}));
  ExpectSameFiles(out.File("local"), out.File("ranks"));
  // The probe prompt is recorded over the network for those who ask, by any rank.
  EXPECT_THAT(Names(out.File("ranks")), ::testing::Not(Contains("probe.json")));
  RunShard(Cut({"--from", url, "--out", out.File("ranks"), "--rank", "1", "--record"}));
  EXPECT_EQ(ReadAll(out.File("ranks") + "/probe.json"), ReadAll(out.File("local") + "/probe.json"));
  // And a set of such files, copied.
  const Serving set(out.File("local"));
  RunShard({"--from", set.url(), "--out", out.File("copy"), "--rank", "1"});
  EXPECT_THAT(ShardNames(out.File("copy")), ElementsAre("rank-1-of-3.lockstep"));
  RunShard({"--from", set.url(), "--out", out.File("copy")});
  ExpectSameFiles(out.File("local"), out.File("copy"));
}

INSTANTIATE_TEST_SUITE_P(Models, ShardFrom,
                         ::testing::Values("tiny-k", "tiny-a-fp8", "tiny-k-mlx4", "tiny-flash",
                                           "tiny-k-Q4_K_M.gguf", "tiny-b-Q8_0.gguf"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) != 0 ? c : '_';
                           return name;
                         });

TEST(ShardFromTest, QuantizesOnTheWay) {
  const TemporaryDirectory out;
  const Serving serving(ModelPath("tiny-k"));
  RunShard({"--model", ModelPath("tiny-k"), "--out", out.File("local"), "--ranks", "2",
            "--quantize", "q4_k,head=q6_k"});
  RunShard({"--from", serving.url(), "--out", out.File("remote"), "--ranks", "2", "--quantize",
            "q4_k,head=q6_k"});
  ExpectSameFiles(out.File("local"), out.File("remote"));
}

TEST(ShardFromTest, ASecretIsProvenOrRefused) {
  const TemporaryDirectory out;
  const Serving serving(ModelPath("tiny-a"), kSecret);
  const auto secret = [&](const std::string& name, const std::string& text) {
    out.Write(name, text);
    EXPECT_EQ(chmod(out.File(name).c_str(), 0600), 0);
    return out.File(name);
  };
  const std::vector<std::string> flags = {"--from", serving.url(), "--ranks",
                                          "2",      "--out",       out.File("out")};
  Program none = Shard(flags);
  EXPECT_EQ(none.Wait(), 2);
  EXPECT_THAT(none.error(), AllOf(HasSubstr("refused (status 401)"), HasSubstr("--secret-file")));
  std::vector<std::string> with = flags;
  with.insert(with.end(), {"--secret-file", secret("wrong", "this is not the secret")});
  Program wrong = Shard(with);
  EXPECT_EQ(wrong.Wait(), 2);
  EXPECT_THAT(wrong.error(), HasSubstr("another secret"));
  EXPECT_EQ(serving.server->requests(), 0u);
  EXPECT_FALSE(FileExists(out.File("out")));
  with.back() = secret("right", std::string(kSecret) + "\n");
  RunShard(with);
  EXPECT_EQ(ShardNames(out.File("out")).size(), 2u);
}

TEST(ShardFromTest, OnlyHuggingFaceIsShownItsToken) {
  EXPECT_TRUE(IsHuggingFace("https://huggingface.co/zai-org/GLM-4.7/resolve/main"));
  EXPECT_TRUE(IsHuggingFace("HTTPS://HuggingFace.co:443/x"));
  EXPECT_TRUE(IsHuggingFace("https://huggingface.co"));
  for (const char* other : {"http://huggingface.co/x", "https://huggingface.co.example.org/x",
                            "https://huggingface.com", "https://example.org/huggingface.co",
                            "https://example.org/?https://huggingface.co/x",
                            "https://huggingface.co@example.org/x", "https://xhuggingface.co/",
                            "huggingface.co/x", "https://huggingface.co:x@example.org/", ""}) {
    EXPECT_FALSE(IsHuggingFace(other)) << other;
  }
  EXPECT_EQ(HuggingFaceToken(nullptr).value(), "");
  EXPECT_EQ(HuggingFaceToken("hf_abc123").value(), "hf_abc123");
  for (const char* wrong : {"two words", "line\r\nCookie: x", "t\xc3\xb6ken"})
    EXPECT_THAT(MessageOf(HuggingFaceToken(wrong).status()), HasSubstr("HF_TOKEN")) << wrong;
}

TEST(ShardFromTest, AnotherServerDoesNotSeeTheTokenOfHuggingFace) {
  const TemporaryDirectory out;
  std::atomic<bool> seen{false};
  testing::FakeHttpServer server([&](const testing::FakeRequest& request) {
    if (request.Has("hf_secret") || request.Has("Authorization")) seen = true;
    return testing::HttpText("401 Unauthorized", "Content-Length: 0\r\n", "");
  });
  setenv("HF_TOKEN", "hf_secret", 1);
  Program program = Shard({"--from", server.url(), "--ranks", "1", "--out", out.File("out")});
  unsetenv("HF_TOKEN");
  EXPECT_EQ(program.Wait(), 2);
  EXPECT_THAT(program.error(), HasSubstr("--secret-file"));
  EXPECT_GT(server.requests(), 0);
  EXPECT_FALSE(seen);
}

// The answer of a right server that serves a directory.
std::string RightAnswer(const std::string& directory, const testing::FakeRequest& request) {
  if (request.path != "/") {
    return FileExists(directory + request.path)
               ? testing::HttpPart(ReadAll(directory + request.path), request)
               : testing::HttpNotFound();
  }
  std::string list = R"({"lockstep": "files", "files": [)";
  for (const std::string& name : Names(directory))
    list += (list.ends_with("[") ? "{\"name\": \"" : ", {\"name\": \"") + name + "\"}";
  std::string answer = testing::HttpPart(list + "]}", request);
  return answer.insert(answer.find("ETag"), "Content-Type: application/json\r\n");
}

// A server that is right, but for what `spoil` does to its answers.
struct Spoiling {
  std::string directory;
  std::function<void(const testing::FakeRequest&, std::string*)> spoil;

  std::string operator()(const testing::FakeRequest& request) const {
    std::string answer = RightAnswer(directory, request);
    spoil(request, &answer);
    return answer;
  }
};

// Every second answer breaks somewhere; some are apologies.
void Stumble(const testing::FakeRequest& request, std::string* answer) {
  if (request.number % 4 == 1) answer->resize(answer->size() / 2);
  if (request.number % 4 == 3)
    *answer = testing::HttpText("503 Service Unavailable", "Content-Length: 0\r\n", "");
}

TEST(ShardFromTest, ASetThatIsDamagedOnTheWayIsNamed) {
  const TemporaryDirectory out;
  RunShard({"--model", ModelPath("tiny-b"), "--out", out.File("set"), "--ranks", "2"});
  const std::string name = "rank-1-of-2.lockstep";
  const uint64_t size = std::filesystem::file_size(out.File("set/" + name));
  const testing::FakeHttpServer server(
      Spoiling(out.File("set"), [&](const testing::FakeRequest& request, std::string* answer) {
        if (request.path != "/" + name || request.last < size - 1) return;
        answer->back() = static_cast<char>(answer->back() ^ 1);  // the file's last byte
      }));
  Program program = Shard({"--from", server.url(), "--out", out.File("copy"), "--rank", "1"});
  EXPECT_EQ(program.Wait(), 3);
  EXPECT_THAT(program.error(), AllOf(HasSubstr("does not match its checksum"), HasSubstr(name)));
  EXPECT_TRUE(ShardNames(out.File("copy")).empty());
  // From a right server the copy goes on.
  const Serving right(out.File("set"));
  RunShard({"--from", right.url(), "--out", out.File("copy"), "--rank", "1"});
  EXPECT_TRUE(ReadAll(out.File("set/" + name)) == ReadAll(out.File("copy/" + name)));
  EXPECT_FALSE(FileExists(out.File("copy/" + name + ".part")));
}

TEST(ShardFromTest, OfASetWhatShardMadeIsCopiedAndNoOtherWeights) {
  const TemporaryDirectory out;
  RunShard({"--model", ModelPath("tiny-k-Q4_K_M.gguf"), "--out", out.File("set"), "--ranks", "2"});
  const std::vector<std::string> names = Names(out.File("set"));
  EXPECT_THAT(names, ::testing::IsSupersetOf({"tokenizer.gguf", "probe.json"}));
  // More than a text may have, in a file that takes no room.
  for (const char* other : {"set/other.safetensors", "set/other.gguf", "set/other.lockstep"}) {
    out.Write(other, "x");
    std::filesystem::resize_file(out.File(other), uint64_t{300} << 20);
  }
  const Serving set(out.File("set"));
  RunShard({"--from", set.url(), "--out", out.File("copy")});
  EXPECT_EQ(Names(out.File("copy")), names);
  for (const std::string& name : names)
    EXPECT_TRUE(ReadAll(out.File("set/" + name)) == ReadAll(out.File("copy/" + name))) << name;
}

TEST(ShardFromTest, ServersThatStumbleAreOvercome) {
  const TemporaryDirectory out;
  RunShard({"--model", ModelPath("tiny-k"), "--out", out.File("local"), "--ranks", "2"});
  const testing::FakeHttpServer server(Spoiling{ModelPath("tiny-k"), Stumble});
  RunShard({"--from", server.url(), "--out", out.File("remote"), "--ranks", "2"});
  ExpectSameFiles(out.File("local"), out.File("remote"));
}

TEST(ShardFromTest, AKilledStartGoesOn) {
  const TemporaryDirectory out;
  RunShard({"--model", ModelPath("tiny-k"), "--out", out.File("local"), "--ranks", "2"});
  for (const std::string& what : {std::string("checkpoint"), std::string("set")}) {
    const std::string directory = what == "set" ? out.File("local") : ModelPath("tiny-k");
    std::atomic<testing::FakeHttpServer*> self = nullptr;
    // Slow enough to be killed in between, and for the journal, which is written once a second.
    const auto stall = [&](const testing::FakeRequest& request, std::string*) {
      if (request.number > 4)
        self.load()->Sleep(what == "set" && request.number > 10 ? 20'000 : 600);
    };
    testing::FakeHttpServer server(Spoiling{directory, stall});
    self = &server;
    const std::vector<std::string> flags = {"--from",  server.url(), "--out",     out.File(what),
                                            "--ranks", "2",          "--threads", "2"};
    Program killed = Shard(flags);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    const auto has_begun = [&] {
      if (what == "set") return server.requests() > 11;
      int journals = 0;
      if (!IsDirectory(out.File(what))) return false;
      for (const std::string& name : Names(out.File(what))) {
        if (!name.ends_with(".journal")) continue;
        const std::string text = ReadAll(out.File(what) + "/" + name);
        if (std::count(text.begin(), text.end(), '\n') < 2) return false;
        ++journals;
      }
      return journals > 0;
    };
    while (!has_begun() && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(kill(killed.pid(), SIGKILL), 0);
    EXPECT_EQ(killed.Wait(), -SIGKILL);
    const Serving right(directory);
    std::vector<std::string> again = flags;
    again[1] = right.url();
    std::string log;
    RunShard(again, &log);
    EXPECT_THAT(log, HasSubstr("tensors were there from an earlier start")) << what;
    ExpectSameFiles(out.File("local"), out.File(what));
  }
}

TEST(ShardFromTest, FlagsThatDoNotFitAreRefused) {
  const TemporaryDirectory out;
  RunShard({"--model", ModelPath("tiny-a"), "--out", out.File("set"), "--ranks", "2"});
  const Serving set(out.File("set")), checkpoint(ModelPath("tiny-a"));
  for (const auto& [flags, text] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"--from", set.url(), "--ranks", "3"}, "files for 2 ranks"},
           {{"--from", set.url(), "--rank", "2"}, "ranks 0 to 1"},
           {{"--from", set.url(), "--quantize", "q8_0"}, "copied as they are"},
           {{"--from", set.url(), "--shares", "1,2"}, "have theirs"},
           {{"--from", checkpoint.url(), "--ranks", "2", "--rank", "2"}, "ranks 0 to 1"},
           {{"--from", checkpoint.url(), "--model", "x", "--ranks", "2"}, "leave one out"},
           {{"--from", "nonsense", "--ranks", "2"}, "no URL"}}) {
    std::vector<std::string> all = {"--out", out.File("out")};
    all.insert(all.end(), flags.begin(), flags.end());
    Program program = Shard(all);
    EXPECT_EQ(program.Wait(), 2) << text;
    EXPECT_THAT(program.error(), HasSubstr(text));
  }
}

TEST(FilesCommandTest, ServesUntilASignal) {
  for (const int signal : {SIGINT, SIGTERM}) {
    Program program({"files", ModelPath("tiny-a"), "--port", "0"});
    ASSERT_TRUE(program.WaitForError("a rank fetches")) << program.error();
    const size_t at = program.error().find("http://127.0.0.1:");
    ASSERT_NE(at, std::string::npos);
    const int port = std::atoi(program.error().c_str() + at + std::strlen("http://127.0.0.1:"));
    EXPECT_THAT(Exchange(port, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
                HasSubstr("model.safetensors"));
    kill(program.pid(), signal);
    EXPECT_EQ(program.Wait(10), 0);
    EXPECT_THAT(program.error(), HasSubstr("1 requests"));
  }
  Program none({"files"});
  EXPECT_EQ(none.Wait(), 2);
  const TemporaryDirectory empty;
  Program nothing({"files", empty.path()});
  EXPECT_EQ(nothing.Wait(), 3);
  EXPECT_THAT(nothing.error(), HasSubstr("holds no file of a model"));
}

TEST(FilesCommandTest, NamesWhatItLeavesOut) {
  const TemporaryDirectory directory;
  directory.Write("my model (1).gguf", "words");
  Program nothing({"files", directory.path()});
  EXPECT_EQ(nothing.Wait(), 3);
  EXPECT_THAT(nothing.error(), HasSubstr("'my model (1).gguf' left out"));
  EXPECT_THAT(nothing.error(), HasSubstr("letters, digits and"));
  directory.Write("notes (1).txt", "words");
  directory.Write("x.gguf", "words");
  Program some({"files", directory.path(), "--port", "0"});
  ASSERT_TRUE(some.WaitForError("a rank fetches")) << some.error();
  EXPECT_THAT(some.error(), HasSubstr("'my model (1).gguf' left out"));
  EXPECT_THAT(some.error(), HasSubstr("serving 1 files"));
  EXPECT_THAT(some.error(), ::testing::Not(HasSubstr("notes")));
}

}  // namespace
}  // namespace lockstep
