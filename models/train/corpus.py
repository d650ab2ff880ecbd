#!/usr/bin/env python3
"""Synthetic chat corpus for a tiny GLM-shaped language model.

Everything here was written for this project, so the text carries no licence of its own.  A
*document* is either a conversation (messages and, sometimes, tools) or a plain text.  `render`
lays a document out exactly as the GLM-4.7 chat template does and marks which pieces the assistant
wrote, because those carry the training loss.

Held-out prompts: a user turn whose text hashes to 0 modulo `HOLD_OUT` is never put into a training
document (`held_out`).  The evaluation asks only such prompts, so none of them can have been seen,
whatever the seeds are.  Tasks that are recall by nature (capitals, facts, small talk, ...) have
too few prompts for that and are marked in `RECALL`.

The stream has phases (`Generator.phase`): the second one, which the training switches to when the
learning rate begins to fall, has more of what was weak after the first, and long documents; the
third one is for the short tuning run after it.

    python corpus.py --seed 0 --count 20        # print some documents
"""

import argparse
import json
import random
import zlib
from typing import NamedTuple, Optional

import words as w

HOLD_OUT = 20


def held_out(user_text):
    """True for the prompts that are reserved for evaluation (one in HOLD_OUT, by checksum)."""
    return zlib.crc32(user_text.encode()) % HOLD_OUT == 0


class Turn(NamedTuple):
    """One question: what the user says, what the assistant thinks, what it answers."""

    user: str
    think: str
    answer: str


class ToolTurn(NamedTuple):
    """A question that needs a tool: calls are (name, arguments), results are JSON texts."""

    user: str
    think: str
    calls: list
    results: list
    answer: str


class Document(NamedTuple):
    """A conversation (messages, tools) or, if text is given, a plain text."""

    messages: list
    tools: Optional[list]
    text: Optional[str]
    chat_prefix: bool = True


# ---------------------------------------------------------------- small grammar helpers


def with_article(noun):
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def capitalize(text):
    return text[0].upper() + text[1:]


def join_words(items):
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def is_female(name):
    """Listed names have a fixed pronoun; made-up names take "she" if they end in a or i."""
    return name in w.FEMALE if name in w.NAMES else name[-1] in "ai"


def pronouns(name):
    """-> (he, his) for this name."""
    return ("she", "her") if is_female(name) else ("he", "his")


COPY_WORDS = (
    w.OBJECTS + w.FOODS + w.COLORS + list(w.ANIMALS) + w.PLACES + w.NAMES + w.FEELINGS
    + w.ADJECTIVES
)
SPELL_WORDS = w.OBJECTS + w.FOODS + list(w.ANIMALS) + [name.lower() for name in w.NAMES]

SUM_PROMPTS = """
What is {x} + {y}?|What is {x} plus {y}?|{x} + {y} = ?|{x}+{y}|{x} + {y}|{x} plus {y}|{x} + {y} =
Add {x} and {y}.|What is the sum of {x} and {y}?|Sum of {x} and {y}?|How much is {x} + {y}?
How much is {x} plus {y}?|Please add {x} and {y}.|Compute {x} + {y}.|Compute {x} plus {y}.
Can you add {x} and {y}?|Tell me {x} + {y}.|Tell me {x} plus {y}.|What does {x} + {y} make?
What do you get when you add {x} and {y}?|Do you know what {x} + {y} is?|{x} and {y} together?
I have {x} pens and buy {y} more. How many pens do I have?|What is {x}+{y}?|{x}+{y}=?
There are {x} birds. Then {y} more come. How many birds are there?|Hi! What is {x} + {y}?
I have {x} coins in one hand and {y} in the other. How many coins do I have?|Solve {x} + {y}.
My friend asks: what is {x} + {y}?|Please tell me what {x} + {y} is.|What number is {x} plus {y}?
""".strip().replace("\n", "|").split("|")

TOOL_VERBS = "get set find open check start stop read show load".split()


