"""Tiny tokenizers of every kind that causal models have, trained on the words of the shipped tasks.

`tokenizer_folder("llama2", folder)` writes one as a checkpoint holds it. Kinds that spell alike share a vocabulary:
`llama2` and `llama2_unstripped` differ in the decoder's last step alone, the three of `metaspace` in where a space goes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from probewire.analysis.tasks import agreement, capitals, greater_than, ioi
from probewire.backends.model.tokenizer import Tokenizer
from probewire.protos.model import Input

__all__ = ["CORPUS", "KINDS", "SPECIAL", "VOCAB_SIZE", "Kind", "sentence_piece_model", "tokenizer_folder"]

VOCAB_SIZE = 1600
"""Of a checkpoint that any of them fits."""
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
"""Ids 0 … 4 of the kinds with a tokenizer.json, but for `wordpiece`, which has [UNK], [CLS] and [SEP] first."""
KINDS = (
    "byte_level",
    "llama2",
    "llama2_unstripped",
    "metaspace_always",
    "metaspace_first",
    "metaspace_never",
    "wordpiece",
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS: tuple[str, ...] = tuple(
    text
    for task in (ioi(60), greater_than(60), agreement(60), capitals(60))
    for example in task.examples
    for text in (example.clean + answer for answer in (*example.correct[:3], *example.wrong[:3]))
)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class Kind:
    """One kind, with the library's own beside ours."""

    name: str
    folder: Path
    ours: Tokenizer
    theirs: Any
    """The `tokenizers` library's, from the same file."""

    def encode(self, text: str) -> list[int]:
        """As a request's text."""
        return self.ours.encode(Input(text))

    @property
    def n_tokens(self) -> int:
        """Ids that the file gives."""
        return int(self.theirs.get_vocab_size())


def tokenizer_folder(kind: str, folder: Path, **config: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json into a folder; `config` is put into the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chat_template.jinja").unlink(missing_ok=True)  # of the tokenizer that was there before
    (folder / "tokenizer.json").write_text(_json_of(kind), encoding="utf-8")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind == "wordpiece":
        names = {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names, **config})
    )
    return folder


@cache
def _json_of(kind: str) -> str:
    from tokenizers import processors

    made = {"byte_level": _byte_level, "wordpiece": _wordpiece}.get(kind)
    if made is not None:
        tokenizer = made()
    elif kind.startswith("llama2"):
        tokenizer = _llama2(strip=kind == "llama2")
    else:
        tokenizer = _metaspace(kind.removeprefix("metaspace_"))
    bos = "[CLS]" if kind == "wordpiece" else "<s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return str(tokenizer.to_str())


def _byte_level() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=1200, show_progress=False, special_tokens=list(SPECIAL), initial_alphabet=alphabet
        ),
    )
    tokenizer.add_tokens([AddedToken("<think>", special=False, rstrip=True, normalized=False)])
    return tokenizer


@cache
def _spaced_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges over words that begin with ▁, after the special tokens and the bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=900, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    first = [*SPECIAL, *_BYTES]
    pieces = first + [piece for piece in sorted(model["vocab"], key=model["vocab"].get) if piece not in first]
    return {piece: i for i, piece in enumerate(pieces)}, [tuple(merge) for merge in model["merges"]]


def _llama2(*, strip: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary, merges = _spaced_bpe()
    tokenizer: Any = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * strip)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _metaspace(scheme: Any) -> Any:
    """sentencepiece's unigram, as its conversions write it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary, _ = _spaced_bpe()
    pieces = [(piece, 0.0 if i < len(SPECIAL) else -1.0 - i / 100) for piece, i in vocabulary.items()]
    tokenizer: Any = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(
            vocab_size=700, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        ),
    )
    return tokenizer


@cache
def sentence_piece_model(model_type: str, **options: Any) -> bytes:
    """A sentencepiece model of 600 pieces and its bytes, as Llama's are made (`options`: of its trainer)."""
    import io

    import sentencepiece

    made = io.BytesIO()
    trainer: Any = sentencepiece.SentencePieceTrainer
    trainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=made,
        model_type=model_type,
        vocab_size=600 + 256,
        minloglevel=2,
        **{
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "hard_vocab_limit": False,
            **options,
        },
    )
    return made.getvalue()
