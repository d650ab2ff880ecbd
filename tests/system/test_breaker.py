"""`lockstep serve --recover` whose ranks are lost again and again: it refuses for a while, and comes back."""

import contextlib
import http.client
import json
import os
import signal
import unittest

from support import TestCase, children, wait_for
from test_serve import Server, greedy, grpc

ROUTES = {"/v1/completions": {"prompt": [1, 2, 3], "max_tokens": 4},
          "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}}


class Breaker(TestCase):
    def ask(self, server, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.ready["port"], timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps({"model": server.ready["model"], **body}))
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Retry-After"), answer.read().decode()

    def is_open(self, server):
        lines = self.ask(server, "GET", "/metrics")[2].splitlines()
        return [line.rpartition(" ")[2] for line in lines if line.startswith("lockstep_circuit_open{")] == ["1"]

    def is_ready(self, server):
        return self.ask(server, "GET", "/health/ready")[0] == 200

    def answer(self, server):
        return [token for part in server.stub.Generate(greedy([1, 2, 3], 20), timeout=60) for token in part.token_ids]

    def lose_one(self, server):
        """Kills the last rank; returns it and those that are left."""
        *left, victim = children(server.process.pid)
        os.kill(victim, signal.SIGKILL)
        return victim, left

    def is_mended(self, server, victim, left):
        now = children(server.process.pid)
        return victim not in now and len(now) > len(left) and self.is_ready(server)

    def test_ranks_that_are_lost_again_and_again_are_left_alone_for_a_while(self):
        # The circuit is open for longer than a rank waits for a start.
        with Server("--ranks", 3, "--recover", "--circuit-failures", 2, "--start-timeout-ms", 10000, "--circuit-wait-ms", 15000,
                    "--circuit-longest-wait-ms", 16000) as server:
            want = self.answer(server)
            lost = self.lose_one(server)
            self.assertTrue(wait_for(lambda: self.is_mended(server, *lost)), "one loss is mended at once")
            self.assertFalse(self.is_open(server))
            self.assertEqual(self.answer(server), want)

            victim, left = self.lose_one(server)
            self.assertTrue(wait_for(lambda: self.is_open(server)))
            for path, body in ROUTES.items():
                status, retry_after, text = self.ask(server, "POST", path, body)
                self.assertEqual(status, 503, text)
                self.assertIn(int(retry_after), range(1, 17))
                error = json.loads(text)["error"]
                self.assertEqual(error["type"], "overloaded_error" if path == "/v1/messages" else "unavailable_error")
                self.assertRegex(error["message"], rf"lost 2 times within 300 s and are not started .*pid {victim}\b")
            self.assertEqual(self.ask(server, "GET", "/health/ready")[:2], (503, "5"))
            self.assertEqual(self.ask(server, "GET", "/health/live")[0], 200)
            with self.assertRaises(grpc.RpcError) as refused:
                self.answer(server)
            self.assertEqual(refused.exception.code(), grpc.StatusCode.UNAVAILABLE)
            self.assertIn("lost 2 times", refused.exception.details())
            self.assertIn("retry-after", dict(refused.exception.trailing_metadata()))
            self.assertFalse(server.serving())
            self.assertEqual(children(server.process.pid), left, "nobody is started meanwhile")

            self.assertTrue(wait_for(lambda: self.is_ready(server), 60))
            self.assertTrue(wait_for(lambda: not self.is_open(server)))
            self.assertEqual(self.answer(server), want)
            self.assertTrue(set(left) < set(children(server.process.pid)), "who is left has waited")

            self.lose_one(server)
            self.assertTrue(wait_for(lambda: self.is_open(server)), "the losses before are not forgotten")
            server.process.terminate()
            code, _, err = self.end(server.process, 20)
            self.assertEqual(code, 130, err)

    def test_without_a_bound_it_is_formed_again_every_time(self):
        with Server("--ranks", 2, "--recover", "--circuit-failures", 0) as server:
            for _ in range(4):
                lost = self.lose_one(server)
                self.assertTrue(wait_for(lambda: self.is_mended(server, *lost)))
                self.assertFalse(self.is_open(server))


if __name__ == "__main__":
    unittest.main()
