"""The page of `lockstep serve` in a headless Chromium: what users see, hear and may press.

LOCKSTEP_SCREENSHOTS=DIRECTORY keeps pictures of it, light and dark, wide and on a phone."""

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import unittest

from browser import CHROMIUM, Browser
from support import TINY, TestCase, start

if CHROMIUM is None:  # deploy/install.sh --full installs it
    print("skipped: there is no chromium; deploy/install.sh --full")
    sys.exit(77)

QUESTION = "What is the capital of France?"
# What a keyboard can reach. Each has to have a name.
CONTROLS = {"button", "textbox", "checkbox", "spinbutton", "image", "DisclosureTriangle", "dialog", "link", "region",
            "article", "complementary", "main", "navigation"}


class Page(TestCase):
    def serve(self, *flags):
        process = start("serve", "--model", TINY, "--ranks", 2, "--port", 0, "--grpc-port", 0, *flags)
        self.addCleanup(self.stop, process)
        line = process.stdout.readline()
        assert line, process.communicate()[1].decode()
        self.port = json.loads(line)["port"]
        self.url = f"http://127.0.0.1:{self.port}/"
        return process

    @staticmethod
    def stop(process):
        if process.poll() is None:
            process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def browse(self):
        page = Browser()
        self.addCleanup(page.close)
        page.show_as(1280, 900)
        page.open(self.url)
        return page

    def ask(self, page, text=QUESTION):
        page.run("document.querySelector('#message').focus()")
        page.type(text)
        page.press("Enter")

    def set(self, page, **values):
        """Fills fields of the settings as a user would, and closes them."""
        page.click("#open-settings")
        for name, value in values.items():
            page.run(f"document.querySelector('#{name}').select()")
            page.type(value)
        page.click("#close-settings")
        page.until("!document.querySelector('#settings').open")

    @staticmethod
    def never_ending(page, tokens):
        """From now on answers have so many tokens."""
        page.run(f"(() => {{ const made = bodyOf; bodyOf = () => "
                 f"({{...made(), ignore_eos: true, max_tokens: {tokens}}}); }})()")

    def assert_at_peace(self, page):
        """Nothing failed in the page, and it asked nobody else."""
        self.assertEqual(page.complaints, [])
        elsewhere = [url for url in page.urls if not url.startswith((self.url, "data:", "about:"))]
        self.assertEqual(elsewhere, [])

    def test_a_chat_streams_with_its_thinking_folded_and_can_be_tried_again(self):
        self.serve()
        page = self.browse()
        page.until("document.querySelector('#state').textContent === 'Ready'")
        self.set(page, temperature="0")
        # Every state of the answer that was shown.
        page.run("""globalThis.seen = []; new MutationObserver(() => {
            const node = document.querySelector('.answer');
            if (node && node.innerText !== seen.at(-1)) seen.push(node.innerText);
            }).observe(document.querySelector('#log'), {subtree: true, childList: true})""")
        self.ask(page)
        page.until("document.querySelector('.note button') && running === null")
        self.assertEqual(page.text(".answer"), "The capital of France is Paris.")
        self.assertFalse(page.run("document.querySelector('details.thinking').open"))
        self.assertIn("The user asks", page.run("document.querySelector('details.thinking > div').textContent"))
        self.assertEqual(page.run("document.activeElement.id"), "message")
        page.click("details.thinking summary")
        self.assertIn("The user asks", page.text("details.thinking"))
        self.assertIn("The capital of France is Paris.", page.text("#announce"))
        page.run("[...document.querySelectorAll('.note button')].find((e) => e.innerText === 'Retry').click()")
        page.until("document.querySelectorAll('.turn').length === 2 && running === null && turns.length === 2")
        self.assertEqual(page.text(".answer"), "The capital of France is Paris.")
        # Not until the thinking is there, and in order.
        states = page.run("seen")
        self.assertTrue(all("The capital of France is Paris.".startswith(state) for state in states), states)
        page.click("#new")
        self.assertEqual(page.run("document.querySelectorAll('.turn').length"), 0)
        self.assert_at_peace(page)

    def test_an_answer_is_stopped_by_key_and_by_button(self):
        self.serve()
        page = self.browse()
        # Long answers, one after the other: the model's own end of text is a token like any other.
        self.never_ending(page, 20000)
        for stop in (lambda: page.press("Escape"), lambda: page.click("#stop")):
            self.ask(page)
            page.until("running && document.querySelectorAll('.turn').length % 2 === 0 && turns.length % 2 === 1"
                       " && [...document.querySelectorAll('.turn')].at(-1).innerText.length > 30")
            self.assertTrue(page.run("document.querySelector('#send').hidden"))
            stop()
            page.until("running === null")
            self.assertIn("Stopped", page.run("[...document.querySelectorAll('.note')].at(-1).innerText"))
            self.assertFalse(page.run("document.querySelector('#send').hidden"))
        self.assertEqual(page.run("turns.length"), 4)
        # The server is free again.
        page.until("document.querySelector('#running').textContent.startsWith('0 of')")
        self.assert_at_peace(page)

    def test_the_cluster_view_shows_both_ranks(self):
        self.serve()
        page = self.browse()
        self.never_ending(page, 600)
        self.ask(page)
        page.until("document.querySelectorAll('.split').length === 2")
        page.until("parseFloat(document.querySelector('#rate').textContent) > 0")
        page.until("/there and back/.test(document.querySelector('.link')?.textContent)")
        self.assertEqual(page.run("document.querySelectorAll('#nodes .card').length"), 2)
        text = page.text("aside")
        for rank in (0, 1):
            self.assertIn(f"Rank {rank}", text)
        facts = json.loads(self.get("/cluster"))
        self.assertEqual([rank["rank"] for rank in facts["ranks"]], [0, 1])
        for rank in facts["ranks"]:
            self.assertGreater(rank["decode_steps"], 0)
            self.assertGreater(rank["step"]["compute_s"], 0)
            self.assertGreater(rank["step"]["exchange_s"], 0)
            self.assertLess(rank["step"]["compute_s"] + rank["step"]["exchange_s"], facts["decode"]["step_s"] * 1.5)
            self.assertGreater(rank["memory"]["resident_bytes"], rank["memory"]["weight_bytes"])
            self.assertGreater(rank["memory"]["kv_used_bytes"], 0)
            self.assertEqual(rank["threads"], facts["ranks"][0]["threads"])
        self.assertNotEqual(facts["ranks"][0]["pid"], facts["ranks"][1]["pid"])
        self.assertIsNone(facts["ranks"][0]["round_trip_s"])
        self.assertTrue(0 < facts["ranks"][1]["round_trip_s"] < 1)
        self.assertGreater(max(facts["history"]["tokens_per_s"]), 0)
        self.assertIn("M", page.run("document.querySelector('#chart .curve').getAttribute('d')"))
        metrics = self.get("/metrics")
        for rank in (0, 1):
            self.assertRegex(metrics, rf'lockstep_rank_compute_seconds_total{{[^}}]*rank="{rank}"[^}}]*}} 0\.0*[1-9]')
        self.assert_at_peace(page)

    def get(self, path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def test_a_key_is_asked_for_and_kept_in_the_tab(self):
        line = f"me {hashlib.sha256(b'a-key').hexdigest()}\n"
        self.serve("--api-key-file", self.write("keys", line))
        page = self.browse()
        page.until("document.querySelector('#settings').open")
        self.assertIn("asks for an API key", page.text("#key-note"))
        self.assertEqual(page.run("document.activeElement.id"), "key")
        # Who has none is not held up.
        page.press("Escape")
        page.until("document.querySelector('#state').textContent === 'Key needed'")
        time.sleep(1.5)
        self.assertFalse(page.run("document.querySelector('#settings').open"))
        page.click("#open-settings")
        # What cannot be kept is told before the dialog closes, by whatever key.
        for field, text, said in (("tools", "[1", "Tools:"), ("key", "a\u2603", "API key:")):
            page.run(f"document.querySelector('#{field}').focus()")
            page.type(text)
            page.press("Escape")
            page.until(f"document.querySelector('#settings-error').textContent.startsWith('{said}')")
            self.assertTrue(page.run("document.querySelector('#settings').open"))
            self.assertEqual(page.run("document.activeElement.id"), field)
            page.run("document.activeElement.value = ''")
        page.run("document.querySelector('#key').focus()")
        page.type("another")
        page.press("Enter")
        page.until("/not known/.test(document.querySelector('#key-note').textContent)")
        page.run("document.querySelector('#key').select()")
        page.type("a-key")
        page.press("Enter")
        page.until("document.querySelector('#state').textContent === 'Ready'")
        self.ask(page)
        page.until("document.querySelector('.note button') && running === null")
        self.assertTrue(page.text(".answer"))
        self.assertEqual(page.run("Object.values(localStorage).length"), 0)
        self.assertEqual(page.run("document.cookie"), "")
        # Chromium itself tells each 401 on the console.
        page.complaints = [text for text in page.complaints if "status of 401" not in text]
        self.assert_at_peace(page)

    def test_what_a_model_says_is_never_html(self):
        self.serve()
        page = self.browse()
        evil = ("<img src=x onerror=alert(1)> **<b>x</b>** `<i>`\n\n```html\n<script>alert(2)</script>\n```\n\n"
                "# <u>h</u>\n- <a href='javascript:alert(3)'>l</a>")
        page.run(f"globalThis.place = document.createElement('div'); showMarkdown(place, {json.dumps(evil)});")
        tags = page.run("[...place.querySelectorAll('*')].map((e) => e.tagName)")
        self.assertEqual(sorted(set(tags)), ["CODE", "H3", "LI", "P", "PRE", "STRONG", "UL"])
        self.assertIn("<img src=x onerror=alert(1)>", page.run("place.textContent"))
        self.assertIn("<script>alert(2)</script>", page.run("place.querySelector('pre').textContent"))
        # Whole or piece by piece: the same nodes.
        page.run(f"""globalThis.other = document.createElement('div'); globalThis.evil = {json.dumps(evil)};
            for (let i = 1; i <= evil.length; ++i) showMarkdown(other, evil.slice(0, i));""")
        self.assertTrue(page.run("place.innerHTML === other.innerHTML"))
        # And the policy holds: a script that came in all the same does not run.
        page.run("""{ const e = document.createElement('script'); e.textContent = 'globalThis.ran = 1';
            document.body.append(e); }""")
        self.assertIsNone(page.run("globalThis.ran"))

    def test_tool_calls_are_shown_and_answered(self):
        self.serve()
        page = self.browse()
        tool = [{"type": "function", "function": {"name": "get_time", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}}}}]
        self.set(page, temperature="0", tools=json.dumps(tool))
        self.ask(page, "What time is it in Paris?")
        page.until("document.querySelector('.call') && running === null")
        self.assertIn("get_time", page.text(".call h3"))
        self.assertIn('"city"', page.text(".call pre"))
        page.click("form.call textarea")
        page.type("12:30")
        page.run("document.querySelector('form.call button').click()")
        page.until("turns.length === 4 && running === null")
        roles = page.run("bodyOf().messages.map((message) => message.role).join(' ')")
        self.assertEqual(roles, "user assistant tool assistant")
        self.assert_at_peace(page)

    def test_everybody_can_use_it_in_light_and_dark_and_on_a_phone(self):
        self.serve()
        page = self.browse()
        self.set(page, temperature="0")
        self.ask(page)
        page.until("document.querySelector('.note button') && running === null")
        page.until("document.querySelectorAll('.split').length === 2")
        pictures = os.environ.get("LOCKSTEP_SCREENSHOTS", self.directory)
        for width, height, phone in ((1280, 900, False), (390, 844, True)):
            for scheme in ("light", "dark"):
                page.show_as(width, height, scheme, phone)
                page.until(f"innerWidth === {width}")
                for view in ("chat", "cluster"):
                    if phone:
                        page.click(f"#view-{view}")
                    page.picture(os.path.join(pictures, f"{view}-{scheme}-{width}.png"))
                    self.assertEqual(page.run("document.documentElement.scrollWidth"), width)
                    self.assert_named(page)
                    self.assert_readable(page, f"{view}, {scheme}")
        page.click("#open-settings")
        page.picture(os.path.join(pictures, "settings-dark-390.png"))
        self.assert_named(page)
        self.assert_readable(page, "settings")
        page.press("Escape")
        page.until("!document.querySelector('#settings').open")
        page.show_as(1280, 900)
        # The tabulator reaches everything and comes out at the other end.
        page.run("document.querySelector('#new').focus()")
        reached = []
        for _ in range(40):
            page.press("Tab")
            reached.append(page.run("document.activeElement.id || document.activeElement.tagName"))
            if reached[-1] == "BODY":
                break
        for control in ("open-settings", "log", "message", "send", "SUMMARY"):
            self.assertIn(control, reached)
        self.assertEqual(reached[-1], "BODY", reached)
        self.assert_at_peace(page)

    def assert_named(self, page):
        nameless = [role for role, name in page.accessible() if role in CONTROLS and not name.strip()]
        self.assertEqual(nameless, [])
        self.assertEqual(page.run("document.documentElement.lang"), "en")
        self.assertEqual(page.run("[...document.querySelectorAll('[id]')].length"),
                         page.run("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size"))

    def assert_readable(self, page, where):
        """Text has the contrast that WCAG's level AA wants: 4.5 to what is behind it, 3 for large text."""
        faint = page.run("""(() => {
          const parse = (text) => {
            const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
          const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 :
            ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
          const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
            if (c[3] > 0) return c; } return [255, 255, 255, 1]; };
          const root = document.querySelector('dialog[open]') ?? document.body;
          const found = [];
          for (const e of root.querySelectorAll('*')) {
            if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue;
            if (e.closest('.sr, script, style') || (root === document.body && e.closest('dialog'))) continue;
            const style = getComputedStyle(e), size = parseFloat(style.fontSize);
            if (size === 0) continue;
            const [a, b] = [light(parse(style.color)), light(behind(e))].sort((x, y) => y - x);
            const ratio = (a + .05) / (b + .05);
            if (ratio < (size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5))
              found.push(`${e.tagName}.${e.className} ${e.innerText.slice(0, 20)}: ${ratio.toFixed(2)}`);
          }
          return found;
        })()""")
        self.assertEqual(faint, [], where)


if __name__ == "__main__":
    unittest.main()
