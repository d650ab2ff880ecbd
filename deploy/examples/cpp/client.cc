// A lockstep gRPC client in C++: asks one question and prints the answer as it streams.
//
//   cmake -S deploy/examples/cpp -B build-example && cmake --build build-example
//   build-example/lockstep_client 127.0.0.1:50051 "What is the capital of France?"
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <iostream>
#include <string>

#include "lockstep/v1/inference.grpc.pb.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: lockstep_client ADDRESS PROMPT\n";
    return 2;
  }
  const auto channel = grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials());
  const auto stub = lockstep::v1::Inference::NewStub(channel);

  lockstep::v1::ChatRequest request;
  lockstep::v1::Message* message = request.add_messages();
  message->set_role("user");
  message->set_content(argv[2]);
  request.mutable_stop()->set_max_tokens(256);

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(5));
  const auto reader = stub->Chat(&context, request);
  lockstep::v1::ChatResponse response;
  while (reader->Read(&response)) {
    std::cerr << response.reasoning_content() << std::flush;
    std::cout << response.content() << std::flush;
    for (const lockstep::v1::ToolCall& call : response.tool_calls()) {
      std::cout << "\n[tool call] " << call.name() << " " << call.arguments() << std::endl;
    }
  }
  const grpc::Status status = reader->Finish();
  std::cout << std::endl;
  if (!status.ok()) {
    std::cerr << "error " << status.error_code() << ": " << status.error_message() << "\n";
    return 1;
  }
  std::cerr << response.usage().prompt_tokens() << " + " << response.usage().completion_tokens()
            << " tokens, " << response.timings().decode_tokens_per_second() << " tokens/s\n";
  return 0;
}
