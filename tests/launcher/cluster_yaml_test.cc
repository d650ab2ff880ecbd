#include "launcher/cluster_yaml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

#include "launcher/command_line.h"
#include "launcher/world.h"
#include "runtime/base/file.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

StatusOr<ClusterFile> Parse(const std::string& text) { return ParseClusterYaml(text, "c.yaml"); }

std::string ErrorOf(const std::string& text) {
  const StatusOr<ClusterFile> file = Parse(text);
  if (file.ok()) return "accepted";
  EXPECT_EQ(ExitCode(file.status()), 2) << text;
  return MessageOf(file.status());
}

TEST(ClusterYaml, ReadsOptionsAndNodes) {
  const StatusOr<ClusterFile> file = Parse(
      "model: /m\n"
      "collective: shm\n"
      "nodes:\n"
      "  - address: spark-1:4000\n"
      "    share: 3\n"
      "  - address: 10.0.0.2\n"
      "    threads: 8\n"
      "    interface: enp1s0f0\n"
      "    name: second\n"
      "  - address: '[fe80::1]:4001'\n");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->options.model, "/m");
  EXPECT_EQ(file->options.collective, "shm");
  ASSERT_EQ(file->nodes.size(), 3u);
  EXPECT_EQ(file->nodes[0].host, "spark-1");
  EXPECT_EQ(file->nodes[0].port, 4000);
  EXPECT_EQ(file->nodes[0].name, "spark-1");
  EXPECT_EQ(file->nodes[1].threads, 8);
  EXPECT_EQ(file->nodes[1].interface, "enp1s0f0");
  EXPECT_EQ(file->nodes[1].name, "second");
  EXPECT_EQ(file->nodes[2].host, "fe80::1");
  EXPECT_EQ(file->nodes[2].port, 4001);
  EXPECT_THAT(file->options.shares, ElementsAre(3, 1, 1));
}

TEST(ClusterYaml, EveryOptionIsAKey) {
  for (const OptionSpec& spec : OptionTable()) {
    if (std::string(spec.name) == "config" || std::string(spec.name) == "rank") continue;
    std::string value = "1";
    if (!spec.allowed.empty()) value = spec.allowed.back();
    if (std::holds_alternative<bool Options::*>(spec.field)) value = "true";
    if (spec.lowest > 1) value = std::to_string(static_cast<int64_t>(spec.lowest));
    const StatusOr<ClusterFile> file = Parse(std::string(spec.name) + ": " + value + "\n");
    EXPECT_TRUE(file.ok()) << file.status();
  }
}

TEST(ClusterYaml, ListsMayBeWrittenAsLists) {
  const StatusOr<ClusterFile> file = Parse("shares: [3, 2]\nstop: ['</a>', \"b\"]\n");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->options.shares, ElementsAre(3, 2));
  EXPECT_THAT(file->options.stop, ElementsAre("</a>", "b"));
}

TEST(ClusterYaml, UnknownKeysAreRefusedWithFileLineAndTheNearestKey) {
  EXPECT_THAT(
      ErrorOf("model: m\nmax-modellen: 3\n"),
      AllOf(HasSubstr("c.yaml:2"), HasSubstr("'max-modellen'"), HasSubstr("'max-model-len'")));
  EXPECT_THAT(ErrorOf("\n\nquantum: 3\n"),
              AllOf(HasSubstr("c.yaml:3"), HasSubstr("the keys are nodes, model")));
  EXPECT_THAT(
      ErrorOf("nodes:\n  - address: a\n    shares: 3\n"),
      AllOf(HasSubstr("c.yaml:3"), HasSubstr("'share'"), HasSubstr("address, share, threads")));
}

TEST(ClusterYaml, WrongValuesAreRefusedWithFileLineAndTheAllowedOnes) {
  EXPECT_THAT(ErrorOf("model: m\ncollective: nccl2\n"),
              AllOf(HasSubstr("c.yaml:2: collective"), HasSubstr("tcp, shm, rdma, mpi")));
  EXPECT_THAT(ErrorOf("grpc-port: 70000\n"),
              AllOf(HasSubstr("c.yaml:1: grpc-port"), HasSubstr("65535")));
  EXPECT_THAT(ErrorOf("raw: yes\n"), HasSubstr("true, false"));
  EXPECT_THAT(ErrorOf("model:\n"), HasSubstr("model has no value"));
  EXPECT_THAT(ErrorOf("model: {a: b}\n"), HasSubstr("single value"));
  EXPECT_THAT(ErrorOf("model: [a, b]\n"), HasSubstr("single value"));
  EXPECT_THAT(ErrorOf("shares: [[1], 2]\n"), HasSubstr("single value"));
  EXPECT_THAT(ErrorOf("shares: []\n"), HasSubstr("shares"));
  EXPECT_THAT(ErrorOf("threads: 1.5\n"), HasSubstr("whole number"));
}

