"""What the OpenAPI document says in words: of groups of routes, of fields of unclear names, and by example."""

from shimmy.api.request_fields.field_kinds import Json

TAGS = {
    "OpenAI": "The API that OpenAI's clients speak.",
    "Models": "Which models there are and which are loaded.",
    "Tokens": "A model's own tokenizer and chat template, as llama-server has them.",
    "Server": "For operators.",
}

_BUDGET = "After how many tokens reasoning is ended; -1: never."
_LIMIT = "How many tokens may be written; -1: until the model ends or the context is full."
_VLLM = "vLLM's older name of the field in `structured_outputs`."

# By the names of fields, in whichever body.
NOTES = {
    "model": "Its name or an alias; may be left out where the server has a default model.",
    "stream": "Answer with server-sent events.",
    "max_completion_tokens": _LIMIT,
    "max_tokens": _LIMIT,
    "max_output_tokens": "How many tokens may be written.",
    "n_predict": f"llama-server's. {_LIMIT}",
    "n": "How many choices to write; they share the prompt.",
    "best_of": "How many are written, of which the `n` likeliest are told.",
    "n_probs": "llama-server's: how many candidates to tell beside each token.",
    "return_progress": "llama-server's: while it waits, a stream has chunks that say how much of the prompt is read.",
    "stop": "Texts at which the content of the reply ends; they are not part of it.",
    "seed": "The same seed and prompt give the same text; -1 draws one at random.",
    "temperature": "0 takes the likeliest token.",
    "top_k": "How many of the likeliest tokens are considered; 0: all.",
    "repeat_last_n": "How many tokens `repeat_penalty` looks back; -1: all of the context.",
    "repetition_penalty": "`repeat_penalty` over all of the context, by vLLM's name.",
    "presence_penalty": "For each token that the reply has already.",
    "frequency_penalty": "For each time that a token is in the reply already.",
    "dry_penalty_last_n": "How many tokens DRY looks back; -1: all of the context.",
    "mirostat": "0: off, or the version.",
    "logit_bias": "Added to the logits of tokens; -100 or false: never.",
    "ignore_eos": "Go on where the model would end.",
    "cache_prompt": "Use what is already computed of the prompt.",
    "keep_alive": "How long the model stays loaded after its last job; negative: without end.",
    "lora": "Scales of adapters by their ids; those not named have scale 0.",
    "response_format": "What the reply has to look like. A schema is always obeyed.",
    "json_schema": "llama-server's: a JSON Schema that the reply has to fit.",
    "grammar": "llama-server's: a grammar in GBNF.",
    "regex": "A regular expression that the whole reply matches.",
    "choice": "Texts, one of which the reply is.",
    "structured_outputs": "vLLM's: one of the ways to say what the reply has to look like.",
    "guided_json": _VLLM,
    "guided_regex": _VLLM,
    "guided_choice": _VLLM,
    "guided_grammar": _VLLM,
    "reasoning_effort": "How much to think, for templates that can say so; `none` turns thinking off.",
    "reasoning_format": "`none` leaves reasoning in the text.",
    "reasoning_budget_tokens": _BUDGET,
    "thinking_budget_tokens": _BUDGET,
    "thinking_token_budget": _BUDGET,
    "chat_template_kwargs": "Variables for the model's chat template.",
    "add_generation_prompt": "Whether the prompt ends where the assistant begins to speak.",
    "continue_final_message": "Go on with the last message, which is the assistant's.",
    "parse_special": "Whether to read texts such as `<|im_end|>` as the tokens they stand for.",
    "functions": "The older form of `tools`.",
    "function_call": "The older form of `tool_choice`.",
    "echo": "Begin the reply with the prompt, log-probabilities included.",
    "suffix": "What comes after the text that is to be written.",
    "encoding_format": "An array of numbers, or 32-bit floats in base64.",
    "dimensions": "How many numbers each vector is cut to.",
    "previous_response_id": "The stored response that this one goes on from.",
    "instructions": "A system message for this response alone.",
    "store": "Whether the server remembers the response.",
    "include": "What to tell beside the text.",
    "add_special": "Whether to add the tokens that a prompt begins and ends with.",
}

_MODEL = "MODEL"  # the page puts the name of a real one here
_MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]

# Of bodies, by the names of their schemas.
EXAMPLES: dict[str, Json] = {
    "ChatRequest": {"model": _MODEL, "messages": _MESSAGES, "max_tokens": 100, "stream": True},
    "CompletionRequest": {"model": _MODEL, "prompt": "The sky is blue because", "max_tokens": 30},
    "EmbeddingsRequest": {"model": _MODEL, "input": ["The sky is blue.", "So is the sea."]},
    "ResponseRequest": {"model": _MODEL, "input": "Why is the sky blue?", "max_output_tokens": 100},
    "InputTokensRequest": {"model": _MODEL, "input": "Why is the sky blue?"},
    "LoadRequest": {"keep_alive": "10m"},
    "PullRequest": {"model": "hf.co/OWNER/NAME:Q4_K_M"},
    "TokenizeRequest": {"model": _MODEL, "content": "The sky is blue."},
    "DetokenizeRequest": {"model": _MODEL, "tokens": [504, 6376]},
    "ApplyTemplateRequest": {"model": _MODEL, "messages": _MESSAGES},
}
