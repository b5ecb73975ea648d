"""Text to tokens and back, the same for both backends: the checkpoint's own tokenizer.

`files.py` finds it, `fast.py` and `sentence_pieces.py` are the two kinds, `tokenizer.py` is what the server uses.
"""

from .files import read_codec
from .stream import StreamDecoder
from .tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer", "read_codec"]
