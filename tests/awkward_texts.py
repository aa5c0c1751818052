"""Texts on which tokenizers differ: the same ones for whoever records ids and for the tests that compare them."""

# ruff: noqa: RUF001 -- letters that look like others are what this is about

from collections.abc import Sequence
from random import Random

# fmt: off
_SCRIPTS = (
    "the quick brown fox doesn't jump; WE'LL see, I'D say it's John's café naïve résumé Straße İstanbul ǅ",
    "Съешь же ещё этих мягких французских булок ПриветМир їжак", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία ΟΔΥΣΣΕΥΣ Σίσυφος",
    "我想在苹果工作一三一四天～。《紅樓夢》、𠮷野家 豈更 中文abc混排",
    "いろはにほへと ちりぬるを カタカナ ｶﾀｶﾅ ー々〆 東京タワーへ行く。",
    "모든 사람은 자유롭게 태어났다 ㄱㄴㄷ 각 한국어 텍스트",
    "مرحبا بالعالم كَيْفَ حَالُكَ ١٢٣٤٥ ؟ لا إله", "שָׁלוֹם עולם בְּרֵאשִׁית עברית",
    "हिन्दी में नमस्ते दुनिया क्षत्रिय १२३ किताबें", "ภาษาไทยสวัสดีชาวโลก น้ำใจ ๑๒๓", "தமிழ் வணக்கம் உலகம் ஸ்ரீ",
    "কান্তি বাংলা ১২৩ আমি", "Tiếng Việt rất đẹp Đường phố Hà Nội",
    "კაცნი გამარჯობა მსოფლიო ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ", "soft\xadhyphen",
    "កាន់តែពិសេសអាច ខ្មែរ", "አማርኛ ሰላም ለዓለም ፩፪፫",
)
_EMOJI = (
    "🚀", "😀", "👍🏽", "🇩🇪🇫🇷", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "❤️", "☺",
    "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f636\u200d\U0001f32b\ufe0f", "✅", "🦙🦙", "1️⃣", "©️", "™", "♠",
    "\U0001f937\U0001f3ff\u200d\u2640\ufe0f",
)
_MARKS = (
    "e\u0301", "n\u0303", "A\u030a", "o\u0302\u0323", "u\u0308\u0304", "\u0301", "q\u0307\u0323",
    "Z\u0351\u036f\u0327", "\ufb01", "\ufb00", "\xc5", "\u03a9", "\u2460", "\u338f",
)
_SPACES = (
    " " * 7, " " * 33,
    " ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", " \n", "\n ", "\xa0", "\u3000", "\u2009",
    "\u200b", "\ufeff", "\x0b", "\x0c", "\u2028", "\x85", "\x1c",
)
_CODE = (
    "def f(x: int) -> str:\n    return f'{x!r}'  # ok\n", "for (int i=0;i<n;++i) { a[i] += b[i]; }\n",
    '{"key": [1, 2.5e-3, null, true], "ü": "\\u00fc"}', "SELECT * FROM t WHERE a<>'b' AND c>=10;",
    '<div class="x">&nbsp;</div><!-- ok -->',
    "camelCaseString HTTPServerError snake_case_name XMLHttpRequest iPhone15ProMax ÉCOLEs",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\Temp\\x.txt",
    "$x = `ls -la | grep '^d' && echo \"done\"`",
    "a/b\\c|d^e~f@g#h%i&j*k(l)m-n_o=p+q[r]s{t}u;v:w'x\"y,z.a<b>c?d!e`f$g",
)
_NUMBERS = (
    "3", "33", "333", "3333", "33333", "333333333", "3.14159", "1,000,000", "1e-10", "0x1F", "½", "²³", "Ⅷ", "٣٤٥",
    "१२", "１２３", "2024-01-31T23:59:59Z", "+49 (0)30-1234", "12:30", "v1.2.3-rc4",
)
_PUNCTUATION = (
    "...", "!!!???", "''''", '""', "—", "…", "«»", "“quoted”", "‘it’s’", "--------", "=====", "***",
    "，。！？", "、」「", "()[]{}", "'", "' ", " '", "n't", "'S", "'Re", "'LL", "'ve'd", "·", "¿¡",
    "№", "٪", "।", "±×÷", "°", "▁", "▁▁", "a▁b", "##", "[", "]",
)
_SPECIAL = (
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "[CLS]", "[SEP]", "[MASK]", "[UNK]",
    "[PAD]", "<bos>", "<eos>", "<start_of_turn>", "<0x0A>", "<|user|>", "<|assistant|>", "<|end|>", "<|eot_id|>",
    "<|begin_of_text|>", "<|im_", "im_end|>", "[CLS", "< s >", "<|im_start|", "<unused7>", "[unused5]", "<think>",
    "<tool_call>",
)
_ODD = (
    "x" * 120, "ab" * 70, "\u0430\u0431" * 60, "=" * 150, "\n" * 40,
    "\x00", "\x01", "\x7f", "\x1b[0m", "\ufffd", "\u200d", "\u202e", "\ue000", "\U000e0041", "\U0010ffff", "\u0378",
    "\U00010348\U00010330", "\U0001d49c\U0001d4d1", "\ua66e", "<\u0338", "a\u0338",
)
# fmt: on


def texts(n_texts: int = 2000, seed: int = 4) -> list[str]:
    """`n_texts` texts of a few to a few hundred characters, the same for the same arguments."""
    random = Random(seed)
    words = [word for script in _SCRIPTS for word in script.split(" ")]
    sources = (words, words, words, words, _EMOJI, _MARKS, _SPACES, _CODE, _NUMBERS, _PUNCTUATION, _SPECIAL, _ODD)
    found = ["", *(item for source in sources[3:] for item in source), *_SCRIPTS]
    while len(found) < n_texts:
        found.append("".join(_pieces(random, sources)))
    return found[:n_texts]


def _pieces(random: Random, sources: Sequence[Sequence[str]]) -> list[str]:
    pieces: list[str] = []
    joint = random.choice(("", " ", " ", " "))
    for _ in range(random.randint(1, 9)):
        piece = random.choice(random.choice(sources))
        if random.random() < 0.08:
            piece = piece.upper() if random.random() < 0.5 else piece.title()
        pieces += [piece, joint]
    if random.random() < 0.1:
        pieces.insert(0, random.choice(_SPACES))
    return pieces
