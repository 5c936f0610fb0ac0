#!/usr/bin/env bash
# The main job from nothing to text: `make demo`. Each step is skipped when its result is there, so an interrupted demo goes
# on with the same command. Every expert is trained by a process of its own, in a folder that holds its own shard alone.
#
#   BIN=.venv/bin DEMO=demo DOMAINS="math code creative" SEED=0 bash launch/demo.sh
set -euo pipefail
BIN=$(cd "${BIN:?the folder with python and the flexo commands}" && pwd)
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEMO=${DEMO:-demo} DOMAINS=${DOMAINS:-math code creative} SEED=${SEED:-0}
mkdir -p "$DEMO" && cd "$DEMO"
started=$SECONDS

step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }

step "sample corpora"
"$BIN/flexo-data" sample -o corpora
for domain in public $DOMAINS; do
  [ -d "corpora/$domain" ] || { echo "error: $domain could not be built on this machine (above it says why)." \
    "Choose others: make demo DOMAINS=\"math code educational\"" >&2; exit 1; }
done

step "the public anchor: a tokenizer and a small OLMo-2, from public text alone"
[ -d anchor ] || "$BIN/python" "$ROOT/train_anchor.py" anchor=tiny anchor.context_heads=4 \
  data.path=corpora/public output=anchor data.cache=cache seed="$SEED" # four heads, for time

for domain in $DOMAINS; do
  step "the owner of $domain trains an expert, with the anchor and this shard and nothing else"
  owner=owners/$domain
  mkdir -p "$owner/shard" experts
  cp -n "corpora/$domain/train.jsonl.gz" "corpora/$domain/test.jsonl.gz" "$owner/shard/"
  [ -f "experts/$domain.pt" ] || (
    cd "$owner"
    "$BIN/python" "$ROOT/train_expert.py" +domain="$domain" domain.train=shard/train.jsonl.gz \
      domain.test=shard/test.jsonl.gz anchor.path=../../anchor output=../../experts/"$domain".pt seed="$SEED"
  )
done

step "the coordinator merges: no training, no data"
files=() && for domain in $DOMAINS; do files+=("experts/$domain.pt"); done
[ -d model ] || "$BIN/flexo-merge" "${files[@]}" -o model --anchor anchor

step "bits per byte on held-out text (lower is better)"
[ -f matrix.txt ] || { "$BIN/flexo-eval" model --data corpora --max-bytes 40000 --json matrix.json > matrix.partial &&
  mv matrix.partial matrix.txt; }
cat matrix.txt

step "the merged model writes"
declare -A prompts=(
  [public]="The city is the capital of" [math]="What is 12 + 30?" [code]="def __init__(self," [creative]="O thou, whose"
  [news]="The government said on" [academic]="We show that the protein" [educational]="In this chapter we"
  [reddit]="I think that"
)
for domain in public $DOMAINS; do
  printf -- '--- %s\n' "$domain"
  "$BIN/flexo-generate" model "${prompts[$domain]:-The}" --max-new-tokens 40 --temperature 0.7 --seed "$SEED"
done

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
