"""lm-eval over both of its API models: its log-likelihoods are those that llama.cpp itself gives for the same texts."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from tests.clients.reference import Reference
from tests.e2e.harness import CHAT, COMPLETION, Server
from tests.models import demo_model
from tests.tokenizer_folders import BYTE_LEVEL, smollm2, write_folder

Json = dict[str, Any]

NATS = 1e-3
# With 64 rows and more in a batch, llama.cpp takes other kernels: of the weights of 4 bits here that makes tenths.
NATS_IN_COMPANY = 1.5

QUESTIONS: list[Json] = [
    {"question": "What is the capital of France?", "choices": ["Paris", "London", "a small dog"], "answer": 0},
    {"question": "What do bees make?", "choices": ["cheese", "honey", "glass windows"], "answer": 1},
    {"question": "How many legs has a spider?", "choices": ["eight", "two", "a hundred and one"], "answer": 0},
    {"question": "Which of these is a colour?", "choices": ["Tuesday", "seven", "bright blue"], "answer": 2},
    {"question": "Où est la tour Eiffel? 日本語で🦊", "choices": ["à Paris 🗼", "東京", "naïve"], "answer": 0},
    # The model ends its answer here: the one token that lm-eval has generated behind the prompt is no text.
    {
        "question": "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
        "choices": ["Hello! How can I help you?", "I", "Yes."],
        "answer": 0,
    },
]  # fmt: skip
TASK: Json = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
CHOICE: Json = TASK | {
    "task": "choice",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
PERPLEXITY: Json = TASK | {
    "task": "perplexity",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}} {{choices[0]}}",
    "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
}
ANSWER: Json = TASK | {
    "task": "answer",
    "output_type": "generate_until",
    "doc_to_text": "{{question}} The answer is:",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n", "Question:"], "max_gen_toks": 24, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "ignore_case": True}],
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's, as lm-eval would fetch it from the hub."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return write_folder(
        tmp_path_factory.mktemp("tokenizer"),
        tokenizer_json=smollm2(demo_model()) | {"decoder": BYTE_LEVEL},
        tokenizer_config_json=config,
    )


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(demo_model())


@pytest.fixture(scope="module")
def evaluate(server: Server, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.mktemp("cache")

    def evaluate(model: str, path: str, task: Json, *, as_chat: bool = False, **arguments: object) -> Json:
        """The results of a task, and its samples."""
        url = server.url.removesuffix("/v1") + path
        files = {"dataset_kwargs": {"data_files": {"test": str(questions)}, "cache_dir": str(cache)}}
        results: Json = simple_evaluate(
            model=model,
            model_args={"model": demo_model().stem, "base_url": url, "max_retries": 1, **arguments},
            tasks=[task | files],
            task_manager=TaskManager(include_defaults=False),  # reading those that it brings takes 12 s
            apply_chat_template=as_chat,
            bootstrap_iters=0,
        )
        return {"samples": results["samples"][task["task"]], **results["results"][task["task"]]}

    return evaluate


@pytest.mark.parametrize("tokenized_requests", [True, False], ids=["tokens", "texts"])
def test_loglikelihoods_are_those_of_the_binding(
    evaluate: Any, tokenizer: Path, reference: Reference, *, tokenized_requests: bool
) -> None:
    results = evaluate(
        "local-completions", COMPLETION, CHOICE, tokenizer=str(tokenizer), tokenized_requests=tokenized_requests
    )
    assert len(results["samples"]) == len(QUESTIONS)
    n_ended = n_right = 0
    for sample in results["samples"]:
        likelihoods = []
        for (context, continuation), ((found, is_greedy),) in zip(sample["arguments"], sample["resps"], strict=True):
            tokens = reference.tokens(context + continuation)
            expected, expected_greedy = reference.loglikelihood(tokens, len(reference.tokens(context)))
            assert found == pytest.approx(expected, abs=NATS), (context, continuation)
            assert is_greedy == expected_greedy
            n_ended += reference.ends_after(tokens)
            likelihoods.append(expected)
        n_right += likelihoods.index(max(likelihoods)) == sample["target"]
    assert n_ended  # there was a text behind which the one token that lm-eval asks for ends the reply
    assert results["acc,none"] == pytest.approx(n_right / len(QUESTIONS))


@pytest.mark.parametrize("arguments", [{"num_concurrent": 8}, {"batch_size": 4}], ids=["at once", "in batches"])
def test_loglikelihoods_in_company(evaluate: Any, tokenizer: Path, reference: Reference, arguments: Json) -> None:
    """Each answer belongs to its question: the likelihoods of one and another are tens of nats apart."""
    results = evaluate("local-completions", COMPLETION, CHOICE, tokenizer=str(tokenizer), **arguments)
    for sample in results["samples"]:
        for (context, continuation), ((found, _),) in zip(sample["arguments"], sample["resps"], strict=True):
            tokens = reference.tokens(context + continuation)
            expected, _ = reference.loglikelihood(tokens, len(reference.tokens(context)))
            assert found == pytest.approx(expected, abs=NATS_IN_COMPANY)


def test_perplexity_is_that_of_the_binding(evaluate: Any, tokenizer: Path, reference: Reference) -> None:
    results = evaluate("local-completions", COMPLETION, PERPLEXITY, tokenizer=str(tokenizer))
    total, n_bytes = 0.0, 0
    for sample in results["samples"]:
        text = sample["target"]
        expected, _ = reference.loglikelihood([*reference.tokens("<|im_start|>"), *reference.tokens(text)], 1)
        assert sample["resps"][0][0] == pytest.approx(expected, abs=NATS)
        total += expected
        n_bytes += len(text.encode())
    assert results["bits_per_byte,none"] == pytest.approx(-total / n_bytes / math.log(2), rel=1e-3)


@pytest.mark.parametrize("num_concurrent", [1, 6])
def test_answers_of_completions(evaluate: Any, tokenizer: Path, num_concurrent: int) -> None:
    results = evaluate("local-completions", COMPLETION, ANSWER, tokenizer=str(tokenizer), num_concurrent=num_concurrent)
    answers = [sample["resps"][0][0] for sample in results["samples"]]
    assert any(answers)
    assert all("\n" not in answer for answer in answers)


@pytest.mark.parametrize("num_concurrent", [1, 6])
def test_answers_of_chats(evaluate: Any, num_concurrent: int) -> None:
    results = evaluate(
        "local-chat-completions", CHAT, ANSWER, as_chat=True, num_concurrent=num_concurrent, eos_string="<|im_end|>"
    )
    answers = [sample["resps"][0][0] for sample in results["samples"]]
    assert "Paris" in answers[0]
    assert all("\n" not in answer for answer in answers)
