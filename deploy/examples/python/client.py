#!/usr/bin/env python3
"""A lockstep gRPC client in Python: asks one question and prints the answer as it streams.

    python3 -m venv venv && venv/bin/pip install grpcio grpcio-tools
    venv/bin/python deploy/examples/python/client.py "What is the capital of France?"

The message classes are generated from proto/lockstep/v1/inference.proto when this starts, so nothing has to be built.
Exit code 0, or 1 with the server's error on stderr.
"""

import argparse
import importlib
import pathlib
import sys
import tempfile

import grpc

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


def load_messages(proto_folder):
    """The modules inference_pb2 and inference_pb2_grpc, generated from the schema."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory(prefix="lockstep-proto-") as out:
        code = protoc.main(
            [
                "protoc",
                f"--proto_path={proto_folder}",
                f"--python_out={out}",
                f"--grpc_python_out={out}",
                str(pathlib.Path(proto_folder) / "lockstep/v1/inference.proto"),
            ]
        )
        if code != 0:
            raise RuntimeError(f"protoc failed with exit code {code}")
        sys.path.insert(0, out)
        return (
            importlib.import_module("lockstep.v1.inference_pb2"),
            importlib.import_module("lockstep.v1.inference_pb2_grpc"),
        )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is")
    parser.add_argument("--system", default="")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--thinking", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--timeout", type=float, default=300, help="seconds")
    parser.add_argument("--proto", default=str(REPOSITORY / "proto"))
    return parser.parse_args()


def sampling_of(pb, arguments):
    options = pb.SamplingOptions()
    if arguments.temperature is not None:
        options.temperature = arguments.temperature
    if arguments.seed is not None:
        options.seed = arguments.seed
    return options


def generate(pb, stub, arguments):
    request = pb.GenerateRequest(text=arguments.prompt, sampling=sampling_of(pb, arguments))
    request.stop.max_tokens = arguments.max_tokens
    for response in stub.Generate(request, timeout=arguments.timeout):
        print(response.text, end="", flush=True)
    return response


def chat(pb, stub, arguments):
    request = pb.ChatRequest(sampling=sampling_of(pb, arguments))
    if arguments.system:
        request.messages.add(role="system", content=arguments.system)
    request.messages.add(role="user", content=arguments.prompt)
    request.stop.max_tokens = arguments.max_tokens
    if arguments.thinking != "auto":
        request.enable_thinking = arguments.thinking == "on"
    for response in stub.Chat(request, timeout=arguments.timeout):
        print(response.reasoning_content, end="", file=sys.stderr, flush=True)
        print(response.content, end="", flush=True)
        for call in response.tool_calls:
            print(f"\n[tool call] {call.name} {call.arguments}", flush=True)
    return response


def main():
    arguments = parse_arguments()
    pb, pb_grpc = load_messages(arguments.proto)
    with grpc.insecure_channel(arguments.address) as channel:
        stub = pb_grpc.InferenceStub(channel)
        try:
            last = (generate if arguments.raw else chat)(pb, stub, arguments)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    print()
    print(
        f"{last.usage.prompt_tokens} + {last.usage.completion_tokens} tokens, "
        f"{last.timings.decode_tokens_per_second:.1f} tokens/s, "
        f"{pb.FinishReason.Name(last.finish_reason)}",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
