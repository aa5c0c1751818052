"""Names of tokens that llama.cpp takes for special ones, whatever a file says of them (llama_vocab::impl::load).

Knows the names and which of them a text cannot hold; which token plays which role is known by `vocab`.
"""

from collections.abc import Container

from shimmy.formats.tokenizer.pretokenizers import RAW_MERGES
from shimmy.formats.tokenizer.sentencepiece import PieceType
from shimmy.formats.tokenizer.tokenizer_json import Tokens

# Those that end a text.
ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>",
     "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>")
)  # fmt: skip
# Further ones that letters and the signs around them may spell.
_ALL = ENDS | frozenset(
    ("<|calls|>", "<|flush|>", "<|tool_response>", "[e~[", "<PRE>", "<SUF>", "<MID>", "<PAD>", "[PAD]", "<REPO>",
     "<reponame>", *(f"<|{name}|>" for name in ("prefix", "suffix", "middle", "repo_name", "file_sep")),
     *(f"<|code_{name}|>" for name in ("prefix", "suffix", "middle")),
     *(f"<fim{line}{name}>" for line in "-_" for name in ("prefix", "suffix", "middle", "pad", "repo")),
     *(f"<|fim_{name}|>" for name in ("prefix", "suffix", "middle", "pad", "repo")))
)  # fmt: skip


def hide(tokens: Tokens, in_use: Container[int]) -> None:
    """Make holes of tokens that llama.cpp would find in a text because of their names alone, as Qwen's `</s>`.

    They stand in a byte-level vocabulary because merges could make them, but no text is cut so that they do. `in_use`
    are ids of tokens that have a role.
    """
    if tokens.model != "gpt2" or tokens.pre == RAW_MERGES:
        return
    for index in map(tokens.ids.__getitem__, _ALL & tokens.ids.keys()):
        if tokens.types[index] is PieceType.NORMAL and index not in in_use:
            del tokens.texts[index], tokens.types[index]
