"""`lockstep serve` through a real Python gRPC client: streams, cancellation, deadlines, errors, a lost rank."""

import importlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from support import (BINARY, GOLDENS, MODELS, TINY, TestCase, Tensors, children, free_port, mpirun, run, source, start,
                     wait_for)

try:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_tools import protoc
except ImportError as error:  # deploy/test.sh installs them; elsewhere say why nothing ran
    print(f"skipped: {error}; pip install -r tests/requirements.txt")
    sys.exit(77)


def load_messages():
    with tempfile.TemporaryDirectory(prefix="lockstep-proto-") as out:
        code = protoc.main(["protoc", f"--proto_path={source('proto')}", f"--python_out={out}",
                            f"--grpc_python_out={out}", source("proto/lockstep/v1/inference.proto")])
        assert code == 0
        sys.path.insert(0, out)
        return (importlib.import_module("lockstep.v1.inference_pb2"),
                importlib.import_module("lockstep.v1.inference_pb2_grpc"))


pb, services = load_messages()
# Ids of the golden tokenizer; the checkpoints' vocabulary of 1000 rows is padded.
TOKENS = 976


class Server:
    """A server with its client; stopped at the end of the block."""

    def __init__(self, *flags, model=TINY, port=0):
        self.process = start("serve", "--model", model, "--port", 0, "--grpc-port", port, *flags)
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1].decode()
        self.ready = json.loads(line)
        self.address = f"127.0.0.1:{self.ready['grpc_port']}"
        self.channel = grpc.insecure_channel(self.address)
        self.stub = services.InferenceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            raise

    def serving(self):
        status = self.health.Check(health_pb2.HealthCheckRequest(), timeout=10).status
        return status == health_pb2.HealthCheckResponse.SERVING


def greedy(ids, count, **more):
    request = pb.GenerateRequest(sampling=pb.SamplingOptions(temperature=0), **more)
    request.token_ids.ids.extend(ids)
    request.stop.max_tokens = count
    request.stop.ignore_eos = True
    return request


