#!/usr/bin/env bash
# Create a TPU slice, install the package on all of its workers, start one command on all of them and collect the logs.
# Every command that changes something goes through `run`, which prints it; with --dry-run it only prints.
set -euo pipefail

PROGRAM=$(basename "$0")
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<USAGE
Usage:
  $PROGRAM --name NAME --zone ZONE --accelerator-type TYPE [options] -- COMMAND [ARGUMENT...]
  $PROGRAM --name NAME --zone ZONE --status | --logs | --stop | --delete

Start COMMAND on every worker of a TPU slice, which is created unless a slice of that name exists. The package and JAX are
installed on the workers. COMMAND runs in a working folder that contains tpu_scripts/ and that later launches keep. It continues
after this program exits, and every worker logs its output.

  --name NAME               name of the TPU VM and of the queued resource (required)
  --zone ZONE               zone, such as us-west4-a (required)
  --project PROJECT         project (default: gcloud's)
  --accelerator-type TYPE   slice, such as v5litepod-256, v6e-256, v5p-128 or v4-128 (required to launch)
  --version VERSION         TPU software version (default: the one for the type)
  --queued                  request a queued resource and wait in the queue
  --spot                    use spot capacity, which is cheaper and may be preempted at any time
  --repo PATH|URL           package to install: a folder (default: $HERE) or a git URL
  --extras LIST             extras of the package (default: jax,pretrain)
  --python VERSION          Python on the workers (default: 3.12)
  --wait SECONDS            maximum time to wait for the slice (default: 3600)
  --poll SECONDS            time between two checks of its state (default: 15)
  --log-folder FOLDER       folder for collected logs (default: tpu_logs/NAME)
  --detach                  do not follow the first worker's output
  --dry-run                 print every command and run none

  --status                  print the state of the slice and of the command on each worker
  --logs                    collect every worker's output
  --stop                    stop the command with SIGTERM, on which training saves a checkpoint
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

value_of() { # fail unless the option $1 has a value; $2 arguments are left, the option included
  (($2 >= 2)) || fail "$1 needs a value; see --help"
}

set_mode() {
  [[ $mode == launch ]] || fail "--$mode and --$1 cannot be combined; give one of the two"
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
    *) fail "unknown option $1; put the command to run after --; see --help" ;;
  esac
done

[[ -n $name ]] || fail "--name is missing; see --help"
[[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
  fail "--name is '$name'; give at most 63 lower-case letters, digits and hyphens, starting with a letter and not ending in a hyphen"
[[ -n $zone ]] || fail "--zone is missing; see --help"
[[ $wait_seconds =~ ^[0-9]+$ ]] || fail "--wait is '$wait_seconds'; give a whole number of seconds"
[[ $poll_seconds =~ ^[0-9]+$ ]] || fail "--poll is '$poll_seconds'; give a whole number of seconds"
[[ $extras =~ ^[a-z0-9_,-]*$ ]] || fail "--extras is '$extras'; give names separated by commas"
[[ $python =~ ^[0-9.]+$ ]] || fail "--python is '$python'; give a version such as 3.12"
if [[ $mode == launch ]]; then
  [[ -n $accelerator_type ]] || fail "--accelerator-type is missing; see --help"
  ((${#command[@]})) || fail "no command to run; put it after --"
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
    *) fail "no default --version for '$accelerator_type'; choose one from: gcloud compute tpus versions list --zone $zone" ;;
  esac
fi
log_folder=${log_folder:-tpu_logs/$name}
where=(--zone "$zone" --quiet)
if [[ -n $project ]]; then where+=(--project "$project"); fi
remote="duonlp-$name" # in the home folder of every worker

$dry_run || type gcloud >/dev/null 2>&1 || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install" 1

# ------------------------------------------------------------------------------------------------------------- commands

run() {
  say "+ $(quoted "$@")"
  $dry_run || "$@"
}

tpu() { gcloud compute tpus "$@" "${where[@]}"; } # read-only; commands that change something go through run

on_workers() { # run on worker $1 (a number, or all) the shell command $2, which must be safe to repeat
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
    say "Reusing the existing TPU VM $name."
  elif $queued; then
    if ! $dry_run && [[ -n $(queue_state) ]]; then
      say "Waiting for the existing queued resource $name."
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
    say "+ # wait at most $wait_seconds seconds until the state of $name is READY:"
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
    if [[ "$state/$queue" != "$before" ]]; then say "$name: ${state:-${queue:-not created yet}}"; fi
    before="$state/$queue"
    if ((SECONDS - start >= wait_seconds)); then
      fail "$name was not ready after $wait_seconds s (${state:-${queue:-not created}}); the request stays open: launch again to keep waiting, or --delete it" 1
    fi
    sleep "$poll_seconds"
  done
}

# ------------------------------------------------------------------------------------------- scripts run on the workers

setup_script() { # install the package; repeating it for the same source changes nothing
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

run_script() { # run the command after the connection has closed, and pass SIGTERM from --stop on to it
  cat <<RUN
cd "\$HOME/$remote/work" && export PATH="\$HOME/$remote/venv/bin:\$PATH" PYTHONUNBUFFERED=1
$(quoted "${command[@]}") &
child=\$!
trap 'kill -TERM \$child 2>/dev/null' TERM
wait \$child
while kill -0 \$child 2>/dev/null; do wait \$child; done # a signal interrupts wait before the command has ended
wait \$child # for its exit status
echo \$? > ../run.status
RUN
}

start_script() { # start the command unless another one is still running
  cat <<START
set -euo pipefail
cd "\$HOME/$remote"
if [ -f run.pid ] && [ ! -f run.status ] && kill -0 "\$(cat run.pid)" 2>/dev/null; then
  echo "a command is still running here (process \$(cat run.pid)); stop it with --stop" >&2
  exit 1
fi
[ ! -f run.log ] || mv run.log "run.\$(date +%Y%m%d-%H%M%S).log"
rm -f run.status
setsid nohup bash run.sh > run.log 2>&1 < /dev/null &
echo \$! > run.pid
START
}

pack() { # archive the sources as they are on disk, without what git ignores in a checkout
  if [[ -e $repo/.git ]]; then
    # shellcheck disable=SC2016  # $1 and $2 belong to the inner shell
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
    # shellcheck disable=SC2064  # expand the folder's name now, not at exit
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
  until on_workers all "mkdir -p $remote"; do # a new VM refuses connections for a while
    ((++tries < 6)) || fail "cannot connect to the workers of $name; check --status and launch again" 1
    sleep "$poll_seconds"
  done
  run gcloud compute tpus tpu-vm scp "${files[@]}" "$name:$remote/" "${where[@]}" --worker all
  on_workers all "bash $remote/setup.sh"
  on_workers all "bash $remote/start.sh"
  say "Started on all workers. Use --status to check them, --logs to collect their output and --stop to stop them."
}

# ---------------------------------------------------------------------------------------------------------------- modes

follow() {
  say "Following the first worker's output; Ctrl-C stops following, not the run."
  trap 'say "The run continues."' INT
  on_workers 0 "tail -n +1 -F --pid=\$(cat $remote/run.pid) $remote/run.log" || true
  trap - INT
}

collect() {
  local addresses count=1 worker missing=()
  run mkdir -p "$log_folder"
  if ! $dry_run; then
    addresses=$(tpu tpu-vm describe "$name" --format 'value(networkEndpoints[].ipAddress)') || fail "there is no TPU VM named $name" 1
    count=$(printf '%s' "$addresses" | tr ';,\t' '[\n*]' | grep -c .) || fail "the TPU VM $name has no workers yet; wait until --status says READY" 1
  else
    say "+ # for every worker:"
  fi
  for ((worker = 0; worker < count; worker++)); do
    # Copy to a temporary name, so that an interruption leaves the earlier log intact.
    if run gcloud compute tpus tpu-vm scp "$name:$remote/run.log" "$log_folder/worker-$worker.log.part" "${where[@]}" --worker "$worker"; then
      run mv -f "$log_folder/worker-$worker.log.part" "$log_folder/worker-$worker.log"
    else
      missing+=("$worker")
    fi
  done
  if ((${#missing[@]})); then fail "no log from worker ${missing[*]}; the logs of the others are in $log_folder" 1; fi
  say "Logs of $count workers are in $log_folder."
}

status() {
  local report="cd $remote 2>/dev/null || { echo 'nothing is installed'; exit; }
if [ -f run.status ]; then echo \"ended with status \$(cat run.status)\"
elif [ -f run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null; then echo \"running\"
elif [ -f run.pid ]; then echo \"lost: killed, or the machine was restarted\"
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
  if [[ -n $queue ]] || { $dry_run && $queued; }; then # deletes its VM too
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
  stop) on_workers all "kill -TERM \$(cat $remote/run.pid) && echo 'sent SIGTERM' || echo 'nothing is running'" ;;
  delete) delete ;;
esac
