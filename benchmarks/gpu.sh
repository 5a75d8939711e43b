#!/usr/bin/env bash
# Everything that is worth knowing on a machine with an NVIDIA GPU, by one command, without a network:
#
#     benchmarks/gpu.sh [python]            (default: .venv/bin/python, else python)
#
# Tests in tests/gpu, then what the server costs, what it keeps of the bare model's throughput, and latency, for ResNet-50,
# BERT base (32 and 384 tokens) and Wav2Vec2 base (10 s) with random weights, all on CUDA. Tables and JSON lines go to
# benchmarks/results/<day>-<gpu>.md and .jsonl. SECONDS_EACH and ROUNDS shorten or lengthen it (3 and 3: about half an hour).
set -euo pipefail
cd "$(dirname "$0")/.."
command -v nvidia-smi >/dev/null || { echo "gpu.sh: no nvidia-smi here; this is for machines with an NVIDIA GPU" >&2; exit 1; }

python=${1:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
seconds=${SECONDS_EACH:-3} rounds=${ROUNDS:-3}
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
name="benchmarks/results/$(date +%F)-$(echo "$gpu" | tr 'A-Z ' 'a-z-')"
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
export HEARTH_HOME=$home HEARTH_DEVICES=${HEARTH_DEVICES:-cuda:0}
models=bench-resnet50,bench-bert-base@32,bench-bert-base@384,bench-wav2vec2@10
failed=0

# Runs a program, shows what it says, and keeps it: JSON lines in one file, the rest in the other.
keep() {
  echo "== $*"
  local out status=0
  out=$(mktemp -p "$home")
  "$@" 2>&1 | tee "$out" || status=$?
  { printf '\n`%s`\n\n```\n' "$*"; grep -v '^{"benchmark"' "$out" || true; [ $status = 0 ] || echo "ended with $status"; echo '```'; } >>"$name.md"
  grep '^{"benchmark"' "$out" >>"$name.jsonl" || true
  [ $status = 0 ] || failed=1
}

printf '# %s: %s\n\n%s\n' "$(date +%F)" "$gpu" "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)" >"$name.md"
: >"$name.jsonl"
[ ! -d tests/gpu ] || keep "$python" -m pytest tests/gpu -q
keep "$python" benchmarks/cards.py "$home"
keep "$python" benchmarks/overhead.py --null --seconds "$seconds" --rounds "$rounds"
keep "$python" benchmarks/overhead.py --models "$models" --rounds "$rounds"
keep "$python" benchmarks/throughput.py --models "$models" --seconds "$seconds" --rounds "$rounds"
keep "$python" benchmarks/latency.py --models "$models" --seconds "$((seconds * 4))"
keep "$python" benchmarks/mixed.py --text-model bench-minilm --picture-model bench-resnet50 --seconds "$seconds" --rounds "$rounds" \
  --models bench-resnet50,bench-bert-base,bench-wav2vec2
echo "in $name.md and $name.jsonl"
exit $failed
