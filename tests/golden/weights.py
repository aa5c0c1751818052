"""Model folders as the Hugging Face hub ships them, made from a golden file and numbers that follow from a seed.

Knows SafeTensors and tokenizer.json as far as writing them goes, and nothing of torch: the script that recorded what
`transformers` computes and the tests that compare with it write the same folders with this.
"""

import json
import struct
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.tokenizer_folders import BYTE_LEVEL, Json, added_token, bpe, minilm, tokenizer

FOLDER = Path(__file__).parent / "families"

N_VOCAB = 320
BOS, EOS = N_VOCAB - 2, N_VOCAB - 1  # of the byte-level BPE tokenizer
_SPECIALS = ("<|begin|>", "<|end|>")  # their texts
PAD, UNKNOWN, CLS, SEP, MASK = range(5)  # of the WordPiece tokenizer

_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "_embeddings", "lm_head")
_AROUND_ZERO = {
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "minimax_m3_vl",
}  # whose norms are stored as their distance from 1
_UNSCALED = {"gemma3n", "gemma3n_text", "gemma4", "gemma4_text"}  # whose queries and keys are multiplied as they are
_CONV1D = ("c_attn", "c_fc", "c_proj")  # GPT-2 stores a row for each input

Tensor = tuple[str, tuple[int, ...], bytes]  # SafeTensors' dtype, shape, data
Numbers = np.ndarray[Any, np.dtype[np.float64]]


def families() -> list[str]:
    """The names of all golden files."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def golden(family: str) -> Any:
    """The golden file of a family; README.md tells what is in it."""
    return json.loads((FOLDER / f"{family}.json").read_text())


def checkpoint(family: str, style: str, dtype: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json in the style of that major version of transformers, and all tensors by their names; in the type
    that the golden file has, if in no other."""
    record = golden(family)
    config = record["configs"][style]
    shapes = {name: tuple(shape) for file in record["files"].values() for name, shape in file.items()}
    return config, {
        name: tensor(record["seed"], config, name, shape, dtype or record["dtype"]) for name, shape in shapes.items()
    }


def makes_embeddings(family: str) -> bool:
    """Whether vectors are recorded of it, and no log-probabilities."""
    return "modules.json" in golden(family)["extra_files"]


def write_folder(family: str, folder: Path, style: str, dtype: str = "") -> Path:
    """Write the whole checkpoint into the new `folder`: config, tensors in their files, tokenizer; returns `folder`."""
    record = golden(family)
    config, tensors = checkpoint(family, style, dtype)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    for file, names in record["files"].items():
        (folder / file).parent.mkdir(exist_ok=True)
        # Tensors of modules have the name of their folder before their own.
        write_safetensors(folder / file, {name.rpartition("/")[2]: tensors[name] for name in names})
    own = {file: names for file, names in record["files"].items() if "/" not in file}
    if len(own) > 1:
        weight_map = {name: file for file, names in own.items() for name in names}
        total = sum(len(data) for _, _, data in tensors.values())
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
    for name, content in record["extra_files"].items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, content)
    is_word_piece = config["model_type"] in {"bert", "nomic_bert"}
    tokenizer = wordpiece_tokenizer() if is_word_piece else byte_level_tokenizer(record["n_tokens"])
    for name, content in tokenizer.items():
        write_json(folder / name, content)
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The format is a u64 header length, a JSON header padded with spaces, and the data without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"".join(data for _, _, data in tensors.values()))


# -- numbers ---------------------------------------------------------------------------------------------------------


