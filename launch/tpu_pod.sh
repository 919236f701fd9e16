#!/usr/bin/env bash
# Trains on a Cloud TPU slice: asks for it, waits, installs, runs the same command on every worker, gathers the logs.
# A preempted slice is requested again, and the run resumes from its newest checkpoint.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_pod.sh --name=NAME --zone=ZONE --type=TYPE [options] -- COMMAND...

  --name=NAME         of the slice and of its request; one that exists is used, and stays at the end unless it was lost
  --zone=ZONE         e.g. us-west4-a
  --type=TYPE         accelerator, e.g. v5litepod-16, v5p-128, v6e-16, v4-32
  --project=PROJECT   default: gcloud's own
  --runtime=VERSION   image of the workers (default: by the type)
  --spot              cheap capacity that may be preempted
  --attempts=N        slices to ask for at most, the first included (default: 20)
  --logs=DIR          where the workers' logs are gathered (default: runs/NAME-logs)
  --keep              do not delete the slice at the end, on Ctrl-C, or when the terminal closes; the command goes on there
  --dry_run           print every command and run none

The command runs on every worker from the root of a copy of this checkout, for example
  launch/tpu_pod.sh --name=base --zone=us-west4-a --type=v5litepod-16 --spot -- \
    .venv/bin/python -m ghost_jax.train --config=configs/pretrain_base350m.py --data_dir=gs://BUCKET/data \
    --workdir=gs://BUCKET/runs/base
Several workers, and a run that outlives its slice, need a --workdir in a bucket (gs://BUCKET/…) or on a disk that all mount.
gcloud must be installed and logged in. Exit codes: that of the command; 1 where no slice could be had; 2 bad usage.
TEXT
}

fail_usage() {
  printf 'error: %s\n\n' "$1" >&2
  usage >&2
  exit 2
}

name='' zone='' type='' project='' runtime='' logs='' spot=0 keep=0 dry_run=0 attempts=20
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --runtime=*) runtime="${1#*=}" ;;
    --attempts=*) attempts="${1#*=}" ;;
    --logs=*) logs="${1#*=}" ;;
    --spot) spot=1 ;;
    --keep) keep=1 ;;
    --dry_run) dry_run=1 ;;
    --help | -h)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail_usage "There is no option $1; write the command to run after --." ;;
  esac
  shift
done
[[ -n "$name" && -n "$zone" && -n "$type" ]] || fail_usage 'Give --name, --zone and --type.'
[[ "$name" =~ ^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$ ]] || fail_usage "--name=$name: use a-z, 0-9 and -, from a letter on."
[[ "$attempts" =~ ^[1-9][0-9]*$ ]] || fail_usage "--attempts=$attempts: use a number from 1 on."
(($#)) || fail_usage 'There is no command to run; write it after --.'
if [[ -z "$runtime" ]]; then
  case "$type" in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v4-*) runtime=tpu-ubuntu2204-base ;;
    *) fail_usage "The image of --type=$type is not known here; name one with --runtime." ;;
  esac
fi
logs="${logs:-runs/$name-logs}"
where=(--zone="$zone")
[[ -z "$project" ]] || where+=(--project="$project")
root="$(cd "$(dirname "$0")/.." && pwd)"

# Prints a command in shell syntax, and runs it unless this is a dry run.
run() {
  printf '+' >&2
  printf ' %q' "$@" >&2
  printf '\n' >&2
  ((dry_run)) || "$@"
}

on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

# The state of the request: NONE where there is none, UNKNOWN where gcloud fails otherwise, as without a network.
state() {
  local show=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)')
  if ((dry_run)); then
    echo NONE
  elif ! "${show[@]}" 2>"$scratch/error"; then
    if grep -q NOT_FOUND "$scratch/error"; then
      echo NONE
    else
      cat "$scratch/error" >&2
      echo UNKNOWN
    fi
  fi
}

