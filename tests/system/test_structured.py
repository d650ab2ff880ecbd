"""Replies that must have a form, from `lockstep serve` through the clients that applications use, checked by the
`jsonschema` package: the model is a tiny one, so the form is the server's work."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import unittest

from support import TINY, TestCase, start

try:
    import anthropic
    import grpc
    import jsonschema
    import openai
except ImportError as error:  # deploy/test.sh installs it; elsewhere say why nothing ran
    print(f"skipped: {error}; pip install -r tests/requirements.txt")
    sys.exit(77)

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
OFF = {"thinking": {"type": "disabled"}}

# Of every keyword that docs/serving.md says is kept; bounded, since the model may never come to an end by itself.
SCHEMAS = {
    "object": {"type": "object", "required": ["name", "age"], "additionalProperties": False, "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 12},
        "age": {"type": "integer", "minimum": 3, "maximum": 120},
        "nick": {"type": ["string", "null"], "maxLength": 4}}},
    "more": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
             "additionalProperties": {"enum": [1, 2]}},
    "array": {"type": "array", "minItems": 2, "maxItems": 4, "items": {"enum": ["red", "green", None, 7, {"x": [1]}]}},
    "tuple": {"type": "array", "prefixItems": [{"const": "id"}, {"type": "integer", "multipleOf": 7, "minimum": 0,
                                                                 "maximum": 70}], "items": False, "minItems": 2},
    "numbers": {"type": "object", "required": ["x", "y"], "additionalProperties": False, "properties": {
        "x": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 9}, "y": {"type": "number", "minimum": 1,
                                                                                        "maximum": 2}}},
    "patterns": {"type": "array", "minItems": 3, "maxItems": 3, "items": {"type": "string",
                                                                          "pattern": "^[a-c]{2,5}(-\\d{2})?$"}},
    "date": {"type": "string", "format": "date"},
    "uuid": {"type": "string", "format": "uuid"},
    "any of": {"anyOf": [{"type": "string", "maxLength": 6}, {"type": "integer", "minimum": 10, "maximum": 99}]},
    "one of": {"oneOf": [
        {"type": "object", "properties": {"kind": {"const": "a"}, "v": {"type": "boolean"}}, "required": ["kind", "v"],
         "additionalProperties": False},
        {"type": "object", "properties": {"kind": {"const": "b"}}, "required": ["kind"],
         "additionalProperties": False}]},
    "recursive": {"$defs": {"node": {"type": "object", "required": ["v"], "additionalProperties": False, "properties": {
        "v": {"enum": [0, 1]}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}}},
        "allOf": [{"$ref": "#/$defs/node"}]},
}

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": {
        "type": "object", "required": ["city", "days", "units"], "additionalProperties": False, "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome, \"Lazio\""]}, "days": {"type": "integer", "minimum": 1,
                                                                                       "maximum": 9},
            "units": {"type": ["string", "null"], "maxLength": 3},
            "places": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}}}}},
    {"type": "function", "function": {"name": "stop_all", "strict": True,
                                      "parameters": {"type": "object", "properties": {}}}}]


def check_call(test, name, arguments):
    tool = next(tool["function"] for tool in TOOLS if tool["function"]["name"] == name)
    jsonschema.Draft202012Validator(tool["parameters"]).validate(arguments)
    test.assertIsInstance(arguments, dict)


class Server:
    """A server with its clients; stopped at the end of the block."""

    def __init__(self, *flags):
        self.process = start("serve", "--model", TINY, "--port", 0, "--grpc-port", 0, *flags)
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1].decode()
        self.ready = json.loads(line)
        url = f"http://127.0.0.1:{self.ready['port']}"
        self.openai = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.openai.close()
        self.anthropic.close()
        self.process.terminate()
        try:
            self.errors = self.process.communicate(timeout=30)[1].decode()
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def chat(self, extra=None, **more):
        return self.openai.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "max_tokens": 500,
                                                      "extra_body": OFF if extra is None else extra, **more})

    def fit(self, schema, seed, **more):
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        return self.chat(response_format=form, seed=seed, temperature=1.5, top_p=1, **more)

    def ask(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.ready["port"], timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())


class Structured(TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--ranks", 2).__enter__()
        status, answer = cls.server.ask("/v1/chat/completions", {
            "messages": QUESTION, "max_tokens": 4, "response_format": {"type": "json_object"}})
        if status == 400 and "not built into" in answer["error"]["message"]:
            cls.server.__exit__()
            raise unittest.SkipTest(answer["error"]["message"])

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def finished(self, answer):
        choice = answer.choices[0]
        self.assertEqual(choice.finish_reason, "stop", choice.message.content)
        return json.loads(choice.message.content)

    def test_content_fits_every_kind_of_schema(self):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            jobs = [(name, seed, pool.submit(self.server.fit, schema, seed))
                    for name, schema in SCHEMAS.items() for seed in range(6)]
            seen = {}
            for name, seed, job in jobs:
                with self.subTest(schema=name, seed=seed):
                    value = self.finished(job.result())
                    jsonschema.Draft202012Validator(SCHEMAS[name],
                                                    format_checker=jsonschema.FormatChecker()).validate(value)
                    seen.setdefault(name, set()).add(json.dumps(value))
        # The draws differ: nothing pins the answer but the form.
        self.assertGreater(sum(len(values) > 1 for values in seen.values()), 8)

    def test_the_same_tokens_on_any_number_of_ranks_alone_and_in_company(self):
        asked = [(name, seed) for name in ("object", "any of", "recursive") for seed in range(3)]
        want = [self.finished(self.server.fit(SCHEMAS[name], seed)) for name, seed in asked]
        for ranks in (1, 3):
            with Server("--ranks", ranks) as server, concurrent.futures.ThreadPoolExecutor(6) as pool:
                jobs = [pool.submit(server.fit, SCHEMAS[name], seed) for name, seed in asked]
                free = [pool.submit(server.chat, temperature=0, max_tokens=40) for _ in range(2)]
                self.assertEqual([self.finished(job.result()) for job in jobs], want, ranks)
                self.assertEqual(len({job.result().choices[0].message.content for job in free}), 1)

    def test_thinking_comes_first_and_is_free(self):
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMAS["object"]}}
        answer = self.server.chat(extra={}, response_format=form, temperature=0, max_tokens=2000)
        message = answer.choices[0].message
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        jsonschema.validate(json.loads(message.content), SCHEMAS["object"])
        free = self.server.chat(extra={}, temperature=0, max_tokens=2000).choices[0].message
        self.assertEqual(message.reasoning_content, free.reasoning_content)
        self.assertTrue(message.reasoning_content)

    def test_a_stream_is_the_same(self):
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMAS["object"]}}
        chunks = self.server.chat(response_format=form, seed=4, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, self.server.chat(response_format=form, seed=4).choices[0].message.content)

    def test_what_is_cut_off_says_so(self):
        answer = self.server.fit(SCHEMAS["object"], 1, max_tokens=3)
        self.assertEqual(answer.choices[0].finish_reason, "length")

    def test_calls_that_are_demanded_are_made_with_typed_arguments(self):
        for seed in range(5):
            for thinking in (OFF, {}):
                choice = self.server.chat(thinking, tools=TOOLS, tool_choice="required", temperature=1.5, seed=seed,
                                          max_tokens=3000).choices[0]
                self.assertEqual(choice.finish_reason, "tool_calls", choice)
                for call in choice.message.tool_calls:
                    check_call(self, call.function.name, json.loads(call.function.arguments))
                single = self.server.chat(thinking, tools=TOOLS, tool_choice="required", temperature=1.5, seed=seed,
                                          parallel_tool_calls=False, max_tokens=3000).choices[0].message
                self.assertEqual(len(single.tool_calls), 1)
        for seed, name in enumerate(("get_weather", "stop_all", "get_weather")):
            named = {"type": "function", "function": {"name": name}}
            message = self.server.chat(tools=TOOLS, tool_choice=named, temperature=1.5, seed=seed).choices[0].message
            self.assertEqual([call.function.name for call in message.tool_calls], [name])
            check_call(self, name, json.loads(message.tool_calls[0].function.arguments))
            self.assertFalse(message.content)
        none = self.server.chat(tools=TOOLS, tool_choice="none", temperature=0).choices[0]
        self.assertIsNone(none.message.tool_calls)

    def test_strict_tools_are_called_rightly_or_not_at_all(self):
        # The bias makes the model call where it might not.
        status, tokens = self.server.ask("/tokenize", {"content": "<tool_call>"})
        self.assertEqual(status, 200)
        bias = {str(tokens["tokens"][0]): 20}
        for seed in range(6):
            choice = self.server.chat(tools=TOOLS, seed=seed, temperature=1, logit_bias=bias, max_tokens=400).choices[0]
            for call in choice.message.tool_calls or []:
                check_call(self, call.function.name, json.loads(call.function.arguments))
            self.assertTrue(choice.message.tool_calls)

    def test_anthropics_client_gets_the_calls_it_demands(self):
        tools = [{"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]} for tool in TOOLS]
        for choice, thinking in (({"type": "any"}, "disabled"), ({"type": "tool", "name": "get_weather"}, "disabled"),
                                 ({"type": "any", "disable_parallel_tool_use": True}, "enabled")):
            more = {"thinking": {"type": "enabled", "budget_tokens": 1024}} if thinking == "enabled" else {}
            answer = self.server.anthropic.messages.create(model="tiny", max_tokens=3000, messages=QUESTION,
                                                           tools=tools, tool_choice=choice, **more)
            self.assertEqual(answer.stop_reason, "tool_use")
            calls = [block for block in answer.content if block.type == "tool_use"]
            for call in calls:
                check_call(self, call.name, call.input)
                self.assertIn(choice.get("name", call.name), call.name)
            self.assertEqual(any(block.type == "thinking" for block in answer.content), thinking == "enabled")

    def test_responses_and_completions_keep_forms_too(self):
        schema = SCHEMAS["object"]
        answer = self.server.openai.responses.create(
            model="tiny", input="What is the capital of France?", max_output_tokens=500, extra_body=OFF,
            text={"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}})
        jsonschema.validate(json.loads(answer.output_text), schema)
        call = self.server.openai.responses.create(
            model="tiny", input="Weather?", max_output_tokens=500, extra_body=OFF, tool_choice="required",
            tools=[{"type": "function", **TOOLS[0]["function"]}]).output[0]
        check_call(self, call.name, json.loads(call.arguments))
        for more in ({"response_format": {"type": "json_object", "schema": schema}}, {"guided_json": schema},
                     {"structured_outputs": {"json": json.dumps(schema)}}):
            status, answer = self.server.ask("/v1/completions", {"prompt": "x", "max_tokens": 500, **more})
            self.assertEqual(status, 200, answer)
            jsonschema.validate(json.loads(answer["choices"][0]["text"]), schema)

    def test_any_json_object_is_an_object(self):
        answer = self.server.chat(response_format={"type": "json_object"}, temperature=0, max_tokens=1000).choices[0]
        if answer.finish_reason == "stop":
            self.assertIsInstance(json.loads(answer.message.content), dict)
        else:
            self.assertTrue(answer.message.content.startswith("{"))

    def test_what_cannot_be_kept_is_named(self):
        def schema(value):
            return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}}
        deep = {"type": "integer"}
        for _ in range(18):
            deep = {"anyOf": [deep, {"type": "array", "items": deep}]}
            if len(json.dumps(deep)) > 100_000:
                break
        cases = [
            (schema({"not": {}}), "response_format.json_schema.schema: 'not'"),
            (schema({"type": "object", "properties": {"a": {"type": "text"}}}), "schema.properties.a.type"),
            (schema({"type": "string", "pattern": "(["}), "Unclosed"),
            (schema({"type": "string", "pattern": "(a+)+"}), "a repetition of a repetition"),
            (schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
            (schema({"$ref": "#"}), "Circular"),
            (schema(deep), "schema"),
            (schema({"enum": list(range(2000))}), "more than 1000 values"),
            ({"response_format": {"type": "xml"}}, "response_format.type is 'xml'"),
            ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is missing"),
            ({"tool_choice": "required"}, "tool_choice demands a call"),
            ({"tool_choice": "always"}, "tool_choice must be"),
            ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice demands"),
            ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {
                "type": "object", "properties": {"a": {"type": "object", "patternProperties": {}}}}}}]},
             "tools[0].function.parameters.properties.a: 'patternProperties'"),
        ]
        for more, words in cases:
            with self.subTest(words=words):
                status, answer = self.server.ask("/v1/chat/completions",
                                                 {"messages": QUESTION, "max_tokens": 5, **more})
                self.assertEqual(status, 400, answer)
                self.assertIn(words, answer["error"]["message"])
        self.assertEqual(self.finished(self.server.fit({"const": 1}, 0)), 1)

    def test_grpc_keeps_the_same_forms(self):
        import grpc_tools.protoc  # compiles the schema as test_serve does
        from support import source
        grpc_tools.protoc.main(["", f"-I{source('proto')}", f"--python_out={self.directory}",
                                f"--grpc_python_out={self.directory}", "lockstep/v1/inference.proto"])
        sys.path.insert(0, self.directory)
        self.addCleanup(sys.path.remove, self.directory)
        from lockstep.v1 import inference_pb2 as pb, inference_pb2_grpc
        with grpc.insecure_channel(f"127.0.0.1:{self.server.ready['grpc_port']}") as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            def ask(**more):
                message = pb.Message(role="user", content="Hello")
                return list(stub.Chat(pb.ChatRequest(messages=[message], enable_thinking=False,
                                                     stop=pb.StopOptions(max_tokens=500), **more)))
            schema = SCHEMAS["object"]
            text = "".join(piece.content for piece in ask(response_schema=json.dumps(schema)))
            jsonschema.validate(json.loads(text), schema)
            tools = [json.dumps(tool) for tool in TOOLS]
            for more in ({"tool_choice": "required"}, {"tool_choice": "tool", "tool_name": "get_weather"}):
                calls = [call for piece in ask(tools=tools, **more) for call in piece.tool_calls]
                self.assertTrue(calls)
                for call in calls:
                    check_call(self, call.name, json.loads(call.arguments))
            plain = stub.Generate(pb.GenerateRequest(text="x", response_schema=json.dumps(schema),
                                                     stop=pb.StopOptions(max_tokens=500)))
            jsonschema.validate(json.loads("".join(piece.text for piece in plain)), schema)
            with self.assertRaises(grpc.RpcError) as error:
                ask(response_schema="{\"not\": {}}")
            self.assertEqual(error.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn("response_schema: 'not'", error.exception.details())


if __name__ == "__main__":
    unittest.main()
