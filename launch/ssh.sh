#!/bin/bash
# overnight on several hosts over plain ssh, without a scheduler. Look at the hosts first, then train:
#
#   launch/ssh.sh "node1 node2" doctor --cluster --data /shared/data/edu --out /shared/runs/gpt2
#   launch/ssh.sh "node1 node2" train gpt2-124m --data /shared/data/edu --out /shared/runs/gpt2
#
# Each host must let you in without a password, have this folder under the same path with its .venv, and see the same
# dataset and run folder. The first host is where they meet (PORT must be open there). Where torchrun fails on a host,
# it is started again, up to RESTARTS times. Ctrl-C or SIGTERM here: a checkpoint, then exit code 75; the same command
# goes on. Run it in tmux, or with nohup, where your own connection may break.

set -uo pipefail
if [ $# -lt 2 ]; then
    echo "usage: launch/ssh.sh \"HOST ...\" train|doctor ARGUMENTS" >&2
    exit 2
fi
read -r -a hosts <<<"$1"
shift

id=overnight-$$
flag=$(mktemp)  # has a word in it once the run was asked to stop
torchrun=(
    "${TORCHRUN:-.venv/bin/torchrun}" --nnodes "${#hosts[@]}" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 0
    --rdzv-backend c10d --rdzv-endpoint "${hosts[0]}:${PORT:-29400}" --rdzv-id "$id" -m overnight "$@"
)

# what a host is told: end what a broken connection left behind, note the process id, become torchrun
told() {
    printf 'kill $(cat %q 2>/dev/null) 2>/dev/null; ' "$(pid_file "$1")"
    printf 'cd %q && echo $$ >%q && ' "$PWD" "$(pid_file "$1")"
    printf 'export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 && exec'
    printf ' %q' "${torchrun[@]}"
}

pid_file() {
    echo "/tmp/$id-$1.pid"
}

on_host() {
    trap '' TERM INT # the stop comes through the hosts
    local try
    for ((try = 0; try <= ${RESTARTS:-3}; try++)); do
        ssh -o ServerAliveInterval=15 -o ServerAliveCountMax=3 "$1" "$(told "$1")" && return 0
        [ -s "$flag" ] && return 75
        sleep "${PAUSE:-10}"
    done
    return 1
}

stop() {
    echo stop >"$flag"
    for host in "${hosts[@]}"; do
        ssh "$host" "kill -TERM \$(cat $(pid_file "$host"))"
    done
}
trap stop TERM INT

jobs=()
for host in "${hosts[@]}"; do
    on_host "$host" &
    jobs+=($!)
done

code=0
for job in "${jobs[@]}"; do
    while wait "$job"; result=$?; [ "$result" -gt 128 ]; do :; done  # a signal ends `wait`, not the job
    [ "$result" -gt "$code" ] && code=$result
done
for host in "${hosts[@]}"; do
    ssh "$host" "rm -f $(pid_file "$host")"
done
rm -f "$flag"
exit "$code"
