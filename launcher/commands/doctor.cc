// `lockstep doctor`: each machine, and every pair of ranks over every transport that works between
// them, one pair at a time: what 10 KB and 20 MB take, by which interfaces, what is wrong, and what
// to use.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "launcher/agree.h"
#include "launcher/commands/bench.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/diagnosis.h"
#include "launcher/commands/doctor_reports.h"
#include "launcher/commands/machine.h"
#include "launcher/commands/nvml.h"
#include "launcher/commands/ping_pong.h"
#include "launcher/process.h"
#include "runtime/base/os.h"
#include "runtime/base/version.h"
#include "runtime/kernels/backend.h"
#include "transport/backends.h"
#include "transport/link.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kSmallBytes = size_t{10} << 10;
constexpr size_t kLargeBytes = size_t{20} << 20;
constexpr size_t kProbeBytes = size_t{1} << 20;
// Where a megabyte takes longer, twenty are not sent.
constexpr double kSlowUs = 200'000;
constexpr int kClockReadings = 32;

// How often one size is measured: first a few times, whose duration says how often more.
struct Series {
  size_t bytes;
  int64_t first;
  int64_t fewest;
  int64_t most;
  int64_t budget_ns;
};
constexpr Series kSmall = {kSmallBytes, 20, 30, 2000, 200'000'000};
constexpr Series kProbe = {kProbeBytes, 1, 1, 1, 0};
constexpr Series kLarge = {kLargeBytes, 1, 1, 20, 300'000'000};

std::vector<std::byte> Pattern(size_t bytes) {
  std::vector<std::byte> data(bytes);
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<std::byte>(i * 131 >> 3);
  return data;
}

std::span<std::byte> BytesOf(int64_t& number) {
  return std::as_writable_bytes(std::span(&number, 1));
}

// Microseconds of half a round trip, ascending.
StatusOr<std::vector<double>> AskSeries(PingPong& game, const Series& series) {
  const std::vector<std::byte> data = Pattern(series.bytes);
  int64_t first_ns = 1;
  for (int64_t i = 0; i < series.first; ++i) {
    LOCKSTEP_ASSIGN_OR_RETURN(const int64_t took_ns, game.Ask(data));
    first_ns += 2 * took_ns;
  }
  int64_t more = std::clamp(series.budget_ns * series.first / first_ns, series.fewest, series.most);
  LOCKSTEP_RETURN_IF_ERROR(game.Send(BytesOf(more)));
  std::vector<double> all_us;
  for (int64_t i = 0; i < more; ++i) {
    LOCKSTEP_ASSIGN_OR_RETURN(const int64_t took_ns, game.Ask(data));
    all_us.push_back(static_cast<double>(took_ns) * 1e-3);
  }
  std::sort(all_us.begin(), all_us.end());
  return all_us;
}

Status AnswerSeries(PingPong& game, const Series& series) {
  for (int64_t i = 0; i < series.first; ++i) LOCKSTEP_RETURN_IF_ERROR(game.Answer(series.bytes));
  int64_t more = 0;
  LOCKSTEP_RETURN_IF_ERROR(game.Receive(BytesOf(more)));
  if (more < series.fewest || more > series.most) return InternalError("%d more pings", more);
  for (int64_t i = 0; i < more; ++i) LOCKSTEP_RETURN_IF_ERROR(game.Answer(series.bytes));
  return OkStatus();
}

int64_t WallNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// The reading of the peer's clock with the shortest round trip, against the middle of that trip.
Status AskClock(PingPong& game, LinkFacts* link) {
  int64_t best_ns = INT64_MAX;
  for (int i = 0; i < kClockReadings; ++i) {
    int64_t theirs_ns = 0;
    const int64_t sent_ns = WallNs();
    LOCKSTEP_RETURN_IF_ERROR(game.Send(BytesOf(theirs_ns)));
    LOCKSTEP_RETURN_IF_ERROR(game.Receive(BytesOf(theirs_ns)));
    const int64_t trip_ns = WallNs() - sent_ns;
    if (trip_ns < 0 || trip_ns >= best_ns) continue;
    best_ns = trip_ns;
    link->clock_within_ms = static_cast<double>(trip_ns) / 2e6;
    link->clock_ahead_ms = static_cast<double>(theirs_ns - sent_ns) / 1e6 - link->clock_within_ms;
  }
  return OkStatus();
}

Status AnswerClock(PingPong& game) {
  for (int i = 0; i < kClockReadings; ++i) {
    int64_t ignored = 0;
    LOCKSTEP_RETURN_IF_ERROR(game.Receive(BytesOf(ignored)));
    int64_t now_ns = WallNs();
    LOCKSTEP_RETURN_IF_ERROR(game.Send(BytesOf(now_ns)));
  }
  return OkStatus();
}

