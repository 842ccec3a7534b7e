#!/usr/bin/env bash
# Creates a TPU slice, installs the package on all of its workers, starts one command on all of them, and brings the logs home.
# Every command goes through `run`, which prints it first; with --dry-run nothing else happens.
set -euo pipefail

PROGRAM=$(basename "$0")
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<USAGE
Usage:
  $PROGRAM --name NAME --zone ZONE --accelerator-type TYPE [options] -- COMMAND [ARGUMENT...]
  $PROGRAM --name NAME --zone ZONE --status | --logs | --stop | --delete

Starts COMMAND on every worker of a TPU slice, which is created first unless there is one of that name. The command runs with
the package and JAX installed, in a folder of its own where tpu_scripts/ is and which no later launch clears, and goes on when
this program ends; each worker keeps its output.

  --name NAME               of the TPU VM, and of the queued resource
  --zone ZONE               such as us-west4-a
  --project PROJECT         gcloud's own by default
  --accelerator-type TYPE   such as v5litepod-256, v6e-256, v5p-128, v4-128
  --version VERSION         of the TPU software; by default the one for the type
  --queued                  ask for a queued resource, and wait for it in the queue
  --spot                    capacity that may be taken back at any time, at a lower price
  --repo PATH|URL           what to install: a local folder (by default $HERE), or a git URL
  --extras LIST             of the package, by default jax,pretrain
  --python VERSION          on the workers, by default 3.12
  --wait SECONDS            for the slice to be ready, by default 3600
  --poll SECONDS            between two looks at it, by default 15
  --log-folder FOLDER       where logs are collected, by default tpu_logs/NAME
  --detach                  do not follow the first worker's output
  --dry-run                 print every command, run none

  --status                  the slice's state, and what the command is doing on each worker
  --logs                    collect every worker's output
  --stop                    ask the command to end (SIGTERM: training saves a checkpoint first)
  --delete                  delete the slice and the queued resource
USAGE
}

fail() {
  printf '%s: %s\n' "$PROGRAM" "$1" >&2
  exit "${2:-2}"
}

say() { printf '%s\n' "$*" >&2; }

quoted() {
  local word line=""
  for word in "$@"; do line+=" $(printf '%q' "$word")"; done
  printf '%s' "${line# }"
}

# ------------------------------------------------------------------------------------------------------------ arguments

name="" zone="" project="" accelerator_type="" version="" repo="$HERE" extras="jax,pretrain" python="3.12"
wait_seconds=3600 poll_seconds=15 log_folder="" mode=launch
queued=false spot=false dry_run=false detach=false
command=()

value_of() { # the value of the option $1, of which $2 arguments are left, itself included
  (($2 >= 2)) || fail "$1 needs a value; see --help"
}

set_mode() {
  [[ $mode == launch ]] || fail "--$mode and --$1 do not go together; give one"
  mode=$1
}

while (($#)); do
  case $1 in
    --name) value_of "$1" $#; name=$2; shift 2 ;;
    --zone) value_of "$1" $#; zone=$2; shift 2 ;;
    --project) value_of "$1" $#; project=$2; shift 2 ;;
    --accelerator-type) value_of "$1" $#; accelerator_type=$2; shift 2 ;;
    --version) value_of "$1" $#; version=$2; shift 2 ;;
    --repo) value_of "$1" $#; repo=$2; shift 2 ;;
    --extras) value_of "$1" $#; extras=$2; shift 2 ;;
    --python) value_of "$1" $#; python=$2; shift 2 ;;
    --wait) value_of "$1" $#; wait_seconds=$2; shift 2 ;;
    --poll) value_of "$1" $#; poll_seconds=$2; shift 2 ;;
    --log-folder) value_of "$1" $#; log_folder=$2; shift 2 ;;
    --queued) queued=true; shift ;;
    --spot) spot=true; shift ;;
    --detach) detach=true; shift ;;
    --dry-run) dry_run=true; shift ;;
    --status | --logs | --stop | --delete) set_mode "${1#--}"; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; command=("$@"); break ;;
    *) fail "$1 is no option; a command to run stands after --; see --help" ;;
  esac
