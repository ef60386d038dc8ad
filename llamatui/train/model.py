"""The Llama architecture in PyTorch, with llama2.c's and Meta's names, so that their checkpoints are ours.

Sources: `model.py` of llama2.c for names, dropout and initialisation; RMSNorm arXiv:1910.07467; SwiGLU
arXiv:2002.05202; grouped-query attention arXiv:2305.13245; RoPE as `llamatui.backends.rope`.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from llamatui.backends.checkpoint import ModelConfig
from llamatui.backends.rope import rope_table

EMBEDDING = "tok_embeddings.weight"


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim, self.dropout = config.head_dim, dropout
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, n, dim) from (batch, n, dim); cos and sin: (n, head_dim / 2)."""
        batch, n, dim = x.shape
        q = self.wq(x).view(batch, n, self.n_heads, self.head_dim)
        k = self.wk(x).view(batch, n, self.n_kv_heads, self.head_dim)
        v = self.wv(x).view(batch, n, self.n_kv_heads, self.head_dim).transpose(1, 2)
        q = rotate(q, cos, sin).transpose(1, 2)  # (batch, n_heads, n, head_dim)
        k = rotate(k, cos, sin).transpose(1, 2)  # (batch, n_kv_heads, n, head_dim)
        if self.n_kv_heads != self.n_heads:
            k = k.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)  # (batch, n_heads, n, head_dim)
            v = v.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        # No dropout of the attention weights: no fused kernel has it on a CPU, others are ten times slower.
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = self.wo(out.transpose(1, 2).reshape(batch, n, dim))
        return functional.dropout(out, self.dropout, self.training)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on neighbouring pairs: (batch, n, heads, head_dim) from the same."""
    pairs = x.float().unflatten(-1, (-1, 2))  # (batch, n, heads, head_dim / 2, 2)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # One pass over memory instead of seven; a compiler makes one of the other form, too.
        turned = torch.view_as_complex(pairs) * torch.complex(cos, sin)[:, None]
        return torch.view_as_real(turned).flatten(-2).type_as(x)
    even, odd = pairs.unbind(-1)  # (batch, n, heads, head_dim / 2) each
    cos, sin = cos[:, None], sin[:, None]  # (n, 1, head_dim / 2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n, dim) from (batch, n, dim)."""
        out = self.w2(functional.silu(self.w1(x)) * self.w3(x))
        return functional.dropout(out, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(config, dropout)
        self.feed_forward = FeedForward(config, dropout)
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return cast(Tensor, x + self.feed_forward(self.ffn_norm(x)))


class Llama(nn.Module):
    """Logits of token ids, or the loss where targets are given."""

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        """Random weights: normal, of standard deviation 0.02; those that end a residual branch are scaled by
        1 / sqrt(2 n_layers), as GPT-2's (llama2.c scales w3 where that means w2)."""
        super().__init__()
        self.config, self.dropout = config, dropout
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.shared_classifier:
            self.output.weight = self.tok_embeddings.weight
        cos, sin = rope_table(config, config.max_seq_len)
        self.register_buffer("cos", torch.from_numpy(cos), persistent=False)  # (max_seq_len, head_dim / 2)
        self.register_buffer("sin", torch.from_numpy(sin), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends_branch = name.endswith(("w2.weight", "wo.weight"))
                std = 0.02 / math.sqrt(2 * config.n_layers) if ends_branch else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (batch, n, vocab_size), or the mean loss in nats per token where `targets` are given.

        Args:
            tokens: (batch, n) ids, n at most max_seq_len.
            targets: (batch, n) ids that follow.
        """
        n = tokens.shape[1]
        cos, sin = cast(Tensor, self.cos)[:n], cast(Tensor, self.sin)[:n]  # (n, head_dim / 2)
        x = functional.dropout(self.tok_embeddings(tokens), self.dropout, self.training)  # (batch, n, dim)
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = self.output(self.norm(x))  # (batch, n, vocab_size)
        if targets is None:
            return cast(Tensor, logits)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations of one token in windows of `seq_len`, forward and backward.

        Source: PaLM, arXiv:2204.02311, appendix B. An embedding that is no classifier multiplies nothing, and
        a frozen matrix has no gradient of its own.
        """
        c = self.config
        used = [p for name, p in self.named_parameters() if c.shared_classifier or name != EMBEDDING]
        n_used = sum(p.numel() for p in used)
        n_trained = sum(p.numel() for p in used if p.requires_grad)
        return 4 * n_used + 2 * n_trained + 12 * c.n_layers * c.dim * seq_len
