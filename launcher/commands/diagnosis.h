// What `lockstep doctor` concludes from what the ranks saw. Pure functions over facts.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lockstep {

struct NodeFacts {
  std::string name;  // "rank 1 (spark-2, pid 4711)"
  std::string rdma;  // empty: usable; else why not
  // Of what should be alike everywhere (machine.h), by what it is.
  std::map<std::string, std::string> versions = {};
};

// One end of a connection; empty and 0 where it has no address or the system does not say.
struct LinkEnd {
  std::string address;
  std::string interface;
  std::string device;    // rdma: device, port and GID
  int64_t mtu = 0;       // bytes; rdma: of its packets
  int64_t megabits = 0;  // per second, nominal; 0 too between ranks of one machine
};

// Two ranks over one transport.
struct LinkFacts {
  std::string transport;
  int ranks[2] = {0, 0};  // ascending
  LinkEnd ends[2];        // of these ranks
  double p50_us = 0;      // half a round trip of 10 KB: the median
  double p99_us = 0;
  double gb_per_s = 0;         // one way, of `large_bytes`
  int64_t large_bytes = 0;     // 20 MB; less where that would take seconds
  double clock_ahead_ms = 0;   // how far the second rank's wall clock is ahead of the first's
  double clock_within_ms = 0;  // half the round trip that found it
};

// GB/s that both interfaces of a link have by name; 0: not known.
double NominalGbPerS(const LinkFacts& link);

struct Diagnosis {
  std::string transport;  // which --collective to use
  std::string why;
  const LinkFacts* slowest = nullptr;  // of that transport, into the given links
  std::vector<std::string> findings;   // what to mend, each once, with its remedy
};

// A finding for each version that is not the same on all nodes that have one.
std::vector<std::string> DifferingVersions(const std::vector<NodeFacts>& nodes);

// `links`: every pair of ranks over every transport that was measured; at least one.
Diagnosis Diagnose(const std::vector<NodeFacts>& nodes, const std::vector<LinkFacts>& links);

}  // namespace lockstep