done

[[ -n $name ]] || fail "--name is missing; see --help"
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  fail "--name is '$name'; give lower-case letters, digits and hyphens, a letter first, no hyphen at the end, 63 at most"
[[ -n $zone ]] || fail "--zone is missing; see --help"
[[ $wait_seconds =~ ^[0-9]+$ ]] || fail "--wait is '$wait_seconds'; give whole seconds"
[[ $poll_seconds =~ ^[0-9]+$ ]] || fail "--poll is '$poll_seconds'; give whole seconds"
[[ $extras =~ ^[a-z0-9_,-]*$ ]] || fail "--extras is '$extras'; give names separated by commas"
[[ $python =~ ^[0-9.]+$ ]] || fail "--python is '$python'; give a version such as 3.12"
if [[ $mode == launch ]]; then
  [[ -n $accelerator_type ]] || fail "--accelerator-type is missing; see --help"
  ((${#command[@]})) || fail "there is no command to run; put it after --"
  [[ $repo =~ ^([a-z+]+://|git@) || -f $repo/pyproject.toml ]] ||
    fail "--repo is '$repo'; give a folder with a pyproject.toml, or a git URL"
elif ((${#command[@]})); then
  fail "--$mode takes no command; it was given: $(quoted "${command[@]}")"
fi
if [[ -z $version ]]; then
  case $accelerator_type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    "") ;;
    *) fail "--version is not known for '$accelerator_type'; gcloud compute tpus versions list --zone $zone shows what there is" ;;
  esac
fi
log_folder=${log_folder:-tpu_logs/$name}
where=(--zone "$zone" --quiet)
if [[ -n $project ]]; then where+=(--project "$project"); fi
remote="duonlp-$name" # under the home folder of every worker

$dry_run || type gcloud >/dev/null 2>&1 || fail "gcloud is not installed; https://cloud.google.com/sdk/docs/install" 1

# ------------------------------------------------------------------------------------------------------------- commands

run() {
  say "+ $(quoted "$@")"
  $dry_run || "$@"
}

tpu() { gcloud compute tpus "$@" "${where[@]}"; } # only for looking; whatever changes something goes through run

on_workers() { # worker (a number, or all), a shell command that is safe to run again
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker "$1" --command "$2"
}

vm_state() { tpu tpu-vm describe "$name" --format 'value(state)' 2>/dev/null || true; }
queue_state() {
  local state
  state=$(tpu queued-resources describe "$name" --format 'value(state.state)' 2>/dev/null || true)
  printf '%s' "${state#state=}"
}

create() {
  local options=(--accelerator-type "$accelerator_type")
  if $spot; then options+=(--spot); fi
  if ! $dry_run && [[ -n $(vm_state) ]]; then
    say "There is a TPU VM named $name already; it is used again."
  elif $queued; then
    if ! $dry_run && [[ -n $(queue_state) ]]; then
      say "There is a queued resource named $name already; it is waited for."
    else
      run gcloud compute tpus queued-resources create "$name" --node-id "$name" "${where[@]}" \
        "${options[@]}" --runtime-version "$version"
    fi
  else
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" "${options[@]}" --version "$version"
  fi
}

wait_until_ready() {
  if $dry_run; then
    say "+ # waits until the state of $name is READY, $wait_seconds seconds at most:"
    if $queued; then run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format 'value(state.state)'; fi
    run gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format 'value(state)'
    return
  fi
  local start=$SECONDS state="" queue="" before=""
  while true; do
    state=$(vm_state)
    if [[ $state == READY ]]; then return; fi
    case $state in
      PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING | REPAIRING)
        fail "the TPU VM $name is $state; delete it (--delete) and launch again" 1 ;;
    esac
    if [[ -z $state ]] && $queued; then
      queue=$(queue_state)
      case $queue in
        FAILED | SUSPENDED | SUSPENDING)
          fail "the queued resource $name is $queue; delete it (--delete) and launch again" 1 ;;
      esac
    fi
    if [[ "$state/$queue" != "$before" ]]; then say "$name: ${state:-${queue:-not there yet}}"; fi
    before="$state/$queue"
    if ((SECONDS - start >= wait_seconds)); then
      fail "$name was not ready after $wait_seconds s (${state:-${queue:-not there}}); it is still asked for: launch again to go on waiting, or --delete it" 1
    fi
    sleep "$poll_seconds"
  done
}

# --------------------------------------------------------------------------------- what is copied to the workers and run

setup_script() { # installs; does nothing the second time for the same source
  cat <<SETUP
set -euo pipefail
cd "\$HOME/$remote"
export PATH="\$HOME/.local/bin:\$PATH"
type uv >/dev/null 2>&1 || python3 -m pip install --quiet --user uv
[ -x venv/bin/python ] || uv venv --quiet --python $python venv
SETUP
  if [[ -d $repo ]]; then
    cat <<SETUP
rm -rf source.new && mkdir source.new && tar -xzf source.tar.gz -C source.new
rm -rf source && mv source.new source
SETUP
  else
    printf 'rm -rf source && git clone --quiet --depth 1 -- %q source\n' "$repo"
  fi
  printf 'mkdir -p work && ln -sfn ../source/tpu_scripts work/tpu_scripts\n'
  printf 'uv pip install --quiet --python venv/bin/python -e %q "jax[tpu]"\n' "./source${extras:+[$extras]}"
}

run_script() { # what goes on after the connection has ended; its process group is what --stop ends
  cat <<RUN
cd "\$HOME/$remote/work" && export PATH="\$HOME/$remote/venv/bin:\$PATH" PYTHONUNBUFFERED=1
$(quoted "${command[@]}") &
child=\$!
trap 'kill -TERM \$child 2>/dev/null' TERM
wait \$child
while kill -0 \$child 2>/dev/null; do wait \$child; done # a signal ends a wait before the command has ended
wait \$child # its status once more
echo \$? > ../run.status
RUN
}

start_script() { # refuses to start beside a command that is still running
  cat <<START
set -euo pipefail
cd "\$HOME/$remote"
if [ -f run.pid ] && [ ! -f run.status ] && kill -0 "\$(cat run.pid)" 2>/dev/null; then
  echo "a command is still running here (\$(cat run.pid)); end it with --stop" >&2
  exit 1
fi
[ ! -f run.log ] || mv run.log "run.\$(date +%Y%m%d-%H%M%S).log"
rm -f run.status
setsid nohup bash run.sh > run.log 2>&1 < /dev/null &
echo \$! > run.pid
START
}

pack() { # the sources as they are on disk; of a git checkout, what git does not ignore
  if [[ -e $repo/.git ]]; then
    # shellcheck disable=SC2016  # $1 and $2 are the inner shell's
    run bash -c 'cd "$1" && git ls-files -z --cached --others --exclude-standard | tar -czf "$2" --ignore-failed-read --null -T -' \
      pack "$repo" "$1"
  else
    run tar -czf "$1" -C "$repo" --exclude .venv --exclude __pycache__ --exclude '*.egg-info' --exclude tpu_logs .
  fi
}

install_and_start() {
  local staging=/tmp/duonlp-staging part
  if ! $dry_run; then
    staging=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder's name now, not when leaving
    trap "rm -rf '$staging'" EXIT
  fi
  for part in setup run start; do
    say "+ cat > $staging/$part.sh"
    "${part}_script" | sed 's/^/    /' >&2
    $dry_run || "${part}_script" >"$staging/$part.sh"
  done
  local files=("$staging/setup.sh" "$staging/run.sh" "$staging/start.sh")
  if [[ -d $repo ]]; then
    pack "$staging/source.tar.gz"
    files+=("$staging/source.tar.gz")
  fi
  local tries=0
  until on_workers all "mkdir -p $remote"; do # a new VM takes no connections for a while
    ((++tries < 6)) || fail "no connection to the workers of $name" 1
    sleep "$poll_seconds"
  done
  run gcloud compute tpus tpu-vm scp "${files[@]}" "$name:$remote/" "${where[@]}" --worker all
  on_workers all "bash $remote/setup.sh"
  on_workers all "bash $remote/start.sh"
  say "Started on all workers. --logs collects their output, --status tells how they are, --stop ends them."
}

# ---------------------------------------------------------------------------------------------------------------- modes

follow() {
  say "The first worker's output; Ctrl-C ends this and not the run."
  trap 'say "The run goes on."' INT
  on_workers 0 "tail -n +1 -F --pid=\$(cat $remote/run.pid) $remote/run.log" || true
  trap - INT
}

collect() {
  local addresses count=1 worker missing=()
  run mkdir -p "$log_folder"
  if ! $dry_run; then
    addresses=$(tpu tpu-vm describe "$name" --format 'value(networkEndpoints[].ipAddress)') || fail "there is no TPU VM $name" 1
    count=$(printf '%s' "$addresses" | tr ';,\t' '[\n*]' | grep -c .) || fail "the TPU VM $name has no workers yet" 1
  else
    say "+ # for every worker:"
  fi
  for ((worker = 0; worker < count; worker++)); do
    # To another name first: what was collected before stays whole if this breaks off.
    if run gcloud compute tpus tpu-vm scp "$name:$remote/run.log" "$log_folder/worker-$worker.log.part" "${where[@]}" --worker "$worker"; then
      run mv -f "$log_folder/worker-$worker.log.part" "$log_folder/worker-$worker.log"
    else
      missing+=("$worker")
    fi
  done
  if ((${#missing[@]})); then fail "no log from worker ${missing[*]}; those of the others are in $log_folder" 1; fi
  say "Logs of $count workers are in $log_folder."
}

status() {
  local report="cd $remote 2>/dev/null || { echo 'nothing installed'; exit; }
if [ -f run.status ]; then echo \"ended with status \$(cat run.status)\"
elif [ -f run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null; then echo \"running\"
elif [ -f run.pid ]; then echo \"gone without a word: killed, or the machine was restarted\"
else echo \"never started\"; fi
tail -n 1 run.log 2>/dev/null"
  if ! $dry_run; then
    local state queue
    state=$(vm_state) queue=$(queue_state)
    if [[ -z $state && -z $queue ]]; then fail "there is neither a TPU VM nor a queued resource named $name in $zone" 1; fi
    printf '%s: %s%s\n' "$name" "${state:-no TPU VM yet}" "${queue:+, queued resource $queue}"
    if [[ $state != READY ]]; then return; fi
  fi
  on_workers all "$report"
}

delete() {
  local queue="" state=""
  if ! $dry_run; then
    state=$(vm_state) queue=$(queue_state)
    if [[ -z $state && -z $queue ]]; then fail "there is neither a TPU VM nor a queued resource named $name in $zone" 1; fi
  fi
  if [[ -n $queue ]] || { $dry_run && $queued; }; then # with its VM
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force
  else
    run gcloud compute tpus tpu-vm delete "$name" "${where[@]}"
  fi
}

case $mode in
  launch)
    create
    wait_until_ready
    install_and_start
    if ! $detach; then
      follow
      collect
    fi
    ;;
  status) status ;;
  logs) collect ;;
  stop) on_workers all "kill -TERM \$(cat $remote/run.pid) && echo 'asked to end' || echo 'nothing is running'" ;;
  delete) delete ;;
esac