Status AskPair(PingPong& game, LinkFacts* link) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<double> small_us, AskSeries(game, kSmall));
  LOCKSTEP_RETURN_IF_ERROR(AskClock(game, link));
  LOCKSTEP_ASSIGN_OR_RETURN(std::vector<double> large_us, AskSeries(game, kProbe));
  int64_t bytes = large_us.front() > kSlowUs ? kProbeBytes : kLargeBytes;
  LOCKSTEP_RETURN_IF_ERROR(game.Send(BytesOf(bytes)));
  if (bytes == kLargeBytes) {
    LOCKSTEP_ASSIGN_OR_RETURN(large_us, AskSeries(game, kLarge));
  }
  link->p50_us = small_us[small_us.size() / 2];
  link->p99_us = small_us[small_us.size() * 99 / 100];
  link->large_bytes = bytes;
  link->gb_per_s = static_cast<double>(bytes) * 1e-3 / large_us[large_us.size() / 2];
  return OkStatus();
}

Status AnswerPair(PingPong& game) {
  LOCKSTEP_RETURN_IF_ERROR(AnswerSeries(game, kSmall));
  LOCKSTEP_RETURN_IF_ERROR(AnswerClock(game));
  LOCKSTEP_RETURN_IF_ERROR(AnswerSeries(game, kProbe));
  int64_t bytes = 0;
  LOCKSTEP_RETURN_IF_ERROR(game.Receive(BytesOf(bytes)));
  if (bytes == kLargeBytes) LOCKSTEP_RETURN_IF_ERROR(AnswerSeries(game, kLarge));
  return game.Linger();
}

// `one_machine`: what passes between the two ends meets no interface, whatever their addresses.
LinkEnd EndOf(const Link& link, bool one_machine) {
  const LinkPath path = link.path();
  LinkEnd end{.address = path.address, .device = path.device};
  for (const NetworkInterface& interface : ListInterfaces()) {
    const auto& own = interface.addresses;
    if (std::find(own.begin(), own.end(), end.address) == own.end()) continue;
    end.interface = interface.name;
    end.mtu = interface.mtu;
    end.megabits = interface.megabits;
  }
  if (!path.device.empty()) {
    end.mtu = path.mtu;
    end.megabits = path.megabits;
  }
  if (one_machine) end.megabits = 0;
  return end;
}

// --- every rank ---

// Empty: one of the addresses that links would take is an RDMA port's; else why not.
std::string WhyNoRdma(Session& session) {
  const auto devices = OpenRdmaDevices(session.options().rdma_mode);
  if (!devices.ok()) return MessageOf(devices.status());
  const auto hosts = session.membership().DataHosts("rdma");
  if (!hosts.ok()) return MessageOf(hosts.status());
  const auto usable = (*devices)->Hosts(*hosts);
  return usable.ok() ? "" : MessageOf(usable.status());
}

StatusOr<std::vector<std::string>> TransportsFor(Session& session,
                                                 std::vector<std::string> transports,
                                                 bool rdma_here) {
  LOCKSTEP_RETURN_IF_ERROR(AgreeOnValue(session.group(), session.membership(),
                                        {"--transports", session.options().transports,
                                         "start every rank with the same --transports"}));
  if (!transports.empty()) return transports;
  if (session.membership().local_size() == session.size()) transports.push_back("shm");
  transports.push_back("tcp");
  LOCKSTEP_ASSIGN_OR_RETURN(const int64_t rdma,
                            AgreeOnSmallest(session.group(), rdma_here ? 1 : 0));
  if (rdma == 1) transports.push_back("rdma");
  return transports;
}

// This rank's part of one pair over one link.
Status MeasurePair(Session& session, Link& link, LinkFacts facts, Json* words) {
  const auto& ranks = session.membership().ranks();
  const bool asks = session.rank() == facts.ranks[0];
  const int peer = facts.ranks[asks ? 1 : 0];
  facts.ends[asks ? 0 : 1] = EndOf(link, ranks[session.rank()].host == ranks[peer].host);
  PingPong game(link, session, peer);
  LOCKSTEP_RETURN_IF_ERROR(asks ? AskPair(game, &facts) : AnswerPair(game));
  words->push_back({{"side", asks ? 0 : 1}, {"link", JsonOf(facts)}});
  return OkStatus();
}

