"""Who gets in to `lockstep serve`, through what, how much of it, and what the log says: real clients over TLS."""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import unittest

from support import PATIENCE_S, TINY, TestCase, children, run, wait_for
from test_http import QUESTION, Server
from test_serve import grpc, health_pb2, health_pb2_grpc, pb, services

import anthropic
import httpx2 as httpx  # what openai comes with
import openai

SECRETS = {"alice": "alice-secret", "bob": "bob-secret"}


def endless(**more):
    return {"stream": True, "max_tokens": 3000, "extra_body": {"ignore_eos": True}, **more}


class Secure:
    """The clients of a server that speaks TLS, as `alice`."""

    def __init__(self, server, ca):
        self.port, self.grpc_port = server.ready["port"], server.ready["grpc_port"]
        self.url = f"https://localhost:{self.port}"
        self.model = server.ready["model"]
        self.context = ssl.create_default_context(cafile=ca)
        self.openai = openai.OpenAI(base_url=self.url + "/v1", api_key=SECRETS["alice"], max_retries=0, timeout=60,
                                    http_client=httpx.Client(verify=self.context))
        with open(ca, "rb") as file:
            self.channel = grpc.secure_channel(f"localhost:{self.grpc_port}",
                                               grpc.ssl_channel_credentials(file.read()))

    def chat(self, **more):
        return self.openai.chat.completions.create(**{"model": self.model, "messages": QUESTION, "temperature": 0,
                                                      **more})

    def serial(self, port):
        """Of the certificate that is shown there to a new client."""
        context = ssl._create_unverified_context()  # pylint: disable=protected-access
        context.set_alpn_protocols(["h2"])
        with socket.create_connection(("localhost", port), timeout=10) as raw, \
                context.wrap_socket(raw, server_hostname="localhost") as client:
            return hashlib.sha256(client.getpeercert(True)).hexdigest()

    def close(self):
        self.openai.close()
        self.channel.close()


class Halves:
    """A connection that holds the beginnings of as many gRPC messages as the server takes, by HTTP/2's own frames."""

    SIZE = 16 << 20

    def __init__(self, port, calls):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(0.2)
        self.connection_window, self.first_window, self.inbox = 65535, 65535, b""
        self.left, self.windows = {}, {}  # by stream
        fields = {":method": "POST", ":scheme": "http", ":path": "/lockstep.v1.Inference/Chat",
                  ":authority": "localhost", "content-type": "application/grpc", "te": "trailers"}
        # HPACK's literals without indexing, with new names.
        head = b"".join(bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()
                        for name, value in fields.items())
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self.frame(4, 0))
        for stream in range(1, 2 * calls, 2):
            self.left[stream], self.windows[stream] = self.SIZE, 65535
            self.socket.sendall(self.frame(1, stream, head, flags=4))
            self.send(stream, b"\0" + struct.pack(">I", self.SIZE + 1))

    @staticmethod
    def frame(kind, stream, body=b"", flags=0):
        return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body

    def send(self, stream, body):
        self.socket.sendall(self.frame(0, stream, body))
        self.connection_window -= len(body)
        self.windows[stream] -= len(body)

    def take(self, kind, stream, flags, body):
        if kind in (1, 3) and stream in self.left:  # the server has ended it
            del self.left[stream], self.windows[stream]
        elif kind == 4 and not flags & 1:
            for key, value in struct.iter_unpack(">HI", body):
                if key == 4:
                    for each in self.windows:
                        self.windows[each] += value - self.first_window
                    self.first_window = value
            self.socket.sendall(self.frame(4, 0, flags=1))
        elif kind == 6 and not flags & 1:
            self.socket.sendall(self.frame(6, 0, body, flags=1))
        elif kind == 8 and stream == 0:
            self.connection_window += int.from_bytes(body, "big")
        elif kind == 8 and stream in self.windows:
            self.windows[stream] += int.from_bytes(body, "big")

    def fill(self):
        """Until the server wants no more."""
        with contextlib.suppress(OSError):  # also where it hangs up
            while True:
                for stream in self.left:
                    while (size := min(self.left[stream], self.connection_window, self.windows[stream], 16384)) > 0:
                        self.send(stream, bytes(size))
                        self.left[stream] -= size
                got = self.socket.recv(1 << 16)
                if not got:
                    return
                self.inbox += got
                while len(self.inbox) >= 9 and len(self.inbox) >= 9 + (size := int.from_bytes(self.inbox[:3], "big")):
                    self.take(self.inbox[3], int.from_bytes(self.inbox[5:9], "big"), self.inbox[4],
                              self.inbox[9:9 + size])
                    self.inbox = self.inbox[9 + size:]


