"""Records the vectors that `transformers` computes with all-MiniLM-L6-v2: `python -m tests.golden.minilm FOLDER`.

FOLDER is the model as published; README.md tells how to get it. Runs in the environment of families.py.
"""

import argparse
import json
import sys
from array import array
from base64 import b64encode
from pathlib import Path

import torch
import transformers

PATH = Path(__file__).parent / "minilm.json"
N_TOKENS_MAX = 256  # where the model's own settings cut a text off

_LONG = (
    "The lighthouse keeper climbed the spiral stairs every evening, a lamp in one hand and a worn notebook in the "
    "other, and wrote down the colour of the sea before he lit the great lens. He had done so for thirty-one years. "
)

SENTENCES = (
    "That is a happy person",
    "That is a happy dog",
    "Today is a sunny day",
    "The quick brown fox jumps over the lazy dog.",
    "A",
    "?",
    "Hello, world!",
    "hello, world!",
    "HELLO, WORLD!",
    "What is the capital of France?",
    "Paris is the capital and most populous city of France.",
    "How do I reset my password?",
    "To change your password, open the settings and choose `Security`.",
    "The stock market fell sharply on Monday after the central bank raised its interest rate by 0.75 %.",
    "def cosine(a, b):\n    return sum(x * y for x, y in zip(a, b)) / (norm(a) * norm(b))",
    "SELECT name, COUNT(*) FROM users WHERE age >= 18 GROUP BY name ORDER BY 2 DESC;",
    '{"model": "all-minilm-l6-v2", "input": ["one", "two"], "encoding_format": "base64"}',
    "https://example.org/path/to/page.html?query=some+words&n=42#section-3",
    "It costs $1,299.99 (incl. 19% VAT), i.e. 1.093,45 €.",
    "E = mc², a² + b² = c², ∑ᵢ xᵢ ≤ ∞, π ≈ 3.14159",
    "antidisestablishmentarianism and pneumonoultramicroscopicsilicovolcanoconiosis",
    "tab\tseparated\tvalues\nand\r\nlines   with    many     spaces ",
    "don't can't won't it's they're we'll I'd",
    "e-mail, state-of-the-art, mother-in-law, 2026-11-23, 12:30",
    "😀 😂 👩‍👩‍👧‍👦 🏳️‍🌈 emoji are 🔥",
    "naïve café déjà vu Škoda Ångström façade",
    "nai\u0308ve cafe\u0301 in decomposed form",
    "Der schnelle braune Fuchs springt über den faulen Hund und größere Straßen.",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "Le cœur a ses raisons que la raison ne connaît point.",
    "El niño comió piñas mañana por la mañana, ¿verdad? ¡Claro que sí!",
    "A rápida raposa marrom não pulou sobre o cão.",
    "Zażółć gęślą jaźń",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Щастя — це коли тебе розуміють. Її їжак ґудзик.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "צפה אדם בים והנה מצא חבר",
    "أهلا بالعالم، كيف حالك اليوم؟",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก วันนี้อากาศดี",
    "我喜欢在周末和朋友一起看电影。",
    "東京は日本の首都です。カタカナとひらがな。",
    "안녕하세요 세계, 오늘 날씨가 좋네요.",
    "Xin chào thế giới, hôm nay trời đẹp quá.",
    "Mixed: English, 中文, русский, العربية and ελληνικά in one line.",
    "[CLS] looks special, and so do [SEP], [MASK], [PAD] and ##pieces",
    _LONG,
    _LONG * 2 + "One night the lens stayed dark.",
    _LONG * 4 + "Nobody ever learned what the last line of the notebook said.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    # The package knows the class of the tokenizer; what it does stands in tokenizer.json.
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    numbers = array("f")
    for sentence in SENTENCES:
        tokens = tokenizer.backend_tokenizer.encode(sentence).ids
        assert len(tokens) <= N_TOKENS_MAX, (len(tokens), sentence)
        with torch.no_grad():
            states = model(input_ids=torch.tensor([tokens])).last_hidden_state[0].double()
        # Every token of a text that is alone counts: the attention mask is all ones.
        mean = states.mean(dim=0)
        numbers.extend((mean / mean.norm()).tolist())
    if sys.byteorder == "big":
        numbers.byteswap()
    content = {
        "made_with": [transformers.__version__, torch.__version__],
        "sentences": SENTENCES,
        "vectors": b64encode(numbers.tobytes()).decode(),
    }
    PATH.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
