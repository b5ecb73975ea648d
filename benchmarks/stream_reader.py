"""A client that keeps up: python stream_reader.py grpc://…. A child process, so that its memory is its own.

Asked {"prompt": [id, …], "n_new": n}, it reads a generation with every layer captured, holds no step longer than the
next one takes, and answers {"tokens", "bytes"}.
"""

from __future__ import annotations

import sys
from typing import Any

from child import answer_lines

from probewire.clients import Client


def main() -> None:
    """Answer until told to end."""
    with Client(sys.argv[1], timeout_s=None) as client:

        def read(question: dict[str, Any]) -> dict[str, Any]:
            n_tokens = n_bytes = 0
            with client.stream(
                question["prompt"], capture=["resid_post.*"], max_new_tokens=question["n_new"], ignore_eos=True
            ) as stream:
                for step in stream:
                    n_tokens += step.token is not None
                    n_bytes += sum(step[site].nbytes for site in step.captures)
            return {"tokens": n_tokens, "bytes": n_bytes}

        answer_lines(read)


if __name__ == "__main__":
    main()