def with_argument(text):
    """Process ids of lockstep processes with this argument."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"lockstep") and text.encode() in words:
            found.append(int(entry))
    return found


def endless():
    return greedy([1, 2, 3], 12000)


class Serve(TestCase):
    def test_greedy_continuations_equal_transformers(self):
        for model, ranks in (("tiny-a", 2), ("tiny-b", 3), ("tiny-k", 1)):
            golden = Tensors(os.path.join(GOLDENS, model + ".safetensors"))
            prompts = [(golden.values("greedy.prompt_ids"), golden.values("greedy.new_ids"))]
            prompts += [(golden.values(f"batch.{b}.input_ids"), golden.values(f"batch.{b}.greedy8")) for b in range(3)]
            with Server("--ranks", ranks, model=os.path.join(MODELS, model)) as server:
                # The reference also takes padding ids, which a server must never emit: compare up to the first.
                prompts = [(prompt, list(itertools.takewhile(lambda token: token < TOKENS, want)))
                           for prompt, want in prompts]
                self.assertGreater(sum(len(want) for _, want in prompts), 8)
                # All at once: what a request gets does not depend on its neighbours.
                streams = [server.stub.Generate(greedy(prompt, max(len(want), 1)), timeout=60)
                           for prompt, want in prompts]
                for stream, (_, want) in zip(streams, prompts):
                    got = [token for part in stream for token in part.token_ids]
                    self.assertEqual(got[:len(want)], want, model)
                    self.assertTrue(all(token < TOKENS for token in got))

    def test_chat_keeps_reasoning_and_content_apart(self):
        with Server("--ranks", 2) as server:
            for thinking in (False, True):
                request = pb.ChatRequest(enable_thinking=thinking, sampling=pb.SamplingOptions(temperature=0, logprobs=2))
                request.messages.add(role="user", content="What is the capital of France?")
                parts = list(server.stub.Chat(request, timeout=60))
                content = "".join(part.content for part in parts)
                reasoning = "".join(part.reasoning_content for part in parts)
                self.assertIn("Paris", content)
                self.assertEqual(bool(reasoning), thinking)
                self.assertNotIn("think>", content + reasoning)
                self.assertEqual(parts[-1].finish_reason, pb.FINISH_REASON_STOP)
                ids = sum(len(part.token_ids) for part in parts)
                self.assertEqual(parts[-1].usage.completion_tokens, ids)
                self.assertEqual(sum(len(part.logprobs) for part in parts), ids)
                for part in parts:
                    for entry in part.logprobs:
                        self.assertEqual(entry.chosen.token_id, entry.best[0].token_id)
                        self.assertLessEqual(entry.chosen.logprob, 0)

    def test_a_seed_gives_the_same_answer_alone_and_in_company_at_any_number_of_ranks(self):
        def ask(server):
            request = pb.GenerateRequest(text="Once upon a time")
            request.sampling.CopyFrom(pb.SamplingOptions(temperature=0.9, top_p=0.9, top_k=40, seed=7))
            request.stop.max_tokens = 40
            return server.stub.Generate(request, timeout=60)

        answers = []
        for ranks in (1, 3):
            with Server("--ranks", ranks) as server:
                answers.append([token for part in ask(server) for token in part.token_ids])
                company = [server.stub.Generate(endless(), timeout=60) for _ in range(3)]
                answers.append([token for part in ask(server) for token in part.token_ids])
                for stream in company:
                    stream.cancel()
        self.assertTrue(all(answer == answers[0] for answer in answers), answers)

    def test_tokenize_and_model_info(self):
        with Server() as server:
            ids = server.stub.Tokenize(pb.TokenizeRequest(text="Hello <|user|>"), timeout=10).token_ids
            text = server.stub.Detokenize(pb.DetokenizeRequest(token_ids=ids), timeout=10).text
            self.assertEqual(text, "Hello <|user|>")
            info = server.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
            self.assertEqual((info.name, info.chat_family), ("tiny", "glm-4.7"))

    def test_cancelled_and_late_requests_free_their_place(self):
        with Server("--max-num-seqs", 1) as server:
            stream = server.stub.Generate(endless(), timeout=60)
            next(stream)
            stream.cancel()
            with self.assertRaises(grpc.RpcError) as late:
                for _ in server.stub.Generate(endless(), timeout=0.5):
                    pass
            self.assertEqual(late.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
            short = list(server.stub.Generate(greedy([1, 2], 3), timeout=20))
            self.assertEqual(sum(len(part.token_ids) for part in short), 3)

    def test_errors_have_their_codes(self):
        with Server("--max-model-len", 64) as server:
            def code_of(request):
                with self.assertRaises(grpc.RpcError) as failed:
                    list(server.stub.Generate(request, timeout=20))
                self.assertTrue(failed.exception.details())
                return failed.exception.code()

            invalid = grpc.StatusCode.INVALID_ARGUMENT
            self.assertEqual(code_of(pb.GenerateRequest()), invalid)
            self.assertEqual(code_of(greedy([], 2)), invalid)
            self.assertEqual(code_of(greedy([999999], 2)), invalid)
            self.assertEqual(code_of(greedy([-1], 2)), invalid)
            self.assertEqual(code_of(greedy([1] * 64, 2)), invalid)
            self.assertEqual(code_of(greedy([1], 0)), invalid)
            bad = greedy([1], 2)
            bad.sampling.temperature = -1
            self.assertEqual(code_of(bad), invalid)
            bad.sampling.temperature = float("nan")
            self.assertEqual(code_of(bad), invalid)
            self.assertTrue(server.serving())

    def test_a_long_error_is_cut_to_what_clients_take(self):
        with Server() as server:
            request = pb.ChatRequest()
            request.messages.add(role="\u00e4" * 50000, content="x")
            with self.assertRaises(grpc.RpcError) as failed:
                list(server.stub.Chat(request, timeout=20))
            self.assertEqual(failed.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn("messages[0].role", failed.exception.details())
            self.assertLess(len(failed.exception.details().encode()), 1100)
            self.assertNotIn("\ufffd", failed.exception.details())

    def test_a_chosen_port_and_ranks_go_together(self):
        port = free_port()
        with Server("--ranks", 2, port=port) as server:
            self.assertEqual(server.ready["grpc_port"], port)
            spawned = children(server.process.pid)
            self.assertEqual(len(spawned), 1)
            self.assertEqual(children(spawned[0]), [])
            self.assertTrue(server.serving())

    def test_a_port_in_use_is_told_before_any_rank_starts(self):
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            port = holder.getsockname()[1]
            process = start("serve", "--model", TINY, "--ranks", 2, "--port", 0, "--grpc-port", port)
            code, out, err = self.end(process, 10)
            self.assertEqual(code, 2, err)
            self.assertEqual(out, "")
            self.assertIn(str(port), err)
            # Spawned ranks have process groups of their own, but the same command line.
            self.assertEqual(with_argument(str(port)), [])

    def test_a_lost_rank_ends_requests_with_its_name_and_the_server_with_4(self):
        with Server("--ranks", 2) as server:
            self.assertTrue(server.serving())
            stream = server.stub.Generate(endless(), timeout=60)
            next(stream)
            victim = children(server.process.pid)[0]
            os.kill(victim, signal.SIGKILL)
            with self.assertRaises(grpc.RpcError) as lost:
                for _ in stream:
                    pass
            self.assertEqual(lost.exception.code(), grpc.StatusCode.UNAVAILABLE)
            self.assertIn(f"pid {victim}", lost.exception.details())
            code, _, err = self.end(server.process, 10)
            self.assertEqual(code, 4, err)
            self.assertIn(f"pid {victim}", err)

    def test_an_idle_server_notices_a_lost_rank_too(self):
        with Server("--ranks", 2) as server:
            victim = children(server.process.pid)[0]
            os.kill(victim, signal.SIGKILL)
            code, _, err = self.end(server.process, 10)
            self.assertEqual(code, 4, err)
            self.assertIn(f"pid {victim}", err)

    def lose(self, server, victim, how=signal.SIGKILL):
        """The rank is lost while an answer streams, which ends with its name."""
        stream = server.stub.Generate(endless(), timeout=60)
        next(stream)
        os.kill(victim, how)
        with self.assertRaises(grpc.RpcError) as lost:
            for _ in stream:
                pass
        self.assertEqual(lost.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn(f"pid {victim}", lost.exception.details())

    def answer_again(self, server):
        """What the server answers to a client that tries until it is served."""
        end = time.monotonic() + 30
        while True:
            try:
                parts = list(server.stub.Generate(greedy([1, 2, 3], 20), timeout=30))
                return [token for part in parts for token in part.token_ids]
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def test_lost_ranks_are_started_again_and_answers_stay_the_same(self):
        for collective, losses in (("tcp", (signal.SIGKILL, signal.SIGSTOP)), ("shm", (signal.SIGSTOP, signal.SIGKILL))):
            with self.subTest(collective=collective), \
                    Server("--ranks", 3, "--recover", "--collective", collective, "--peer-timeout-ms", 1000) as server:
                want = self.answer_again(server)
                for how in losses:
                    victim, survivor = children(server.process.pid)
                    self.lose(server, victim, how)
                    self.assertEqual(self.answer_again(server), want)
                    self.assertTrue(wait_for(server.serving), "the health service knows nothing of it")
                    ranks = children(server.process.pid)
                    self.assertIn(survivor, ranks)
                    self.assertNotIn(victim, ranks)
                    self.assertEqual(len(ranks), 2)

    def test_a_new_rank_has_the_cores_of_the_lost_one(self):
        with Server("--ranks", 2, "--recover") as server:
            self.answer_again(server)
            victim, = children(server.process.pid)
            cores = os.sched_getaffinity(victim)
            os.kill(victim, signal.SIGKILL)  # while nobody asks
            self.assertTrue(wait_for(lambda: children(server.process.pid) not in ([victim], [])))
            self.answer_again(server)
            self.assertEqual(os.sched_getaffinity(children(server.process.pid)[0]), cores)

    def test_a_loss_during_a_recovery_ends_the_server_by_name(self):
        with Server("--ranks", 3, "--recover") as server:
            before = children(server.process.pid)
            os.kill(before[0], signal.SIGKILL)
            self.assertTrue(wait_for(lambda: set(children(server.process.pid)) - set(before), step=0))
            second = (set(children(server.process.pid)) - set(before)).pop()
            os.kill(second, signal.SIGKILL)
            code, _, err = self.end(server.process, 20)
            self.assertEqual(code, 4, err)
            self.assertIn(f"pid {second}", err)

    def test_a_signal_ends_a_server_that_waits_for_a_rank(self):
        config = self.two_nodes()
        worker = self.worker(config)
        with Server("--config", config, "--rank", 0) as server:
            worker.kill()
            self.assertTrue(wait_for(lambda: not server.serving()))
            server.process.terminate()
            code, _, err = self.end(server.process, 5)
            self.assertEqual(code, 130, err)
            self.assertIn("forming the group again", err)

    def test_a_server_whose_model_has_changed_ends(self):
        model = self.copy_model("tiny-a")
        with Server("--ranks", 2, "--recover", model=model) as server:
            victim, = children(server.process.pid)
            changed = os.path.join(model, "config.json")
            with open(changed, encoding="utf-8") as file:
                text = file.read()
            with open(changed, "w", encoding="utf-8") as file:
                file.write(text.replace('"rope_theta": 1000000', '"rope_theta": 10000'))
            os.kill(victim, signal.SIGKILL)
            code, _, err = self.end(server.process, 20)
            self.assertEqual(code, 3, err)
            self.assertIn("the model is another one", err)

    def two_nodes(self):
        return self.write("two.yaml", f"""