def tensor(seed: str, config: Mapping[str, Any], name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    """The numbers of one tensor: the same on every machine, and none of them such that leaving it out goes unseen."""
    # MXFP4: any bytes, and exponents of two with which the 8 bits of what they are multiplied with round as little as
    # an F16 KV cache.
    if name.endswith("_blocks"):
        return "U8", shape, Random(f"{seed} {name}").randbytes(prod(shape))
    if name.endswith("_scales"):
        return "U8", shape, bytes(119 + byte % 3 for byte in Random(f"{seed} {name}").randbytes(prod(shape)))
    centre, width = _spread(config, name, shape)
    integers = np.frombuffer(Random(f"{seed} {name}").randbytes(2 * prod(shape)), "<i2")
    return dtype, shape, encode(centre + width / 2**15 * integers.astype(np.float64), dtype)


def encode(numbers: Numbers, dtype: str) -> bytes:
    """As little-endian F32, F16 or BF16 (cut off, not rounded)."""
    if dtype == "F16":
        return numbers.astype("<f2").tobytes()
    data = numbers.astype("<f4")
    if dtype == "F32":
        return data.tobytes()
    assert dtype == "BF16", dtype
    return data.view("<u2")[1::2].tobytes()


def _spread(config: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The middle of a tensor's numbers and how far they lie from it at most."""
    if name.endswith(".bias"):
        return 0.0, 0.3
    if name.endswith((".A_log", ".dt_bias")):  # a state that is kept for some tokens
        return (-2.0 if ".linear_attn." in name else -1.0), 1.0
    if config["model_type"] in _UNSCALED and name.endswith(("q_norm.weight", "k_norm.weight")):
        return 0.5, 0.25
    n_layers = config.get("num_hidden_layers", 0)
    if ".post_" in name and n_layers > 20:  # none of so many layers may be loud
        return (0.1, 0.05) if n_layers < 32 else (0.05, 0.025)
    if not shape:  # of xIELU
        return (0.5 if name.endswith(".beta") else -1e-6), 0.0
    if len(shape) == 1:  # of a norm, which Gemma adds 1 to
        return (0.0 if config["model_type"] in _AROUND_ZERO else 1.0), 0.5
    if any(part in name for part in _EMBEDDINGS):
        return 0.0, 0.2
    # Outputs are about as large as inputs. Louder weights would only make the rounding of an F16 KV cache louder.
    n_inputs = shape[0] if any(part in name for part in _CONV1D) else shape[-1]
    return 0.0, (3 / n_inputs) ** 0.5


# -- tokenizers ------------------------------------------------------------------------------------------------------


def byte_level_tokenizer(n_tokens: int) -> dict[str, Any]:
    """The files of a byte-level BPE tokenizer like GPT-2's, whose last two tokens are special."""
    tokens, merges = _byte_level_tokens(n_tokens)
    added = [added_token(n_tokens - 2 + index, text) for index, text in enumerate(_SPECIALS)]
    model = bpe({text: index for index, text in enumerate(tokens)}, [list(pair) for pair in merges])
    return {
        "tokenizer.json": tokenizer(model, added_tokens=added, pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL),
        "tokenizer_config.json": {
            "tokenizer_class": "GPT2Tokenizer",
            "bos_token": _SPECIALS[0],
            "eos_token": _SPECIALS[1],
            "added_tokens_decoder": _decoder(added),
        },
    }


def byte_level_texts(n_tokens: int) -> list[bytes]:
    """What each token of that tokenizer stands for."""
    numbers = {character: byte for byte, character in enumerate(_byte_characters())}
    tokens, _ = _byte_level_tokens(n_tokens)
    return [*(bytes(numbers[character] for character in token) for token in tokens), *map(str.encode, _SPECIALS)]


def _byte_level_tokens(n_tokens: int) -> tuple[list[str], list[tuple[str, str]]]:
    """All but the special ones, in characters that stand for bytes, and the pairs that the last of them are made of."""
    alphabet = _byte_characters()
    first, second = (sorted(alphabet)[start : start + 12] for start in (40, 60))
    n_merges = n_tokens - len(alphabet) - len(_SPECIALS)
    merges = [(left, right) for left in first for right in second][:n_merges]
    assert len(merges) == n_merges
    return [*alphabet, *(left + right for left, right in merges)], merges


def wordpiece_tokenizer() -> dict[str, Any]:
    """The files of an uncased WordPiece tokenizer like BERT's, of N_VOCAB tokens."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*"0123456789", *letters, *(consonant + vowel for consonant in letters for vowel in "aeiou")]
    words = [text for piece in dict.fromkeys(pieces) for text in (piece, "##" + piece)]
    tokens = [*specials, *words[: N_VOCAB - len(specials)]]
    added = [added_token(index, text) for index, text in enumerate(specials)]
    around = {"type": "BertProcessing", "sep": ["[SEP]", SEP], "cls": ["[CLS]", CLS]}
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    return {
        "tokenizer.json": {**minilm(tokens), "post_processor": around, "decoder": decoder},
        "tokenizer_config.json": {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
            "added_tokens_decoder": _decoder(added),
        },
    }


def _decoder(added: list[Json]) -> Json:
    """The same tokens once more, as tokenizer_config.json has them."""
    return {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = (byte for byte in range(256) if byte not in printable)
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]
