#!/usr/bin/env bash
# The main job from nothing: set up, build, start a stack, run Python in a sandbox, move files, stream output, clean up. Prints the time of each step.
set -euo pipefail
cd "$(dirname "$0")/.."

data=${TARTARUS_DATA:-$PWD/data}
port=${TARTARUS_DEMO_PORT:-7390}
export TARTARUS_DATA=$data TARTARUS_API_ADDR=127.0.0.1:$port TARTARUS_EDGE_ADDR=off
url=http://127.0.0.1:$port
log=$(mktemp)
server='' sandbox=''

finish() {
  status=$?
  trap - EXIT
  [ -z "$sandbox" ] || bin/tartarus kill "$sandbox" >/dev/null 2>&1 || true
  if [ -n "$server" ]; then
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  if [ $status != 0 ] && [ -s "$log" ]; then
    echo "demo: failed; the server's log:" >&2
    cat "$log" >&2
  fi
  rm -f "$log" demo-copy.txt
  exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

now() { date +%s%N; }
began=$(now)
step() { # step NAME COMMAND...: runs it and prints how long it took
  local name=$1 t
  shift
  t=$(now)
  "$@"
  printf '%8d ms  %s\n' $((($(now) - t) / 1000000)) "$name"
}

start() {
  bin/tartarus up >"$log" 2>&1 &
  server=$!
  for _ in $(seq 200); do
    curl -sf "$url/health" >/dev/null && return
    kill -0 "$server" 2>/dev/null || return 1
    sleep 0.05
  done
  return 1
}
create() { sandbox=$(bin/tartarus create --template base --timeout 5m); }
python() {
  test "$(bin/tartarus exec "$sandbox" -- python3 -c 'print(6 * 7)')" = 42
}
files() {
  echo 'written from outside' >demo-copy.txt
  bin/tartarus cp demo-copy.txt "$sandbox":note.txt
  bin/tartarus exec "$sandbox" -- sh -c 'cat note.txt && echo "and inside" >> note.txt'
  bin/tartarus cp "$sandbox":note.txt demo-copy.txt
  test "$(tail -n 1 demo-copy.txt)" = 'and inside'
}
stream() {
  bin/tartarus exec "$sandbox" -- python3 -u -c 'import time
for i in range(5): print("line", i); time.sleep(0.1)'
}
end() {
  bin/tartarus kill "$sandbox" >/dev/null
  sandbox=''
  bin/tartarus doctor --leaks
}

[ "$(id -u)" = 0 ] || { echo "demo: needs root, for network namespaces and control groups: sudo make demo" >&2; exit 1; }
step 'prerequisites' test/prerequisites.sh --install
step 'build bin/tartarus' make --no-print-directory -s build
step 'can sandboxes run here (doctor)' sh -c 'bin/tartarus doctor >/dev/null'
step 'template base (built once)' bin/tartarus template build base
step 'start the stack' start
export TARTARUS_URL=$url
step 'create a sandbox' create
step 'run Python in it' python
step 'write and read a file' files
step 'stream five lines' stream
tier=$(bin/tartarus inspect "$sandbox" --json | python3 -c 'import json, sys; d = json.load(sys.stdin); print(d["tier"] + " (" + d["runtime"] + ")")')
step 'end it, nothing left behind' end
printf '%8d ms  in all; isolation tier: %s\n' $((($(now) - began) / 1000000)) "$tier"