class Generator:
    """A seeded stream of documents.  Every method draws from one random stream, self.rng."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.phase = 1

    def choice(self, items):
        return self.rng.choice(items)

    def number(self, low, high):
        return self.rng.randint(low, high)

    def chance(self, probability):
        return self.rng.random() < probability

    # ------------------------------------------------------------ made-up words

    def syllables(self, low, high):
        """A pronounceable nonsense word, so that copying cannot be learned word by word."""
        parts = []
        for _ in range(self.number(low, high)):
            parts.append(self.choice("bdfghjklmnprstvwz") + self.choice("aeiou"))
        return "".join(parts) + (self.choice("nrlsmtk") if self.chance(0.4) else "")

    def name(self):
        """Half the names are from the list, half are made up."""
        return self.choice(w.NAMES) if self.chance(0.5) else capitalize(self.syllables(2, 3))

    def names(self, count):
        found = []
        while len(found) < count:
            name = self.name()
            if name not in found:
                found.append(name)
        return found

    def city(self):
        return self.choice(w.CITIES) if self.chance(0.6) else capitalize(self.syllables(2, 3))

    def word(self):
        """A word to copy: mostly from the lists, sometimes nonsense, sometimes a number."""
        x = self.rng.random()
        if x < 0.65:
            return self.choice(COPY_WORDS)
        return self.syllables(1, 3) if x < 0.9 else str(self.number(0, 9999))

    def filler(self):
        """A sentence that does not matter."""
        if self.chance(0.7):
            return self.choice(w.FILLERS)
        return f"The {self.choice(w.COLORS)} {self.choice(w.OBJECTS)} is very nice."

    # ------------------------------------------------------------ stories

    def story_text(self, who=None, thing=None, place=None, friend=None):
        """-> (story, name of its hero).  One of eight plots with random people and things."""
        choice = self.choice
        human = self.chance(0.5) if who is None else who not in w.ANIMALS
        place, thing = place or choice(w.PLACES), thing or choice(w.OBJECTS)
        adjective, color = choice(w.ADJECTIVES), choice(w.COLORS)
        name = (who if human else None) or self.name()
        he, his = pronouns(name)
        He = capitalize(he)
        if human:
            kid = "girl" if is_female(name) else "boy"
            story = [
                choice([
                    f"Once upon a time, there was {with_article(adjective)} {kid} named {name}.",
                    f"One day, {with_article(adjective)} {kid} named {name} went to the {place}.",
                    f"{name} was {with_article(adjective)} {kid}.",
                ])
            ]
        else:
            animal = who or choice(list(w.ANIMALS))
            story = [
                choice([
                    f"Once upon a time, there was {with_article(adjective)} {animal} named {name}.",
                    f"One day, {with_article(adjective)} {animal} named {name} woke up early.",
                    f"There once lived {with_article(adjective)} {animal}. Its name was {name}.",
                ])
            ]
            if self.chance(0.6):
                _, _, home, _, food = w.ANIMALS[animal]
                story.append(f"{name} lived {home} and liked to eat {food}.")
        while not friend or friend == name:
            friend = self.name()
        plots = [
            self.plot_lost, self.plot_sharing, self.plot_weather, self.plot_finding,
            self.plot_fear, self.plot_making, self.plot_help, self.plot_race,
        ]
        story += choice(plots)(name, he, He, his, friend, place, thing, color)
        story.append(
            choice(["The end.", "The end.", "And they were all happy.",
                    "Everyone went home with a smile."])
        )
        return " ".join(story), name

    def plot_lost(self, name, he, He, his, friend, place, thing, color):
        choice = self.choice
        return [
            choice([f"{name} loved {his} {color} {thing} very much.",
                    f"{name} had {with_article(color)} {thing}. It was {his} favorite thing."]),
            choice([f"One day, {he} could not find the {thing}.",
                    f"But one morning, the {thing} was gone."]),
            f"{name} was very {choice(['sad', 'worried'])}.",
            choice([f"{He} looked under the bed, but it was not there.",
                    f"{He} looked in the kitchen and behind the door."]),
            f"Then {his} friend {friend} came. \"What is wrong?\" asked {friend}.",
            f"\"I lost my {thing},\" said {name}.",
            f"They looked together in the {place}.",
            choice([f"At last, they found the {color} {thing} near a tree.",
                    f"There it was! The {color} {thing} was under a big leaf."]),
            choice([f"{name} was happy and thanked {friend}.",
                    f"\"Thank you, {friend}!\" said {name} with a big smile."]),
        ]

    def plot_sharing(self, name, he, He, his, friend, place, thing, color):
        choice, food = self.choice, self.choice(w.FOODS)
        return [
            f"{He} had {with_article(food)} for lunch.",
            f"In the {place}, {he} met {friend}.",
            f"{friend} looked {choice(['sad', 'tired', 'lonely'])}. \"I am so hungry,\" "
            f"said {friend}.",
            f"{name} thought for a moment.",
            f"Then {he} gave half of the {food} to {friend}.",
            f"\"You are very kind,\" said {friend}.",
            "They sat down and ate together.",
            choice(["From that day on, they were good friends.",
                    "They felt happy, and the food tasted even better."]),
        ]

    def plot_weather(self, name, he, He, his, friend, place, thing, color):
        choice = self.choice
        return [
            f"{He} wanted to play with {his} {thing} in the {place}.",
            choice(["But it began to rain.", "But dark clouds came and the wind was cold."]),
            f"{name} felt {choice(['sad', 'worried'])}.",
            f"\"Do not worry,\" said {friend}. \"We can play inside.\"",
            f"They made a little house with a blanket and put the {color} {thing} in it.",
            choice(["Soon the sun came out again.", "After a while, the rain stopped."]),
            f"{name} and {friend} ran outside and laughed.",
        ]

    def plot_finding(self, name, he, He, his, friend, place, thing, color):
        choice, animal = self.choice, self.choice(list(w.ANIMALS))
        return [
            f"While walking in the {place}, {he} found {with_article(color)} {thing}.",
            f"\"Whose {thing} is this?\" asked {name}.",
            f"{He} asked the {animal}, but the {animal} shook its head.",
            f"{He} asked {friend}. \"It is mine!\" said {friend}. \"I lost it yesterday.\"",
            f"{name} gave the {thing} back.",
            f"{friend} was so happy that {pronouns(friend)[0]} gave {name} "
            f"{with_article(choice(w.FOODS))}.",
            choice(["It was a good day.", f"{name} learned that it is good to be honest."]),
        ]

    def plot_fear(self, name, he, He, his, friend, place, thing, color):
        animal = self.choice(list(w.ANIMALS))
        return [
            f"{He} was scared of the dark.",
            f"Every night, {he} held {his} {thing} and could not sleep.",
            f"One night, {with_article(animal)} came to the window.",
            f"\"Look up,\" said the {animal}. \"The stars are your friends.\"",
            f"{name} looked up and saw many bright stars.",
            f"{He} was not scared anymore.",
            f"{He} put down the {color} {thing} and slept well.",
        ]

    def plot_making(self, name, he, He, his, friend, place, thing, color):
        return [
            f"{He} wanted to make {with_article(thing)} for {friend}.",
            f"First, {he} went to the {place} to find what {he} needed.",
            f"It was hard work, and the first {thing} broke.",
            f"{name} did not give up. {He} tried again.",
            f"The next day, the new {thing} was ready. It was {color} and very nice.",
            f"\"This is for you,\" said {name}.",
            f"{friend} smiled and said, \"It is the best gift ever!\"",
        ]

    def plot_help(self, name, he, He, his, friend, place, thing, color):
        choice, animal = self.choice, self.choice(list(w.ANIMALS))
        return [
            f"In the {place}, {he} heard a small voice. \"Help me!\"",
            f"It was {with_article(choice(w.ADJECTIVES))} {animal}. It was stuck in a hole.",
            f"{name} took {with_article(thing)} and pulled and pulled.",
            choice([f"At last, the {animal} was free.",
                    f"With one more pull, the {animal} came out."]),
            f"\"Thank you,\" said the {animal}. \"You are very brave.\"",
            f"{name} felt {choice(['proud', 'happy'])}.",
            f"After that, {name} and the {animal} played in the {place} every day.",
        ]

    def plot_race(self, name, he, He, his, friend, place, thing, color):
        return [
            f"{He} and {friend} wanted to run a race in the {place}.",
            f"The winner would get {with_article(color)} {thing}.",
            f"{friend} was very fast. {name} was slow.",
            f"But {friend} stopped to eat {with_article(self.choice(w.FOODS))} and fell asleep.",
            f"{name} went on, step by step.",
            f"When {friend} woke up, {name} was already at the end.",
            f"{name} won the {color} {thing} and shared it with {friend}.",
        ]

    # ------------------------------------------------------------ tasks: each returns a Turn

    def task_story(self):
        verb = self.choice(["Tell me a story", "Tell me a short story", "Write a short story",
                            "Write a story", "Please tell me a story",
                            "Can you tell me a story"])
        about, wish = {}, ""
        kind = self.number(0, 6)
        if kind in (1, 4, 5):
            about["who"] = self.choice(list(w.ANIMALS))
            wish = with_article(about["who"])
        elif kind in (2, 3):
            about["who"] = wish = self.name()
        elif kind == 6:
            about["who"], about["friend"] = self.names(2)
            wish = f"{about['who']} and {about['friend']}"
        if kind in (3, 5):
            about["thing"] = self.choice(w.OBJECTS)
            wish += f" and {with_article(about['thing'])}"
        think = f"The user wants a story{' about ' + wish if wish else ''}."
        if kind == 4:
            about["place"] = self.choice(w.PLACES)
            wish += f" in the {about['place']}"
        user = verb + (f" about {wish}" if wish else "")
        user += "?" if verb.startswith("Can") else self.choice([".", ".", ""])
        return Turn(user, think + " I will write a short story.", self.story_text(**about)[0])

    def task_small(self):
        questions, answers = self.choice(w.SMALL_TALK)
        think = "The user is talking to me. I will answer politely."
        return Turn(self.choice(questions), think, self.choice(answers))

    def task_fact(self):
        question, answer = self.choice(w.FACTS)
        return Turn(question, "This is a simple question. I know the answer.", answer)

    def task_capital(self):
        country, city = self.choice(list(w.CAPITALS.items()))
        if self.chance(0.7):
            user = self.choice([f"What is the capital of {country}?",
                                f"What is the capital city of {country}?",
                                f"Tell me the capital of {country}.", f"capital of {country}"])
            think = f"The user asks for the capital of {country}. It is {city}."
            return Turn(user, think, f"The capital of {country} is {city}.")
        user = self.choice([f"In which country is {city}?", f"Where is {city}?"])
        return Turn(user, f"{city} is the capital of {country}.", f"{city} is in {country}.")

    def task_animal(self):
        animal = self.choice(list(w.ANIMALS))
        sound, legs, home, young, food = w.ANIMALS[animal]
        an_animal = with_article(animal)
        subject = capitalize(an_animal)
        kind = self.number(0, 4)
        if kind == 0:
            user = self.choice([f"What sound does {an_animal} make?",
                                f"What does {an_animal} say?"])
            think = answer = f"{subject} says {sound}."
        elif kind == 1:
            user = f"How many legs does {an_animal} have?"
            think = f"{subject} has {legs} legs."
            answer = think if legs else f"{subject} has no legs."
        elif kind == 2:
            user, think = f"Where does {an_animal} live?", f"{subject} lives {home}."
            answer = think
        elif kind == 3:
            user = f"What is a baby {animal} called?"
            think = f"The baby of {an_animal} is {with_article(young)}."
            answer = f"A baby {animal} is called {with_article(young)}."
        else:
            user, think = f"What does {an_animal} eat?", f"{subject} eats {food}."
            answer = think
        return Turn(user, think, answer)

    def task_word(self):
        """Opposites, past tenses, plurals."""
        kind = self.number(0, 2)
        if kind == 0:
            pair = self.choice(w.OPPOSITES)
            # "old", "dark" and "light" occur in two pairs, so those are asked one way only
            if pair[0] not in ("new", "light", "heavy") and self.chance(0.5):
                pair = pair[::-1]
            user = self.choice([f"What is the opposite of {pair[0]}?", f"opposite of {pair[0]}"])
            answer = f"The opposite of {pair[0]} is {pair[1]}."
            return Turn(user, answer, answer)
        if kind == 1:
            verb, past = self.choice(w.PAST_TENSE)
            return Turn(f"What is the past tense of {verb}?",
                        f"{capitalize(verb)} becomes {past}.",
                        f"The past tense of {verb} is {past}.")
        one, many = self.choice(w.PLURALS)
        answer = f"The plural of {one} is {many}."
        return Turn(f"What is the plural of {one}?", answer, answer)

    def task_spell(self):
        text = self.choice(SPELL_WORDS) if self.chance(0.7) else self.syllables(1, 2)
        user = self.choice([f"Spell the word {text}.", f"How do you spell {text}?",
                            f"Spell {text}."])
        return Turn(user, f"I will spell {text} letter by letter.", "-".join(text))

    def task_list(self):
        group = self.choice(list(w.CATEGORIES))
        count = self.number(2, 6)
        members = self.rng.sample(w.CATEGORIES[group], count)
        proper = group in ("planets", "cities", "countries")
        kind = self.number(0, 3)
        need = f"I need {w.NUMBER_WORDS[count]} {group}: {', '.join(members)}."
        if kind == 0:
            lines = "\n".join(f"{i + 1}. {x}" for i, x in enumerate(members))
            return Turn(f"List {w.NUMBER_WORDS[count]} {group}.", need, lines)
        if kind == 1:
            return Turn(f"Name {w.NUMBER_WORDS[count]} {group}.", need,
                        capitalize(join_words(members)) + ".")
        one = w.CATEGORY_SINGULAR[group]
        if kind == 2:
            item = members[0] if proper else with_article(members[0])
            return Turn(f"What is {item}?",
                        f"{capitalize(members[0])} is in the group of {group}.",
                        f"{capitalize(item)} is {one}.")
        return Turn(f"Name {one}.", f"{capitalize(one)} is for example {members[0]}.",
                    capitalize(members[0]) + ".")

    def task_count(self):
        """Counting up, down and in steps: the answer must stop at the right number."""
        kind = self.number(0, 9)
        if kind <= 5:
            low = self.number(0, 40)
            high = low + self.number(3, 18)
            phrasing = self.choice(["Count from {} to {}.", "Please count from {} to {}.",
                                    "Count up from {} to {}.", "Can you count from {} to {}?",
                                    "Say the numbers from {} to {}.", "count from {} to {}",
                                    "List the numbers from {} to {}."])
            if low == 1 and self.chance(0.5):
                phrasing = self.choice(["Count to {1}.", "Please count to {1}."])
            numbers = range(low, high + 1)
            think = f"I will start at {low} and stop at {high}."
        elif kind <= 8:
            high = self.number(4, 40)
            low = max(0, high - self.number(3, 18))
            phrasing = self.choice(["Count down from {} to {}.", "Count backwards from {} to {}.",
                                    "Please count down from {} to {}.",
                                    "Can you count down from {} to {}?"])
            numbers = range(high, low - 1, -1)
            think = f"I will start at {high} and go down to {low}."
            low, high = high, low
        else:
            low = self.choice([2, 3, 5, 10])
            high = low * self.number(4, 12)
            phrasing = self.choice(["Count by {} up to {}.", "Count in steps of {} to {}.",
                                    "Please count by {} up to {}."])
            numbers = range(low, high + 1, low)
            think = f"I will add {low} each time until {high}."
        return Turn(phrasing.format(low, high), think, ", ".join(map(str, numbers)))

    def task_calendar(self):
        """Days, months, the alphabet, numbers as words."""
        kind = self.number(0, 2)
        if kind == 0:
            return self.choice([
                Turn("What are the days of the week?", "There are seven days.",
                     ", ".join(w.DAYS)),
                Turn("What are the months of the year?", "There are twelve months.",
                     ", ".join(w.MONTHS)),
                Turn("Say the alphabet.", "The alphabet has 26 letters.",
                     " ".join("abcdefghijklmnopqrstuvwxyz")),
                Turn("What are the four seasons?", "There are four seasons.",
                     "Spring, summer, autumn and winter."),
            ])
        if kind == 1:
            unit, ring = self.choice([("day", w.DAYS), ("month", w.MONTHS)])
            i = self.number(0, len(ring) - 1)
            side, step = self.choice([("after", 1), ("before", -1)])
            answer = f"{ring[(i + step) % len(ring)]} comes {side} {ring[i]}."
            return Turn(f"What {unit} comes {side} {ring[i]}?", answer, answer)
        i = self.number(0, 20)
        text = w.NUMBER_WORDS[i]
        return self.choice([Turn(f"Write {i} as a word.", f"{i} is {text}.", text),
                            Turn(f"Write {text} as a number.", f"{text} is {i}.", str(i))])

    def task_sum(self):
        """One-digit sums: every pair occurs, in many phrasings."""
        x, y = self.number(0, 9), self.number(0, 9)
        answer = f"{x} + {y} = {x + y}"
        return Turn(self.choice(SUM_PROMPTS).format(x=x, y=y), answer, answer)

    def task_arithmetic(self):
        """Larger sums, differences, products, comparisons and word problems."""
        kind = self.number(0, 6)
        if kind <= 1:
            x, y = self.number(0, 20), self.number(0, 20)
            user = self.choice(["What is {} + {}?", "What is {} plus {}?", "{} + {} = ?"])
            answer = f"{x} + {y} = {x + y}"
        elif kind == 2:
            x = self.number(0, 20)
            y = self.number(0, x)
            user = self.choice(["What is {} - {}?", "What is {} minus {}?", "{} - {} = ?"])
            answer = f"{x} - {y} = {x - y}"
        elif kind == 3:
            x, y = self.number(0, 10), self.number(0, 10)
            user = self.choice(["What is {} times {}?", "What is {} * {}?", "{} * {} = ?"])
            answer = f"{x} * {y} = {x * y}"
        elif kind == 4:
            x, y = self.rng.sample(range(1, 100), 2)
            which, best = self.choice([("bigger", max(x, y)), ("smaller", min(x, y))])
            return Turn(f"Which number is {which}, {x} or {y}?",
                        f"I compare {x} and {y}. {best} is {which}.", f"{best} is {which}.")
        else:
            name, fruit = self.name(), self.choice("apple banana pear cookie plum egg".split())
            He = capitalize(pronouns(name)[0])
            x, y = self.number(1, 10), self.number(1, 10)
            if kind == 5:
                return Turn(f"{name} has {x} {fruit}s. {He} gets {y} more. "
                            f"How many {fruit}s does {name} have now?",
                            f"{x} + {y} = {x + y}", f"{name} has {x + y} {fruit}s now.")
            x, y = max(x, y) + 1, min(x, y)
            be = "is" if x - y == 1 else "are"
            return Turn(f"{name} has {x} {fruit}s. {He} eats {y}. How many {fruit}s are left?",
                        f"{x} - {y} = {x - y}", f"There {be} {x - y} left.")
        return Turn(user.format(x, y), answer, answer)

    def task_copy(self):
        """Repeat a text (in training sometimes: one word several times)."""
        if self.chance(0.15):
            return self.task_times()
        if self.chance(0.7):
            text = " ".join(self.word() for _ in range(self.number(2, 14)))
        else:
            text = " ".join(self.filler() for _ in range(self.number(1, 3)))
        user = self.choice(["Repeat after me: {}", "Repeat this: {}", "Say this again: {}",
                            "Copy this text: {}", "Repeat the text: {}"])
        return Turn(user.format(text), "I will repeat the text.", text)

    def task_times(self):
        count, text = self.number(2, 6), self.word()
        times = w.NUMBER_WORDS[count]
        return Turn(f"Say {text} {times} times.", f"I will say {text} {times} times.",
                    " ".join([text] * count))

    def task_listop(self):
        """First and last word, reversing, counting words."""
        items = [self.word() for _ in range(self.number(2, 8))]
        text = ", ".join(items)
        kind = self.number(0, 2)
        if kind == 0:
            which, i = self.choice([("first", 0), ("last", -1)])
            return Turn(f"What is the {which} word of this list: {text}?",
                        f"The list is {text}.", f"The {which} word is {items[i]}.")
        if kind == 1:
            items = items[:6]
            return Turn(f"Reverse this list: {', '.join(items)}",
                        "I will go from the end to the start.", ", ".join(items[::-1]))
        counted = ", ".join(f"{x} {i + 1}" for i, x in enumerate(items))
        return Turn(f"How many words are in this list: {text}?", f"I count them: {counted}.",
                    f"There are {len(items)} words.")

    def task_needle(self, fillers=None):
        """Find one fact in a text.  `fillers` fixes how many idle sentences hide a code."""
        kind = self.number(0, 4) if fillers is None else 0
        if kind == 0:
            if fillers is None:
                fillers = self.number(2, 26) if self.chance(0.93) else self.number(27, 110)
            secret = str(self.number(1000, 9999)) if self.chance(0.6) else self.syllables(2, 3)
            lines = [self.filler() for _ in range(fillers)]
            lines.insert(self.number(0, len(lines)), f"The secret code is {secret}.")
            return Turn(" ".join(lines) + "\nWhat is the secret code?",
                        f"The text says that the secret code is {secret}.",
                        f"The secret code is {secret}.")
        if kind == 1:
            things = self.rng.sample(w.OBJECTS, self.number(2, 9))
            facts = [(thing, self.choice(w.PLACES)) for thing in things]
            thing, place = self.choice(facts)
            text = " ".join(f"The {a} is in the {b}." for a, b in facts)
            return Turn(f"{text} Where is the {thing}?",
                        f"The text says that the {thing} is in the {place}.",
                        f"The {thing} is in the {place}.")
        if kind == 2:
            people = self.names(self.number(2, 8))
            person = self.choice(people)
            i = people.index(person)
            form = self.number(0, 2)
            if form == 0:
                values = [str(self.number(3, 90)) for _ in people]
                fact, question = "{} is {} years old.", "How old is {}?"
            elif form == 1:
                values = [self.choice(w.COLORS) for _ in people]
                fact, question = "{} likes {}.", "What color does {} like?"
            else:
                values = [with_article(self.choice(w.FOODS)) for _ in people]
                fact, question = "{} has {}.", "What does {} have?"
            text = " ".join(fact.format(a, b) for a, b in zip(people, values))
            return Turn(f"{text} {question.format(person)}", f"I look for {person} in the text.",
                        fact.format(person, values[i]))
        if kind == 3:
            name = self.name()
            user = self.choice(["My name is {0}. What is my name?", "I am {0}. Who am I?",
                                "Hello, I am {0}. What is my name?",
                                "My name is {0}. Do you know my name?"])
            return Turn(user.format(name), f"The user said that the name is {name}.",
                        f"Your name is {name}.")
        text, name = self.story_text()
        return Turn(f"{text}\nWhat is the name of the hero in this story?",
                    f"The story is about {name}.", f"The hero is {name}.")

    def task_json(self):
        """Turn a sentence (or a list) into JSON."""
        if self.chance(0.2):
            if self.chance(0.5):
                items = [self.number(0, 99) for _ in range(self.number(2, 6))]
                user = f"Write the numbers {join_words([str(x) for x in items])} as a JSON array."
            else:
                items = [self.word() for _ in range(self.number(2, 5))]
                user = f"Write the words {join_words(items)} as a JSON array."
            return Turn(user, "I will write a JSON array.", json.dumps(items))
        name, age, city = self.name(), self.number(3, 90), self.city()
        color, food = self.choice(w.COLORS), self.choice(w.FOODS)
        facts = self.rng.sample(
            [("age", age, f"is {age} years old"), ("city", city, f"lives in {city}"),
             ("color", color, f"likes the color {color}"),
             ("food", food, f"has {with_article(food)}")],
            self.number(1, 3))
        text = f"{name} {join_words([sentence for _, _, sentence in facts])}."
        value = {"name": name} | {key: data for key, data, _ in facts}
        keys = join_words(list(value))
        user = self.choice([f"{text} Return JSON with {keys}.",
                            f"{text} Answer as JSON with {keys}.",
                            f"Write this as JSON with {keys}: {text}"])
        return Turn(user, f"I will write a JSON object with {keys}.", json.dumps(value))

    def task_code(self):
        purpose, program = self.choice(w.CODE)
        user = self.choice([f"Write Python code that {purpose}.",
                            f"Write a Python function that {purpose}.",
                            f"Show me Python code that {purpose}."])
        return Turn(user, "I will write a short Python program.", f"```python\n{program}\n```")

    def task_job(self):
        job, duty = self.choice(list(w.JOBS.items()))
        answer = f"{capitalize(with_article(job))} {duty}."
        if self.chance(0.7):
            return Turn(f"What does {with_article(job)} do?", answer, answer)
        return Turn(f"Who {duty}?", f"That is {with_article(job)}.", answer)

    def ask(self, task, want_held_out=False):
        """A Turn of this task whose prompt is (or is not) one of the held-out prompts."""
        while True:
            turn = getattr(self, "task_" + task)()
            if task in RECALL or held_out(turn.user) == want_held_out:
                return turn

    def ask_tool(self, tool, want_held_out=False):
        """The same for a ToolTurn that uses this tool (a definition)."""
        while True:
            turn = self.tool_turn(tool)
            if held_out(turn.user) == want_held_out:
                return turn

    # ------------------------------------------------------------ tools

    def tool_definitions(self):
        """The fixed tools, and one with a made-up name, by name."""
        def define(name, description, /, **properties):
            return {
                "type": "function",
                "function": {
                    "name": name,
                    "description": description,
                    "parameters": {
                        "type": "object",
                        "properties": {key: {"type": kind} for key, kind in properties.items()},
                        "required": list(properties),
                    },
                },
            }

        thing = self.syllables(1, 3)
        tools = [
            define("get_weather", "Get the weather in a city", city="string"),
            define("get_time", "Get the time in a city", city="string"),
            define("calculate", "Calculate an expression", expression="string"),
            define("search", "Search the web", query="string"),
            define("set_alarm", "Set an alarm", time="string"),
            define("set_timer", "Set a timer", minutes="integer"),
            define("send_message", "Send a message to a person", to="string", text="string"),
            define("play_music", "Play a song", song="string"),
            define(f"{self.choice(TOOL_VERBS)}_{thing}", f"Work with {thing}",
                   **{self.syllables(1, 2): "string"}),
        ]
        return {tool["function"]["name"]: tool for tool in tools}

    def tool_turn(self, tool):
        """A ToolTurn that uses this tool (a definition)."""
        name = tool["function"]["name"]
        known = getattr(self, "use_" + name, None)
        if known is None:
            return self.use_unknown(name, list(tool["function"]["parameters"]["properties"])[0])
        return known()

    def use_city_tool(self, name, noun, questions, result):
        cities = [self.city()]
        if self.chance(0.2):
            cities.append(self.city())
        results = [result(city) for city in cities]
        where = " and ".join(cities)
        return ToolTurn(self.choice(questions).format(where),
                        f"The user wants the {noun} in {where}. I will call {name}.",
                        [(name, {"city": city}) for city in cities],
                        [json.dumps(data) for data, _ in results],
                        " ".join(text for _, text in results))

    def use_get_weather(self):
        def result(city):
            degrees = self.number(-5, 35)
            sky = self.choice(["sunny", "cloudy", "rainy", "windy", "snowy"])
            return ({"temperature": degrees, "condition": sky},
                    f"It is {sky} in {city} and the temperature is {degrees} degrees.")
        questions = ["What is the weather in {}?", "How is the weather in {}?",
                     "Tell me the weather in {}.", "What is the weather like in {}?",
                     "What's the weather in {}?", "How is the weather in {} today?"]
        return self.use_city_tool("get_weather", "weather", questions, result)

    def use_get_time(self):
        def result(city):
            clock = f"{self.number(0, 23):02d}:{self.number(0, 59):02d}"
            return {"time": clock}, f"It is {clock} in {city}."
        questions = ["What time is it in {}?", "What is the time in {}?",
                     "Tell me the time in {}."]
        return self.use_city_tool("get_time", "time", questions, result)

    def use_calculate(self):
        x, y, sign = self.number(10, 999), self.number(10, 999), self.choice("+-*")
        value = {"+": x + y, "-": x - y, "*": x * y}[sign]
        expression = f"{x} {sign} {y}"
        user = self.choice(["Calculate {}.", "What is {}? Use the tool."]).format(expression)
        return ToolTurn(user, f"The user wants {expression}. I will call calculate.",
                        [("calculate", {"expression": expression})],
                        [json.dumps({"result": value})], f"The result is {value}.")

    def use_search(self):
        query = self.choice([
            f"{self.choice(w.FOODS)} recipes",
            f"{self.choice(w.COLORS)} {self.choice(w.OBJECTS)}",
            f"news about {self.choice(list(w.CAPITALS))}",
            f"how to draw {with_article(self.choice(list(w.ANIMALS)))}",
            self.syllables(2, 3),
        ])
        hits = self.number(2, 90)
        user = self.choice(["Search for {}.", "Search the web for {}."]).format(query)
        return ToolTurn(user, f"The user wants a search for {query}. I will call search.",
                        [("search", {"query": query})], [json.dumps({"results": hits})],
                        f"I found {hits} results for {query}.")

    def use_set_alarm(self):
        clock = f"{self.number(0, 23):02d}:{self.number(0, 11) * 5:02d}"
        user = self.choice(["Set an alarm for {}.", "Wake me up at {}."]).format(clock)
        return ToolTurn(user, f"The user wants an alarm at {clock}. I will call set_alarm.",
                        [("set_alarm", {"time": clock})], ['{"ok": true}'],
                        f"The alarm is set for {clock}.")

    def use_set_timer(self):
        minutes = self.number(2, 90)
        user = self.choice(["Set a timer for {} minutes.", "Start a timer of {} minutes.",
                            "Wake me in {} minutes."]).format(minutes)
        think = f"The user wants a timer of {minutes} minutes. I will call set_timer."
        return ToolTurn(user, think, [("set_timer", {"minutes": minutes})], ['{"ok": true}'],
                        f"The timer is set for {minutes} minutes.")

    def use_send_message(self):
        person = self.name()
        text = self.filler() if self.chance(0.6) else " ".join(
            self.word() for _ in range(self.number(2, 6)))
        think = f"The user wants to send a message to {person}. I will call send_message."
        return ToolTurn(f"Send a message to {person}: {text}", think,
                        [("send_message", {"to": person, "text": text})], ['{"ok": true}'],
                        f"I sent the message to {person}.")

    def use_play_music(self):
        song = f"{capitalize(self.choice(w.ADJECTIVES))} "
        song += capitalize(self.choice(list(w.ANIMALS) + w.OBJECTS))
        user = self.choice(["Play the song {}.", "Play {}."]).format(song)
        return ToolTurn(user, f"The user wants to hear {song}. I will call play_music.",
                        [("play_music", {"song": song})], ['{"ok": true}'],
                        f"Now playing {song}.")

    def use_unknown(self, name, key):
        value = self.word()
        user = self.choice([f"Call {name} with {key} {value}.",
                            f"Use {name} with {key} {value}."])
        return ToolTurn(user, f"The user wants {name} with {value}. I will call {name}.",
                        [(name, {key: value})], ['{"ok": true}'], "It is done.")

    # ------------------------------------------------------------ documents

    def document(self):
        """One training document."""
        if self.phase > 1 and self.chance(LONG_SHARE):
            return self.haystack() if self.chance(0.7) else self.long_chat(12, 40)
        x = self.rng.random()
        if x < 0.03:
            return Document([], None, self.story_text()[0], chat_prefix=self.chance(0.5))
        if x < 0.06:
            return self.long_chat()
        if x < (0.15 if self.phase < 3 else 0.19):
            return self.tool_chat()
        if x < (0.25 if self.phase < 3 else 0.31):
            return self.drill()
        return self.chat()

    def system_prompt(self):
        """-> (system prompt or None, what it does to an answer)."""
        x = self.rng.random()
        if x < 0.1:
            return self.choice([
                "You are a helpful assistant.", "You are a helpful assistant.",
                "You are Tiny GLM, a small and friendly assistant.",
                "You are a friendly storyteller.", "Answer the questions of the user.",
            ]), lambda text: text
        if x < 0.14:
            return ("You are a pirate. Start every answer with Arr!", lambda text: "Arr! " + text)
        if x < 0.18:
            return ("You are a cat. End every answer with Meow.", lambda text: text + " Meow.")
        return None, lambda text: text

    def random_task(self):
        tasks = TASKS[self.phase]
        return self.ask(self.rng.choices(list(tasks), list(tasks.values()))[0])

    def chat(self):
        """One to four questions, sometimes with a system prompt or a name to remember."""
        system, style = self.system_prompt()
        messages = [{"role": "system", "content": system}] if system else []
        think = self.chance(0.5)
        name = self.name() if self.chance(0.06) else None
        if name:
            hello = self.choice(["My name is {}.", "Hi, I am {}.", "Hello! My name is {}."])
            add_turn(messages, Turn(hello.format(name), f"The user is called {name}.",
                                    style(f"Nice to meet you, {name}!")), think)
        for _ in range(self.rng.choices([1, 2, 3, 4], [0.6, 0.23, 0.11, 0.06])[0]):
            turn = self.random_task()
            add_turn(messages, turn._replace(answer=style(turn.answer)), think)
        if name:
            user = self.choice(["What is my name?", "Do you know my name?", "Who am I?"])
            add_turn(messages, Turn(user, f"The user said that the name is {name}.",
                                    style(f"Your name is {name}.")), think)
        elif self.chance(0.04):
            first = next(m["content"] for m in messages if m["role"] == "user")
            if len(first) < 120:
                add_turn(messages, Turn("What was my first question?",
                                        "I look at the first question.",
                                        style(f"You said: {first}")), think)
        return Document(messages, None, None)

    def drill(self):
        """Many short questions of one kind."""
        task = self.choice(DRILLS[self.phase])
        messages, think = [], self.chance(0.5)
        for _ in range(self.number(3, 7)):
            add_turn(messages, self.ask(task), think)
        return Document(messages, None, None)

    def long_chat(self, low=3, high=12):
        """A longer conversation that starts with something to remember."""
        messages, think = [], self.chance(0.5)
        secret = str(self.number(1000, 9999)) if self.chance(0.5) else self.syllables(2, 3)
        add_turn(messages, Turn(f"Remember this code: {secret}.",
                                f"The user wants me to remember {secret}.",
                                f"I will remember {secret}."), think)
        for _ in range(self.number(low, high)):
            add_turn(messages, self.random_task(), think)
        add_turn(messages, Turn("What was the code?", f"The user gave me the code {secret}.",
                                f"The code was {secret}."), think)
        return Document(messages, None, None)

    def haystack(self):
        """A long text in which a few facts are hidden, and a question about each of them."""
        size = 2500 * 4 ** self.rng.random()  # characters: about 600 to 2500 tokens
        lines = []
        while sum(map(len, lines)) < size:
            lines.append(self.filler() if self.chance(0.9) else self.story_text()[0])
        secret = str(self.number(1000, 9999)) if self.chance(0.6) else self.syllables(2, 3)
        facts = [(f"The secret code is {secret}.", "What is the secret code?",
                  f"The text says that the secret code is {secret}.")]
        for thing in self.rng.sample(w.OBJECTS, self.number(0, 2)):
            place = self.choice(w.PLACES)
            facts.append((f"The {thing} is in the {place}.", f"Where is the {thing}?",
                          f"The text says that the {thing} is in the {place}."))
        for person in self.names(self.number(0, 2)):
            age = self.number(3, 90)
            facts.append((f"{person} is {age} years old.", f"How old is {person}?",
                          f"I look for {person} in the text."))
        for fact, _, _ in facts:
            lines.insert(self.number(0, len(lines)), fact)
        self.rng.shuffle(facts)
        messages, think = [], self.chance(0.5)
        for i, (fact, question, thought) in enumerate(facts):
            user = question if i else " ".join(lines) + "\n" + question
            add_turn(messages, Turn(user, thought, fact), think)
        return Document(messages, None, None)

    def tool_chat(self):
        """A conversation with one to three tools; some questions need none."""
        definitions = self.tool_definitions()
        tools = [definitions[name] for name in
                 self.rng.sample(list(definitions), self.number(1, 3))]
        messages, think = [], self.chance(0.5)
        if self.chance(0.1):
            messages.append({"role": "system", "content": "You are a helpful assistant."})
        for _ in range(self.rng.choices([1, 2, 3], [0.55, 0.3, 0.15])[0]):
            if self.chance(0.2):
                add_turn(messages, self.random_task(), think)
            else:
                add_tool_turn(messages, self.ask_tool(self.choice(tools)), think)
        return Document(messages, tools, None)


# How often each task is drawn in a conversation of each phase.
TASKS_PHASE_1 = {
    "story": 7, "small": 5, "fact": 6, "capital": 5, "animal": 4, "word": 5, "spell": 4,
    "list": 3, "listop": 5, "count": 11, "calendar": 3, "sum": 10, "arithmetic": 8, "copy": 18,
    "needle": 12, "json": 7, "code": 2, "job": 2,
}
TASKS = {
    1: TASKS_PHASE_1,
    2: TASKS_PHASE_1 | {"story": 6, "sum": 7, "count": 9, "arithmetic": 12, "copy": 20,
                        "needle": 20, "json": 9, "listop": 7},
    3: TASKS_PHASE_1 | {"story": 4, "sum": 5, "count": 7, "arithmetic": 8, "copy": 22,
                        "times": 8, "needle": 22, "json": 12, "listop": 7},
}
# What a drill may be made of.
DRILLS = {
    1: ["sum", "sum", "arithmetic", "count", "spell", "word", "json", "copy"],
    2: ["sum", "arithmetic", "arithmetic", "times", "spell", "needle", "json", "copy"],
    3: ["sum", "arithmetic", "times", "spell", "needle", "json", "copy", "times"],
}
LONG_SHARE = 0.012  # share of long documents in phases 2 and 3

# Tasks with so few possible prompts that evaluation repeats training prompts.
RECALL = {"small", "fact", "capital", "animal", "word", "list", "calendar", "code", "job"}


def add_turn(messages, turn, think):
    messages.append({"role": "user", "content": turn.user})
    messages.append({"role": "assistant", "think": turn.think if think else None,
                     "content": turn.answer})


def add_tool_turn(messages, turn, think):
    messages.append({"role": "user", "content": turn.user})
    messages.append({"role": "assistant", "think": turn.think if think else None, "content": "",
                     "calls": turn.calls})
    for result in turn.results:
        messages.append({"role": "tool", "content": result})
    messages.append({"role": "assistant", "content": turn.answer,
                     "think": "I have the result of the tool." if think else None})


# ---------------------------------------------------------------- layout (GLM-4.7 chat template)

TOOLS_HEAD = """
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
TOOLS_TAIL = """</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>\
<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>"""


