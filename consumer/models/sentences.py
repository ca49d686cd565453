"""Sentences and short passages as vectors: all of MiniLM-L6, mean over the tokens, length one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer
from torch import Tensor

from consumer.models.encoder import WIDTH, load_minilm, mean
from consumer.models.minilm import PAD, minilm_folder

__all__ = ["MAX_IDS", "Sentences"]

MAX_IDS = 256
"""Token ids that are read of a text, with its first and last; what MiniLM was trained for."""
_BATCH = 32


class Sentences:
    """Texts to vectors on `device`, fp32; the cosine of two is their dot product."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._encoder = load_minilm().to(device)
        self._tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_IDS)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(texts, WIDTH) in the order given; neighbours in length share a batch."""
        rows = [each.ids for each in self._tokenizer.encode_batch(list(texts))]
        vectors = torch.empty(len(rows), WIDTH, device=self._device)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            longest = len(rows[places[-1]])
            ids = torch.tensor([rows[p] + [PAD] * (longest - len(rows[p])) for p in places])
            ids = ids.to(self._device)
            found = mean(self._encoder(ids), ids != PAD)
            vectors[torch.tensor(places, device=self._device)] = F.normalize(found, dim=1)
        return vectors