model: {TINY}
rendezvous: 127.0.0.1:{free_port()}
recover: true
nodes: [{{address: 127.0.0.1}}, {{address: 127.0.0.1}}]
""")

    def worker(self, config):
        process = start("worker", "--config", config, "--rank", 1)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def test_workers_and_the_server_outlive_each_other(self):
        config = self.two_nodes()
        first = self.worker(config)
        with Server("--config", config, "--rank", 0) as server:
            want = self.answer_again(server)
            self.lose(server, first.pid)
            second = self.worker(config)
            self.assertEqual(self.answer_again(server), want)
            server.process.kill()
        with Server("--config", config, "--rank", 0) as server:
            self.assertEqual(self.answer_again(server), want)
        code, _, err = self.end(second, 20)
        self.assertEqual(code, 130, err)

    def test_mpirun_and_recovery_do_not_go_together(self):
        for arguments in (("--ranks", 2, "--collective", "mpi"), ()):
            prefix = () if arguments else mpirun(1)
            done = run("serve", "--model", TINY, "--recover", *arguments, prefix=prefix)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("--recover: mpirun ends all ranks", done.stderr.decode())

    def test_sigterm_lets_running_requests_finish(self):
        with Server("--ranks", 2) as server:
            stream = server.stub.Generate(greedy([1, 2, 3], 80), timeout=60)
            got = list(next(stream).token_ids)
            server.process.terminate()
            got += [token for part in stream for token in part.token_ids]
            self.assertEqual(len(got), 80)
            self.end(server.process, 20)

    def test_the_example_client_prints_an_answer(self):
        with Server() as server:
            result = subprocess.run(
                [sys.executable, source("deploy/examples/python/client.py"), "What is the capital of France?",
                 "--address", server.address, "--temperature", "0", "--thinking", "off"],
                capture_output=True, timeout=60, check=False)
            self.assertEqual(result.returncode, 0, result.stderr.decode())
            self.assertIn("Paris", result.stdout.decode())

    def test_the_cpp_example_client_prints_an_answer(self):
        with Server() as server:
            result = subprocess.run([os.environ["LOCKSTEP_EXAMPLE"], server.address, "What is the capital of France?"],
                                    capture_output=True, timeout=60, check=False)
            self.assertEqual(result.returncode, 0, result.stderr.decode())
            self.assertIn("capital", result.stdout.decode() + result.stderr.decode())

    def test_many_streams_at_once_all_end(self):
        with Server("--ranks", 2, "--max-num-seqs", 8) as server:
            answers = [None] * 24

            def ask(index):
                parts = list(server.stub.Generate(greedy([5, 6, 7 + index % 3], 20), timeout=90))
                answers[index] = [token for part in parts for token in part.token_ids]

            threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(answers))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for index, answer in enumerate(answers):
                self.assertEqual(answer, answers[index % 3])


if __name__ == "__main__":
    unittest.main()
