// What answers of one choice have in common, whatever API they are given by: the request's life,
// and reasoning, content and calls taken apart as they come.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/engine/engine.h"
#include "runtime/http/server.h"
#include "runtime/serve/http_errors.h"
#include "runtime/serve/openai_request.h"
#include "runtime/serve/reasoning_count.h"
#include "runtime/text/reply_parser.h"

namespace lockstep {

// The API says what events and the whole answer look like. Events are sent only where the request
// streams; the whole answer is made of the same pieces.
class SingleReply : public HttpReply {
 public:
  // Cancels the request if it has not ended.
  ~SingleReply() override;
  // Once, before anything is asked for.
  Status Submit(OpenAiRequest request, const std::function<void()>& wake);

  std::optional<HttpHead> Head() final;
  HttpPart Next() final;

 protected:
  // `engine` must outlive the reply; `request` has one choice.
  SingleReply(Engine& engine, ErrorShape shape, const Tokenizer& tokenizer,
              const OpenAiRequest& request);

  virtual void Begin() = 0;                       // events before the first piece
  virtual void Add(const ReplyEvent& event) = 0;  // one piece
  virtual void Close() = 0;                       // no piece follows
  virtual void End() = 0;                         // events of an end in order
  virtual void Fail(const Status& error) = 0;     // the event of another end
  virtual std::string Whole() const = 0;          // the answer of a request that does not stream

  // An event named `type`; `data` is a JSON object. Nothing where the request does not stream.
  void AddEvent(std::string_view type, std::string_view data);

  bool finished() const { return finished_; }
  // Once finished.
  const Summary& summary() const { return output_->summary(); }
  // As far as known: without what was cached and generated before the end.
  Usage usage() const;
  bool stream() const { return stream_; }
  int64_t reasoning_tokens() const { return reasoning_.tokens(); }

 private:
  void Gather();

  Engine& engine_;
  const ErrorShape shape_;
  const bool stream_;
  const int64_t prompt_tokens_;
  ReasoningCount reasoning_;
  ReplyParser parser_;
  std::shared_ptr<OutputStream> output_;
  bool begun_ = false;
  bool finished_ = false;
  Status error_;
  std::string out_;
};

}  // namespace lockstep
