"""Text from a PyTorch model, token by token and without a KV cache: the reference for our backends."""

from collections.abc import Iterator, Sequence

import torch

from llamatui.errors import UsageError
from llamatui.tokenizers.base import StreamDecoder, Tokenizer
from llamatui.train.dataset import start_id
from llamatui.train.model import Llama


@torch.no_grad()
def sample_ids(
    model: Llama,
    ids: Sequence[int],
    n: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Up to `n` ids that follow `ids`. What no longer fits the context is forgotten, as in llama2.c.

    Args:
        temperature: 0 takes the likeliest token.
        top_k: Choose among this many of the likeliest; 0: among all.
        generator: On the CPU, where tokens are chosen.
    """
    device = next(model.parameters()).device
    context = torch.tensor([list(ids)], device=device)  # (1, n_ids)
    for _ in range(n):
        logits = model(context[:, -model.config.max_seq_len :])[0, -1].float().cpu()  # (vocab_size,)
        if temperature == 0:
            token = int(logits.argmax())
        else:
            if 0 < top_k < len(logits):
                logits[logits < logits.topk(top_k).values[-1]] = float("-inf")
            logits -= logits.max()  # before the division, in which they may become infinite
            probabilities = torch.softmax(logits / temperature, 0)  # (vocab_size,)
            token = int(torch.multinomial(probabilities, 1, generator=generator))
        yield token
        context = torch.cat([context, torch.tensor([[token]], device=device)], 1)  # (1, n_ids + 1)


def sample_text(
    model: Llama,
    tokenizer: Tokenizer,
    prompt: str,
    n: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Iterator[str]:
    """Pieces of the text that follows `prompt`, up to the end of the document or of the length.

    Args:
        n: Positions to run, the prompt's included, as `generate` and run.c count them.

    Raises:
        UsageError: The prompt is empty, and the vocabulary has no token that begins or ends a document.
    """
    start = start_id(tokenizer)
    ids = [start, *tokenizer.encode(prompt)] if start >= 0 else tokenizer.encode(prompt)
    if not ids:
        raise UsageError("this model cannot begin from nothing", "give it a first word (-i)")
    generator = torch.Generator().manual_seed(seed)
    decoder = StreamDecoder(tokenizer, after=ids[-1])
    ends = tokenizer.eos_ids | {start}
    was_training = model.training
    model.eval()
    try:
        n_new = max(n - len(ids) + 1, 0)
        for token in sample_ids(model, ids, n_new, temperature=temperature, top_k=top_k, generator=generator):
            if token in ends:
                break
            yield decoder.push(token)
        yield decoder.flush()
    finally:
        model.train(was_training)
