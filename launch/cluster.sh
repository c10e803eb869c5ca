#!/usr/bin/env bash
# One front door to clusters, over the tools that each of them has:
#
#   ./launch/cluster.sh up          --on TARGET                        starts a cluster
#   ./launch/cluster.sh submit      --on TARGET CONFIG [key=value …]   meta-trains on it, or resumes
#   ./launch/cluster.sh status      --on TARGET                        what runs there
#   ./launch/cluster.sh logs        --on TARGET JOB                    follows a run
#   ./launch/cluster.sh tensorboard --on TARGET                        at http://127.0.0.1:6006
#   ./launch/cluster.sh down        --on TARGET                        stops it
#
# TARGET   local             a Ray cluster on this machine, on the loopback interface
#          ray-up            what launch/ray-up/on-premise.yaml says, or the file that CLUSTER names
#          slurm             each run is a job that brings its own Ray cluster (launch/slurm/train.sbatch)
#          kubernetes        kubectl's current context and namespace (launch/kubernetes/)
#          http://HOST:PORT  a Ray cluster that is running, by its dashboard: submit, status and logs
#
# What follows `--` goes to the tool itself, for example:
#
#   ./launch/cluster.sh up --on local -- --num-cpus=8
#   ./launch/cluster.sh submit --on slurm configs/atari.yaml workers.per_node=16 -- --nodes=4 --time=24:00:00
#
# Ray's token authentication is on everywhere. The token is the one that Ray keeps in ~/.ray/auth_token, and is made
# where there is none.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

fail() {
    echo "error: $*" >&2
    exit 2
}

usage() {
    sed -n '2,/^set -/{ s/^# \{0,1\}//; /^set -/d; p }' "${BASH_SOURCE[0]}"
}

# ------------------------------------------------------------------------------------------------ what several share

with_token() {
    export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
    RAY_TMPDIR=$(python -m leap_rl.private_folder) || exit 2 # Ray's folders are for everybody, but for this one above
    export RAY_TMPDIR
    (umask 077 && ray get-auth-token --generate >/dev/null 2>&1) || fail "ray get-auth-token made no token"
}

