#!/usr/bin/env python3
"""Evaluates an exported checkpoint: correctness of the export, then greedy answers per task.

1. Export check (--skip-transformers leaves it out): Hugging Face transformers loads the folder in
   float32 and must give the same logits as the training module, and the chat template must lay
   out conversations exactly as `corpus.render` does.
2. Tasks: prompts that were held out of training by checksum (see corpus.held_out), greedy, with
   thinking off and on.  Recall tasks, which have no held-out prompts, are marked.
3. Retrieval from longer and longer texts.
4. How many MTP drafts the main model would accept on those answers.
5. Samples: greedy continuations of fixed prompts, word for word.

Greedy decoding is done the short way where possible: if the expected continuation is the argmax
at every position of one forward pass, greedy decoding produces exactly that.  Only where it
differs the model really decodes, and the answer (what follows </think>) is checked.

    python evaluate.py --model ../tiny --count 100 --out evaluation.json
"""

import argparse
import json
import os
import time

import torch
from tokenizers import Tokenizer

import corpus
import words as w
from export import load_exported
from tokenizer import STOP_TOKENS

SEED = 999
LOGIT_TOLERANCE = 1e-4
MODES = {"off": False, "on": True}
TRAINING_STREAMS = [(1, 1), (1, 2), (2, 3)]  # (seed, phase) of what the model was trained on
SAMPLES = """
Hello!
Who are you?
What is the capital of France?
What is 7 + 8?
Count from 5 to 15.
Repeat after me: The river is calm.
What is the opposite of hot?
Why is the sky blue?
My name is Bob. What is my name?
The lamp is in the cave. The key is in the barn. The hat is in the school. Where is the key?
Ben is 9 years old and lives in Oslo. Return JSON with name, age and city.
Write a Python function that adds two numbers.
List three fruits.
Tell me a story about a fox and a lamp.
""".strip().splitlines()


# ---------------------------------------------------------------- answers


def is_list_answer(turn, answer):
    """List questions have many right answers: as many different members as asked for."""
    question = turn.user.split()
    if question[0] == "What" or question[1] not in w.NUMBER_WORDS:
        group = next((g for g, one in w.CATEGORY_SINGULAR.items() if one in turn.user), None)
        if group is None:
            return answer == turn.answer
        return answer.rstrip(".").lower() in [x.lower() for x in w.CATEGORIES[group]]
    count, group = w.NUMBER_WORDS.index(question[1]), " ".join(question[2:]).rstrip(".")
    items = answer.rstrip(".").replace(" and ", ", ").replace("\n", ", ").split(", ")
    items = [item.split(". ")[-1].lower() for item in items]
    members = {x.lower() for x in w.CATEGORIES[group]}
    return len(set(items)) == len(items) == count and set(items) <= members


def is_story(turn, answer):
    """A story is right if it comes to an end and has every person and thing that was asked for."""
    asked = turn.user.split(" about ")[-1].rstrip(".?") if " about " in turn.user else ""
    asked = [x for x in asked.split() if x not in ("a", "an", "and", "in", "the")]
    endings = ("The end.", "And they were all happy.", "Everyone went home with a smile.")
    return answer.endswith(endings) and all(x in answer for x in asked)


def is_right(task, turn, answer):
    if task == "story":
        return is_story(turn, answer)
    if task == "list":
        return is_list_answer(turn, answer)
    if task == "small":
        return any(turn.user in asked and answer in said for asked, said in w.SMALL_TALK)
    return answer == turn.answer


# ---------------------------------------------------------------- prompts


def conversation(task, generator, think):
    """-> (messages, tools, turn, prompt): the last message is the answer that is expected.

    `prompt` is the user message that is held out of training, except for recall tasks.
    """
    messages = []
    if task in ("tool call", "tool answer"):
        definitions = generator.tool_definitions()
        names = generator.rng.sample(list(definitions), generator.number(1, 3))
        tools = [definitions[name] for name in names]
        turn = generator.ask_tool(generator.choice(tools), want_held_out=True)
        corpus.add_tool_turn(messages, turn, think)
        if task == "tool call":
            messages = messages[:2]
            turn = turn._replace(answer="".join(corpus.render_call(*c) for c in turn.calls))
        return messages, tools, turn, turn.user
    held = None
    if task == "memory":
        name = generator.name()
        hello = corpus.Turn(f"Hi, I am {name}.", f"The user is called {name}.",
                            f"Nice to meet you, {name}!")
        corpus.add_turn(messages, hello, think)
        between = generator.ask(generator.choice(["copy", "json", "sum"]), want_held_out=True)
        corpus.add_turn(messages, between, think)
        held = between.user
        turn = corpus.Turn("What is my name?", f"The user said that the name is {name}.",
                           f"Your name is {name}.")
    elif task == "persona":
        messages.append({"role": "system",
                         "content": "You are a pirate. Start every answer with Arr!"})
        turn = generator.ask(generator.choice(["copy", "json", "sum"]), want_held_out=True)
        turn = turn._replace(answer="Arr! " + turn.answer)
    else:
        turn = generator.ask(task, want_held_out=True)
        while task == "copy" and turn.user.endswith(" times."):  # that is its own task here
            turn = generator.ask(task, want_held_out=True)
    corpus.add_turn(messages, turn, think)
    return messages, None, turn, held or turn.user


