// What doctor sees of machines that are not here: their /proc and /sys as trees of files.
#include "launcher/commands/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "launcher/commands/diagnosis.h"
#include "runtime/base/os.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kGiB = uint64_t{1} << 30;

class Machine : public ::testing::Test {
 protected:
  void Put(const std::string& path, const std::string& text) {
    temporary_.Write(path, text + "\n");
  }
  void PutLink(const std::string& path, const std::string& target) {
    const std::filesystem::path file = temporary_.path() + path;
    std::filesystem::create_directories(file.parent_path());
    std::filesystem::create_symlink(target, file);
  }
  void PutCommon(int64_t memory_gib, const std::string& lockable) {
    Put("/proc/meminfo", "MemTotal:       " + std::to_string(memory_gib << 20) +
                             " kB\nMemFree: 5 kB\nMemAvailable:   " +
                             std::to_string((memory_gib - 4) << 20) + " kB");
    Put("/proc/self/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max locked memory         " +
            lockable + "              8388608              bytes     ");
    Put("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
  }
  void PutCard(const std::string& name, const std::string& driver, const std::string& speed,
               const std::string& pcie, const std::string& lanes) {
    const std::string folder = "/sys/class/net/" + name;
    Put(folder + "/speed", speed);
    Put(folder + "/operstate", "up");
    Put(folder + "/device/current_link_speed", pcie);
    Put(folder + "/device/current_link_width", lanes);
    PutLink(folder + "/device/driver", "../../../bus/pci/drivers/" + driver);
  }
  void PutRdma(const std::string& name, const std::string& firmware, const std::string& state) {
    const std::string folder = "/sys/class/infiniband/" + name;
    Put(folder + "/fw_ver", firmware);
    Put(folder + "/board_id", "NVD0000000087");
    Put(folder + "/ports/1/state", state);
  }
  void PutStrixHalo(uint64_t carved, uint64_t gtt, uint64_t pages) {
    PutCommon(124, "8388608");
    Put("/sys/class/dmi/id/product_name", "Desktop (AMD Ryzen AI Max 300 Series)");
    Put("/proc/sys/kernel/osrelease", "6.18.5-200.fc43.x86_64");
    const std::string device = "/sys/class/drm/card1/device/";
    Put(device + "vendor", "0x1002");
    Put(device + "device", "0x1586");
    Put(device + "mem_info_vram_total", std::to_string(carved));
    Put(device + "mem_info_gtt_total", std::to_string(gtt));
    Put("/sys/module/ttm/parameters/pages_limit", std::to_string(pages));
    Put("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc");
    Put("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave");
    Put("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "amd-pstate-epp");
  }
  void PutSpark(const std::string& firmware) {
    PutCommon(119, "unlimited");
    Put("/sys/class/dmi/id/product_name", "NVIDIA_DGX_Spark");
    Put("/sys/module/nvidia/version", "580.95.05");
    PutCard("enp1s0f1np1", "mlx5_core", "200000", "32.0 GT/s PCIe", "4");
    Put("/sys/class/net/lo/speed", "");  // has neither driver nor speed
    PutRdma("rocep1s0f1", firmware, "4: ACTIVE");
  }
  MachineFacts Read() const { return ReadMachine(temporary_.path()); }
  static std::vector<std::string> Faults(const MachineFacts& facts) {
    return ExamineMachine(facts, 0, 1).faults;
  }

  testing::TemporaryDirectory temporary_;
};

TEST_F(Machine, AnEmptyTreeIsAMachineOfWhichNothingIsKnown) {
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.lockable_bytes, std::nullopt);
  EXPECT_EQ(facts.wired_limit_mib, std::nullopt);
  EXPECT_THAT(facts.network, IsEmpty());
  EXPECT_THAT(Faults(facts), IsEmpty());
  EXPECT_THAT(Versions(facts), IsEmpty());
  EXPECT_FALSE(Describe(facts).empty());
}

TEST_F(Machine, WhatIsNotKnownIsNeitherZeroNorAFault) {
  PutStrixHalo(kGiB / 2, 120 * kGiB, 120 * kGiB / 4096);
  PutRdma("mlx5_0", "20.1", "4: ACTIVE");
  const std::string device = "/sys/class/drm/card1/device/mem_info_";
  for (const std::string text : {"", "x", "0x7f", "-1", "12 GiB", "99999999999999999999"}) {
    for (const char* file : {"vram_total", "gtt_total"}) Put(device + file, text);
    Put("/sys/module/ttm/parameters/pages_limit", text);
    Put("/proc/self/limits", "Max locked memory         " + (text == "12 GiB" ? "?" : text));
    Put("/proc/meminfo", "MemTotal: 18446744073709551615 kB\nMemAvailable: 7 MB");
    const MachineFacts facts = Read();
    EXPECT_EQ(facts.carved_bytes, std::nullopt) << text;
    EXPECT_EQ(facts.gtt_bytes, std::nullopt) << text;
    EXPECT_EQ(facts.lockable_bytes, std::nullopt) << text;
    EXPECT_EQ(facts.available_bytes, 0u);
    EXPECT_THAT(Faults(facts), IsEmpty()) << text;
    EXPECT_THAT(ExamineMachine(facts, 0, 1).notes, IsEmpty()) << text;
    EXPECT_THAT(Describe(facts), Contains(HasSubstr("(? free), ? may be locked")));
    EXPECT_THAT(Describe(facts), Contains(HasSubstr("GPU: ? kept by the firmware, ? by GTT")));
  }
  // A limit of nothing is one.
  Put("/proc/self/limits", "Max locked memory         0                    0     bytes");
  EXPECT_THAT(Faults(Read()), ElementsAre(HasSubstr("only 0 B may be locked")));
}

TEST_F(Machine, AStrixHaloThatIsSetUpHasNoFaults) {
  PutStrixHalo(kGiB / 2, 120 * kGiB, 120 * kGiB / 4096);
  const MachineFacts facts = Read();
  EXPECT_TRUE(facts.strix_halo);
  EXPECT_EQ(facts.memory_bytes, 124 * kGiB);
  EXPECT_EQ(facts.available_bytes, 120 * kGiB);
  EXPECT_EQ(facts.gtt_bytes, 120 * kGiB);
  EXPECT_EQ(facts.system, "Linux 6.18.5-200.fc43.x86_64");
  EXPECT_THAT(Faults(facts), IsEmpty());
  EXPECT_THAT(ExamineMachine(facts, 0, 1).notes, IsEmpty());
  EXPECT_THAT(Describe(facts), Contains(HasSubstr("120 GiB by GTT")));
}

TEST_F(Machine, AStrixHaloWhoseFirmwareKeepsMemoryIsNamedWithTheRemedy) {
  PutStrixHalo(96 * kGiB, 15 * kGiB, 15 * kGiB / 4096);
  EXPECT_THAT(Faults(Read()), ElementsAre(AllOf(HasSubstr("keeps 96 GiB"), HasSubstr("BIOS"))));
}

TEST_F(Machine, ASmallGttIsANoteSinceNoKernelNeedsItYet) {
  // The smaller of the two limits counts.
  PutStrixHalo(kGiB / 2, 120 * kGiB, 62 * kGiB / 4096);
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.gtt_bytes, 62 * kGiB);
  EXPECT_THAT(Faults(facts), IsEmpty());
  EXPECT_THAT(
      ExamineMachine(facts, 0, 1).notes,
      ElementsAre(AllOf(HasSubstr("62 GiB"),
                        HasSubstr("ttm.pages_limit=" + std::to_string(116 * kGiB / 4096)))));
}

