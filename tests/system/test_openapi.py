"""schemathesis against a running `lockstep serve`: requests made from the document at /openapi.json, right ones and wrong
ones, must be answered as the document says. LOCKSTEP_EXAMPLES: how many are drawn for each route (10)."""

import hashlib
import json
import os
import subprocess
import sys
import unittest

try:
    import schemathesis  # noqa: F401: run as a program
    from test_http import Server
except ImportError as error:  # deploy/test-full.sh installs it
    print(f"skipped: {error}; pip install -r tests/requirements-full.txt")
    sys.exit(77)

from support import TestCase

# Not asked: that whatever fits the document is accepted. A prompt may be too long, top_logprobs needs logprobs, ...
CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance",
          "ignored_auth"]


class OpenApi(TestCase):
    def test_the_server_does_what_its_document_says(self):
        keys = self.write("keys", f"me {hashlib.sha256(b'a-key').hexdigest()}\n")
        with Server("--ranks", 2, "--api-key-file", keys, "--max-model-len", 128, key="a-key") as server:
            done = subprocess.run(
                [os.path.join(os.path.dirname(sys.executable), "schemathesis"), "run", server.url + "/openapi.json",
                 "-H", "Authorization: Bearer a-key", "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing",
                 "--max-examples", os.environ.get("LOCKSTEP_EXAMPLES", "10"), "--seed", "4711", "--request-timeout", "60",
                 "--continue-on-failure"], cwd=self.directory, capture_output=True, text=True, timeout=3000, check=False)
            self.assertEqual(done.returncode, 0, done.stdout[-20_000:] + done.stderr[-2000:])
            print(done.stdout[-400:])
            status, load = server.get("/health", **{"x-api-key": "a-key"})
            self.assertEqual((status, json.loads(load)["requests_running"]), (200, 0))
        self.assertNotIn(" E ", server.errors)  # no line of the log is an error


if __name__ == "__main__":
    unittest.main()