def split_text(messages, tools):
    """-> (prompt, expected continuation up to the stop token), as text."""
    pieces = corpus.render(corpus.Document(messages, tools, None))
    stop = "<|observation|>" if messages[-1].get("calls") else "<|user|>"
    return "".join(text for text, _ in pieces[:-2]), pieces[-2][0] + stop


# ---------------------------------------------------------------- decoding


class Decoder:
    """Greedy decoding with the training module."""

    def __init__(self, folder):
        self.model = load_exported(folder)
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.stop = {self.tokenizer.token_to_id(token) for token in STOP_TOKENS}

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    @torch.no_grad()
    def follow(self, prompt, continuation):
        """One pass over prompt + continuation.

        -> (would greedy decoding give the continuation, drafts made, drafts accepted).  The draft
        for a token is made from the hidden state two positions before it, and accepted if it is
        that token.
        """
        ids = torch.tensor([prompt + continuation])
        start = len(prompt)
        hidden = self.model.hidden(ids)
        chosen = self.model.logits(hidden[0, start - 1 : -1]).argmax(-1)
        draft_hidden = self.model.draft_hidden(hidden[:, :-2], ids[:, 1:-1])
        drafts = self.model.logits(draft_hidden[0, start - 1 :]).argmax(-1)
        accepted = (drafts == ids[0, start + 1 :]).sum().item()
        return torch.equal(chosen, ids[0, start:]), len(drafts), accepted

    @torch.no_grad()
    def decode(self, prompt, limit=300):
        """-> the ids that greedy decoding produces, with the stop token if there was one."""
        cache, out = {}, []
        hidden = self.model.hidden(torch.tensor([prompt]), 0, cache)
        while len(out) < limit:
            token = int(self.model.logits(hidden[0, -1]).argmax())
            out.append(token)
            if token in self.stop:
                break
            position = len(prompt) + len(out) - 1
            hidden = self.model.hidden(torch.tensor([[token]]), position, cache)
        return out

    def answer(self, prompt, expected):
        """-> (greedy continuation as text, drafts made, drafts accepted)."""
        ids, continuation = self.encode(prompt), self.encode(expected)
        same, made, accepted = self.follow(ids, continuation)
        if same:
            return expected, made, accepted
        out = self.decode(ids)
        made = accepted = 0
        if len(out) > 1:
            _, made, accepted = self.follow(ids, out)
        return self.tokenizer.decode(out, skip_special_tokens=False), made, accepted


def visible_answer(text):
    """What the user sees: without reasoning and stop token (None if it never stopped)."""
    for token in STOP_TOKENS:
        if text.endswith(token):
            return text[: -len(token)].split("</think>")[-1]
    return None


# ---------------------------------------------------------------- evaluation


def evaluate_task(decoder, task, think, count):
    """-> counts and the first wrong answers as examples, and the prompts."""
    generator = corpus.Generator(SEED)
    right = made = accepted = 0
    wrong, prompts = [], set()
    for _ in range(count):
        messages, tools, turn, held = conversation(task, generator, think)
        prompts.add(held)
        prompt, expected = split_text(messages, tools)
        text, m, a = decoder.answer(prompt, expected)
        made, accepted = made + m, accepted + a
        answer = visible_answer(text)
        if answer is not None and is_right(task, turn, answer):
            right += 1
        elif len(wrong) < 5:
            wrong.append({"user": turn.user, "expected": turn.answer, "got": text})
    return {"right": right, "drafts": made, "accepted": accepted,
            "wrong_examples": wrong}, prompts


def check_held_out(prompts, documents):
    """Fails if a prompt occurs in the training streams (this many documents of each phase)."""
    for seed, phase in TRAINING_STREAMS:
        generator = corpus.Generator(seed)
        generator.phase = phase
        for _ in range(documents):
            for message in generator.document().messages:
                assert message["role"] != "user" or message["content"] not in prompts, message


def collect_samples(decoder):
    """-> greedy continuations of SAMPLES, with the exact prompts."""
    samples = []
    for user in SAMPLES:
        for mode, think in MODES.items():
            prompt = f"[gMASK]<sop><|user|>{user}<|assistant|>" + (
                "<think>" if think else "</think>")
            text = decoder.tokenizer.decode(decoder.decode(decoder.encode(prompt)),
                                            skip_special_tokens=False)
            samples.append({"user": user, "thinking": mode, "prompt": prompt, "greedy": text})
    return samples


