// How long one step of a rank takes, and the exchanges of a step: the formulas of docs/planner.md,
// which predictions (predict.h) and simulations share.
#pragma once

#include <vector>

#include "runtime/planner/predict.h"
#include "runtime/planner/seats.h"

namespace lockstep::planner {

Parts operator+(const Parts& a, const Parts& b);
Parts operator*(double factor, const Parts& parts);
bool Shorter(const Parts& a, const Parts& b);

// The parts of a seat's weights that lie in slow memory: experts first, of which a row reads few.
struct SlowParts {
  double always = 0;
  double experts = 0;
};

// A seat, and what is asked of it for every step, worked out once.
struct Station {
  Seat seat;
  LayerBytes layers;                // all of them
  double position_bytes = 0;        // of cache
  double draft_position_bytes = 0;  // of cache, of the draft layer
  SlowParts slow;
};

// What a step computes, whoever asked for it.
struct StepRows {
  double decodes = 0;           // rows that continue a sequence
  double prompt_rows = 0;       // rows of prompts
  double outputs = 0;           // rows whose logits are wanted
  double cached = 0;            // positions that are read: of a span once, up to its end
  double decode_positions = 0;  // that decoding rows read, each row by itself
  double prompt_positions = 0;  // the same of rows of prompts
};

// The arguments must outlive it.
class StepTimes {
 public:
  StepTimes(const CountedModel& model, const Hardware& hardware, const Engine& engine,
            const Load& load)
      : hardware_(hardware),
        engine_(engine),
        load_(load),
        work_(WorkOf(model.config)),
        hidden_(static_cast<double>(model.config.hidden_size)),
        layers_(static_cast<double>(model.config.num_hidden_layers)) {}

  bool KnowsArithmetic() const {
    return hardware_.node.tops.known() && engine_.arithmetic_share.known();
  }
  std::vector<Station> StationsOf(const std::vector<Seat>& seats) const;

  // Without exchanges: one step that continues so many users of Load::context. Draft layers run
  // where the head is.
  Parts Decode(const Station& station, double users) const;
  // The rows [begin, end) of a prompt, without their logits.
  Parts Chunk(const Station& station, double begin, double end) const;
  // Any rows together, without drafts: of decodes alone what Decode says, of a chunk what Chunk
  // says and its logits. Where the arithmetic is not known, what is read alone.
  Parts Mixed(const Station& station, const StepRows& rows) const;

  // A sum over all ranks of so many bytes, and a message to the next stage.
  double SumSeconds(double bytes, double ranks) const;
  double HopSeconds(double bytes) const;
  double ExchangesPerStep() const { return 2 * layers_ + 1; }  // and one for the next token
  double BytesOfRows(double rows) const { return rows * hidden_ * load_.wire_bytes; }

 private:
  SlowParts SlowOf(const Seat& seat) const;
  double ReadSeconds(double bytes) const {
    return bytes / (hardware_.node.gb_per_s.value * 1e9 * engine_.read_share.value);
  }
  double ArithmeticSeconds(double operations) const;
  Parts ReadParts(const SlowParts& slow, const LayerBytes& reads, double head, double cache) const;

  const Hardware& hardware_;
  const Engine& engine_;
  const Load& load_;
  const RowWork work_;
  const double hidden_, layers_;
};

}  // namespace lockstep::planner
