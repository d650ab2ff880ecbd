#include "launcher/hardware_yaml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace lockstep {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const HardwareCatalogue& Catalogue() {
  static const StatusOr<HardwareCatalogue> catalogue =
      ParseHardwareCatalogue(std::string(HardwareText()), "hardware.yaml");
  EXPECT_TRUE(catalogue.ok()) << catalogue.status();
  return *catalogue;
}

StatusOr<planner::Hardware> Parse(const std::string& text) {
  return ParseHardware(text, "mine.yaml", Catalogue());
}

std::string ErrorOf(const std::string& text) {
  const StatusOr<planner::Hardware> hardware = Parse(text);
  if (hardware.ok()) return "accepted";
  EXPECT_EQ(ExitCode(hardware.status()), 2) << text;
  return MessageOf(hardware.status());
}

TEST(HardwareYaml, ThePresetsAreThoseThatPeopleCompare) {
  for (const char* name :
       {"rtx-pro-6000", "strix-halo-1", "dgx-spark-1", "strix-halo-4-rpc", "strix-halo-4-rdma",
        "dgx-spark-2", "dgx-spark-3", "dgx-spark-4", "m2-ultra-1", "m3-ultra-1", "m3-ultra-4-rdma",
        "a100-4", "h100-8", "h200-8"}) {
    const StatusOr<planner::Hardware> hardware = FindHardware(name, Catalogue());
    ASSERT_TRUE(hardware.ok()) << hardware.status();
    EXPECT_TRUE(FindEngine("", hardware->node.family, Catalogue()).ok()) << name;
  }
}

TEST(HardwareYaml, EveryFigureOfTheProgramHasItsSource) {
  const auto check = [](const planner::Figure& figure, const std::string& name) {
    if (figure.known()) EXPECT_NE(figure.source, "hardware.yaml") << name;
  };
  for (const planner::Node& node : Catalogue().nodes) {
    for (const auto& figure :
         {node.memory_gib, node.gb_per_s, node.slow_gib, node.slow_gb_per_s, node.tops, node.watts})
      check(figure, node.name);
    EXPECT_TRUE(node.tops.known() && node.watts.known()) << node.name;
  }
  for (const planner::Link& link : Catalogue().links) {
    check(link.latency_us, link.name);
    check(link.gb_per_s, link.name);
  }
  for (const planner::Engine& engine : Catalogue().engines) {
    check(engine.read_share, engine.name);
    check(engine.arithmetic_share, engine.name);
    const bool sums = engine.ways.empty() || engine.ways.back() == "tensor";
    EXPECT_EQ(engine.ring_source.empty(), !sums) << engine.name;
    EXPECT_TRUE(engine.arithmetic_share.known()) << engine.name;
  }
  for (const planner::Hardware& preset : Catalogue().presets) {
    check(preset.price_usd, preset.name);
    check(preset.cloud_usd_per_month, preset.name);
  }
}

TEST(HardwareYaml, AFileDescribesAClusterOfItsOwn) {
  const StatusOr<planner::Hardware> hardware = Parse(
      "node: {memory-gib: [240, 'my machines'], gb-per-s: 200}\n"
      "nodes: 3\n"
      "link: {latency-us: 12, gb-per-s: 1.1}\n"
      "price-usd: 9000\n");
  ASSERT_TRUE(hardware.ok()) << hardware.status();
  EXPECT_EQ(hardware->nodes, 3);
  EXPECT_EQ(hardware->node.family, "cpu");
  EXPECT_EQ(hardware->node.memory_gib.value, 240);
  EXPECT_EQ(hardware->node.memory_gib.source, "my machines");
  EXPECT_EQ(hardware->node.gb_per_s.source, "mine.yaml");
  EXPECT_EQ(hardware->link.latency_us.value, 12);
  EXPECT_EQ(hardware->price_usd.value, 9000);
  EXPECT_TRUE(hardware->usd_per_kwh.known());
  const StatusOr<planner::Hardware> named = Parse("node: dgx-spark\nnodes: 2\nlink: gbe-2.5\n");
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ(named->node.gb_per_s.value, 273);
  EXPECT_EQ(named->link.gb_per_s.value, 0.3);
}

