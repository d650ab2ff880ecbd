#!/usr/bin/env python3
"""Trains the tiny glm4_moe model with its MTP layer on the synthetic corpus, on one CPU core.

The learning rate warms up, stays constant and decays linearly over the last --decay-tokens.
Everything needed to continue (weights, optimizers, the data stream) is saved every --save-every
seconds, so that an interrupted run goes on exactly where it stopped: just start it again.

    python train.py --tokenizer tokenizer.json --checkpoint tiny.pt --log tiny.log
"""

import argparse
import os
import time

import torch
from tokenizers import Tokenizer
from torch import nn

import corpus
from model import CONFIG, Model, MoE

# ---------------------------------------------------------------- optimizer


def orthogonalize(matrix, steps=5):
    """Newton-Schulz iteration: about the nearest matrix with all singular values 1."""
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized; for matrices (and stacks of matrices) only."""

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(parameters, {"lr": lr})
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                velocity = state.setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(self.momentum).add_(p.grad)
                update = orthogonalize(p.grad.add(velocity, alpha=self.momentum))
                scale = max(1, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * self.weight_decay)
                p.add_(update, alpha=-group["lr"] * scale)


def make_optimizers(model, args):
    """Muon for the inner matrices, AdamW for embedding, head, routers, norms and biases."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        inner = p.ndim >= 2 and name not in ("embed.weight", "head") and not name.endswith(".gate")
        (matrices if inner else others).append(p)
    return (Muon(matrices, args.lr),
            torch.optim.AdamW(others, args.adam_lr, betas=(0.9, 0.97), weight_decay=0.01))


# ---------------------------------------------------------------- data