def as_metadata(name):
    return (("authorization", "Bearer " + SECRETS[name]),)


def question(**more):
    request = pb.ChatRequest(sampling=pb.SamplingOptions(temperature=0), enable_thinking=False, **more)
    request.messages.add(role="user", content=QUESTION[0]["content"])
    return request


class Guard(TestCase):
    def certificate(self, name="server"):
        """Paths of a new certificate for this machine and of its key."""
        paths = self.path(name + ".pem"), self.path(name + ".key")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", paths[1], "-out", paths[0], "-days", "2", "-subj", "/CN=localhost", "-addext",
                        "subjectAltName=DNS:localhost,IP:127.0.0.1"], check=True, capture_output=True)
        return paths

    def keys(self, **limits):
        return self.write("keys", "".join(f"{name} {hashlib.sha256(secret.encode()).hexdigest()} {limits.get(name, '')}\n"
                                          for name, secret in SECRETS.items()))

    def test_clients_come_in_through_tls_with_their_key_and_nobody_else(self):
        certificate, key = self.certificate()
        stranger, _ = self.certificate("stranger")
        with Server("--ranks", 2, "--tls-cert", certificate, "--tls-key", key, "--api-key-file", self.keys()) as server:
            client = Secure(server, certificate)
            self.addCleanup(client.close)
            whole = client.chat()
            self.assertIn("Paris", whole.choices[0].message.content)
            parts = [part.choices[0].delta.content or "" for part in client.chat(stream=True) if part.choices]
            self.assertEqual("".join(parts), whole.choices[0].message.content)
            with self.assertRaises(openai.AuthenticationError):
                client.openai.with_options(api_key="wrong").models.list()
            for url, verify in ((client.url, ssl.create_default_context(cafile=stranger)),
                                (client.url.replace("https", "http"), True)):
                with self.assertRaises(httpx.HTTPError), httpx.Client(verify=verify) as wrong:
                    wrong.get(url + "/health/live").raise_for_status()
            with httpx.Client(verify=client.context) as plain:
                answer = plain.get(client.url + "/health/live", headers={"Host": "example.org"})
            self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
            self.assertNotIn("strict-transport-security", answer.headers)  # it would hold for all ports of the name
            # gRPC the same.
            stub = services.InferenceStub(client.channel)
            text = "".join(part.content for part in stub.Chat(question(), metadata=as_metadata("bob"), timeout=60))
            self.assertIn("Paris", text)
            with self.assertRaises(grpc.RpcError) as refused:
                stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
            self.assertEqual(refused.exception.code(), grpc.StatusCode.UNAUTHENTICATED)
            health = health_pb2_grpc.HealthStub(client.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            self.assertEqual(health.status, health_pb2.HealthCheckResponse.SERVING)
            # Reflection: list_services, by its bytes.
            reflect = client.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            listed = next(reflect(iter([b"\x3a\x00"]), timeout=10))
            self.assertIn(b"lockstep.v1.Inference", listed)
            with open(stranger, "rb") as file:
                credentials = grpc.ssl_channel_credentials(file.read())
            for channel in (grpc.insecure_channel(f"localhost:{client.grpc_port}"),
                            grpc.secure_channel(f"localhost:{client.grpc_port}", credentials)):
                with channel, self.assertRaises(grpc.RpcError) as refused:
                    services.InferenceStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=10,
                                                                 metadata=as_metadata("bob"))
                self.assertEqual(refused.exception.code(), grpc.StatusCode.UNAVAILABLE)
            # Another certificate in the same files is taken without a restart, while a stream goes on.
            stream = iter(client.chat(**endless(max_tokens=200)))
            next(stream)
            before = client.serial(client.port)
            self.assertEqual(client.serial(client.grpc_port), before)
            self.certificate()
            for port in (client.port, client.grpc_port):
                self.assertTrue(wait_for(lambda port=port: client.serial(port) != before, step=0.2), port)
            self.assertEqual(client.serial(client.port), client.serial(client.grpc_port))
            self.assertEqual([part for part in stream if part.choices][-1].choices[0].finish_reason, "length")
            shown = client.serial(client.port)
            again = Secure(server, certificate)
            self.addCleanup(again.close)
            self.assertEqual(again.chat().choices[0].message, whole.choices[0].message)
            # Files that cannot be used change nothing for HTTP.
            self.write("server.pem", "nonsense")
            time.sleep(1.2)
            self.assertEqual(client.serial(client.port), shown)
        self.assertIn("the certificate stays as it is: --tls-cert", server.errors)

    def test_files_that_cannot_be_used_are_named_before_anything_is_loaded(self):
        certificate, key = self.certificate()
        _, other = self.certificate("other")
        serve = ("serve", "--model", TINY, "--port", 0, "--grpc-port", 0)
        self.assert_fails(run(*serve, "--tls-cert", certificate), 2, "--tls-key is missing")
        self.assert_fails(run(*serve, "--tls-cert", self.path("none"), "--tls-key", key), 2, "--tls-cert", "none")
        self.assert_fails(run(*serve, "--tls-cert", key, "--tls-key", key), 2, "BEGIN CERTIFICATE", key)
        self.assert_fails(run(*serve, "--tls-cert", certificate, "--tls-key", other), 2, "made together", other)

    def test_tls_alone_opens_the_address_and_keeps_pages_of_other_sites_out(self):
        certificate, key = self.certificate()
        with Server("--host", "0.0.0.0", "--tls-cert", certificate, "--tls-key", key) as server:
            client = Secure(server, certificate)
            self.addCleanup(client.close)
            with httpx.Client(verify=client.context) as plain:
                for origin, status in (("https://evil.example", 403), ("https://box.example:1", 200), ("null", 403)):
                    answer = plain.get(client.url + "/v1/models",
                                       headers={"Host": "box.example:1", "Origin": origin})
                    self.assertEqual(answer.status_code, status, origin)
            self.assertIn("Paris", client.chat().choices[0].message.content)
        self.assertIn("without keys", server.errors)
        self.assertNotIn("without encryption", server.errors)

    def test_who_does_not_shake_hands_or_reads_no_more_holds_up_nobody(self):
        certificate, key = self.certificate()
        with Server("--tls-cert", certificate, "--tls-key", key, "--max-num-seqs", 2) as server:
            client = Secure(server, certificate)
            self.addCleanup(client.close)
            with contextlib.ExitStack() as stack:
                for port in (client.port, client.grpc_port):
                    for i in range(40):
                        silent = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                        silent.sendall(b"\x16\x03\x01\x02\x00\x01"[:i % 7])
                self.assertIn("Paris", client.chat().choices[0].message.content)
                answer = services.InferenceStub(client.channel).Chat(question(), timeout=60)
                self.assertIn("Paris", "".join(part.content for part in answer))
            # Who hangs up, politely or not, or only says that nothing more comes, frees its place.
            body = json.dumps({"messages": QUESTION, **endless()} | {"ignore_eos": True, "extra_body": {}})
            for leave in (lambda s: s.unwrap(), lambda s: s.close(), lambda s: s.shutdown(socket.SHUT_WR)):
                raw = socket.create_connection(("localhost", client.port))
                gone = client.context.wrap_socket(raw, server_hostname="localhost")
                gone.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
                             f"\r\n\r\n{body}".encode())
                self.assertIn(b"200 OK", gone.recv(15))
                self.assertTrue(wait_for(lambda: self.running(client) == 1))
                with contextlib.suppress(ssl.SSLError, OSError):
                    leave(gone)
                self.assertTrue(wait_for(lambda: self.running(client) == 0))
                gone.close()

    def test_strangers_cannot_fill_the_memory_through_grpc(self):
        with Server("--api-key-file", self.keys(), key=SECRETS["alice"]) as server:
            def resident():
                with open(f"/proc/{server.process.pid}/status") as file:
                    return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS"))
            before = resident()
            halves = Halves(server.ready["grpc_port"], 64)  # 1 GiB
            self.addCleanup(halves.socket.close)
            halves.fill()
            self.assertLess(resident() - before, 640 << 20)
            self.assertTrue(server.chat(max_tokens=5).choices)
            with grpc.insecure_channel(f"127.0.0.1:{server.ready['grpc_port']}") as channel:
                ask = question(stop=pb.StopOptions(max_tokens=5))
                stub = services.InferenceStub(channel)
                self.assertTrue(list(stub.Chat(ask, metadata=as_metadata("alice"), timeout=60)))
            halves.socket.close()  # or the end would wait for it

    def running(self, client):
        with httpx.Client(verify=client.context) as plain:
            return plain.get(client.url + "/health").json()["requests_running"]

    def test_a_key_has_its_limits_whatever_it_comes_through(self):
        keys = self.keys(alice="requests=1 tokens-per-minute=100000", bob="tokens-per-minute=200 priority=2")
        with Server("--ranks", 2, "--api-key-file", keys, "--max-model-len", 8192, key=SECRETS["alice"]) as server, \
                grpc.insecure_channel(f"127.0.0.1:{server.ready['grpc_port']}") as channel:
            stub = services.InferenceStub(channel)
            stream = server.chat(**endless())
            iterator = iter(stream)
            next(iterator)
            with self.assertRaisesRegex(openai.RateLimitError, "'alice' may have 1 requests at once") as refused:
                server.chat(max_tokens=5)
            self.assertGreaterEqual(int(refused.exception.response.headers["retry-after"]), 1)
            self.assertEqual(refused.exception.response.headers["x-ratelimit-remaining-requests"], "0")
            with anthropic.Anthropic(base_url=server.url, api_key=SECRETS["alice"], max_retries=0) as client:
                with self.assertRaisesRegex(anthropic.RateLimitError, "1 requests at once"):
                    client.messages.create(model="claude-x", max_tokens=5, messages=QUESTION)
            with self.assertRaises(grpc.RpcError) as refused:
                list(stub.Chat(question(), metadata=as_metadata("alice"), timeout=60))
            self.assertEqual(refused.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
            self.assertEqual(dict(refused.exception.trailing_metadata())["retry-after"], "1")
            # Others are not meant.
            bob = server.client.with_options(api_key=SECRETS["bob"])
            ask = {"model": server.ready["model"], "messages": QUESTION, "temperature": 0}
            answer = bob.chat.completions.with_raw_response.create(**ask, max_tokens=20)
            self.assertEqual(answer.headers["x-ratelimit-limit-tokens"], "200")
            used = answer.parse().usage.total_tokens
            with self.assertRaisesRegex(openai.RateLimitError, "200 tokens a minute") as refused:
                bob.chat.completions.create(**ask, max_tokens=200)
            wait_s = int(refused.exception.response.headers["retry-after"])
            self.assertLessEqual(abs(wait_s - used * 60 / 200), 3)
            stream.close()
            # A new limit counts without a restart; a slip keeps the old ones.
            self.keys(alice="requests=2", bob="")
            self.assertTrue(wait_for(lambda: "x-ratelimit-limit-tokens" not in
                                     bob.models.with_raw_response.list().headers))
            self.assertTrue(bob.chat.completions.create(**ask, max_tokens=400).choices[0].message)
            self.keys(alice="requests=many")
            time.sleep(1.2)
            self.assertTrue(bob.models.list().data)
        self.assertIn("keys:1: 'requests=many' is no limit", server.errors)

    def test_every_call_has_a_name_a_trace_and_a_line(self):
        trace = "0af7651916cd43dd8448eb211c80319c"
        with Server("--ranks", 2, "--log-format", "json", "--api-key-file", self.keys(), key=SECRETS["alice"]) as server, \
                grpc.insecure_channel(f"127.0.0.1:{server.ready['grpc_port']}") as channel:
            mine = server.client.chat.completions.with_raw_response.create(
                model=server.ready["model"], messages=QUESTION, temperature=0,
                extra_headers={"x-request-id": "mine-1", "traceparent": f"00-{trace}-b7ad6b7169203331-01"})
            self.assertEqual(mine.request_id, "mine-1")
            self.assertEqual(mine.headers["traceparent"].split("-")[1], trace)
            usage = mine.parse().usage
            made = server.client.chat.completions.with_raw_response.create(
                model=server.ready["model"], messages=QUESTION, max_tokens=3, extra_headers={"x-request-id": "<no>"})
            self.assertRegex(made.request_id, "^[0-9a-f]{32}$")
            with self.assertRaises(openai.BadRequestError) as wrong:
                server.chat(temperature=-1)
            call = services.InferenceStub(channel).Chat(
                question(), metadata=as_metadata("bob") + (("x-request-id", "mine-2"), ("traceparent",
                                                           f"00-{trace}-b7ad6b7169203331-01")), timeout=60)
            said = "".join(part.content for part in call)
            self.assertEqual(dict(call.initial_metadata())["x-request-id"], "mine-2")
            self.assertEqual(dict(call.initial_metadata())["traceparent"].split("-")[1], trace)
        *lines, last = server.errors.splitlines()
        self.assertEqual(last, "lockstep: interrupted")
        lines = [json.loads(line) for line in lines]
        calls = {line["id"]: line for line in lines if line.get("event") == "request"}
        first, second = calls["mine-1"], calls["mine-2"]
        self.assertEqual({name: first[name] for name in ("route", "key", "model", "status", "finish", "trace", "level")},
                         {"route": "POST /v1/chat/completions", "key": "alice", "model": server.ready["model"],
                          "status": 200, "finish": "stop", "trace": trace, "level": "info"})
        self.assertEqual((first["prompt_tokens"], first["completion_tokens"]),
                         (usage.prompt_tokens, usage.completion_tokens))
        self.assertLessEqual(first["queue_ms"], first["ttft_ms"])
        self.assertLessEqual(first["ttft_ms"], first["total_ms"])
        self.assertEqual((second["route"], second["key"], second["status"], second["trace"]),
                         ("grpc Chat", "bob", "OK", trace))
        self.assertEqual(calls[made.request_id]["finish"], "length")
        self.assertEqual(calls[wrong.exception.request_id]["status"], 400)
        self.assertNotIn("France", server.errors)
        self.assertNotIn("Paris", server.errors)
        self.assertIn("Paris", said)
        for secret in SECRETS.values():
            self.assertNotIn(secret, server.errors)

    def test_an_answer_that_is_made_may_be_read_in_the_time_to_end(self):
        with Server("--max-model-len", 8192) as server, socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", server.ready["port"]))
            # More than sockets hold.
            body = json.dumps({"messages": QUESTION, "stream": True, "max_tokens": 2500, "ignore_eos": True,
                               "logprobs": True, "top_logprobs": 20})
            slow.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
                         f"\r\n\r\n{body}".encode())
            said = slow.recv(1000)
            self.assertTrue(wait_for(lambda: server.metric("vllm:generation_tokens_total") == 2500))
            server.process.send_signal(signal.SIGTERM)
            time.sleep(1.5)
            slow.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while part := slow.recv(1 << 16):
                    said += part
            self.assertIn(b"data: [DONE]", said[-100:])
            self.assertEqual(server.process.wait(PATIENCE_S), 130)

    def test_the_time_to_end_is_an_option(self):
        with Server("--ranks", 2, "--drain-timeout-ms", 300, "--max-model-len", 16384) as server:
            stream = iter(server.chat(**endless(max_tokens=16000)))
            next(stream)
            ranks = children(server.process.pid)
            begin = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            with self.assertRaises(openai.APIError):
                for _ in stream:
                    pass
            self.assertEqual(server.process.wait(PATIENCE_S), 130)
            self.assertLess(time.monotonic() - begin, 8)
            self.assertTrue(wait_for(lambda: not any(os.path.exists(f"/proc/{rank}") for rank in ranks)))


if __name__ == "__main__":
    unittest.main()