def render_call(name, arguments):
    text = f"<tool_call>{name}"
    for key, value in arguments.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text += f"<arg_key>{key}</arg_key><arg_value>{shown}</arg_value>"
    return text + "</tool_call>"


def render(document):
    """-> list of (text, weight): weight 1 for what the model has to write, 0 for the rest.

    The token that ends an assistant turn (the next <|user|> or <|observation|>) has weight 1: it
    is how GLM models stop.  As in the chat template, reasoning is kept only after the last user
    message.
    """
    if document.text is not None:
        start = [("[gMASK]<sop>", 0)] if document.chat_prefix else []
        return start + [(document.text + "<|endoftext|>", 1)]
    messages = document.messages
    pieces = [("[gMASK]<sop>", 0)]
    if document.tools:
        lines = "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in document.tools)
        pieces.append(("<|system|>" + TOOLS_HEAD + lines + TOOLS_TAIL, 0))
    last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "assistant":
            think = message["think"] if i > last_user else None
            pieces.append(("<|assistant|>" + ("<think>" if think else "</think>"), 0))
            text = (think + "</think>" if think else "") + message["content"].strip()
            text += "".join(render_call(*call) for call in message.get("calls", []))
            pieces.append((text, 1))
        elif role == "tool":
            if messages[i - 1]["role"] != "tool":
                pieces.append(("<|observation|>", 1))
            pieces.append((f"<tool_response>{message['content']}</tool_response>", 0))
        else:
            after_assistant = i > 0 and messages[i - 1]["role"] == "assistant"
            pieces.append((f"<|{role}|>", 1 if after_assistant else 0))
            pieces.append((message["content"], 0))
    pieces.append(("<|user|>", 1))
    return pieces


def main():
    parser = argparse.ArgumentParser(description="Print documents of the synthetic corpus.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    args = parser.parse_args()
    generator = Generator(args.seed)
    for _ in range(args.count):
        print("".join(text for text, _ in render(generator.document())), end="\n-----\n")


if __name__ == "__main__":
    main()