class Batches:
    """Batches of documents of similar length, from a pool that is refilled all the time."""

    def __init__(self, tokenizer, args, pool_size=3000):
        self.generator = corpus.Generator(args.seed)
        self.tokenizer, self.args = tokenizer, args
        self.pool_size, self.pool = pool_size, []

    def document(self):
        """-> (token ids, loss weights) of the next document that is not too long.

        What the user and the tools say counts little, and very little in long documents, whose
        few answers would be drowned by it.
        """
        args = self.args
        limit = args.max_length if self.generator.phase == 1 else args.long_max_length
        while True:
            ids, answers = [], []
            for text, weight in corpus.render(self.generator.document()):
                if text:
                    new = self.tokenizer.encode(text).ids
                    ids += new
                    answers += [weight] * len(new)
            if len(ids) <= limit:
                prompt = args.prompt_weight * (1.0 if len(ids) <= args.max_length else 0.1)
                return ids, [1.0 if answer else prompt for answer in answers]

    def next(self, tokens):
        """-> (ids, weights) tensors of about `tokens` tokens; padding has weight 0."""
        while len(self.pool) < self.pool_size:
            self.pool.append(self.document())
        length = len(self.generator.choice(self.pool)[0])
        count = max(1, tokens // length)
        nearest = sorted(range(len(self.pool)),
                         key=lambda i: abs(len(self.pool[i][0]) - length))[:count]
        documents = [self.pool[i] for i in nearest]
        for i in sorted(nearest, reverse=True):
            self.pool[i] = self.pool[-1]
            self.pool.pop()
        longest = max(len(ids) for ids, _ in documents)
        ids = torch.zeros(count, longest, dtype=torch.long)
        weights = torch.zeros(count, longest)
        for row, (a, b) in enumerate(documents):
            ids[row, : len(a)] = torch.tensor(a)
            weights[row, : len(b)] = torch.tensor(b)
        return ids, weights

    def positions(self, length):
        """Positions with one to three jumps: far-away text without the cost of it."""
        rng = self.generator.rng
        positions = torch.arange(length)
        for _ in range(rng.randint(1, 3)):
            positions[rng.randrange(length) :] += int(10 * 500 ** rng.random())
        return positions

    def state(self):
        return {"rng": self.generator.rng.getstate(), "pool": self.pool}

    def restore(self, state):
        self.generator.rng.setstate(state["rng"])
        self.pool = state["pool"]


# ---------------------------------------------------------------- training loop


def learning_rate_factor(step, tokens, args):
    """Warm-up, then 1, then linear to 2 % over the last decay_tokens."""
    warm = min(1.0, (step + 1) / args.warmup_steps)
    return warm * max(0.02, min(1.0, (args.tokens - tokens) / args.decay_tokens))


def balance_experts(model, rate):
    """Moves each router's correction bias towards equal use of its experts."""
    for module in model.modules():
        if isinstance(module, MoE):
            module.bias += rate * torch.sign(module.load.mean() - module.load)
            module.load.zero_()


class Run:
    """Model, optimizers, data and progress: what a checkpoint holds."""

    def __init__(self, args):
        torch.manual_seed(args.seed)
        self.model = Model(CONFIG)
        self.optimizers = make_optimizers(self.model, args)
        self.batches = Batches(Tokenizer.from_file(args.tokenizer), args)
        self.progress = {"tokens": 0, "steps": 0, "seconds": 0.0}

    def save(self, path):
        torch.save({"config": CONFIG, "model": self.model.state_dict(),
                    "optimizers": [o.state_dict() for o in self.optimizers],
                    "data": self.batches.state(), "progress": self.progress}, path + ".new")
        os.replace(path + ".new", path)

    def load(self, path):
        saved = torch.load(path, weights_only=False)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        self.batches.restore(saved["data"])
        self.progress = saved["progress"]

    def start_from(self, path):
        """Takes only the weights of another run."""
        self.model.load_state_dict(torch.load(path, weights_only=False)["model"])

    def step(self, args):
        """One optimizer step of about batch_tokens tokens -> (loss, MTP loss)."""
        progress = self.progress
        factor = learning_rate_factor(progress["steps"], progress["tokens"], args)
        for optimizer, lr in zip(self.optimizers, (args.lr, args.adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        with_mtp = progress["tokens"] >= args.mtp_from
        generator, positions = self.batches.generator, None
        generator.phase = 1 if progress["tokens"] < args.phase2_from else 2
        if args.init:
            generator.phase = 3
        totals = [0.0, 0.0]
        for _ in range(args.micro_batches):
            ids, weights = self.batches.next(args.batch_tokens // args.micro_batches)
            progress["tokens"] += ids.numel()
            if generator.phase > 1:
                jumps = generator.chance(0.5 if ids.shape[1] > args.max_length else 0.1)
                positions = self.batches.positions(ids.shape[1]) if jumps else None
            main, mtp = self.model.losses(ids, weights, with_mtp, positions)
            ((main + args.mtp_weight * mtp) / args.micro_batches).backward()
            totals[0] += main.item() / args.micro_batches
            totals[1] += mtp.item() / args.micro_batches
        others = self.optimizers[1].param_groups[0]["params"]
        nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        balance_experts(self.model, args.balance_rate * factor)
        progress["steps"] += 1
        return totals


def parse_args():
    parser = argparse.ArgumentParser(description="Train the tiny model.")
    add = parser.add_argument
    add("--tokenizer", required=True)
    add("--checkpoint", required=True, help="written regularly; continued from if it exists")
    add("--init", help="tuning run: take the weights from this checkpoint, use phase 3")
    add("--log", help="file to append the progress lines to")
    add("--seed", type=int, default=1)
    add("--threads", type=int, default=1)
    add("--tokens", type=float, default=11.5e6)
    add("--decay-tokens", type=float, default=5e6)
    add("--mtp-from", type=float, default=3e6, help="tokens after which the MTP layer is trained")
    add("--mtp-weight", type=float, default=0.3)
    add("--batch-tokens", type=int, default=2048)
    add("--micro-batches", type=int, default=2)
    add("--max-length", type=int, default=768, help="longer documents are left out in phase 1")
    add("--phase2-from", type=float, default=6.5e6,
        help="tokens after which the corpus is in its second phase")
    add("--long-max-length", type=int, default=2560, help="the same in phase 2")
    add("--prompt-weight", type=float, default=0.1, help="loss weight of the user's text")
    add("--lr", type=float, default=0.015, help="of Muon")
    add("--adam-lr", type=float, default=0.003)
    add("--warmup-steps", type=int, default=60)
    add("--balance-rate", type=float, default=0.003)
    add("--save-every", type=float, default=120, help="seconds between checkpoints")
    return parser.parse_args()


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args)
    if os.path.exists(args.checkpoint):
        run.load(args.checkpoint)
    elif args.init:
        run.start_from(args.init)
    progress = run.progress
    count = sum(p.numel() for p in run.model.parameters())
    print(f"{count / 1e6:.3f} M parameters, {progress}", flush=True)
    last_time = last_save = time.time()
    last_tokens, sums = progress["tokens"], [0.0, 0.0, 0]
    while progress["tokens"] < args.tokens:
        main_loss, mtp_loss = run.step(args)
        sums = [sums[0] + main_loss, sums[1] + mtp_loss, sums[2] + 1]
        if progress["steps"] % 50 == 0:
            now = time.time()
            progress["seconds"] += now - last_time
            speed = (progress["tokens"] - last_tokens) / (now - last_time)
            line = (f"step {progress['steps']} tokens {progress['tokens'] / 1e6:.3f}M "
                    f"loss {sums[0] / sums[2]:.4f} mtp {sums[1] / sums[2]:.4f} "
                    f"time {progress['seconds']:.0f}s {speed:.0f} tokens/s")
            last_time, last_tokens, sums = now, progress["tokens"], [0.0, 0.0, 0]
            print(line, flush=True)
            if args.log:
                with open(args.log, "a") as log:
                    log.write(line + "\n")
            if now - last_save > args.save_every:
                run.save(args.checkpoint)
                last_save = now
    run.save(args.checkpoint)
    print("done", progress, flush=True)


if __name__ == "__main__":
    main()
