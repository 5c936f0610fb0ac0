#!/usr/bin/env bash
# The main job from nothing to text: `make demo`. Each step is skipped when its result is there, so an interrupted demo
# goes on with the same command. Every expert is trained by a process of its own, in a folder that holds its own shard
# alone. These run at the same time, where cores are few with one thread each: two threads wait for each other at every
# part of a small model's step.
#
#   BIN=.venv/bin DEMO=demo DOMAINS="math code creative" SEED=0 bash launch/demo.sh
set -euo pipefail
BIN=$(cd "${BIN:?the folder with python and the flexo commands}" && pwd)
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEMO=${DEMO:-demo} DOMAINS=${DOMAINS:-math code creative} SEED=${SEED:-0}
mkdir -p "$DEMO" && cd "$DEMO"
started=$SECONDS cores=$(nproc) said=$(mktemp -d)
trap 'rm -rf "$said"' EXIT
trap 'kill $(jobs -p) 2>/dev/null || :; wait; exit 130' INT TERM # what trains saves its state first

step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }

# Runs a function for each name, one more at a time than there are cores; what they print comes in their order.
at_once() {
  local work=$1 name pid pids=() failed=0
  shift
  local threads=$((cores / $# > 1 ? cores / $# : 1))
  for name; do
    while [ "$(jobs -rp | wc -l)" -gt "$cores" ]; do sleep 0.2; done
    OMP_NUM_THREADS=$threads "$work" "$name" > "$said/$name" 2> >(exec sed -u "s/^/$name: /" >&2) &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  for name; do cat "$said/$name"; done
  return $failed
}

step "sample corpora"
"$BIN/flexo-data" sample -o corpora --domains "public$(printf ',%s' $DOMAINS)"
for domain in public $DOMAINS; do
  [ -d "corpora/$domain" ] || { echo "error: $domain could not be built on this machine (above it says why)." \
    "Choose others: make demo DOMAINS=\"math code educational\"" >&2; exit 1; }
done

step "the public anchor: a tokenizer and a small OLMo-2, from public text alone"
[ -d anchor ] || "$BIN/python" "$ROOT/train_anchor.py" anchor=tiny anchor.context_heads=4 \
  data.path=corpora/public output=anchor data.cache=cache seed="$SEED" # four heads, for time

train() { # one owner's, in a folder of its own
  owner=owners/$1
  mkdir -p "$owner/shard"
  cp -n "corpora/$1/train.jsonl.gz" "corpora/$1/test.jsonl.gz" "$owner/shard/"
  [ ! -f "experts/$1.pt" ] || exit 0
  cd "$owner"
  exec "$BIN/python" "$ROOT/train_expert.py" +domain="$1" domain.train=shard/train.jsonl.gz \
    domain.test=shard/test.jsonl.gz anchor.path=../../anchor output=../../experts/"$1".pt \
    data.tokens=120_000 data.eval_windows=32 seed="$SEED" # half as many as usual of each, for time
}
step "the owners train an expert each, with the anchor and their own shard and nothing else"
mkdir -p experts
at_once train $DOMAINS

step "the coordinator merges: no training, no data"
files=() && for domain in $DOMAINS; do files+=("experts/$domain.pt"); done
[ -d model ] || "$BIN/flexo-merge" "${files[@]}" -o model --anchor anchor

step "bits per byte on held-out text (lower is better)"
# where the processor computes in bfloat16 it is faster, and at most a thousandth away
grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && dtype=bfloat16 || dtype=auto
[ -f matrix.txt ] || { "$BIN/flexo-eval" model --data corpora --max-bytes 40000 --dtype $dtype --json matrix.json \
  > matrix.partial && mv matrix.partial matrix.txt; }
cat matrix.txt

declare -A prompts=(
  [public]="The city is the capital of" [math]="What is 12 + 30?" [code]="def __init__(self," [creative]="O thou, whose"
  [news]="The government said on" [academic]="We show that the protein" [educational]="In this chapter we"
  [reddit]="I think that"
)
write() {
  printf -- '--- %s\n' "$1"
  exec "$BIN/flexo-generate" model "${prompts[$1]:-The}" --max-new-tokens 40 --temperature 0.7 --seed "$SEED"
}
step "the merged model writes"
at_once write public $DOMAINS

step "done"
cat <<END
In $PWD:
  anchor/    what all owners share        experts/   one file per owner, the only thing that left them
  model/     the merged FlexOlmo model    matrix.txt the table above
Try next:
  echo "What is 7 + 8?" | $BIN/flexo-generate $PWD/model --experts public,math
  $BIN/flexo-inspect $PWD/experts/${DOMAINS%% *}.pt
  $BIN/flexo-merge $PWD/experts/*.pt -o $PWD/model-top1 --anchor $PWD/anchor --top-k 1
  your own text: docs/owner.md
END
