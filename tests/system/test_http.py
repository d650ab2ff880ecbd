"""`lockstep serve` through the clients that applications use: the `openai` and `anthropic` packages."""

import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import unittest

from support import GOLDENS, MODELS, PATIENCE_S, TINY, TestCase, Tensors, children, run, start, wait_for

try:
    import anthropic
    import openai
except ImportError as error:  # deploy/test.sh installs it; elsewhere say why nothing ran
    print(f"skipped: {error}; pip install -r tests/requirements.txt")
    sys.exit(77)

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Server:
    """A server with its client; stopped at the end of the block."""

    def __init__(self, *flags, model=TINY, key="none"):
        self.process = start("serve", "--model", model, "--port", 0, "--grpc-port", 0, *flags)
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1].decode()
        self.ready = json.loads(line)
        self.url = f"http://127.0.0.1:{self.ready['port']}"
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0, timeout=60)
        self.errors = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.errors = self.process.communicate(timeout=PATIENCE_S)[1].decode()
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            raise

    def get(self, path, **headers):
        return self.ask("GET", path, headers=headers)

    def ask(self, *request, **more):
        connection = http.client.HTTPConnection("127.0.0.1", self.ready["port"], timeout=30)
        with contextlib.closing(connection):
            connection.request(*request, **more)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def metric(self, name):
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(name + "{"):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)

    def chat(self, **more):
        return self.client.chat.completions.create(**{"model": self.ready["model"], "messages": QUESTION,
                                                      "temperature": 0, **more})


class Anthropic(TestCase):
    def client(self, server):
        client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60)
        self.addCleanup(client.close)
        return client

    def test_messages_whole_streamed_and_counted(self):
        with Server("--ranks", 2) as server:
            client = self.client(server)
            ask = {"model": server.ready["model"], "max_tokens": 100, "messages": QUESTION,
                   "extra_body": {"temperature": 0}}
            for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}):
                whole = client.messages.create(**ask, thinking=thinking)
                self.assertEqual(whole.stop_reason, "end_turn")
                kinds = [block.type for block in whole.content]
                self.assertEqual(kinds, ["thinking", "text"] if thinking["type"] == "enabled" else ["text"])
                self.assertIn("Paris", whole.content[-1].text)
                with client.messages.stream(**ask, thinking=thinking) as stream:
                    text = "".join(stream.text_stream)
                    final = stream.get_final_message()
                self.assertEqual(text, whole.content[-1].text)
                self.assertEqual([block.type for block in final.content], kinds)
                self.assertEqual(final.content[0].to_dict().get("thinking"), whole.content[0].to_dict().get("thinking"))
                self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
                counted = client.messages.count_tokens(model=ask["model"], messages=QUESTION, thinking=thinking)
                self.assertEqual(counted.input_tokens, whole.usage.input_tokens + whole.usage.cache_read_input_tokens)
            stopped = client.messages.create(**ask, stop_sequences=["Paris"])
            self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", "Paris"))

    def test_errors_are_those_that_clients_know(self):
        with Server("--max-model-len", 64) as server:
            client = self.client(server)
            with self.assertRaisesRegex(anthropic.NotFoundError, "'gpt-4' does not exist"):
                client.messages.create(model="gpt-4", max_tokens=5, messages=QUESTION)
            with self.assertRaisesRegex(anthropic.BadRequestError, "maximum context length is 64"):
                client.messages.create(model="claude-x", max_tokens=5,
                                       messages=[{"role": "user", "content": "word " * 200}])