create() {
  local flags=(--node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" "${where[@]}")
  ((!spot)) || flags+=(--spot)
  run gcloud compute tpus queued-resources create "$name" "${flags[@]}"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

wait_until_active() {
  ((!dry_run)) || return 0
  local now
  while now="$(state)" && [[ "$now" != ACTIVE ]]; do
    printf '%s: %s is %s\n' "$(date '+%F %T')" "$name" "$now" >&2
    case "$now" in FAILED | SUSPENDED | SUSPENDING | NONE) return 1 ;; esac
    sleep 30
  done
}

# Tracked and new files, without ignored ones: no runs, no environment, no caches.
pack() {
  run bash -c 'cd "$1" && git ls-files -z --cached --others --exclude-standard | tar -czf "$2" --null -T -' _ "$root" "$archive"
}

# The images' python3 is 3.10 in part; uv finds a Python that this project runs on, or downloads one.
install() {
  run gcloud compute tpus tpu-vm scp "$archive" "$name:ghost_jax.tar.gz" "${where[@]}" --worker=all &&
    on_workers 'mkdir -p ghost_jax && tar -xzf ghost_jax.tar.gz -C ghost_jax && cd ghost_jax && python3 -m venv .uv &&
      .uv/bin/python -m pip install --quiet uv && { [ -x .venv/bin/python ] ||
      .uv/bin/uv venv --quiet --seed --python ">=3.11,<3.14" .venv; } &&
      .venv/bin/python -m pip install --quiet -r requirements-tpu.txt'
}

train() {
  local words
  printf -v words ' %q' "$@"
  # Where the connection broke, the command still runs, because tee -p goes on; the next one waits for its end.
  local lock="exec 9>train.lock && { flock -n 9 || { echo 'waiting for what runs here' && flock 9; }; }"
  on_workers "cd ghost_jax && set -o pipefail && $lock &&$words 2>&1 | tee -a -p train.log"
}

gather() {
  run mkdir -p "$logs"
  # A lost worker has no log.
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --output-directory="$logs" \
    --command='cat ghost_jax/train.log' || true
}

# Deletes the slice that was requested here, or says that it stays.
finish() {
  trap '' HUP INT TERM
  if ((ours && !keep)); then
    if delete; then return 0; fi # in a trap, `return` alone has the status of what was interrupted
  elif [[ "$(state)" == NONE ]]; then
    return 0
  fi
  printf '%s stays, and is billed until it is deleted: gcloud compute tpus queued-resources delete %s %s --force\n' \
    "$name" "$name" "${where[*]}" >&2
}

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

code=1 ours=0 scratch="$(mktemp -d)"
archive="$scratch/ghost_jax.tar.gz"
trap 'rm -rf "$scratch"' EXIT
((dry_run)) || command -v gcloud >/dev/null || fail 'gcloud is not installed. Install it and log in.'
pack || fail "$root cannot be packed. Restore the files that tar names, or stage their removal by git rm."
trap 'finish; exit 130' HUP INT TERM
for ((attempt = 1; attempt <= attempts; attempt++)); do
  printf '%s: attempt %d of %d\n' "$name" "$attempt" "$attempts" >&2
  code=1 ran=0 now="$(state)"
  if [[ "$now" == NONE ]]; then
    ours=1
    create || ours=0
  fi
  if [[ "$now" != UNKNOWN ]] && wait_until_active && install; then
    code=0 ran=1
    train "$@" || code=$?
    gather
    ((code && !dry_run)) || break
  fi
  sleep 60 # a preemption shows a moment after the connection broke
  case "$(state)" in
    ACTIVE)
      # 255 is ssh's own code: the connection broke. With another one the command failed, as it would again.
      ((code == 255 || !ran)) || break
      printf '%s is active: the command is repeated on it, and the run resumes.\n' "$name" >&2
      ;;
    FAILED | SUSPENDED | SUSPENDING)
      printf '%s was lost; another is requested, and the run resumes from its newest checkpoint.\n' "$name" >&2
      if delete; then ours=0; fi
      ;;
  esac
done
finish
exit "$code"
