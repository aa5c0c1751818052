"""What a family of models is to the converter, and the rows of tensors that many families share.

Knows the names of transformers and those of llama.cpp. The reference is llama.cpp's own converter (`conversion/`), and
what src/models/*.cpp computes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shimmy.formats.convert.hyperparameters import Hyperparameters, MetadataBuilder
from shimmy.formats.convert.transforms import Transform

# Runs of rows, or of a row's elements: where each begins, and how long it is.
Runs = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Row:
    """A weight, and its bias where there is one: `#` is a layer, `@` an expert, a letter of the shape a size.

    What a configuration promises has to be there, and nothing else may be: the engine takes a bias for optional, and
    computes another model without it.
    """

    source: str
    target: str
    shape: str  # as the checkpoint has it, the row length last
    transform: Transform = Transform.COPY
    bias: str = "none"  # or required, or the setting of config.json that says whether there is one
    # All experts in one tensor: its name, which part of its rows, of how many.
    fused: tuple[str, int, int] | None = None
    turned: str = "never"  # or always, or either: the matrices of `fused` are stored by their columns
    stacked: str = ""  # where MLX has all of the target: in its order, and in as many dimensions as the shape
    is_named_in_full: bool = False  # `source` has no `.weight` behind it
    layers: str = ""  # of this kind alone: see `Family.kinds`
    first_layer: int = 0  # that has it
    takes_turns: bool = False  # rows of the parts of `fused` alternate; else each part is a run of rows
    runs: Callable[[Mapping[str, int]], Runs] | None = None  # by the sizes: the target's rows, found in the source
    columns: Callable[[Mapping[str, int]], Runs] | None = None  # the same of the elements of each row
    # By what all of it is multiplied, or each of the `runs`; only of what becomes F32.
    factors: Callable[[Hyperparameters], Sequence[float]] | None = None
    kept: str = ""  # the shape in the GGUF, where that is another one of the same numbers
    is_metadata: bool = False  # a single number; those of all layers are a list in the metadata
    taken: str = ""  # the source's shape where `runs` leave some of its rows out
    times: str = ""  # for PRODUCT: another weight, with as many numbers in one row
    is_padded: bool = False  # the source may have more numbers, behind those that count
    not_beside: str = ""  # mlx-lm leaves it out, as its name for this weight shows
    is_adaptable: bool = True  # llama.cpp multiplies with the matrices of adapters, too


def _kinds_of_attention(values: Hyperparameters) -> Sequence[Collection[str]]:
    return [{kind} for kind in values.names("layer_types") or ()]


def _none(values: Hyperparameters) -> tuple[str, ...]:
    """For families that use all tensors."""
    del values
    return ()


def _same(values: Hyperparameters) -> Hyperparameters:
    """For families whose values have the usual names."""
    return values


def always(config: Mapping[str, Any]) -> bool:
    """For the only family of a `model_type` and class."""
    del config
    return True


@dataclass(frozen=True, slots=True)
class Family:
    """What is special to one family; all else is the same for all."""

    title: str
    model_type: str
    classes: tuple[str, ...]  # of transformers; other classes compute something else
    architecture: str  # llama.cpp's name
    rows: tuple[Row, ...]
    activations: frozenset[str]
    scalings: frozenset[str] | None  # of rotary positions; None where there are none
    describe: Callable[[MetadataBuilder, Hyperparameters, dict[str, int]], None]
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the family's class, where config.json may be silent
    prefixes: tuple[str, ...] = ("model.language_model.", "language_model.model.", "language_model.", "model.")
    ignored_prefixes: tuple[str, ...] = ()
    ignored_suffixes: tuple[str, ...] = (".rotary_emb.inv_freq",)
    mlx_names: Mapping[str, str] = field(default_factory=dict)  # parts of names that MLX changes, and the rows' own
    rotates_partly: bool = False  # whether the engine can rotate a part of each head
    # Of what kinds each layer is. All rows of layers that are not of a kind are taken of each.
    kinds: Callable[[Hyperparameters], Sequence[Collection[str]]] = _kinds_of_attention
    # Beginnings of the names of tensors that are not used; for a family whose settings say so.
    unused: Callable[[Hyperparameters], tuple[str, ...]] = _none
    # The same values by the names that other families have; for a family that has names of its own.
    renamed: Callable[[Hyperparameters], Hyperparameters] = _same
    suits: Callable[[Mapping[str, Any]], bool] = always  # by config.json, of several with one `model_type` and class
    is_encoder: bool = False  # makes embeddings and no text
    is_layer_norm: bool = False  # its norms subtract the mean first; else they divide by the root mean square alone
    has_dense: bool = False  # llama.cpp multiplies what is pooled with matrices of sentence-transformers
    by_mlx: "Family | None" = None  # the same with the numbers that MLX changes where it turns convolutions


SILU, GELU = frozenset(("silu", "swish")), frozenset(("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"))
PERMUTE, TRANSPOSE, ADD_ONE = Transform.PERMUTE, Transform.TRANSPOSE, Transform.ADD_ONE
SQUEEZE, NEGATIVE_EXP = Transform.SQUEEZE, Transform.NEGATIVE_EXP

ENDS = (
    Row("embed_tokens", "token_embd.weight", "VE"),
    Row("norm", "output_norm.weight", "E"),
    Row("lm_head", "output.weight", "VE"),
)
NORMS = (
    Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
    Row("layers.#.post_attention_layernorm", "blk.#.ffn_norm.weight", "E"),
)


def attention(
    transform: Transform = Transform.COPY, *, bias: str = "attention_bias", output_bias: str = "none"
) -> tuple[Row, ...]:
    return (
        Row("layers.#.self_attn.q_proj", "blk.#.attn_q.weight", "QE", transform, bias),
        Row("layers.#.self_attn.k_proj", "blk.#.attn_k.weight", "KE", transform, bias),
        Row("layers.#.self_attn.v_proj", "blk.#.attn_v.weight", "KE", bias=bias),
        Row("layers.#.self_attn.o_proj", "blk.#.attn_output.weight", "EQ", bias=output_bias),
    )


def feed_forward(bias: str = "none") -> tuple[Row, ...]:
    return (
        Row("layers.#.mlp.gate_proj", "blk.#.ffn_gate.weight", "FE", bias=bias),
        Row("layers.#.mlp.up_proj", "blk.#.ffn_up.weight", "FE", bias=bias),
        Row("layers.#.mlp.down_proj", "blk.#.ffn_down.weight", "EF", bias=bias),
    )


def expert_rows(router: str, experts: str, gate: str, up: str, down: str, *, turned: str = "never") -> tuple[Row, ...]:
    fused, stacked = "layers.#.mlp.experts.", experts.replace("experts", "switch_mlp")
    return (
        Row(router, "blk.#.ffn_gate_inp.weight", "XE"),
        *(
            Row(
                f"{experts}.@.{name}", f"blk.#.ffn_{kind}_exps.weight", "XEM" if kind == "down" else "XME",
                fused=(f"{fused}down_proj", 0, 1) if kind == "down" else (f"{fused}gate_up_proj", int(kind == "up"), 2),
                turned=turned, stacked=f"{stacked}.{kind}_proj",
            )
            for name, kind in ((gate, "gate"), (up, "up"), (down, "down"))
        ),
    )  # fmt: skip


HEAD_NORMS = (
    Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "D"),
    Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "D"),
)


def plus_one(*rows: Row) -> tuple[Row, ...]:
    return tuple(Row(row.source, row.target, row.shape, ADD_ONE) for row in rows)


FREE = frozenset(("linear", "yarn", "dynamic"))  # what llama.cpp computes without a tensor of factors
ALL = FREE | {"llama3"}


def rope_defaults(rope_theta: float = 10_000.0, rms_norm_eps: float = 1e-6) -> dict[str, Any]:
    return {"rope_theta": rope_theta, "rms_norm_eps": rms_norm_eps}


def classes(stem: str) -> tuple[str, ...]:
    return (f"{stem}ForCausalLM", f"{stem}Model")