class OpenAi(TestCase):
    def test_a_chat_answers_at_once_and_as_a_stream_with_the_same_words(self):
        with Server("--ranks", 2) as server:
            self.assertEqual([model.id for model in server.client.models.list().data], [server.ready["model"]])
            for thinking in ("enabled", "disabled"):
                body = {"thinking": {"type": thinking}}
                whole = server.chat(extra_body=body)
                message = whole.choices[0].message
                self.assertIn("Paris", message.content)
                self.assertEqual(whole.choices[0].finish_reason, "stop")
                reasoning = getattr(message, "reasoning_content", None) or ""
                self.assertEqual(bool(reasoning), thinking == "enabled")
                self.assertNotIn("think>", message.content + reasoning)
                parts = list(server.chat(extra_body=body, stream=True, stream_options={"include_usage": True}))
                self.assertEqual(parts[0].choices[0].delta.role, "assistant")
                deltas = [part.choices[0].delta for part in parts if part.choices]
                self.assertEqual("".join(delta.content or "" for delta in deltas), message.content)
                self.assertEqual("".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas), reasoning)
                self.assertEqual(parts[-1].choices, [])
                self.assertEqual(parts[-1].usage, whole.usage)
                self.assertEqual(parts[-2].choices[0].finish_reason, "stop")
                self.assertGreater(whole.usage.prompt_tokens, 5)

    def test_responses_whole_and_streamed(self):
        with Server("--ranks", 2) as server:
            ask = {"model": server.ready["model"], "input": QUESTION[0]["content"], "temperature": 0}
            whole = server.client.responses.create(**ask)
            self.assertEqual(whole.status, "completed")
            self.assertEqual([item.type for item in whole.output], ["reasoning", "message"])
            self.assertIn("Paris", whole.output_text)
            with server.client.responses.stream(**ask) as stream:
                text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
                final = stream.get_final_response()
            self.assertEqual(text, whole.output_text)
            self.assertEqual(final.output_text, whole.output_text)
            self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)

    def test_answers_equal_those_of_the_terminal(self):
        done = run("run", "--model", TINY, "--temperature", 0, "--json", QUESTION[0]["content"])
        want = json.loads(done.stdout)
        with Server("--ranks", 3) as server:
            message = server.chat().choices[0].message
            self.assertEqual(message.content, want["text"])

    def test_greedy_continuations_equal_transformers(self):
        golden = Tensors(os.path.join(GOLDENS, "tiny-a.safetensors"))
        prompt = list(golden.values("greedy.prompt_ids"))
        want = list(golden.values("greedy.new_ids"))
        want = want[:next((i for i, token in enumerate(want) if token >= 976), len(want))]
        with Server("--ranks", 2, model=os.path.join(MODELS, "tiny-a")) as server:
            answer = server.client.completions.create(model="tiny-a", prompt=prompt, max_tokens=len(want), temperature=0,
                                                      logprobs=0, extra_body={"ignore_eos": True})
            _, text = server.ask("POST", "/detokenize", json.dumps({"tokens": want}))
            self.assertEqual(answer.choices[0].text, json.loads(text)["prompt"])
            self.assertEqual(len(answer.choices[0].logprobs.tokens), len(want))

    def test_a_seed_gives_the_same_answer_alone_and_in_company(self):
        with Server("--ranks", 2, "--max-num-seqs", 16, "--max-model-len", 1024) as server:
            def ask(seed):
                return server.chat(temperature=0.9, seed=seed, max_tokens=40).choices[0].message
            alone = [ask(seed) for seed in range(4)]
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                together = list(pool.map(ask, [seed % 4 for seed in range(16)]))
            for seed, message in enumerate(together):
                self.assertEqual(message, alone[seed % 4])
            two = server.chat(temperature=0.9, seed=1, n=2, max_tokens=40).choices
            self.assertEqual([choice.message for choice in two], [alone[1], alone[2]])

    def test_a_second_turn_finds_the_first_and_says_the_same_as_without(self):
        def talk(server):
            messages = [{"role": "system", "content": "You are kind. " * 40}, *QUESTION]
            said, cached = [], []
            for question in ("And of Italy?", "Thank you.", None):
                answer = server.chat(messages=messages, extra_body={"thinking": {"type": "disabled"}})
                said.append(answer.choices[0].message.content)
                cached.append(answer.usage.prompt_tokens_details.cached_tokens)
                messages += [{"role": "assistant", "content": said[-1]}, {"role": "user", "content": question}]
            return said, cached

        with Server("--ranks", 2) as server:
            said, cached = talk(server)
            self.assertEqual(cached[0], 0)
            self.assertGreater(cached[1], 150)
            self.assertGreater(cached[2], cached[1])
            self.assertEqual(server.metric("vllm:prefix_cache_hits_total"), sum(cached))
        with Server("--ranks", 2, "--prefix-cache=false") as server:
            self.assertEqual(talk(server), (said, [0, 0, 0]))

    def test_errors_are_those_that_clients_know(self):
        with Server("--max-model-len", 64) as server:
            with self.assertRaisesRegex(openai.NotFoundError, "'gpt-4' does not exist"):
                server.chat(model="gpt-4")
            with self.assertRaisesRegex(openai.BadRequestError, "maximum context length is 64") as caught:
                server.chat(messages=[{"role": "user", "content": "word " * 200}])
            self.assertEqual(caught.exception.code, "context_length_exceeded")
            with self.assertRaisesRegex(openai.BadRequestError, "temperature"):
                server.chat(temperature=-1)
            with self.assertRaisesRegex(openai.BadRequestError, r"messages\[0\].role"):
                server.chat(messages=[{"role": "robot", "content": "x"}])
            answer = server.chat(extra_body={"unheard_of": 1, "chat_template_kwargs": {"enable_thinking": False}})
            self.assertIn("Paris", answer.choices[0].message.content)
        self.assertIn("unheard_of", server.errors)
        self.assertNotIn("France", server.errors)  # prompts are nobody's business

    def test_thinking_ends_when_its_budget_is_spent(self):
        with Server("--ranks", 2, "--max-model-len", 1024) as server:
            def thought(**fields):
                answer = server.chat(max_tokens=60, extra_body=fields)
                return answer.choices[0].message, answer.usage.completion_tokens_details.reasoning_tokens
            free, _ = thought()
            for fields in ({"thinking_budget": 5}, {"thinking": {"type": "enabled", "budget_tokens": 5}}):
                message, tokens = thought(**fields)
                self.assertEqual(tokens, 6, "five, and the one that ends thinking")
                self.assertTrue(message.content)
                self.assertTrue(message.reasoning_content)
                self.assertTrue(free.reasoning_content.startswith(message.reasoning_content))

    def test_who_hangs_up_frees_its_place(self):
        with Server("--max-num-seqs", 1, "--ranks", 2) as server:
            stream = server.chat(stream=True, extra_body={"ignore_eos": True}, max_tokens=8000)
            next(iter(stream))
            self.assertTrue(wait_for(lambda: server.metric("vllm:num_requests_running") == 1))
            stream.response.close()
            self.assertIn("Paris", server.chat().choices[0].message.content)
            self.assertEqual(server.metric("vllm:num_requests_running"), 0)

    def test_keys_are_asked_for_and_come_and_go(self):
        digest = hashlib.sha256(b"a-key").hexdigest()
        path = self.write("keys", f"alice {digest}\n")
        with Server("--api-key-file", path, key="a-key") as server:
            self.assertIn("Paris", server.chat().choices[0].message.content)
            with self.assertRaises(openai.AuthenticationError):
                server.client.with_options(api_key="another").models.list()
            self.assertEqual(server.get("/health/live")[0], 200)
            self.assertTrue(wait_for(lambda: server.get("/health/ready")[0] == 200))
            for path_of_all in ("/health", "/metrics", "/v1/models", "/version"):
                self.assertEqual(server.get(path_of_all)[0], 401)
            self.assertEqual(server.get("/health", **{"x-api-key": "a-key"})[0], 200)
            self.write("keys", f"bob {hashlib.sha256(b'new').hexdigest()}\n")
            bob = server.client.with_options(api_key="new")
            def known():
                try:
                    return bool(bob.models.list().data)
                except openai.AuthenticationError:
                    return False
            self.assertTrue(wait_for(known))
            with self.assertRaises(openai.AuthenticationError):
                server.chat()
        self.assertNotIn("a-key", server.errors)

    def test_addresses_that_others_reach_need_keys(self):
        self.assert_fails(run("serve", "--model", TINY, "--host", "0.0.0.0", "--port", 0, "--grpc-port", 0), 2,
                          "--api-key-file", "0.0.0.0")
        self.assert_fails(run("serve", "--model", TINY, "--api-key-file", self.write("keys", "alice 12\n"), "--port", 0,
                              "--grpc-port", 0), 2, "keys:1", "sha256sum")

    def test_a_lost_rank_ends_streams_by_name(self):
        with Server("--ranks", 3) as server:
            stream = server.chat(stream=True, extra_body={"ignore_eos": True}, max_tokens=8000)
            iterator = iter(stream)
            next(iterator)
            os.kill(children(server.process.pid)[1], signal.SIGKILL)
            with self.assertRaisesRegex(openai.APIError, "rank [12]"):
                for _ in iterator:
                    pass

    def test_sigterm_lets_streams_end(self):
        with Server("--ranks", 2) as server:
            stream = iter(server.chat(stream=True, extra_body={"ignore_eos": True}, max_tokens=60))
            next(stream)
            server.process.terminate()
            finish = [part.choices[0].finish_reason for part in stream if part.choices]
            self.assertEqual(finish[-1], "length")
            self.assertEqual(server.process.wait(PATIENCE_S), 130)

    def test_many_streams_at_once_lose_nothing(self):
        with Server("--ranks", 2, "--max-num-seqs", 8, "--max-model-len", 512) as server:
            want = server.chat(max_tokens=12).choices[0].message
            lost = []

            def follow(slow):
                text = ""
                for part in server.chat(stream=True, max_tokens=12):
                    if part.choices:
                        text += part.choices[0].delta.content or ""
                        text += getattr(part.choices[0].delta, "reasoning_content", None) or ""
                    if slow:
                        time.sleep(0.05)
                if text != (getattr(want, "reasoning_content", None) or "") + (want.content or ""):
                    lost.append(text)

            threads = [threading.Thread(target=follow, args=(i % 8 == 0,)) for i in range(64)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(lost, [])
            self.assertEqual(server.metric("vllm:num_requests_waiting"), 0)


if __name__ == "__main__":
    unittest.main()
