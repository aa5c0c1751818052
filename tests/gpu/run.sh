#!/bin/sh
# run.sh FILE MODEL.gguf...: what a machine with a GPU of NVIDIA's shows of the file with CUDA, in under 8 minutes.
#
# FILE is dist/shimmy-linux-x86_64-cuda; of models, take one in F16, one in Q4_K_M and a mixture of experts, of 1 to 3 GB
# each. Needs Python 3.10 and nothing else: no build, no package. With LLAMA_BIN, a folder with llama-bench and
# llama-server of the same llama.cpp (shared libraries, without CUDA of their own), these are measured with the library
# of FILE, too. OUT names a folder for what is found (default: ./gpu-results).
set -eu
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
exec timeout --kill-after=10 480 python3 "$(dirname "$0")/check.py" --out "${OUT:-gpu-results}" \
    ${LLAMA_BIN:+--llama-bin "$LLAMA_BIN"} "$@"