TEST(ClusterYaml, NodesAreChecked) {
  EXPECT_THAT(ErrorOf("nodes: 3\n"), HasSubstr("must be a list"));
  EXPECT_THAT(ErrorOf("nodes: []\n"), HasSubstr("must be a list"));
  EXPECT_THAT(ErrorOf("nodes:\n  - spark-1\n"), HasSubstr("- address: spark-1"));
  EXPECT_THAT(ErrorOf("nodes:\n  - share: 1\n"), HasSubstr("no address"));
  EXPECT_THAT(ErrorOf("nodes:\n  - address: a:0\n"), HasSubstr("1 .. 65535"));
  EXPECT_THAT(ErrorOf("nodes:\n  - address: a:b\n"), HasSubstr("port 'b'"));
  EXPECT_THAT(ErrorOf("nodes:\n  - address: 'a b'\n"), HasSubstr("host or host:port"));
  EXPECT_THAT(ErrorOf("nodes:\n  - address: ''\n"), HasSubstr("empty"));
  EXPECT_THAT(ErrorOf("nodes:\n  - address: a\n    share: -1\n"), HasSubstr("share"));
  EXPECT_THAT(ErrorOf("nodes:\n  - address: a\n    share: 1,2\n"), HasSubstr("one number"));
}

TEST(ClusterYaml, ContradictionsAreRefusedWithBothValues) {
  EXPECT_THAT(ErrorOf("ranks: 3\nnodes:\n  - address: a\n  - address: b\n"),
              AllOf(HasSubstr("c.yaml:1"), HasSubstr("ranks is 3"), HasSubstr("lists 2")));
  EXPECT_THAT(ErrorOf("nodes:\n  - address: a\n  - address: b\nshares: 1,2,3\n"),
              AllOf(HasSubstr("3 shares"), HasSubstr("2 nodes")));
  EXPECT_THAT(ErrorOf("shares: 1\nnodes:\n  - address: a\n    share: 2\n"), HasSubstr("keep one"));
  EXPECT_THAT(ErrorOf("model: a\nmodel: b\n"), AllOf(HasSubstr("c.yaml:2"), HasSubstr("twice")));
  EXPECT_THAT(ErrorOf("rank: 1\n"), HasSubstr("command line"));
  EXPECT_THAT(ErrorOf("config: other.yaml\n"), HasSubstr("command line"));
}

