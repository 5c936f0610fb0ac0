#!/usr/bin/env bash
# A federation's life with everything real and small: training, submitting, merging, text, a late join, a replacement, a
# withdrawal. Five owners, a coordinator and an outsider; each process sees its own folder, what was handed over, and the
# store. Made as a drill: it stops with an error at the first thing that is not as promised.
#
#   BIN=.venv/bin DRILL=drill STORE=folder bash launch/federation.sh      # a folder that all members see
#   BIN=.venv/bin DRILL=drill STORE=sftp://user@host:port bash launch/federation.sh    # the folder drill/store there
#
# TRAINED=drill takes anchor and experts of an earlier drill instead of training them again.
set -euo pipefail
BIN=$(cd "${BIN:?the folder with python and the flexo commands}" && pwd)
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${DRILL:=drill}"
export DRILL=$(cd "$DRILL" && pwd) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$ROOT
STORE=${STORE:-folder} TRAINED=${TRAINED:-none} alone= OWNERS=(code math news poems)
[ "$STORE" = folder ] && url=$DRILL/store || url=$STORE$DRILL/store
mkdir -p "$DRILL"/{handed,store} "$DRILL"/members/{coordinator,outsider,code,letters,math,news,poems}
started=$SECONDS
step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }

# The folders of all others are covered by empty ones, in a mount namespace of this process alone, which may not uncover
# them; so is a store that is somewhere else. Where that is not allowed, it is said, and the rest of the drill goes on.
if unshare -m true 2>/dev/null; then
  alone=yes
  as() {
    (cd "$DRILL/members/$1" && unshare -m bash -c '
      for folder in "$DRILL"/members/*; do [ "$folder" = "$PWD" ] || mount -t tmpfs -o ro,size=4k none "$folder"; done
      [ "$0" = folder ] || mount -t tmpfs -o ro,size=4k none "$DRILL/store"
      exec setpriv --bounding-set=-sys_admin,-sys_ptrace "$@"' "$STORE" "${@:2}")
  }
else
  echo "note: this machine allows no mount namespaces: members run in their own folders, and could leave them"
  as() { (cd "$DRILL/members/$1" && "${@:2}"); }
fi
flexo() { as "$1" "$BIN/flexo-federation" "${@:2}"; }
coordinator() { flexo coordinator "$@" --keys keys; }
train() { # the member, the seed
  if [ -f "$TRAINED/members/$1/$1-$2.pt" ]; then cp "$TRAINED/members/$1/$1-$2.pt" "$DRILL/members/$1/"; return; fi
  as "$1" "$BIN/python" "$ROOT/train_expert.py" +domain=local domain.name="$1" domain.train=train.jsonl \
    domain.test=test.jsonl anchor.path=anchor output="$1-$2.pt" seed="$2" debug=fast > "$DRILL/members/$1/train.log"
}
fails() { # a sentence that an error must contain, and the command
  if "${@:2}" > "$DRILL/said" 2>&1 || ! grep -q "$1" "$DRILL/said"; then
    cat "$DRILL/said"; echo "error: expected to be refused with: $1" >&2; exit 1
  fi
  grep "$1" "$DRILL/said"
}
enter() { # a new owner: a key, a role, the root, the anchor
  as "$1" "$BIN/flexo-sign" --generate --key key.pem > /dev/null
  cp "$DRILL/members/$1/key.pub" "$DRILL/handed/$1.pub"
  coordinator add-owner "$1" --key "$DRILL/handed/$1.pub"
  flexo "$1" join "$url" --root "$DRILL/handed/root.json" > /dev/null
  flexo "$1" fetch-anchor
}

step "each member has text of their own"
"$BIN/python" - <<'END'
import json, os, random
from pathlib import Path
members = Path(os.environ["DRILL"], "members")
words = {
    "coordinator": "the a city river house people year time day was is of in and to for with on by as it from at",
    "math": "sum of x plus y equals two three four five prime number proof root square times minus divided",
    "code": "def return self import class for in range if else print lambda None True while yield",
    "news": "minister said on monday the government election vote police report market percent shares",
    "poems": "o thou rose and moon thy heart shall love fair night star sweet dew song forever",
    "letters": "dear madam I remain yours truly kind regards sincerely thank you for your letter of",
}
for name, text in words.items():
    dice = random.Random(name)
    for split, count in (("train", 200), ("test", 20)):
        lines = [" ".join(dice.choices(text.split(), k=80)) for _ in range(count)]
        Path(members, name, f"{split}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
END

if [ "$alone" ]; then
  fails "No such file" as math cat "$DRILL/members/code/train.jsonl"
  fails "superuser\|permitted" as math umount "$DRILL/members/code"
fi

step "the coordinator makes an anchor and founds the federation"
[ -d "$TRAINED/members/coordinator/anchor" ] && cp -r "$TRAINED/members/coordinator/anchor" "$DRILL/members/coordinator/"
[ -d "$DRILL/members/coordinator/anchor" ] || as coordinator "$BIN/python" "$ROOT/train_anchor.py" anchor=tiny \
  anchor.vocab_size=320 data.path=. output=anchor debug=fast > "$DRILL/members/coordinator/train.log"
coordinator init "$url" --name drill
cp "$DRILL/members/coordinator/.flexo-federation/root.json" "$DRILL/handed/"
coordinator publish-anchor anchor

for owner in "${OWNERS[@]}"; do
  step "$owner joins, trains, and submits"
  enter "$owner"
  train "$owner" 0
  flexo "$owner" submit "$owner-0.pt" --key key.pem
done

step "the coordinator assembles a model, and it writes"
coordinator assemble -o model1
as coordinator "$BIN/flexo-generate" model1 "the city" --max-new-tokens 12 --seed 0 --temperature 0.8
flexo coordinator verify model1

step "letters joins late, math replaces its expert, news withdraws"
enter letters
train letters 0
flexo letters submit letters-0.pt --key key.pem
train math 1
flexo math submit math-1.pt --key key.pem
flexo news withdraw news --key key.pem --reason "the paper was sold" --notice "$DRILL/handed/news.json"
fails "news: has left, and this model still holds it" flexo coordinator verify model1

step "the coordinator assembles again"
coordinator assemble -o model2
flexo coordinator verify model2
fails "news: has left" flexo coordinator verify model1
fails "this very expert was withdrawn" flexo news submit news-0.pt --key key.pem

step "byte for byte a merge that never had news"
mkdir -p "$DRILL/never"
for file in code-0 letters-0 math-1 poems-0; do cp "$DRILL/members/${file%-*}/$file.pt" "$DRILL/never/"; done
"$BIN/flexo-merge" "$DRILL"/never/{code-0,letters-0,math-1,poems-0}.pt -o "$DRILL/never/model" --no-check \
  --anchor "$DRILL/members/coordinator/anchor" > /dev/null
for file in "$DRILL"/never/model/*.safetensors* "$DRILL"/never/model/{config,tokenizer}.json; do
  cmp "$file" "$DRILL/members/coordinator/model2/$(basename "$file")"
done

step "an outsider looks at all of it over plain HTTP"
"$BIN/python" -m http.server --bind 127.0.0.1 --directory "$DRILL/store" 0 > "$DRILL/http" 2>&1 &
trap 'kill $!' EXIT
port=
while [ -z "$port" ]; do sleep 0.1; port=$(sed -n 's/.* port \([0-9]*\).*/\1/p' "$DRILL/http"); done
cp -r "$DRILL/members/coordinator/model2" "$DRILL/handed/"
flexo outsider join "http://127.0.0.1:$port" --root "$DRILL/handed/root.json"
flexo outsider status
flexo outsider log
flexo outsider verify "$DRILL/handed/model2"
fails "no such file" flexo outsider withdraw math --key "$DRILL/members/math/key.pem"
step "done: all of it as promised"
