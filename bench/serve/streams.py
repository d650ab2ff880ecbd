"""Many HTTP requests at once from one thread, cheaply: bytes are kept as they come and looked at when an answer is whole.
One loop over epoll, so that the client takes little of the machine that it measures."""

import heapq
import json
import random
import re
import selectors
import socket
import time

DELTA = re.compile(rb'"(reasoning_content|content)":("(?:[^"\\]|\\.)*")')
RETRY = re.compile(rb"(?im)^retry-after: *([0-9]+)\r$")


def request(body, path="/v1/chat/completions"):
    text = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\n\r\n").encode() + text


def said(answer):
    """Reasoning and content of an answer, streamed or whole."""
    parts = {b"reasoning_content": "", b"content": ""}
    for kind, text in DELTA.findall(answer):
        parts[kind] += json.loads(text)
    return parts[b"reasoning_content"], parts[b"content"]


class Call:
    """One request on a connection of its own. `kind`: reads ("normal"), reads slowly ("slow"), hangs up after `leave_after`
    events ("vanishing") or seconds ("cancelled")."""

    def __init__(self, sent, want=None, kind="normal", stream=True, limit_s=None, leave_after=0):
        self.sent, self.want, self.kind, self.stream = sent, want, kind, stream
        self.limit_s = limit_s
        self.leave_after = leave_after
        self.begun = time.monotonic()
        self.first = self.last = self.ended = None
        self.gaps, self.events = [], 0
        self.got = bytearray()
        self.left = False  # by its own will
        self.error = None
        self.unsent = sent
        self.socket = socket.socket()
        self.socket.setblocking(False)

    @property
    def status(self):
        return int(self.got[9:12]) if len(self.got) > 12 else 0

    @property
    def retry_after(self):
        found = RETRY.search(bytes(self.got))
        return int(found.group(1)) if found else None

    def right(self):
        """Whole, and what was to be said."""
        return (self.status == 200 and self.error is None and (not self.stream or b"data: [DONE]" in self.got) and
                said(bytes(self.got)) == self.want)


class Loop:
    """Calls in flight; `ended(call)` is told of each end."""

    def __init__(self, port, ended):
        self.port, self.ended = port, ended
        self.selector = selectors.EpollSelector()
        self.asleep = []  # (when to read on, call), in order
        self.leaving = []  # (when, number, call): a heap
        self.calls = set()

    def start(self, call):
        if call.kind == "slow":
            call.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.calls.add(call)
        if call.kind == "cancelled":
            heapq.heappush(self.leaving, (call.begun + call.leave_after, id(call), call))
        code = call.socket.connect_ex(("127.0.0.1", self.port))
        if code not in (0, 115):
            return self.end(call, OSError(code, "connect"), False)
        self.selector.register(call.socket, selectors.EVENT_WRITE, call)

    def end(self, call, error=None, registered=True):
        call.error, call.ended = error, time.monotonic()
        if registered:
            self.selector.unregister(call.socket)
        call.socket.close()
        self.calls.discard(call)
        self.ended(call)

    def write(self, call):
        try:
            call.unsent = call.unsent[call.socket.send(call.unsent):]
        except OSError as error:
            return self.end(call, error)
        if call.unsent:
            return
        self.selector.modify(call.socket, selectors.EVENT_READ, call)

    def read(self, call, now):
        try:
            part = call.socket.recv(512 if call.kind == "slow" else 65536)
        except BlockingIOError:
            return
        except OSError as error:
            return self.end(call, error)
        if not part:
            return self.end(call)
        call.got += part
        events = part.count(b"data: ")
        if events:
            # The first event has the role alone.
            if call.first is None and call.events + events > 1:
                call.first = now
            elif call.first is not None:
                call.gaps.append(now - call.last)
            call.last = now
            call.events += events
        if call.kind == "vanishing" and call.events > call.leave_after:
            call.left = True
            return self.end(call)
        if call.kind == "slow" and call.events:
            self.selector.unregister(call.socket)
            self.asleep.append((now + 0.1, call))

    def turn(self, longest_s):
        """Waits for something to happen, at most so long."""
        now = time.monotonic()
        while self.asleep and self.asleep[0][0] <= now:
            _, call = self.asleep.pop(0)
            self.selector.register(call.socket, selectors.EVENT_READ, call)
        if self.asleep:
            longest_s = min(longest_s, self.asleep[0][0] - now)
        while self.leaving and self.leaving[0][0] <= now:
            call = heapq.heappop(self.leaving)[2]
            if call in self.calls:
                call.left = True
                self.end(call)
        for key, _ in self.selector.select(max(longest_s, 0)):
            now = time.monotonic()
            if key.data.ended is not None:
                continue
            if key.data.unsent:
                self.write(key.data)
            else:
                self.read(key.data, now)

    def give_up(self, limit_of):
        """Ends the calls that have been at it for longer than `limit_of(call)` seconds."""
        now = time.monotonic()
        sleepers = {call for _, call in self.asleep}
        for call in [one for one in self.calls if now - one.begun > limit_of(one)]:
            if call in sleepers:
                self.asleep = [entry for entry in self.asleep if entry[1] is not call]
            self.end(call, TimeoutError("no end in time"), call not in sleepers)


class Questions:
    """Requests with the answers that they must get, learned one by one before."""

    TOPICS = ["What is the capital of France?", "And the capital of Italy?", "Tell me a story.", "Who are you?",
              "Count to ten.", "What is two and two?", "Name a colour.", "Say something kind.", "Why is the sky blue?"]

    def __init__(self, port, count, max_tokens, padding, seed):
        self.bodies, self.answers = [], []
        draw = random.Random(seed)
        for index in range(count):
            text = " ".join(draw.choice(self.TOPICS) for _ in range(1 + padding))
            self.bodies.append({"messages": [{"role": "user", "content": text}], "temperature": 0.9, "seed": index,
                                "max_tokens": max_tokens})
        ended = []
        loop = Loop(port, ended.append)
        for body in self.bodies:
            loop.start(Call(request(body), stream=False))
            while loop.calls:
                loop.turn(1)
            if ended[-1].status != 200:
                raise SystemExit(f"a reference answer failed: {bytes(ended[-1].got)[:500]}")
            self.answers.append(said(bytes(ended[-1].got)))

    def call(self, index, stream=True, **more):
        index %= len(self.bodies)
        return Call(request({**self.bodies[index], "stream": stream}), self.answers[index], stream=stream, **more)