resolve() { # FILE CONFIG [key=value …]: writes the configuration, overrides taken in, to FILE; says what run.dir is
    [[ $# -gt 1 && $2 != *=* ]] || fail "submit needs a configuration, e.g. configs/quickstart.yaml"
    leap-rl resolve "${@:2}" >"$1" && leap-rl resolve "${@:2}" --only run.dir
}

is_absolute() { # RUN_DIR
    [[ $1 == /* || $1 == *://* ]]
}

one_job() { # JOB
    [[ $# -eq 1 ]] || fail "which job? \`status\` lists them"
}

folder='' # of a job that is being submitted
trap '[[ -z $folder ]] || rm -rf "$folder"' EXIT
new_folder() { folder=$(mktemp -d); }

submit_job() { # ADDRESS: what is in the folder, config.yaml too, is the job's working directory; with our code
    cp -R "$root/leap_rl" "$folder"
    with_token
    ray job submit --address "$1" --submission-id "$(new_job)" --working-dir "$folder" "${passed[@]}" \
        -- python -m leap_rl.cli train config.yaml
}

new_job() { date +leap-rl-%Y%m%d-%H%M%S; }

# ------------------------------------------------------------------------------------------------------------- local

local_address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265} # the variable is Ray's own
local_pid=$HOME/.ray/leap-rl-cluster.pid

started() { # PID: when the process was started; nothing where there is none. A number alone may be another's by now
    ps -o lstart= -p "$1" 2>/dev/null || true
}

local_running() { # the process that `up` started, if it is the one that has its number
    local pid='' since=''
    [[ ! -f $local_pid ]] || read -r pid since <"$local_pid" || true
    [[ $pid =~ ^[1-9][0-9]*$ && -n $since && $(started "$pid" | xargs) == "$since" ]] || return 0
    echo "$pid"
}

local_up() {
    local pid
    pid=$(local_running)
    [[ -z $pid ]] || fail "it is up (process $pid)"
    with_token
    mkdir -p "$(dirname "$local_pid")"
    local log=${local_pid%.pid}.log
    : >"$log"
    # Ray takes --node-ip-address=127.0.0.1 for a mistake and listens everywhere; this, whose name is historical, does.
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 setsid ray start --head --block --dashboard-host=127.0.0.1 \
        --temp-dir="$RAY_TMPDIR/ray" "${passed[@]}" \
        >"$log" 2>&1 </dev/null &
    pid=$!
    (umask 077 && echo "$pid $(started "$pid" | xargs)" >"$local_pid")
    for _ in {1..120}; do
        if grep -q "Ray runtime started" "$log"; then
            echo "The cluster is up; its log is $log" >&2
            return
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.5
    done
    cat "$log" >&2
    local_down
    return 1
}

local_submit() {
    local directory
    new_folder
    directory=$(resolve "$folder/config.yaml" "$@" ray.address=auto)
    is_absolute "$directory" || resolve "$folder/config.yaml" "$@" ray.address=auto "run.dir=$PWD/$directory" >/dev/null
    submit_job "$local_address"
}

local_status() { job_status "$local_address"; }
local_logs() { job_logs "$local_address" "$@"; }
local_tensorboard() { exec tensorboard --logdir runs --host 127.0.0.1 "${passed[@]}"; }

local_down() { # of all Ray processes on this machine, only the cluster that `up` started
    local pid
    pid=$(local_running)
    rm -f "$local_pid"
    [[ -n $pid ]] || fail "it is not up"
    kill "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
    for _ in {1..150}; do # what it had started goes a little later, on a busy machine
        pgrep --session "$pid" >/dev/null || break
        sleep 0.2
    done
}

# ------------------------------------------------------------------------------------------ any Ray cluster that runs

job_submit() { # ADDRESS CONFIG [key=value …]
    local directory
    new_folder
    directory=$(resolve "$folder/config.yaml" "${@:2}" ray.address=auto)
    is_absolute "$directory" ||
        fail "run.dir = $directory: must be an absolute path or a URL that all nodes of $1 reach; add run.dir=…"
    submit_job "$1"
}

job_status() {
    with_token
    ray job list --address "$1" "${passed[@]}"
}

job_logs() {
    one_job "${@:2}"
    with_token
    ray job logs --address "$1" --follow "$2" "${passed[@]}"
}

# ------------------------------------------------------------------------------------------------------------ ray up

ray_up_file() { echo "${CLUSTER:-$root/launch/ray-up/on-premise.yaml}"; }

on_head() { # a command in the repository's copy on the head node
    with_token
    local there="export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 PATH=\$PWD/.venv/bin:\$PATH"
    ray exec "$(ray_up_file)" \
        "cd leap_rl && $there && RAY_TMPDIR=\$(python -m leap_rl.private_folder) && export RAY_TMPDIR && $*"
}

ray_up_up() {
    with_token
    cd "$root" # which is copied to the nodes
    ray up --yes "$(ray_up_file)" "${passed[@]}"
}

ray_up_submit() {
    local job
    job=$(new_job)
    new_folder
    resolve "$folder/config.yaml" "$@" ray.address=auto >/dev/null
    with_token
    ray rsync-up "$(ray_up_file)" "$folder/config.yaml" "leap_rl/$job.yaml"
    # The job starts where the head does: in the copy of the repository.
    on_head "ray job submit --submission-id $job ${passed[*]@Q} -- leap-rl train $job.yaml"
}

ray_up_status() { on_head "ray status && ray job list ${passed[*]@Q}"; }

ray_up_logs() {
    one_job "$@"
    on_head "ray job logs --follow ${1@Q} ${passed[*]@Q}"
}

ray_up_tensorboard() {
    with_token
    exec ray exec --port-forward 6006 "$(ray_up_file)" \
        "cd leap_rl && .venv/bin/tensorboard --logdir runs --host 127.0.0.1 ${passed[*]@Q}"
}

ray_up_down() {
    with_token
    ray down --yes "$(ray_up_file)" "${passed[@]}"
}

# ------------------------------------------------------------------------------------------------------------- SLURM

slurm_up() { echo "Nothing to start: each run that is submitted brings its own Ray cluster" >&2; }

slurm_submit() {
    resolve /dev/null "$@" >/dev/null
    sbatch "${passed[@]}" "$root/launch/slurm/train.sbatch" "$root" "$@"
}

slurm_status() { squeue --me --name=leap-rl "${passed[@]}"; }

slurm_logs() {
    one_job "$@"
    exec tail --lines=+1 --follow=name --retry "leap-rl-$1.log"
}

slurm_tensorboard() { local_tensorboard; }

slurm_down() { # [JOB …]: all of ours where none is named
    scancel --me --name=leap-rl "${passed[@]}" "$@"
}

# -------------------------------------------------------------------------------------------------------- Kubernetes

kubernetes_up() {
    kubectl apply -f "$root/launch/kubernetes/runs.yaml" -f "$root/launch/kubernetes/tensorboard.yaml" "${passed[@]}"
}

kubernetes_submit() {
    new_folder
    resolve "$folder/config.yaml" "$@" ray.address=auto >/dev/null
    kubectl create configmap leap-rl-config --from-file="$folder/config.yaml" --dry-run=client --output=yaml |
        kubectl apply -f -
    kubectl create -f "$root/launch/kubernetes/rayjob.yaml" "${passed[@]}"
}

kubernetes_status() {
    kubectl get rayjobs,rayclusters,pods --selector=app.kubernetes.io/part-of=leap-rl "${passed[@]}"
}

kubernetes_logs() { kubectl logs --follow job/leap-rl "${passed[@]}"; }

kubernetes_tensorboard() {
    exec kubectl port-forward --address=127.0.0.1 service/leap-rl-tensorboard 6006 "${passed[@]}"
}

kubernetes_down() { # all but the volume with the runs
    kubectl delete --ignore-not-found -f "$root/launch/kubernetes/rayjob.yaml" \
        -f "$root/launch/kubernetes/tensorboard.yaml" "${passed[@]}"
}

# ---------------------------------------------------------------------------------------------------------- dispatch

command=${1:-}
case $command in
up | submit | status | logs | tensorboard | down) shift ;;
-h | --help | '') usage && exit ;;
*) fail "$command: must be up, submit, status, logs, tensorboard or down" ;;
esac

target='' arguments=() passed=()
while [[ $# -gt 0 ]]; do
    case $1 in
    --on)
        target=${2:-}
        shift $(($# > 1 ? 2 : 1))
        ;;
    --)
        passed=("${@:2}")
        break
        ;;
    *)
        arguments+=("$1")
        shift
        ;;
    esac
done

PATH=$venv/bin:$PATH
case $target in
local | slurm | kubernetes) "${target}_$command" "${arguments[@]}" ;;
ray-up) "ray_up_$command" "${arguments[@]}" ;;
http://* | https://*)
    [[ $command == submit || $command == status || $command == logs ]] ||
        fail "$command: only whoever started $target can; submit, status and logs work"
    "job_$command" "$target" "${arguments[@]}"
    ;;
*) fail "--on ${target:-nothing}: must be local, ray-up, slurm, kubernetes or http://HOST:PORT" ;;
esac