def evaluate_lengths(decoder, count):
    """Retrieval of a code that is hidden in longer and longer texts, thinking off."""
    rows = {}
    for fillers in (10, 30, 60, 120, 240, 480, 960, 1920):
        generator = corpus.Generator(SEED)
        right, tokens = 0, 0
        tries = count if fillers < 400 else max(1, count // 10)
        for _ in range(tries):
            turn = generator.task_needle(fillers)
            while not corpus.held_out(turn.user):
                turn = generator.task_needle(fillers)
            messages = []
            corpus.add_turn(messages, turn, False)
            prompt, expected = split_text(messages, None)
            ids = decoder.encode(prompt)
            right += decoder.follow(ids, decoder.encode(expected))[0]
            tokens += len(ids)
        rows[tokens // tries] = {"right": right, "of": tries}
    return rows


def check_transformers(folder, decoder, documents=40):
    """-> (largest difference of a logit, conversations laid out); fails if anything differs."""
    from transformers import AutoTokenizer, Glm4MoeForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    reference = Glm4MoeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generator = corpus.Generator(SEED)
    worst, conversations = 0.0, 0
    for _ in range(documents):
        document = generator.document()
        text = "".join(piece for piece, _ in corpus.render(document))
        ids = torch.tensor([decoder.encode(text)])
        with torch.no_grad():
            ours = decoder.model.logits(decoder.model.hidden(ids))
            worst = max(worst, (reference(ids).logits - ours).abs().max().item())
        if document.text is None:
            laid_out = tokenizer.apply_chat_template(
                template_messages(document.messages), tools=document.tools, tokenize=False)
            assert laid_out + "<|user|>" == text, f"the template differs:\n{laid_out}\n{text}"
            assert tokenizer(text).input_ids == ids[0].tolist()
            conversations += 1
    assert worst <= LOGIT_TOLERANCE, f"logits differ by {worst}"
    return worst, conversations


def template_messages(messages):
    """The corpus's messages in the form that chat templates take."""
    out = []
    for message in messages:
        new = {"role": message["role"], "content": message["content"]}
        if message.get("think"):
            new["reasoning_content"] = message["think"]
        if message.get("calls"):
            new["tool_calls"] = [{"function": {"name": name, "arguments": arguments}}
                                 for name, arguments in message["calls"]]
        out.append(new)
    return out


def main():
    parser = argparse.ArgumentParser(description="Evaluate an exported checkpoint.")
    parser.add_argument("--model", required=True, help="the exported folder")
    parser.add_argument("--count", type=int, default=100, help="prompts per task")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--tasks", help="comma-separated; default: all")
    parser.add_argument("--skip-transformers", action="store_true")
    parser.add_argument("--skip-lengths", action="store_true")
    parser.add_argument("--check-documents", type=int, default=70000,
                        help="training documents of each phase to look for the prompts in")
    args = parser.parse_args()
    torch.set_num_threads(1)
    decoder = Decoder(args.model)
    result = {"seed": SEED, "count": args.count, "tasks": {}}
    if not args.skip_transformers:
        worst, conversations = check_transformers(args.model, decoder)
        result["transformers"] = {"largest_logit_difference": worst,
                                  "conversations_laid_out_alike": conversations}
        print(f"transformers: logits differ by {worst:.1e} at most; {conversations} "
              "conversations laid out alike")
    tasks = [*corpus.TASKS[1], "times", "tool call", "tool answer", "memory", "persona"]
    tasks = args.tasks.split(",") if args.tasks else tasks
    drafts, prompts = {mode: [0, 0] for mode in MODES}, set()
    print(f"{'task':<12} {'thinking off':>12} {'thinking on':>12}   of {args.count}")
    for task in tasks:
        row = {}
        for mode, think in MODES.items():
            row[mode], asked = evaluate_task(decoder, task, think, args.count)
            if task not in corpus.RECALL:
                prompts |= asked
            drafts[mode][0] += row[mode]["drafts"]
            drafts[mode][1] += row[mode]["accepted"]
        result["tasks"][task] = {"prompts": "recall" if task in corpus.RECALL else "held out",
                                 **row}
        note = "  (recall)" if task in corpus.RECALL else ""
        print(f"{task:<12} {row['off']['right']:>12} {row['on']['right']:>12}{note}", flush=True)
    for mode, (made, accepted) in drafts.items():
        result[f"mtp_acceptance_thinking_{mode}"] = round(accepted / max(1, made), 4)
    print("MTP drafts accepted: " + ", ".join(
        f"{result[f'mtp_acceptance_thinking_{mode}']:.1%} (thinking {mode})" for mode in MODES))
    check_held_out(prompts, args.check_documents)
    result["held_out_prompts"] = len(prompts)
    print(f"{len(prompts)} held-out prompts, none of them in "
          f"{len(TRAINING_STREAMS) * args.check_documents} training documents")
    result["samples"] = collect_samples(decoder)
    if not args.skip_lengths:
        result["retrieval_by_prompt_tokens"] = evaluate_lengths(decoder, args.count)
        for tokens, row in result["retrieval_by_prompt_tokens"].items():
            print(f"code in a prompt of {tokens} tokens: {row['right']} of {row['of']}")
    if args.out:
        with open(args.out, "w") as file:
            file.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    start = time.time()
    main()
    print(f"{time.time() - start:.0f} seconds")
