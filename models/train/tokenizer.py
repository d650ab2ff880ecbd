#!/usr/bin/env python3
"""Trains the tokenizer: byte-level BPE with GLM-4's pre-tokenizer and GLM-4.7's added tokens.

The added tokens follow the BPE vocabulary in the order of the real tokenizer, starting with
<|endoftext|>.  All numbers from 0 to 99 are single tokens, so that counting and sums do not depend
on how digits happen to be merged.

    python tokenizer.py --out tokenizer.json
"""

import argparse
import re

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

import corpus

SPECIAL = """
<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|>
<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|begin_of_audio|>
<|end_of_audio|> <|begin_of_transcription|> <|end_of_transcription|>
""".split()
# These are added tokens too, but a decoder that skips special tokens still shows them.
VISIBLE = """
<|code_prefix|> <|code_middle|> <|code_suffix|> <think> </think> <tool_call> </tool_call>
<tool_response> </tool_response> <arg_key> </arg_key> <arg_value> </arg_value> /nothink
<|begin_of_box|> <|end_of_box|> <|image|> <|video|>
""".split()
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
STOP_TOKENS = ["<|endoftext|>", "<|user|>", "<|observation|>"]


def training_texts(seed, documents):
    """Corpus text without the added tokens, and the numbers that must be single tokens."""
    generator = corpus.Generator(seed)
    added = re.compile("|".join(re.escape(token) for token in SPECIAL + VISIBLE))
    for _ in range(documents):
        text = "".join(piece for piece, _ in corpus.render(generator.document()))
        yield " ".join(part for part in added.split(text) if part)
    for _ in range(2000):
        yield " ".join(str(number) for number in range(100))


def build(bpe_size, seed=12345, documents=40000):
    """-> a Tokenizer with bpe_size BPE tokens and the added tokens after them."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=bpe_size, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(training_texts(seed, documents), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens(
        [AddedToken(text, special=False, normalized=False) for text in VISIBLE])
    return tokenizer


def report(tokenizer, documents=3000):
    """Prints the compression and checks that text survives a round trip."""
    generator = corpus.Generator(7)
    characters, lengths = 0, []
    for _ in range(documents):
        text = "".join(piece for piece, _ in corpus.render(generator.document()))
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        characters += len(text)
        lengths.append(len(ids))
    lengths.sort()
    assert all(len(tokenizer.encode(str(number)).ids) == 1 for number in range(100))
    print(f"{tokenizer.get_vocab_size()} tokens, {characters / sum(lengths):.2f} characters per "
          f"token; tokens per document: median {lengths[documents // 2]}, "
          f"99 % {lengths[documents * 99 // 100]}, longest {lengths[-1]}")


def main():
    parser = argparse.ArgumentParser(description="Train the tokenizer.")
    parser.add_argument("--out", required=True, help="tokenizer.json to write")
    parser.add_argument("--bpe-size", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=12345)
    args = parser.parse_args()
    tokenizer = build(args.bpe_size, args.seed)
    tokenizer.save(args.out)
    report(tokenizer)


if __name__ == "__main__":
    main()
