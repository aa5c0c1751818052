#!/bin/sh
# Streams the answer to one question: sh chat.sh "Why is the sky blue?" [MODEL]
set -eu

base_url=${OPENAI_BASE_URL:-http://127.0.0.1:11435/v1}
# A text as JSON has it: without control characters, with its quotes and backslashes escaped.
question=$(printf '%s' "$1" | tr '\000-\037' ' ' | sed 's/[\\"]/\\&/g')
model=${2:-smollm2-135m-instruct.q4-1}

curl --fail --silent --show-error --no-buffer "$base_url/chat/completions" \
    -H "Content-Type: application/json" -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" \
    -d "{\"model\": \"$model\", \"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}"