TEST_F(Machine, OfASparkDriverFirmwareAndTheHalvesOfItsPortsAreSeen) {
  PutSpark("28.45.4028");
  const MachineFacts facts = Read();
  ASSERT_EQ(facts.network.size(), 1u);
  EXPECT_EQ(facts.network[0].driver, "mlx5_core");
  // Four lanes of 32 GT/s, of which 128 of 130 bits are data.
  EXPECT_NEAR(facts.network[0].slot_megabits, 126'030, 10);
  ASSERT_EQ(facts.rdma.size(), 1u);
  EXPECT_TRUE(facts.rdma[0].active);
  EXPECT_EQ(facts.lockable_bytes, UINT64_MAX);
  EXPECT_FALSE(facts.strix_halo);
  EXPECT_THAT(Faults(facts), ElementsAre(AllOf(HasSubstr("enp1s0f1np1"), HasSubstr("200 Gb/s"),
                                               HasSubstr("carries 126"))));
  EXPECT_EQ(Versions(facts).at("the driver of NVIDIA's GPUs"), "580.95.05");
}

TEST_F(Machine, RdmaWithALittleLockableMemoryOrADeadPortIsNamed) {
  PutCommon(64, "8388608");
  EXPECT_THAT(Faults(Read()), IsEmpty());  // nobody locks anything
  PutRdma("mlx5_0", "20.1", "1: DOWN");
  EXPECT_THAT(Faults(Read()),
              ElementsAre(AllOf(HasSubstr("only 8.0 MiB"), HasSubstr("ulimit -l unlimited")),
                          HasSubstr("mlx5_0 is not active")));
}

TEST_F(Machine, HugePagesGovernorAndClockAreNamedWithTheirRemedies) {
  PutCommon(64, "unlimited");
  Put("/sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]");
  Put("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet");
  Put("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave");
  Put("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "acpi-cpufreq");
  MachineFacts facts = Read();
  EXPECT_THAT(Faults(facts), ElementsAre(HasSubstr("echo madvise"), HasSubstr("cpupower"),
                                         HasSubstr("the clock is hpet")));
  facts.governor_driver = "intel_pstate";
  facts.clock_source = "tsc";
  facts.huge_pages = "always";
  EXPECT_THAT(Faults(facts), IsEmpty());
  facts.clock_synchronized = false;
  EXPECT_THAT(Faults(facts), ElementsAre(HasSubstr("timedatectl set-ntp true")));
  facts.clock_synchronized = true;
  EXPECT_THAT(Faults(facts), IsEmpty());
}

TEST_F(Machine, AModelThatIsMissingOrTooLargeIsNamedWithWhatItNeeds) {
  testing::TemporaryDirectory model;
  model.Write("model-1.safetensors", std::string(3000, 'x'));
  model.Write("config.json", std::string(96, 'x'));
  MachineFacts facts;
  LookAtModel(model.path(), &facts);
  EXPECT_EQ(facts.model_bytes, 3096u);
  EXPECT_GT(facts.disk_free_bytes, 0u);
  LookAtModel(model.File("config.json"), &facts);
  EXPECT_EQ(facts.model_bytes, 96u);

  facts = {};
  LookAtModel(model.path() + "/nowhere/at/all", &facts);
  EXPECT_EQ(facts.model_bytes, 0u);
  EXPECT_GT(facts.disk_free_bytes, 0u);
  facts.disk_free_bytes = 90 * kGiB;
  EXPECT_THAT(ExamineMachine(facts, 160 * kGiB, 0.5).faults,
              ElementsAre(AllOf(HasSubstr("is not on this machine"), HasSubstr("lockstep shard"),
                                ::testing::Not(HasSubstr("90 GiB")))));
  EXPECT_THAT(ExamineMachine(facts, 200 * kGiB, 0.5).faults,
              ElementsAre(AllOf(HasSubstr("about 100 GiB"), HasSubstr("90 GiB are free"))));
  facts.model_bytes = 200 * kGiB;
  facts.available_bytes = 99 * kGiB;
  EXPECT_THAT(ExamineMachine(facts, 200 * kGiB, 0.5).faults, ElementsAre(HasSubstr("--shares")));
  facts.available_bytes = 101 * kGiB;
  EXPECT_THAT(ExamineMachine(facts, 200 * kGiB, 0.5).faults, IsEmpty());
}

TEST_F(Machine, AGgufOfSeveralPartsHasTheSizeOfAllWhicheverIsNamed) {
  testing::TemporaryDirectory model;
  const std::vector<std::string> names = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                          "m-00003-of-00003.gguf"};
  for (size_t i = 0; i < names.size(); ++i) model.Write(names[i], std::string(100 << i, 'x'));
  model.Write("other.gguf", "xxx");
  for (const std::string& name : names) {
    MachineFacts facts;
    LookAtModel(model.File(name), &facts);
    EXPECT_EQ(facts.model_bytes, 700u) << name;
    EXPECT_EQ(WholeModelBytes(facts, std::vector<double>{1, 1}), 700u);
  }
}

TEST_F(Machine, OfRankFilesTheWholeModelIsTold) {
  testing::TemporaryDirectory model;
  model.Write("rank-1-of-2.lockstep", std::string(3000, 'x'));
  model.Write("tokenizer.json", "x");
  MachineFacts facts;
  LookAtModel(model.path(), &facts);
  EXPECT_EQ(facts.model_bytes, 3001u);
  EXPECT_EQ(WholeModelBytes(facts, std::vector<double>{1, 1}), 6000u);
  EXPECT_EQ(WholeModelBytes(facts, std::vector<double>{1, 3}), 4000u);
  // For another number of ranks: as if they had the same shares.
  EXPECT_EQ(WholeModelBytes(facts, std::vector<double>{1, 2, 3}), 6000u);
  model.Write("rank-0-of-2.lockstep", std::string(1000, 'x'));
  model.Write("rank-2-of-3.lockstep", std::string(900, 'x'));
  facts = {};
  LookAtModel(model.path(), &facts);
  EXPECT_EQ(WholeModelBytes(facts, std::vector<double>{1, 3}), 4000u);
  EXPECT_EQ(WholeModelBytes(facts, std::vector<double>{1, 1, 1}), 2700u);
  EXPECT_EQ(WholeModelBytes({}, std::vector<double>{1, 1}), 0u);
}

TEST_F(Machine, TheLimitOfAMacsGpuIsANote) {
  MachineFacts facts;
  facts.memory_bytes = 512 * kGiB;
  EXPECT_THAT(ExamineMachine(facts, 0, 1).notes, IsEmpty());
  facts.wired_limit_mib = 0;
  EXPECT_THAT(ExamineMachine(facts, 0, 1).notes,
              ElementsAre(HasSubstr("iogpu.wired_limit_mb=471852")));
  facts.wired_limit_mib = 400'000;
  EXPECT_THAT(
      ExamineMachine(facts, 0, 1).notes,
      ElementsAre(AllOf(HasSubstr("hold 400000 MiB"), HasSubstr("iogpu.wired_limit_mb=471852"))));
  facts.wired_limit_mib = 480'000;
  EXPECT_THAT(ExamineMachine(facts, 0, 1).notes, IsEmpty());
}

TEST_F(Machine, VersionsThatDifferAreNamedWithWhoHasThem) {
  PutSpark("28.45.4028");
  const NodeFacts first = {"rank 0 (a)", "", Versions(Read())};
  Put("/sys/class/infiniband/rocep1s0f1/fw_ver", "28.47.1088");
  const NodeFacts second = {"rank 1 (b)", "", Versions(Read())};
  EXPECT_THAT(DifferingVersions({first, first}), IsEmpty());
  EXPECT_THAT(DifferingVersions({first, second, {"rank 2 (c)", "", {}}}),
              ElementsAre(AllOf(HasSubstr("28.45.4028 on rank 0 (a)"),
                                HasSubstr("28.47.1088 on rank 1 (b)"), HasSubstr("fwupdmgr"))));
}

TEST_F(Machine, KernelsAndTheFirmwareOfEachDeviceAreCompared) {
  PutSpark("28.45.4028");
  PutRdma("roceP2p1s0f1", "28.45.4028", "4: ACTIVE");
  Put("/proc/sys/kernel/osrelease", "6.11.0-1016-nvidia");
  const NodeFacts first = {"rank 0 (a)", "", Versions(Read())};
  Put("/sys/class/infiniband/roceP2p1s0f1/fw_ver", "28.47.1088");
  Put("/proc/sys/kernel/osrelease", "6.14.0");
  const NodeFacts second = {"rank 1 (b)", "", Versions(Read())};
  EXPECT_THAT(DifferingVersions({first, first}), IsEmpty());
  EXPECT_THAT(
      DifferingVersions({first, second}),
      ElementsAre(AllOf(HasSubstr("28.45.4028 on rank 0 (a)"), HasSubstr("rocep1s0f1 28.45.4028"),
                        HasSubstr("roceP2p1s0f1 28.47.1088")),
                  AllOf(HasSubstr("Linux 6.11.0-1016-nvidia on rank 0 (a)"),
                        HasSubstr("Linux 6.14.0 on rank 1 (b)"))));
}

TEST_F(Machine, ThisOneIsReadToo) {
  const MachineFacts facts = ReadMachine("");
  EXPECT_EQ(facts.memory_bytes, os::MemoryBytesTotal());
  EXPECT_GT(facts.available_bytes, 0u);
  EXPECT_THAT(facts.system, HasSubstr("Linux"));
}

}  // namespace
}  // namespace lockstep
