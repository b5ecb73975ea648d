from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Indices(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Names(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Spans(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, values: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class Messages(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, values: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("hooks",)
    HOOKS_FIELD_NUMBER: _ClassVar[int]
    hooks: _containers.RepeatedCompositeFieldContainer[Hook]
    def __init__(self, hooks: _Optional[_Iterable[_Union[Hook, _Mapping]]] = ...) -> None: ...

class Hook(_message.Message):
    __slots__ = ("site", "edit", "capture", "where", "inputs", "id")
    SITE_FIELD_NUMBER: _ClassVar[int]
    EDIT_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    site: str
    edit: Edit
    capture: Capture
    where: Where
    inputs: Names
    id: str
    def __init__(self, site: _Optional[str] = ..., edit: _Optional[_Union[Edit, _Mapping]] = ..., capture: _Optional[_Union[Capture, _Mapping]] = ..., where: _Optional[_Union[Where, _Mapping]] = ..., inputs: _Optional[_Union[Names, _Mapping]] = ..., id: _Optional[str] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class Where(_message.Message):
    __slots__ = ("positions", "spans", "phase", "token_ids", "when", "all_of", "any_of")
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    WHEN_FIELD_NUMBER: _ClassVar[int]
    ALL_OF_FIELD_NUMBER: _ClassVar[int]
    ANY_OF_FIELD_NUMBER: _ClassVar[int]
    positions: Indices
    spans: Spans
    phase: str
    token_ids: Indices
    when: Condition
    all_of: AllOf
    any_of: AnyOf
    def __init__(self, positions: _Optional[_Union[Indices, _Mapping]] = ..., spans: _Optional[_Union[Spans, _Mapping]] = ..., phase: _Optional[str] = ..., token_ids: _Optional[_Union[Indices, _Mapping]] = ..., when: _Optional[_Union[Condition, _Mapping]] = ..., all_of: _Optional[_Union[AllOf, _Mapping]] = ..., any_of: _Optional[_Union[AnyOf, _Mapping]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("threshold", "site", "op", "unit", "head", "direction", "latch", "normalise")
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    LATCH_FIELD_NUMBER: _ClassVar[int]
    NORMALISE_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    site: str
    op: str
    unit: int
    head: int
    direction: Tensor
    latch: str
    normalise: bool
    def __init__(self, threshold: _Optional[float] = ..., site: _Optional[str] = ..., op: _Optional[str] = ..., unit: _Optional[int] = ..., head: _Optional[int] = ..., direction: _Optional[_Union[Tensor, _Mapping]] = ..., latch: _Optional[str] = ..., normalise: _Optional[bool] = ...) -> None: ...

class AllOf(_message.Message):
    __slots__ = ("conditions",)
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    def __init__(self, conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ...) -> None: ...

class AnyOf(_message.Message):
    __slots__ = ("conditions",)
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    def __init__(self, conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ...) -> None: ...

class Edit(_message.Message):
    __slots__ = ("add", "scale", "replace", "project_out", "clamp", "noise", "low_rank", "latents", "affine")
    ADD_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    PROJECT_OUT_FIELD_NUMBER: _ClassVar[int]
    CLAMP_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    LOW_RANK_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    AFFINE_FIELD_NUMBER: _ClassVar[int]
    add: Add
    scale: Scale
    replace: Replace
    project_out: ProjectOut
    clamp: Clamp
    noise: Noise
    low_rank: LowRank
    latents: Latents
    affine: Affine
    def __init__(self, add: _Optional[_Union[Add, _Mapping]] = ..., scale: _Optional[_Union[Scale, _Mapping]] = ..., replace: _Optional[_Union[Replace, _Mapping]] = ..., project_out: _Optional[_Union[ProjectOut, _Mapping]] = ..., clamp: _Optional[_Union[Clamp, _Mapping]] = ..., noise: _Optional[_Union[Noise, _Mapping]] = ..., low_rank: _Optional[_Union[LowRank, _Mapping]] = ..., latents: _Optional[_Union[Latents, _Mapping]] = ..., affine: _Optional[_Union[Affine, _Mapping]] = ...) -> None: ...

class Add(_message.Message):
    __slots__ = ("vector", "alpha", "norm_match", "units", "heads")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    NORM_MATCH_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    vector: Tensor
    alpha: float
    norm_match: bool
    units: Indices
    heads: Indices
    def __init__(self, vector: _Optional[_Union[Tensor, _Mapping]] = ..., alpha: _Optional[float] = ..., norm_match: _Optional[bool] = ..., units: _Optional[_Union[Indices, _Mapping]] = ..., heads: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class Scale(_message.Message):
    __slots__ = ("factor", "units", "heads")
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    factor: float
    units: Indices
    heads: Indices
    def __init__(self, factor: _Optional[float] = ..., units: _Optional[_Union[Indices, _Mapping]] = ..., heads: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class Replace(_message.Message):
    __slots__ = ("source", "units", "heads")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    source: Source
    units: Indices
    heads: Indices
    def __init__(self, source: _Optional[_Union[Source, _Mapping]] = ..., units: _Optional[_Union[Indices, _Mapping]] = ..., heads: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("zeros", "constant", "inline", "stored", "from_input")
    ZEROS_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    FROM_INPUT_FIELD_NUMBER: _ClassVar[int]
    zeros: Zeros
    constant: Constant
    inline: Inline
    stored: Stored
    from_input: FromInput
    def __init__(self, zeros: _Optional[_Union[Zeros, _Mapping]] = ..., constant: _Optional[_Union[Constant, _Mapping]] = ..., inline: _Optional[_Union[Inline, _Mapping]] = ..., stored: _Optional[_Union[Stored, _Mapping]] = ..., from_input: _Optional[_Union[FromInput, _Mapping]] = ...) -> None: ...

class Zeros(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Constant(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: Tensor
    def __init__(self, value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Inline(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: Tensor
    def __init__(self, value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Stored(_message.Message):
    __slots__ = ("capture_id",)
    CAPTURE_ID_FIELD_NUMBER: _ClassVar[int]
    capture_id: str
    def __init__(self, capture_id: _Optional[str] = ...) -> None: ...

class FromInput(_message.Message):
    __slots__ = ("input", "positions")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    input: str
    positions: Indices
    def __init__(self, input: _Optional[str] = ..., positions: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class ProjectOut(_message.Message):
    __slots__ = ("directions", "units", "heads")
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    directions: Tensor
    units: Indices
    heads: Indices
    def __init__(self, directions: _Optional[_Union[Tensor, _Mapping]] = ..., units: _Optional[_Union[Indices, _Mapping]] = ..., heads: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class Clamp(_message.Message):
    __slots__ = ("directions", "min", "max", "units", "heads")
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    directions: Tensor
    min: float
    max: float
    units: Indices
    heads: Indices
    def __init__(self, directions: _Optional[_Union[Tensor, _Mapping]] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., units: _Optional[_Union[Indices, _Mapping]] = ..., heads: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class Noise(_message.Message):
    __slots__ = ("std", "seed", "units", "heads")
    STD_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    std: float
    seed: int
    units: Indices
    heads: Indices
    def __init__(self, std: _Optional[float] = ..., seed: _Optional[int] = ..., units: _Optional[_Union[Indices, _Mapping]] = ..., heads: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class LowRank(_message.Message):
    __slots__ = ("a", "b", "alpha", "units", "heads")
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    a: Tensor
    b: Tensor
    alpha: float
    units: Indices
    heads: Indices
    def __init__(self, a: _Optional[_Union[Tensor, _Mapping]] = ..., b: _Optional[_Union[Tensor, _Mapping]] = ..., alpha: _Optional[float] = ..., units: _Optional[_Union[Indices, _Mapping]] = ..., heads: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class Affine(_message.Message):
    __slots__ = ("a", "b", "c", "alpha", "units", "heads")
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    C_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    a: Tensor
    b: Tensor
    c: Tensor
    alpha: float
    units: Indices
    heads: Indices
    def __init__(self, a: _Optional[_Union[Tensor, _Mapping]] = ..., b: _Optional[_Union[Tensor, _Mapping]] = ..., c: _Optional[_Union[Tensor, _Mapping]] = ..., alpha: _Optional[float] = ..., units: _Optional[_Union[Indices, _Mapping]] = ..., heads: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class Latents(_message.Message):
    __slots__ = ("sae", "changes", "error")
    SAE_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sae: str
    changes: _containers.RepeatedCompositeFieldContainer[LatentChange]
    error: bool
    def __init__(self, sae: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[LatentChange, _Mapping]]] = ..., error: _Optional[bool] = ...) -> None: ...

class LatentChange(_message.Message):
    __slots__ = ("id", "set", "add", "scale", "min", "max", "active")
    ID_FIELD_NUMBER: _ClassVar[int]
    SET_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    id: int
    set: float
    add: float
    scale: float
    min: float
    max: float
    active: bool
    def __init__(self, id: _Optional[int] = ..., set: _Optional[float] = ..., add: _Optional[float] = ..., scale: _Optional[float] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., active: _Optional[bool] = ...) -> None: ...

class Capture(_message.Message):
    __slots__ = ("before", "dtype", "reduce", "store", "gradient")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    REDUCE_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    before: bool
    dtype: str
    reduce: Reduction
    store: bool
    gradient: bool
    def __init__(self, before: _Optional[bool] = ..., dtype: _Optional[str] = ..., reduce: _Optional[_Union[Reduction, _Mapping]] = ..., store: _Optional[bool] = ..., gradient: _Optional[bool] = ...) -> None: ...

class Reduction(_message.Message):
    __slots__ = ("last", "mean", "norm", "top_k", "project", "gather", "next_logprob", "latents")
    LAST_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    GATHER_FIELD_NUMBER: _ClassVar[int]
    NEXT_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    last: Last
    mean: Mean
    norm: Norm
    top_k: TopK
    project: Project
    gather: Gather
    next_logprob: NextLogprob
    latents: ReadLatents
    def __init__(self, last: _Optional[_Union[Last, _Mapping]] = ..., mean: _Optional[_Union[Mean, _Mapping]] = ..., norm: _Optional[_Union[Norm, _Mapping]] = ..., top_k: _Optional[_Union[TopK, _Mapping]] = ..., project: _Optional[_Union[Project, _Mapping]] = ..., gather: _Optional[_Union[Gather, _Mapping]] = ..., next_logprob: _Optional[_Union[NextLogprob, _Mapping]] = ..., latents: _Optional[_Union[ReadLatents, _Mapping]] = ...) -> None: ...

class Last(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Mean(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Norm(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TopK(_message.Message):
    __slots__ = ("k",)
    K_FIELD_NUMBER: _ClassVar[int]
    k: int
    def __init__(self, k: _Optional[int] = ...) -> None: ...

class Project(_message.Message):
    __slots__ = ("directions",)
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    directions: Tensor
    def __init__(self, directions: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Gather(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: Indices
    def __init__(self, ids: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class NextLogprob(_message.Message):
    __slots__ = ("top",)
    TOP_FIELD_NUMBER: _ClassVar[int]
    top: int
    def __init__(self, top: _Optional[int] = ...) -> None: ...

class ReadLatents(_message.Message):
    __slots__ = ("sae", "top_k", "ids")
    SAE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    sae: str
    top_k: int
    ids: Indices
    def __init__(self, sae: _Optional[str] = ..., top_k: _Optional[int] = ..., ids: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class SiteInfo(_message.Message):
    __slots__ = ("name", "axes", "widths", "layers", "run", "generate", "gradients", "edits", "note", "layer_widths")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    WIDTHS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    LAYER_WIDTHS_FIELD_NUMBER: _ClassVar[int]
    name: str
    axes: _containers.RepeatedScalarFieldContainer[str]
    widths: _containers.RepeatedScalarFieldContainer[int]
    layers: Indices
    run: bool
    generate: bool
    gradients: bool
    edits: _containers.RepeatedScalarFieldContainer[str]
    note: str
    layer_widths: _containers.RepeatedCompositeFieldContainer[LayerWidths]
    def __init__(self, name: _Optional[str] = ..., axes: _Optional[_Iterable[str]] = ..., widths: _Optional[_Iterable[int]] = ..., layers: _Optional[_Union[Indices, _Mapping]] = ..., run: _Optional[bool] = ..., generate: _Optional[bool] = ..., gradients: _Optional[bool] = ..., edits: _Optional[_Iterable[str]] = ..., note: _Optional[str] = ..., layer_widths: _Optional[_Iterable[_Union[LayerWidths, _Mapping]]] = ...) -> None: ...

class LayerWidths(_message.Message):
    __slots__ = ("layers", "widths")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WIDTHS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    widths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., widths: _Optional[_Iterable[int]] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("id", "family", "architecture", "backend", "device", "dtype", "attention", "model_hash", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "vocab_size", "n_experts", "context_length", "generate", "generate_note", "chat_template", "n_slots", "sites", "versions", "rules", "ends", "context_note", "proof", "refused", "batching", "quantization", "tower", "origin", "placement", "weights")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    D_MODEL_FIELD_NUMBER: _ClassVar[int]
    N_HEADS_FIELD_NUMBER: _ClassVar[int]
    N_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    D_HEAD_FIELD_NUMBER: _ClassVar[int]
    D_MLP_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    N_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    GENERATE_NOTE_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    N_SLOTS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_NOTE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    TOWER_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    family: str
    architecture: str
    backend: str
    device: str
    dtype: str
    attention: str
    model_hash: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    vocab_size: int
    n_experts: int
    context_length: int
    generate: bool
    generate_note: str
    chat_template: bool
    n_slots: int
    sites: _containers.RepeatedCompositeFieldContainer[SiteInfo]
    versions: _containers.ScalarMap[str, str]
    rules: _containers.RepeatedScalarFieldContainer[str]
    ends: _containers.RepeatedCompositeFieldContainer[EndToken]
    context_note: str
    proof: str
    refused: _containers.ScalarMap[str, str]
    batching: str
    quantization: str
    tower: str
    origin: str
    placement: str
    weights: _containers.RepeatedCompositeFieldContainer[WeightInfo]
    def __init__(self, id: _Optional[str] = ..., family: _Optional[str] = ..., architecture: _Optional[str] = ..., backend: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., attention: _Optional[str] = ..., model_hash: _Optional[str] = ..., n_layers: _Optional[int] = ..., d_model: _Optional[int] = ..., n_heads: _Optional[int] = ..., n_kv_heads: _Optional[int] = ..., d_head: _Optional[int] = ..., d_mlp: _Optional[int] = ..., vocab_size: _Optional[int] = ..., n_experts: _Optional[int] = ..., context_length: _Optional[int] = ..., generate: _Optional[bool] = ..., generate_note: _Optional[str] = ..., chat_template: _Optional[bool] = ..., n_slots: _Optional[int] = ..., sites: _Optional[_Iterable[_Union[SiteInfo, _Mapping]]] = ..., versions: _Optional[_Mapping[str, str]] = ..., rules: _Optional[_Iterable[str]] = ..., ends: _Optional[_Iterable[_Union[EndToken, _Mapping]]] = ..., context_note: _Optional[str] = ..., proof: _Optional[str] = ..., refused: _Optional[_Mapping[str, str]] = ..., batching: _Optional[str] = ..., quantization: _Optional[str] = ..., tower: _Optional[str] = ..., origin: _Optional[str] = ..., placement: _Optional[str] = ..., weights: _Optional[_Iterable[_Union[WeightInfo, _Mapping]]] = ...) -> None: ...

class EndToken(_message.Message):
    __slots__ = ("id", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelList(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ...) -> None: ...

class ModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("model", "id", "backend", "dtype", "revision", "quantize")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    model: str
    id: str
    backend: str
    dtype: str
    revision: str
    quantize: str
    def __init__(self, model: _Optional[str] = ..., id: _Optional[str] = ..., backend: _Optional[str] = ..., dtype: _Optional[str] = ..., revision: _Optional[str] = ..., quantize: _Optional[str] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("stage", "done", "total", "info")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    stage: str
    done: int
    total: int
    info: ModelInfo
    def __init__(self, stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., info: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("input", "model", "at_most", "add_special_tokens")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    input: Input
    model: str
    at_most: int
    add_special_tokens: bool
    def __init__(self, input: _Optional[_Union[Input, _Mapping]] = ..., model: _Optional[str] = ..., at_most: _Optional[int] = ..., add_special_tokens: _Optional[bool] = ...) -> None: ...

class Tokenized(_message.Message):
    __slots__ = ("token_ids", "tokens", "text", "raw")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    text: str
    raw: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ..., text: _Optional[str] = ..., raw: _Optional[_Iterable[bytes]] = ...) -> None: ...

class TokenizerInfo(_message.Message):
    __slots__ = ("bos_token", "eos_token", "pad_token", "chat_template", "tool_format")
    BOS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PAD_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    TOOL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    bos_token: str
    eos_token: str
    pad_token: str
    chat_template: str
    tool_format: ToolFormat
    def __init__(self, bos_token: _Optional[str] = ..., eos_token: _Optional[str] = ..., pad_token: _Optional[str] = ..., chat_template: _Optional[str] = ..., tool_format: _Optional[_Union[ToolFormat, _Mapping]] = ...) -> None: ...

class WeightsRequest(_message.Message):
    __slots__ = ("model", "name")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    model: str
    name: str
    def __init__(self, model: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class WeightChunk(_message.Message):
    __slots__ = ("name", "dtype", "shape", "offset", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    offset: int
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content", "tool_calls", "tool_call_id", "name")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    tool_call_id: str
    name: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "name", "arguments")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    arguments: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class Tool(_message.Message):
    __slots__ = ("name", "description", "parameters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters: _Optional[str] = ...) -> None: ...

class ToolFormat(_message.Message):
    __slots__ = ("opening", "closing", "name_key", "arguments_key", "between", "markers")
    OPENING_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    NAME_KEY_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_KEY_FIELD_NUMBER: _ClassVar[int]
    BETWEEN_FIELD_NUMBER: _ClassVar[int]
    MARKERS_FIELD_NUMBER: _ClassVar[int]
    opening: str
    closing: str
    name_key: str
    arguments_key: str
    between: str
    markers: _containers.RepeatedCompositeFieldContainer[ToolMarker]
    def __init__(self, opening: _Optional[str] = ..., closing: _Optional[str] = ..., name_key: _Optional[str] = ..., arguments_key: _Optional[str] = ..., between: _Optional[str] = ..., markers: _Optional[_Iterable[_Union[ToolMarker, _Mapping]]] = ...) -> None: ...

class ToolMarker(_message.Message):
    __slots__ = ("id", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class VariantUse(_message.Message):
    __slots__ = ("name", "scale", "where")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    name: str
    scale: float
    where: Where
    def __init__(self, name: _Optional[str] = ..., scale: _Optional[float] = ..., where: _Optional[_Union[Where, _Mapping]] = ...) -> None: ...

class VariantUses(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[VariantUse]
    def __init__(self, values: _Optional[_Iterable[_Union[VariantUse, _Mapping]]] = ...) -> None: ...

class UsedVariant(_message.Message):
    __slots__ = ("name", "version", "hash", "owner", "scale", "inputs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    hash: str
    owner: str
    scale: float
    inputs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., hash: _Optional[str] = ..., owner: _Optional[str] = ..., scale: _Optional[float] = ..., inputs: _Optional[_Iterable[str]] = ...) -> None: ...

class WeightInfo(_message.Message):
    __slots__ = ("name", "path", "d_in", "d_out", "bias", "note")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    D_IN_FIELD_NUMBER: _ClassVar[int]
    D_OUT_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    d_in: int
    d_out: int
    bias: bool
    note: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., d_in: _Optional[int] = ..., d_out: _Optional[int] = ..., bias: _Optional[bool] = ..., note: _Optional[str] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("name", "text", "messages", "token_ids", "source_only", "prompt_length", "variants", "continue_final", "tools")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ONLY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    messages: Messages
    token_ids: Indices
    source_only: bool
    prompt_length: int
    variants: VariantUses
    continue_final: bool
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., messages: _Optional[_Union[Messages, _Mapping]] = ..., token_ids: _Optional[_Union[Indices, _Mapping]] = ..., source_only: _Optional[bool] = ..., prompt_length: _Optional[int] = ..., variants: _Optional[_Union[VariantUses, _Mapping]] = ..., continue_final: _Optional[bool] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "logprobs", "ignore_eos", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "grammar")
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    logprobs: int
    ignore_eos: bool
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: _containers.RepeatedCompositeFieldContainer[TokenBias]
    grammar: Grammar
    def __init__(self, max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., logprobs: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., logit_bias: _Optional[_Iterable[_Union[TokenBias, _Mapping]]] = ..., grammar: _Optional[_Union[Grammar, _Mapping]] = ...) -> None: ...

class TokenBias(_message.Message):
    __slots__ = ("token", "bias")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    token: int
    bias: float
    def __init__(self, token: _Optional[int] = ..., bias: _Optional[float] = ...) -> None: ...

class Grammar(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "inputs", "plan", "sampling", "session", "variants")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    plan: Plan
    sampling: Sampling
    session: str
    variants: _containers.RepeatedCompositeFieldContainer[VariantUse]
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., session: _Optional[str] = ..., variants: _Optional[_Iterable[_Union[VariantUse, _Mapping]]] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("model", "inputs", "plan", "variants")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    plan: Plan
    variants: _containers.RepeatedCompositeFieldContainer[VariantUse]
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., variants: _Optional[_Iterable[_Union[VariantUse, _Mapping]]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("logit", "logit_difference", "top_logits", "log_prob", "kl", "coordinate", "weighted_sum")
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    LOGIT_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGITS_FIELD_NUMBER: _ClassVar[int]
    LOG_PROB_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    COORDINATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTED_SUM_FIELD_NUMBER: _ClassVar[int]
    logit: Logit
    logit_difference: LogitDifference
    top_logits: TopLogits
    log_prob: LogProb
    kl: Kl
    coordinate: Coordinate
    weighted_sum: WeightedSum
    def __init__(self, logit: _Optional[_Union[Logit, _Mapping]] = ..., logit_difference: _Optional[_Union[LogitDifference, _Mapping]] = ..., top_logits: _Optional[_Union[TopLogits, _Mapping]] = ..., log_prob: _Optional[_Union[LogProb, _Mapping]] = ..., kl: _Optional[_Union[Kl, _Mapping]] = ..., coordinate: _Optional[_Union[Coordinate, _Mapping]] = ..., weighted_sum: _Optional[_Union[WeightedSum, _Mapping]] = ...) -> None: ...

class WeightedSum(_message.Message):
    __slots__ = ("metrics", "weights")
    METRICS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., weights: _Optional[_Iterable[float]] = ...) -> None: ...

class Logit(_message.Message):
    __slots__ = ("token", "position", "centred", "tokens")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CENTRED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    token: int
    position: int
    centred: bool
    tokens: Indices
    def __init__(self, token: _Optional[int] = ..., position: _Optional[int] = ..., centred: _Optional[bool] = ..., tokens: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class LogitDifference(_message.Message):
    __slots__ = ("correct", "wrong", "position")
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    correct: Indices
    wrong: Indices
    position: int
    def __init__(self, correct: _Optional[_Union[Indices, _Mapping]] = ..., wrong: _Optional[_Union[Indices, _Mapping]] = ..., position: _Optional[int] = ...) -> None: ...

class TopLogits(_message.Message):
    __slots__ = ("k", "position", "centred")
    K_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CENTRED_FIELD_NUMBER: _ClassVar[int]
    k: int
    position: int
    centred: bool
    def __init__(self, k: _Optional[int] = ..., position: _Optional[int] = ..., centred: _Optional[bool] = ...) -> None: ...

class LogProb(_message.Message):
    __slots__ = ("token", "position", "tokens")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    token: int
    position: int
    tokens: Indices
    def __init__(self, token: _Optional[int] = ..., position: _Optional[int] = ..., tokens: _Optional[_Union[Indices, _Mapping]] = ...) -> None: ...

class Kl(_message.Message):
    __slots__ = ("baseline", "position", "baseline_position")
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    BASELINE_POSITION_FIELD_NUMBER: _ClassVar[int]
    baseline: str
    position: int
    baseline_position: int
    def __init__(self, baseline: _Optional[str] = ..., position: _Optional[int] = ..., baseline_position: _Optional[int] = ...) -> None: ...

class Coordinate(_message.Message):
    __slots__ = ("site", "position", "unit", "head", "direction")
    SITE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    site: str
    position: int
    unit: int
    head: int
    direction: Tensor
    def __init__(self, site: _Optional[str] = ..., position: _Optional[int] = ..., unit: _Optional[int] = ..., head: _Optional[int] = ..., direction: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("metric", "inputs")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    metric: Metric
    inputs: Names
    def __init__(self, metric: _Optional[_Union[Metric, _Mapping]] = ..., inputs: _Optional[_Union[Names, _Mapping]] = ...) -> None: ...

class IntegratedPath(_message.Message):
    __slots__ = ("source", "steps", "site")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    source: str
    steps: int
    site: str
    def __init__(self, source: _Optional[str] = ..., steps: _Optional[int] = ..., site: _Optional[str] = ...) -> None: ...

class GradientsRequest(_message.Message):
    __slots__ = ("model", "inputs", "targets", "plan", "rules", "direct", "path", "variants")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    plan: Plan
    rules: _containers.RepeatedScalarFieldContainer[str]
    direct: bool
    path: IntegratedPath
    variants: _containers.RepeatedCompositeFieldContainer[VariantUse]
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., rules: _Optional[_Iterable[str]] = ..., direct: _Optional[bool] = ..., path: _Optional[_Union[IntegratedPath, _Mapping]] = ..., variants: _Optional[_Iterable[_Union[VariantUse, _Mapping]]] = ...) -> None: ...

class SweepRequest(_message.Message):
    __slots__ = ("model", "inputs", "targets", "plans", "base", "share", "variants")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    plans: _containers.RepeatedCompositeFieldContainer[Plan]
    base: Plan
    share: bool
    variants: _containers.RepeatedCompositeFieldContainer[VariantUse]
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., plans: _Optional[_Iterable[_Union[Plan, _Mapping]]] = ..., base: _Optional[_Union[Plan, _Mapping]] = ..., share: _Optional[bool] = ..., variants: _Optional[_Iterable[_Union[VariantUse, _Mapping]]] = ...) -> None: ...

class Measured(_message.Message):
    __slots__ = ("input", "plans", "values")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    input: str
    plans: _containers.RepeatedScalarFieldContainer[int]
    values: Tensor
    def __init__(self, input: _Optional[str] = ..., plans: _Optional[_Iterable[int]] = ..., values: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Events(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("started", "token", "tensor_frame", "finished", "revised", "measured")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FRAME_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    REVISED_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    started: Started
    token: Token
    tensor_frame: TensorFrame
    finished: Finished
    revised: Revised
    measured: Measured
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., tensor_frame: _Optional[_Union[TensorFrame, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., revised: _Optional[_Union[Revised, _Mapping]] = ..., measured: _Optional[_Union[Measured, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request_id", "model", "model_hash", "backend", "device", "dtype", "attention", "versions", "hooks", "inputs", "revision", "n_layers", "variants")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    HOOKS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    model_hash: str
    backend: str
    device: str
    dtype: str
    attention: str
    versions: _containers.ScalarMap[str, str]
    hooks: _containers.RepeatedCompositeFieldContainer[ResolvedHook]
    inputs: _containers.RepeatedCompositeFieldContainer[InputStarted]
    revision: int
    n_layers: int
    variants: _containers.RepeatedCompositeFieldContainer[UsedVariant]
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., model_hash: _Optional[str] = ..., backend: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., attention: _Optional[str] = ..., versions: _Optional[_Mapping[str, str]] = ..., hooks: _Optional[_Iterable[_Union[ResolvedHook, _Mapping]]] = ..., inputs: _Optional[_Iterable[_Union[InputStarted, _Mapping]]] = ..., revision: _Optional[int] = ..., n_layers: _Optional[int] = ..., variants: _Optional[_Iterable[_Union[UsedVariant, _Mapping]]] = ...) -> None: ...

class Revised(_message.Message):
    __slots__ = ("input", "revision", "hooks", "variants")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    HOOKS_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    input: str
    revision: int
    hooks: _containers.RepeatedCompositeFieldContainer[ResolvedHook]
    variants: _containers.RepeatedCompositeFieldContainer[UsedVariant]
    def __init__(self, input: _Optional[str] = ..., revision: _Optional[int] = ..., hooks: _Optional[_Iterable[_Union[ResolvedHook, _Mapping]]] = ..., variants: _Optional[_Iterable[_Union[UsedVariant, _Mapping]]] = ...) -> None: ...

class ResolvedHook(_message.Message):
    __slots__ = ("hook", "id", "sites", "saes")
    class SaesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HOOK_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    SAES_FIELD_NUMBER: _ClassVar[int]
    hook: int
    id: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    saes: _containers.ScalarMap[str, str]
    def __init__(self, hook: _Optional[int] = ..., id: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., saes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class InputStarted(_message.Message):
    __slots__ = ("name", "token_ids", "tokens", "seed")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    name: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    def __init__(self, name: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("input", "index", "id", "text", "logprob", "top", "revision")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    input: str
    index: int
    id: int
    text: str
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    revision: int
    def __init__(self, input: _Optional[str] = ..., index: _Optional[int] = ..., id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., revision: _Optional[int] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("id", "text", "logprob", "raw")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    logprob: float
    raw: bytes
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ..., raw: _Optional[bytes] = ...) -> None: ...

class TensorFrame(_message.Message):
    __slots__ = ("input", "hook", "id", "sites", "positions", "step", "revision", "part", "dtype", "shape", "chunk", "chunks", "hook_revision", "data")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    HOOK_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    HOOK_REVISION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    input: str
    hook: int
    id: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    positions: _containers.RepeatedScalarFieldContainer[int]
    step: int
    revision: int
    part: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    chunk: int
    chunks: int
    hook_revision: int
    data: bytes
    def __init__(self, input: _Optional[str] = ..., hook: _Optional[int] = ..., id: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., positions: _Optional[_Iterable[int]] = ..., step: _Optional[int] = ..., revision: _Optional[int] = ..., part: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., chunk: _Optional[int] = ..., chunks: _Optional[int] = ..., hook_revision: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queued_s", "first_token_s", "total_s")
    QUEUED_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    queued_s: float
    first_token_s: float
    total_s: float
    def __init__(self, queued_s: _Optional[float] = ..., first_token_s: _Optional[float] = ..., total_s: _Optional[float] = ...) -> None: ...

class StoredCapture(_message.Message):
    __slots__ = ("id", "site", "input", "positions", "dtype", "shape", "model", "created_s", "expires_s", "variants")
    ID_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    site: str
    input: str
    positions: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    model: str
    created_s: float
    expires_s: float
    variants: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., site: _Optional[str] = ..., input: _Optional[str] = ..., positions: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., model: _Optional[str] = ..., created_s: _Optional[float] = ..., expires_s: _Optional[float] = ..., variants: _Optional[_Iterable[str]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("input", "reason", "usage", "timings", "stored")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    input: str
    reason: str
    usage: Usage
    timings: Timings
    stored: _containers.RepeatedCompositeFieldContainer[StoredCapture]
    def __init__(self, input: _Optional[str] = ..., reason: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., stored: _Optional[_Iterable[_Union[StoredCapture, _Mapping]]] = ...) -> None: ...

class CaptureRequest(_message.Message):
    __slots__ = ("model", "id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    id: str
    def __init__(self, model: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class CaptureList(_message.Message):
    __slots__ = ("captures",)
    CAPTURES_FIELD_NUMBER: _ClassVar[int]
    captures: _containers.RepeatedCompositeFieldContainer[StoredCapture]
    def __init__(self, captures: _Optional[_Iterable[_Union[StoredCapture, _Mapping]]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("id", "name", "model", "plan", "revision", "created_s", "updated_s", "variants")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    UPDATED_S_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    model: str
    plan: Plan
    revision: int
    created_s: float
    updated_s: float
    variants: _containers.RepeatedCompositeFieldContainer[VariantUse]
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., model: _Optional[str] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., revision: _Optional[int] = ..., created_s: _Optional[float] = ..., updated_s: _Optional[float] = ..., variants: _Optional[_Iterable[_Union[VariantUse, _Mapping]]] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ("plan", "model", "name", "variants")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    model: str
    name: str
    variants: _containers.RepeatedCompositeFieldContainer[VariantUse]
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ..., model: _Optional[str] = ..., name: _Optional[str] = ..., variants: _Optional[_Iterable[_Union[VariantUse, _Mapping]]] = ...) -> None: ...

class UpdateSessionRequest(_message.Message):
    __slots__ = ("id", "plan", "revision", "variants")
    ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    plan: Plan
    revision: int
    variants: VariantUses
    def __init__(self, id: _Optional[str] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., revision: _Optional[int] = ..., variants: _Optional[_Union[VariantUses, _Mapping]] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class SessionList(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("running", "held", "waiting", "n_slots", "cache_used_tokens", "cache_tokens", "steps", "runs", "rows", "step_s", "hook_s", "tokens", "store_bytes", "cache_held")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    N_SLOTS_FIELD_NUMBER: _ClassVar[int]
    CACHE_USED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    HOOK_S_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CACHE_HELD_FIELD_NUMBER: _ClassVar[int]
    running: int
    held: int
    waiting: int
    n_slots: int
    cache_used_tokens: int
    cache_tokens: int
    steps: int
    runs: int
    rows: int
    step_s: float
    hook_s: float
    tokens: int
    store_bytes: int
    cache_held: int
    def __init__(self, running: _Optional[int] = ..., held: _Optional[int] = ..., waiting: _Optional[int] = ..., n_slots: _Optional[int] = ..., cache_used_tokens: _Optional[int] = ..., cache_tokens: _Optional[int] = ..., steps: _Optional[int] = ..., runs: _Optional[int] = ..., rows: _Optional[int] = ..., step_s: _Optional[float] = ..., hook_s: _Optional[float] = ..., tokens: _Optional[int] = ..., store_bytes: _Optional[int] = ..., cache_held: _Optional[int] = ...) -> None: ...

class RequestActivity(_message.Message):
    __slots__ = ("id", "user", "model", "operation", "state", "sites", "session", "age_s", "tokens", "captured_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CAPTURED_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    user: str
    model: str
    operation: str
    state: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    session: str
    age_s: float
    tokens: int
    captured_bytes: int
    def __init__(self, id: _Optional[str] = ..., user: _Optional[str] = ..., model: _Optional[str] = ..., operation: _Optional[str] = ..., state: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., session: _Optional[str] = ..., age_s: _Optional[float] = ..., tokens: _Optional[int] = ..., captured_bytes: _Optional[int] = ...) -> None: ...

class ModelActivity(_message.Message):
    __slots__ = ("id", "state", "backend", "device", "restarts", "memory_bytes", "status")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: str
    backend: str
    device: str
    restarts: int
    memory_bytes: int
    status: WorkerStatus
    def __init__(self, id: _Optional[str] = ..., state: _Optional[str] = ..., backend: _Optional[str] = ..., device: _Optional[str] = ..., restarts: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., status: _Optional[_Union[WorkerStatus, _Mapping]] = ...) -> None: ...

class ActivityReport(_message.Message):
    __slots__ = ("models", "requests", "uptime_s")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelActivity]
    requests: _containers.RepeatedCompositeFieldContainer[RequestActivity]
    uptime_s: float
    def __init__(self, models: _Optional[_Iterable[_Union[ModelActivity, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[RequestActivity, _Mapping]]] = ..., uptime_s: _Optional[float] = ...) -> None: ...

class LoadSaeRequest(_message.Message):
    __slots__ = ("name", "model", "source", "files", "site", "dtype", "shared")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    source: str
    files: SaeFiles
    site: str
    dtype: str
    shared: bool
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., source: _Optional[str] = ..., files: _Optional[_Union[SaeFiles, _Mapping]] = ..., site: _Optional[str] = ..., dtype: _Optional[str] = ..., shared: _Optional[bool] = ...) -> None: ...

class SaeFiles(_message.Message):
    __slots__ = ("config", "weights", "upload")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    config: str
    weights: bytes
    upload: str
    def __init__(self, config: _Optional[str] = ..., weights: _Optional[bytes] = ..., upload: _Optional[str] = ...) -> None: ...

class SaePart(_message.Message):
    __slots__ = ("upload", "n_bytes", "offset", "data")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    upload: str
    n_bytes: int
    offset: int
    data: bytes
    def __init__(self, upload: _Optional[str] = ..., n_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SaeReceived(_message.Message):
    __slots__ = ("n_bytes",)
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    n_bytes: int
    def __init__(self, n_bytes: _Optional[int] = ...) -> None: ...

class SaeInfo(_message.Message):
    __slots__ = ("name", "model", "site", "architecture", "d_in", "d_sae", "k", "dtype", "hash", "shared", "owner", "source", "n_bytes", "created_s", "own_site")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    D_IN_FIELD_NUMBER: _ClassVar[int]
    D_SAE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    OWN_SITE_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    site: str
    architecture: str
    d_in: int
    d_sae: int
    k: int
    dtype: str
    hash: str
    shared: bool
    owner: str
    source: str
    n_bytes: int
    created_s: float
    own_site: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., site: _Optional[str] = ..., architecture: _Optional[str] = ..., d_in: _Optional[int] = ..., d_sae: _Optional[int] = ..., k: _Optional[int] = ..., dtype: _Optional[str] = ..., hash: _Optional[str] = ..., shared: _Optional[bool] = ..., owner: _Optional[str] = ..., source: _Optional[str] = ..., n_bytes: _Optional[int] = ..., created_s: _Optional[float] = ..., own_site: _Optional[str] = ...) -> None: ...

class SaeList(_message.Message):
    __slots__ = ("saes",)
    SAES_FIELD_NUMBER: _ClassVar[int]
    saes: _containers.RepeatedCompositeFieldContainer[SaeInfo]
    def __init__(self, saes: _Optional[_Iterable[_Union[SaeInfo, _Mapping]]] = ...) -> None: ...

class SaeRequest(_message.Message):
    __slots__ = ("name", "model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class VariantFile(_message.Message):
    __slots__ = ("name", "data", "upload")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    data: bytes
    upload: str
    def __init__(self, name: _Optional[str] = ..., data: _Optional[bytes] = ..., upload: _Optional[str] = ...) -> None: ...

class LoadVariantRequest(_message.Message):
    __slots__ = ("name", "model", "source", "files", "shared", "rebase")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    REBASE_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    source: str
    files: _containers.RepeatedCompositeFieldContainer[VariantFile]
    shared: bool
    rebase: bool
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., source: _Optional[str] = ..., files: _Optional[_Iterable[_Union[VariantFile, _Mapping]]] = ..., shared: _Optional[bool] = ..., rebase: _Optional[bool] = ...) -> None: ...

class StoredFile(_message.Message):
    __slots__ = ("name", "n_bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    n_bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., n_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class VariantInfo(_message.Message):
    __slots__ = ("name", "version", "hash", "model", "model_hash", "owner", "shared", "method", "description", "weights", "max_rank", "n_hooks", "n_bytes", "source", "created_s", "files")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    MAX_RANK_FIELD_NUMBER: _ClassVar[int]
    N_HOOKS_FIELD_NUMBER: _ClassVar[int]
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_S_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    hash: str
    model: str
    model_hash: str
    owner: str
    shared: bool
    method: str
    description: str
    weights: _containers.RepeatedScalarFieldContainer[str]
    max_rank: int
    n_hooks: int
    n_bytes: int
    source: str
    created_s: float
    files: _containers.RepeatedCompositeFieldContainer[StoredFile]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., hash: _Optional[str] = ..., model: _Optional[str] = ..., model_hash: _Optional[str] = ..., owner: _Optional[str] = ..., shared: _Optional[bool] = ..., method: _Optional[str] = ..., description: _Optional[str] = ..., weights: _Optional[_Iterable[str]] = ..., max_rank: _Optional[int] = ..., n_hooks: _Optional[int] = ..., n_bytes: _Optional[int] = ..., source: _Optional[str] = ..., created_s: _Optional[float] = ..., files: _Optional[_Iterable[_Union[StoredFile, _Mapping]]] = ...) -> None: ...

class VariantList(_message.Message):
    __slots__ = ("variants",)
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    variants: _containers.RepeatedCompositeFieldContainer[VariantInfo]
    def __init__(self, variants: _Optional[_Iterable[_Union[VariantInfo, _Mapping]]] = ...) -> None: ...

class VariantRequest(_message.Message):
    __slots__ = ("name", "model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class VariantPartRequest(_message.Message):
    __slots__ = ("name", "file", "model", "offset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    name: str
    file: str
    model: str
    offset: int
    def __init__(self, name: _Optional[str] = ..., file: _Optional[str] = ..., model: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class VariantPart(_message.Message):
    __slots__ = ("n_bytes", "offset", "data")
    N_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    n_bytes: int
    offset: int
    data: bytes
    def __init__(self, n_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