TEST(HardwareYaml, ErrorsNameTheFileTheLineAndWhatIsAllowed) {
  EXPECT_THAT(ErrorOf("nodes: 2\n"), HasSubstr("'node' is missing"));
  EXPECT_THAT(ErrorOf("node: dgx-spark\nnodes: 2\n"), HasSubstr("'link' is missing"));
  EXPECT_THAT(ErrorOf("node: dgx-sparc\n"),
              AllOf(HasSubstr("mine.yaml:1"), HasSubstr("dgx-spark")));
  EXPECT_THAT(ErrorOf("node: dgx-spark\nwats: 3\n"),
              AllOf(HasSubstr("mine.yaml:2"), HasSubstr("unknown key 'wats'")));
  EXPECT_THAT(ErrorOf("node: {gb-per-s: 1}\n"), HasSubstr("'memory-gib' is missing or 0"));
  EXPECT_THAT(ErrorOf("node: {memory-gib: 0, gb-per-s: 1}\n"), HasSubstr("missing or 0"));
  EXPECT_THAT(ErrorOf("node: {memory-gib: -1, gb-per-s: 1}\n"), HasSubstr("number from 0"));
  EXPECT_THAT(ErrorOf("node: {memory-gib: nan, gb-per-s: 1}\n"), HasSubstr("number from 0"));
  EXPECT_THAT(ErrorOf("node: {memory-gib: [1], gb-per-s: 1}\n"), HasSubstr("[number, source]"));
  EXPECT_THAT(ErrorOf("node: {memory-gib: 1, gb-per-s: 1, slow-gib: 1}\n"),
              HasSubstr("go together"));
  EXPECT_THAT(ErrorOf("node: dgx-spark\nnode: dgx-spark\n"), HasSubstr("twice"));
  EXPECT_THAT(ErrorOf("node: dgx-spark\nnodes: 1.5\n"), HasSubstr("whole number"));
  EXPECT_THAT(ErrorOf("node: dgx-spark\nnodes: 2000\n"), HasSubstr("1 to 1024"));
  EXPECT_THAT(ErrorOf("[1, 2]\n"), HasSubstr("key: value"));
  EXPECT_THAT(ErrorOf("node: {a: [}\n"), HasSubstr("not valid YAML"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("key: value"));
}

TEST(HardwareYaml, WhatAnEngineDoesIsChecked) {
  const auto error = [](const std::string& habit) {
    const StatusOr<HardwareCatalogue> catalogue = ParseHardwareCatalogue(
        "nodes: {}\nlinks: {}\npresets: {}\nengines:\n  cpu:\n    - {name: a, read-share: 0.5, " +
            habit + "}\n",
        "mine.yaml");
    return catalogue.ok() ? "accepted" : MessageOf(catalogue.status());
  };
  EXPECT_EQ(error("ways: [single], ring: [true, told], wire: int8, prefill-chunk: 9"), "accepted");
  EXPECT_THAT(error("ways: [double]"), HasSubstr("one of single, pipeline, tensor"));
  EXPECT_THAT(error("ways: []"), HasSubstr("a list of single"));
  EXPECT_THAT(error("ring: true"), HasSubstr("[true or false, source]"));
  EXPECT_THAT(error("wire: f64"), HasSubstr("one of f32, bf16, int8"));
  EXPECT_THAT(error("kv-cache-dtype: f64"), HasSubstr("mine.yaml:6"));
  EXPECT_THAT(error("prefill-chunk: 0"), HasSubstr("from 1"));
}

TEST(HardwareYaml, UnknownNamesAreAnsweredWithThoseThatThereAre) {
  EXPECT_THAT(MessageOf(FindHardware("dgx-spark-5", Catalogue()).status()),
              AllOf(HasSubstr("did you mean 'dgx-spark-"), HasSubstr("h200-8")));
  EXPECT_THAT(MessageOf(FindEngine("vlm", "dgx-spark", Catalogue()).status()),
              AllOf(HasSubstr("dgpp"), HasSubstr("sglang")));
  EXPECT_THAT(MessageOf(FindEngine("", "abacus", Catalogue()).status()), HasSubstr("cpu"));
}

}  // namespace
}  // namespace lockstep
