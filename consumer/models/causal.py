"""Any causal language model in a Hugging Face folder, through `transformers`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consumer.errors import Fatal
from consumer.exits import Exit

__all__ = ["FolderChat", "FolderModel", "load_folder"]


class _Memory:
    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.skipped = 0

    def keep(self, rows: Tensor, skip: int) -> None:
        """Padding stays in the cache: not every kind of cache can be cut at its beginning."""
        self.cache.batch_select_indices(rows)
        self.skipped += skip


class FolderModel:
    """See `consumer.models.generate.Language`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.positions = int(getattr(model.config.get_text_config(), "max_position_embeddings", 2_048))

    def read(self, ids: Tensor, real: Tensor, room: int) -> tuple[Tensor, _Memory]:
        """`room` is not needed: the cache grows by itself."""
        places = (real.long().cumsum(1) - 1).clamp(min=0)
        out = self._model(
            input_ids=ids, attention_mask=real.long(), position_ids=places, use_cache=True, logits_to_keep=1
        )
        return out.logits[:, -1].float(), _Memory(out.cache)

    def write(self, ids: Tensor, real: Tensor, memory: _Memory) -> Tensor:
        places = real.long().sum(1, keepdim=True) - 1
        padding = real.new_zeros(len(real), memory.skipped)
        out = self._model(
            input_ids=ids[:, None],
            attention_mask=torch.cat([padding, real], 1).long(),
            position_ids=places,
            cache=memory.cache,
            use_cache=True,
        )
        logits: Tensor = out.logits[:, -1].float()
        return logits


class FolderChat:
    """The conversation of a folder's tokenizer.  See `consumer.models.generate.Chat`."""

    def __init__(self, tokenizer: Any, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.ends = ends
        self.controls = tuple(
            token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()
        )

    def prompt(self, system: str, user: str) -> list[int]:
        """Control tokens in the text must be gone (`controls`): the template puts its own beside it, as text."""
        turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def load_folder(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[FolderModel, FolderChat, str]:
    """Model, conversation and version of a folder that `save_pretrained` wrote.  Nothing is fetched, no code of it run.

    Raises Fatal when the folder holds no such model or its tokenizer no chat template.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise Fatal("package transformers is missing: pip install 'stream-consumer[answer]'") from error
    if not (folder / "config.json").is_file():
        raise Fatal(
            f"option model: {folder} is no model folder (it has no config.json)", exit_code=Exit.USAGE
        )
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Fatal(f"option model: {folder} cannot be loaded: {error}", exit_code=Exit.USAGE) from error
    if not tokenizer.chat_template:
        raise Fatal(f"option model: the tokenizer of {folder} has no chat template", exit_code=Exit.USAGE)
    model.requires_grad_(False).eval().to(device)
    wanted = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(wanted if isinstance(wanted, list) else [wanted])} - {None}
    return FolderModel(model), FolderChat(tokenizer, frozenset(ends)), f"{folder.name}-{_digest(folder)}"


def _digest(folder: Path) -> str:
    """Of what decides the model's words: names and bytes of weights, configuration and tokenizer."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:8]