// One pair after the other; appends this rank's words. A transport that cannot be opened is a
// finding on rank 0 and no error.
Status MeasureTransport(Session& session, const std::string& transport, Json* words,
                        std::vector<std::string>* findings) {
  const StatusOr<Mesh> mesh = session.membership().OpenMesh(transport, 0);
  const Status opened = AgreeThatOk(session.group(), session.membership(), mesh.status());
  LOCKSTEP_RETURN_IF_ERROR(session.membership().Health());
  if (!opened.ok()) {
    findings->push_back(transport + " cannot be used: " + MessageOf(opened));
    return OkStatus();
  }
  for (int first = 0; first < session.size(); ++first) {
    for (int second = first + 1; second < session.size(); ++second) {
      if (Interrupted()) return InterruptedError();
      if (session.rank() == first || session.rank() == second) {
        Link& link = *mesh->links[session.rank() == first ? second : first];
        LOCKSTEP_RETURN_IF_ERROR(
            MeasurePair(session, link, {.transport = transport, .ranks = {first, second}}, words));
      }
      // The others sleep until this pair is done.
      std::byte done{};
      LOCKSTEP_RETURN_IF_ERROR(Broadcast(session.group(), {&done, 1}, first, Patience::kIdle));
    }
  }
  return OkStatus();
}

// --- the report ---

std::string TextOf(const LinkEnd& end) {
  if (end.interface.empty() && end.device.empty()) return "-";
  std::string text =
      absl::StrFormat("%s mtu %d", end.device.empty() ? end.interface : end.device, end.mtu);
  if (end.megabits > 0)
    text += absl::StrFormat(" %.3g Gb/s", static_cast<double>(end.megabits) / 1000);
  return text;
}

std::string TextOf(const std::vector<Json>& nodes) {
  std::string text;
  for (const Json& node : nodes) {
    text +=
        absl::StrFormat("%s: lockstep %s, %s, %d CPUs, %.1f GB\n", node["name"].get<std::string>(),
                        node["version"].get<std::string>(), node["kernels"].get<std::string>(),
                        node["cpus"].get<int>(), node["memory_bytes"].get<double>() / 1e9);
    for (const Json& line : node["machine"]) text += "  " + line.get<std::string>() + "\n";
    const auto rdma = node["rdma"].get<std::string>();
    text += "  RDMA: " + (rdma.empty() ? "usable" : rdma) + "\n";
  }
  return text;
}

std::string TextOf(const std::vector<LinkFacts>& links, const Diagnosis& diagnosis) {
  std::string text = absl::StrFormat("\n%-9s %-9s %10s %10s %8s %9s  %s\n", "transport", "ranks",
                                     "10 KB us", "p99 us", "GB/s", "clock ms", "interfaces");
  for (const LinkFacts& link : links) {
    text += absl::StrFormat("%-9s %3d - %-3d %10.1f %10.1f %8.2f %+9.2f  %s, %s\n", link.transport,
                            link.ranks[0], link.ranks[1], link.p50_us, link.p99_us, link.gb_per_s,
                            link.clock_ahead_ms, TextOf(link.ends[0]), TextOf(link.ends[1]));
  }
  text +=
      "Half a round trip of 10 KB (median, 99th percentile); GB/s one way at 20 MB (1 MB if "
      "slow).\n\n";
  const LinkFacts& slowest = *diagnosis.slowest;
  const double nominal = NominalGbPerS(slowest);
  text +=
      absl::StrFormat("Slowest: rank %d - rank %d with %.2f GB/s, %s\n", slowest.ranks[0],
                      slowest.ranks[1], slowest.gb_per_s,
                      nominal == 0 ? "of an unknown nominal speed"
                                   : absl::StrFormat("%.0f %% of the nominal %.2f",
                                                     100 * slowest.gb_per_s / nominal, nominal));
  return text + absl::StrFormat("Use --collective %s: %s.\n", diagnosis.transport, diagnosis.why);
}

