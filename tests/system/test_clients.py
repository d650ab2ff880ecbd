"""`lockstep serve` through curl, as people's scripts call it, and through litellm (where it is installed)."""

import json
import os
import shutil
import subprocess
import sys
import unittest

try:
    from test_http import QUESTION, Server
except ImportError as error:
    print(f"skipped: {error}; pip install -r tests/requirements.txt")
    sys.exit(77)
from support import TINY, TestCase

try:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list of prices
    import litellm
    litellm.suppress_debug_info = True
except ImportError:
    litellm = None

CHAT = {"messages": QUESTION, "temperature": 0, "max_tokens": 60, "thinking": {"type": "disabled"}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


@unittest.skipUnless(shutil.which("curl"), "there is no curl")
class Curl(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--ranks", 2).__enter__()
        cls.want = cls.server.chat(**{key: CHAT[key] for key in ("temperature", "max_tokens")},
                                   extra_body={"thinking": CHAT["thinking"]}).choices[0].message.content

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def curl(self, path, *arguments, body=None):
        """Exit code, head of the last answer by lower-case name, body."""
        head = self.path("head")
        command = ["curl", "-sS", "--max-time", "30", "-D", head, *arguments, self.server.url + path]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "--data-binary", "@-"]
        done = subprocess.run(command, input=json.dumps(body).encode() if body is not None else b"", capture_output=True,
                              timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        with open(head, encoding="utf-8") as file:
            lines = file.read().strip().split("\n\n")[-1].splitlines()
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return int(lines[0].split()[1]), fields, done.stdout.decode()

    def content(self, text):
        return json.loads(text)["choices"][0]["message"]["content"]

    def test_a_chat(self):
        status, fields, text = self.curl("/v1/chat/completions", body=CHAT)
        self.assertEqual((status, fields["content-type"]), (200, "application/json"))
        self.assertEqual(self.content(text), self.want)
        self.assertIn("Paris", self.want)

    def test_a_stream(self):
        status, fields, text = self.curl("/v1/chat/completions", "-N", body={**CHAT, "stream": True})
        self.assertEqual((status, fields["content-type"]), (200, "text/event-stream"))
        events = text.split("\n\n")
        self.assertEqual(events[-2:], ["data: [DONE]", ""])
        said = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"].get("content") or "" for event in events[:-2]]
        self.assertEqual("".join(said), self.want)
        self.assertGreater(len(said), 2)

    def test_old_versions_chunks_and_large_bodies(self):
        large = {**CHAT, "user": "x" * 100_000}
        for arguments in (["--http1.0"], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"],
                          ["--compressed"], ["-H", "Accept-Encoding: br, gzip"], ["-H", "Connection: close"]):
            for body in (CHAT, large):
                status, fields, text = self.curl("/v1/chat/completions", *arguments, body=body)
                self.assertEqual(status, 200, arguments)
                self.assertNotIn("content-encoding", fields)
                self.assertEqual(self.content(text), self.want)
        status, fields, text = self.curl("/v1/chat/completions", "--http1.0", "-N", body={**CHAT, "stream": True})
        self.assertNotIn("transfer-encoding", fields)
        self.assertTrue(text.endswith("data: [DONE]\n\n"))

    def test_heads_and_wrong_methods(self):
        for path in ("/v1/models", "/health/live", "/openapi.json"):
            _, whole, text = self.curl(path)
            status, fields, _ = self.curl(path, "--head")
            self.assertEqual((status, fields.get("content-length")), (200, str(len(text.encode()))))
            self.assertEqual(fields["content-type"], whole["content-type"])
        for method, path, allowed in (("PUT", "/v1/models", "GET, HEAD"), ("GET", "/v1/chat/completions", "POST"),
                                      ("DELETE", "/v1/messages", "POST"), ("OPTIONS", "/tokenize", "POST")):
            status, fields, text = self.curl(path, "-X", method)
            self.assertEqual((status, fields.get("allow")), (405, allowed))
            self.assertIn("error", json.loads(text))
        self.assertEqual(self.curl("/v1/chat", body=CHAT)[0], 404)

    def test_two_requests_on_one_connection(self):
        url = self.server.url + "/v1/models"
        done = subprocess.run(["curl", "-sS", "-w", "%{num_connects} ", "-o", os.devnull, url, "-o", os.devnull, url],
                              capture_output=True, text=True, timeout=60, check=True)
        self.assertEqual(done.stdout, "1 0 ")


@unittest.skipUnless(litellm, "litellm is not installed: pip install -r tests/requirements-full.txt")
class LiteLlm(TestCase):
    def ask(self, server, provider="openai", **more):
        base = server.url + ("/v1" if provider == "openai" else "")
        return litellm.completion(**{"model": f"{provider}/{server.ready['model']}", "api_base": base, "api_key": "none",
                                     "messages": QUESTION, "temperature": 0, "max_tokens": 100, **more})

    def test_chats_streams_and_tools(self):
        with Server("--ranks", 2) as server:
            off = {"thinking": {"type": "disabled"}}
            whole = self.ask(server, extra_body=off)
            self.assertIn("Paris", whole.choices[0].message.content)
            self.assertEqual(whole.choices[0].finish_reason, "stop")
            parts = list(self.ask(server, extra_body=off, stream=True, stream_options={"include_usage": True}))
            self.assertEqual("".join(part.choices[0].delta.content or "" for part in parts if part.choices),
                             whole.choices[0].message.content)
            self.assertEqual(parts[-1].usage.completion_tokens, whole.usage.completion_tokens)
            thought = self.ask(server)
            self.assertTrue(thought.choices[0].message.reasoning_content)
            # The small model calls nothing; what a call leaves in a conversation is understood.
            call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
            answer = self.ask(server, tools=[WEATHER], messages=[
                *QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}])
            self.assertGreater(answer.usage.prompt_tokens, whole.usage.prompt_tokens + 50)

    def test_messages_of_anthropic(self):
        with Server("--ranks", 2) as server:
            whole = self.ask(server, "anthropic")
            self.assertIn("Paris", whole.choices[0].message.content)
            parts = list(self.ask(server, "anthropic", stream=True))
            self.assertEqual("".join(part.choices[0].delta.content or "" for part in parts if part.choices),
                             whole.choices[0].message.content)

    def test_errors(self):
        with Server("--max-model-len", 64, model=TINY) as server:
            with self.assertRaisesRegex(litellm.ContextWindowExceededError, "maximum context length is 64"):
                self.ask(server, messages=[{"role": "user", "content": "word " * 200}])
            with self.assertRaises(litellm.NotFoundError):
                self.ask(server, model="openai/gpt-4")
            with self.assertRaisesRegex(litellm.BadRequestError, "temperature"):
                self.ask(server, temperature=-1)


if __name__ == "__main__":
    unittest.main()