TEST(ClusterYaml, TextThatIsNotYamlIsRefused) {
  EXPECT_THAT(ErrorOf("model: [a\n"), HasSubstr("c.yaml:"));
  EXPECT_THAT(ErrorOf("- a\n- b\n"), HasSubstr("key: value"));
  EXPECT_THAT(ErrorOf("just words"), HasSubstr("key: value"));
  EXPECT_THAT(ErrorOf("? [a, b]\n: c\n"), HasSubstr("one word"));
  EXPECT_THAT(ErrorOf(std::string(100'000, '[')), HasSubstr("c.yaml"));
  EXPECT_THAT(ErrorOf("a: &x [*x]\n"), HasSubstr("c.yaml"));
  EXPECT_THAT(ErrorOf("model: \"a\\0b\"\n"), HasSubstr("zero byte"));
  EXPECT_TRUE(Parse("").ok());
  EXPECT_TRUE(Parse("# only a comment\n").ok());
}

TEST(ClusterYaml, AHugeFileIsRefusedUnread) {
  const std::string path = testing::TempDir() + "/huge.yaml";
  std::ofstream(path) << std::string(2 << 20, '#');
  const StatusOr<ClusterFile> file = ReadClusterYaml(path);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(ExitCode(file.status()), 2);
}

// The values of commented-out keys in configs/ are the real defaults, and uncommenting any of them
// is legal.
TEST(Configs, EveryShippedFileIsValidAndItsCommentedKeysHoldTheDefaults) {
  const char* root = std::getenv("LOCKSTEP_SOURCE_DIR");
  ASSERT_NE(root, nullptr);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(root) + "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    ++files;
    const StatusOr<std::string> text = ReadTextFile(entry.path());
    ASSERT_TRUE(text.ok()) << text.status();
    const StatusOr<ClusterFile> file = ParseClusterYaml(*text, entry.path());
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_FALSE(file->nodes.empty());
    const std::regex commented("\n# ?([a-z-]+): ([^ \n]+)");
    for (std::sregex_iterator match(text->begin(), text->end(), commented), end; match != end;
         ++match) {
      const std::string key = (*match)[1], value = (*match)[2];
      const OptionSpec* spec = FindOption(key);
      ASSERT_NE(spec, nullptr) << entry.path() << ": " << key;
      Options options;
      EXPECT_TRUE(SetOption(*spec, value, key, &options).ok()) << key << ": " << value;
      const Options defaults;
      if (const auto* field = std::get_if<int64_t Options::*>(&spec->field)) {
        if (defaults.*(*field) != 0) {
          EXPECT_EQ(options.*(*field), defaults.*(*field)) << key;
        }
      }
      if (const auto* field = std::get_if<std::string Options::*>(&spec->field)) {
        if (!(defaults.*(*field)).empty()) {
          EXPECT_EQ(options.*(*field), defaults.*(*field)) << key;
        }
      }
    }
  }
  EXPECT_GE(files, 10);
}

// The hosts of an Open MPI hostfile, each as often as it has slots.
std::vector<std::string> HostsOf(const std::string& text) {
  std::vector<std::string> hosts;
  std::istringstream lines(text);
  std::string host, slots;
  while (lines >> host >> slots) {
    EXPECT_TRUE(slots.starts_with("slots=")) << text;
    for (int i = std::stoi(slots.substr(6)); i > 0; --i) hosts.push_back(host);
  }
  return hosts;
}

std::string FirstMatch(const std::string& text, const std::string& pattern) {
  std::smatch match;
  return std::regex_search(text, match, std::regex(pattern)) ? match[1].str() : "";
}

// What the first lines of a file say of starting it agrees with its nodes, and every rank finds its
// place by it.
TEST(Configs, EveryClusterStartsAsItsFirstLinesSay) {
  const char* source = std::getenv("LOCKSTEP_SOURCE_DIR");
  ASSERT_NE(source, nullptr);
  const std::string root = source;
  const std::string secret = testing::TempDir() + "/secret";
  std::ofstream(secret) << "0123456789abcdef0123456789abcdef";
  std::filesystem::permissions(secret, std::filesystem::perms::owner_read);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root + "/configs")) {
    if (entry.path().extension() != ".yaml") continue;
    ++files;
    SCOPED_TRACE(entry.path());
    const std::string name = entry.path().stem();
    const StatusOr<std::string> read = ReadTextFile(entry.path());
    ASSERT_TRUE(read.ok()) << read.status();
    const std::string& text = *read;
    const StatusOr<ClusterFile> parsed = ParseClusterYaml(text, entry.path());
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    const ClusterFile& file = *parsed;
    const int size = static_cast<int>(file.nodes.size());
    ASSERT_GE(size, 1);
    EXPECT_THAT(text, HasSubstr("lockstep up configs/" + name + ".yaml "));
    EXPECT_EQ(FirstMatch(text, "mpirun -n ([0-9]+) "), std::to_string(size));
    EXPECT_EQ(FirstMatch(text, "lockstep serve --config [a-z/]*/([a-z0-9-]+)\\.yaml"), name);
    const bool local = file.nodes.front().host == "127.0.0.1";
    const std::string hostfile = FirstMatch(text, "--hostfile ([^ ]+) ");
    EXPECT_EQ(hostfile, local ? "" : "deploy/hostfiles/" + name);
    EXPECT_EQ(file.options.secret_file.empty(), local);
    if (file.options.collective == "shm") {
      EXPECT_TRUE(local);
    }
    std::vector<std::string> hosts;
    for (const ClusterNode& node : file.nodes) hosts.push_back(node.host);
    if (!local) {
      const StatusOr<std::string> listed = ReadTextFile(root + "/" + hostfile);
      ASSERT_TRUE(listed.ok()) << listed.status();
      EXPECT_EQ(HostsOf(*listed), hosts);
    }
    for (int rank = 0; rank < size; ++rank) {
      Options options = file.options;
      options.config = entry.path();
      options.rank = rank;
      if (!local) options.secret_file = secret;
      Surroundings around;
      around.nodes = file.nodes;
      const StatusOr<World> world = DecideWorld(options, around, rank > 0);
      ASSERT_TRUE(world.ok()) << world.status();
      EXPECT_EQ(world->rank, rank);
      EXPECT_EQ(world->size, size);
      EXPECT_EQ(world->shares, std::vector<double>(static_cast<size_t>(size), 1.0));
      if (size > 1) {
        EXPECT_EQ(world->rendezvous, hosts.front() + ":29517");
      }
      EXPECT_EQ(world->secret.empty(), local);
    }
  }
  EXPECT_GE(files, 10);
}

TEST(WithNumber, ChangesNothingElse) {
  const auto with = [](const std::string& text) {
    const StatusOr<std::string> changed = WithNumber(text, "c.yaml", "direct-sum-bytes", 4096);
    return changed.ok() ? *changed : MessageOf(changed.status());
  };
  const std::string nodes = "# ours\nnodes:\n  - address: a # first\n  - address: b\n";
  const std::string line = "direct-sum-bytes: 4096\n";
  EXPECT_EQ(with(nodes), nodes + line);
  EXPECT_EQ(with(nodes.substr(0, nodes.size() - 1)), nodes + line);
  EXPECT_EQ(with(""), line);
  EXPECT_EQ(with("direct-sum-bytes: 7 # by hand\n" + nodes), line + nodes);
  EXPECT_EQ(with(nodes + "direct-sum-bytes: 7"), nodes + line);
  EXPECT_THAT(with("{model: x}"), AllOf(HasSubstr("c.yaml"), HasSubstr("direct-sum-bytes: 4096")));
  EXPECT_THAT(with("modle: x\n"), HasSubstr("c.yaml:1"));
  // What looks like the key need not be it.
  const std::string quoted = "model: \"a\ndirect-sum-bytes: 7\"\n";
  EXPECT_THAT(with(quoted), HasSubstr("by hand"));
  EXPECT_EQ(with(quoted + line), quoted + line);
}

}  // namespace
}  // namespace lockstep