// `diagnosis`: null if there is one rank, and no link.
void Report(const Options& options, const DoctorReports& reports, const Diagnosis* diagnosis,
            const std::vector<std::string>& findings) {
  if (!options.json) {
    std::string text = TextOf(reports.nodes);
    text += diagnosis != nullptr ? TextOf(reports.links, *diagnosis)
                                 : "No links: between two ranks at least (--ranks 2, mpirun or "
                                   "--config) they would be measured.\n";
    for (const std::string& finding : findings) text += "! " + finding + "\n";
    for (const std::string& note : reports.notes) text += "- " + note + "\n";
    std::fputs(text.c_str(), stdout);
    return;
  }
  Json all = {{"ranks", reports.nodes}, {"links", Json::array()}};
  for (const LinkFacts& link : reports.links) all["links"].push_back(JsonOf(link));
  if (diagnosis != nullptr) {
    all["slowest"] = JsonOf(*diagnosis->slowest);
    all["collective"] = diagnosis->transport;
    all["why"] = diagnosis->why;
  }
  all["findings"] = findings;
  all["notes"] = reports.notes;
  std::printf("%s\n", all.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

// This rank's part of the report; a collective call, since the files of the model may be elsewhere.
StatusOr<Json> AboutThisMachine(Session& session) {
  const auto& ranks = session.membership().ranks();
  const std::string& host = ranks[session.rank()].host;
  MachineFacts machine = ReadMachine("");
  LookAtModel(session.options().model, &machine);
  LOCKSTEP_ASSIGN_OR_RETURN(const int64_t less,
                            AgreeOnSmallest(session.group(), -static_cast<int64_t>(WholeModelBytes(
                                                                 machine, session.shares()))));
  double here = 0, all = 0;
  for (const RankInfo& info : ranks) {
    const double share = session.shares()[static_cast<size_t>(info.rank)];
    all += share;
    if (info.host == host) here += share;
  }
  MachineFindings findings = ExamineMachine(machine, static_cast<uint64_t>(-less), here / all);
  std::vector<std::string> lines = Describe(machine);
  const GpuReport gpus = ReadGpus();
  const GpuFindings of_gpus = ExamineGpus(gpus, machine.nvidia_driver);
  const auto append = [](const std::vector<std::string>& more, std::vector<std::string>* to) {
    to->insert(to->end(), more.begin(), more.end());
  };
  append(DescribeGpus(gpus), &lines);
  append(of_gpus.faults, &findings.faults);
  append(of_gpus.notes, &findings.notes);
  for (auto* list : {&findings.faults, &findings.notes})
    for (std::string& word : *list) word = host + ": " + word;
  return Json{{"machine", lines},
              {"faults", findings.faults},
              {"notes", findings.notes},
              {"versions", Versions(machine)}};
}

Status MeasureLinks(Session& session, const std::vector<std::string>& wanted, bool rdma_here,
                    Json* words, std::vector<std::string>* findings) {
  if (session.size() < 2) return OkStatus();
  LOCKSTEP_ASSIGN_OR_RETURN(const auto transports, TransportsFor(session, wanted, rdma_here));
  for (const std::string& transport : transports)
    LOCKSTEP_RETURN_IF_ERROR(MeasureTransport(session, transport, words, findings));
  return OkStatus();
}

Status Examine(Session& session, const std::vector<std::string>& wanted) {
  const std::string rdma = WhyNoRdma(session);
  Json words = Json::array();
  std::vector<std::string> findings;
  LOCKSTEP_RETURN_IF_ERROR(MeasureLinks(session, wanted, rdma.empty(), &words, &findings));
  const StatusOr<std::unique_ptr<kernels::Backend>> backend = kernels::MakeBackend("auto");
  Json mine = {{"name", session.membership().ranks()[session.rank()].Name()},
               {"version", SourceVersion()},
               {"kernels", backend.ok() ? (*backend)->name() : "none"},
               {"cpus", os::OnlineCpus().size()},
               {"memory_bytes", os::MemoryBytesTotal()},
               {"host", session.membership().ranks()[session.rank()].host},
               {"rdma", rdma},
               {"links", words}};
  LOCKSTEP_ASSIGN_OR_RETURN(const Json machine, AboutThisMachine(session));
  mine.update(machine);
  LOCKSTEP_ASSIGN_OR_RETURN(
      const auto all,
      GatherWords(session.group(), mine.dump(-1, ' ', false, Json::error_handler_t::replace)));
  if (session.rank() != 0) return OkStatus();
  DoctorReports reports;
  for (int rank = 0; rank < session.size(); ++rank)
    LOCKSTEP_RETURN_IF_ERROR(AddReport(all[rank], rank, session.size(), &reports));
  std::vector<LinkFacts>& links = reports.links;
  std::stable_sort(links.begin(), links.end(), [](const LinkFacts& a, const LinkFacts& b) {
    return a.transport < b.transport;
  });
  if (links.empty() && session.size() > 1)
    return UsageError("nothing was measured: %s", absl::StrJoin(findings, "; "));
  Diagnosis diagnosis;
  if (!links.empty()) diagnosis = Diagnose(reports.facts, links);
  for (const auto& more : {diagnosis.findings, DifferingVersions(reports.facts), reports.faults})
    findings.insert(findings.end(), more.begin(), more.end());
  Report(session.options(), reports, links.empty() ? nullptr : &diagnosis, findings);
  return OkStatus();
}

}  // namespace

Status DoctorCommand(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto transports,
                            ParseTransports(options, {"tcp", "shm", "rdma"}));
  Options join = options;
  // What works between all machines, whatever is sick: no kernels are compared, and no RDMA needed.
  join.collective = "tcp";
  join.kernels = "ref";
  // A rank whose transport cannot be opened waits for others that still try.
  join.exchange_timeout_ms = std::max(options.exchange_timeout_ms, 2 * options.start_timeout_ms);
  SessionNeeds needs;
  needs.model = false;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, OpenSession(join, needs));
  const InterruptScope interrupts([&] { session->membership().Abort(InterruptedError()); });
  return session->Close(Examine(*session, transports));
}

}  // namespace lockstep
