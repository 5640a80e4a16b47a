#!/usr/bin/env bash
# Measure a GPU in a quarter of an hour, in two runs: facts and train, or screen and champion. The other stages are for
# when there is more time:
#
#   benchmarks/gpu_quarter.sh facts              run every GPU test, and time the step, Inductor's options and the operators
#   benchmarks/gpu_quarter.sh train [RECIPE...]  train each recipe on images, then attack all models at the same time
#   benchmarks/gpu_quarter.sh screen             time the one-step recipes, train each candidate briefly, and attack it
#   benchmarks/gpu_quarter.sh champion           train the best of them for longer by the same protocol; AutoAttack
#   benchmarks/gpu_quarter.sh sanitize           run compute-sanitizer on every operator
#   benchmarks/gpu_quarter.sh operators          time every operator for every size
#   benchmarks/gpu_quarter.sh step NETWORK       time the step of preact-512, wrn or resnet50
#   benchmarks/gpu_quarter.sh prepare IMAGES.tar.xz   put what a GPU machine elsewhere lacks into local/gpu
#   benchmarks/gpu_quarter.sh check              check without a GPU that all files, tests and options named here exist
#
# It runs the python3 on PATH, whose torch must see the GPU. `train` reads the folder DATA (train/CLASS/*, test/CLASS/*), or
# unpacks the archive that `prepare` was given. BUDGET is the time for a run in seconds. When it is used up, the step that
# runs is stopped as by Ctrl-C, and the results so far are kept. All raw output is one archive, $OUT/raw.tgz, which is
# written again after every step; benchmarks/gpu_report.py makes tables of it. The last line names what failed, and the exit
# code is then 1. To rehearse without a GPU, set DEVICE=cpu, and the other variables in capitals to what a CPU can do.
set -uo pipefail
usage() {
  echo "$1"
  exit 2
}
stages="facts, train, screen, champion, sanitize, operators, step, prepare and check"
absolute() { realpath -m -- "$1"; }
stage=${1:-}
[ -n "$stage" ] || usage "the stage is missing; give one of $stages"
shift
case $stage in facts | train | champion) budget=330 ;; *) budget=570 ;; esac
budget=${BUDGET:-$budget} device=${DEVICE:-cuda}
[[ $budget =~ ^[1-9][0-9]*$ ]] || usage "BUDGET must be a whole number of seconds, at least 1; got '$budget'"
[[ $device =~ ^(cuda|cpu)$ ]] || usage "DEVICE must be cuda or cpu; got '$device'"
[ "$stage" = prepare ] && [ $# -gt 0 ] && set -- "$(absolute "$1")"
work=$(absolute "${WORK:-/tmp/rmcla-gpu}")
OUT=$(absolute "${OUT:-$work/out}")
here=$(dirname "$0")/..
gpu=$(absolute "${GPU_FOLDER:-$here/local/gpu}")
[ -z "${DATA:-}" ] || DATA=$(absolute "$DATA")
[ -z "${DATA:-}" ] || [ -d "$DATA" ] || usage "there is no folder DATA=$DATA"
cd "$here" || exit 1
raw=$work/raw
failed=()
declare -A warming # process ids of the benchmarks that wait for their turn
# Options of Inductor and cuDNN for the step. NAME-2 is NAME in a second process, because processes differ by 5 %.
variants=${VARIANTS:-default combo-kernels default-2 combo-kernels-2 default-3 combo-kernels-3}
for name in $variants; do
  case ${name%-[2-9]} in
    default | combo-kernels | cooperative-reductions | combo-kernels-cooperative-reductions | pdl | no-cudnn-benchmark) ;;
    *) usage "VARIANTS knows no '$name'" ;;
  esac
done
operator_files=$(echo benchmarks/bench_{augment,random_start,perturb_step,joint_gradient,soft_cross_entropy}.py)
bench="python3 benchmarks/bench_train_step.py --device $device --precision bf16 --channels-last --no-memory"
[ "$device" = cpu ] && bench+=" --capture compile"
pytest="python3 -m pytest -q --tb=short -p no:cacheprovider -rfEs --maxfail=60"

# Print the selections of tests that run at the same time: name, number of processes, arguments of pytest. The test of a
# capture that fails on purpose may end its process, so it has a process of its own.
test_selections() {
  cat <<'S'
device 0 tests/test_cuda_device.py
cuda 6 tests -m gpu --ignore=tests/test_cuda_device.py --ignore=tests/test_step_cuda.py
triton 6 tests -k triton --ignore=tests/test_cuda_device.py --ignore=tests/test_triton_aot.py --ignore=tests/test_triton_jit.py
step 3 tests/test_step_cuda.py --deselect=tests/test_step_cuda.py::test_a_capture_that_breaks_leaves_nothing_behind
broken 0 tests/test_step_cuda.py::test_a_capture_that_breaks_leaves_nothing_behind
S
}

archive() { tar -C "$raw" -czf "$OUT/raw.tgz" .; }

# Print the seconds that are left, but at most $1 and at least 1.
seconds_left() {
  local rest=$((budget - SECONDS))
  [ "$rest" -lt "$1" ] || rest=$1
  [ "$rest" -gt 1 ] || rest=1
  echo "$rest"
}

# Succeed if less than five seconds are left, in which not even Python starts; report this, and count $1 as failed.
no_time() {
  [ "$(seconds_left 5)" -lt 5 ] || return 1
  echo "== $1: no time is left"
  failed+=("$1: no time")
}

# Run a command for at most $1 seconds. By default a shell's background processes ignore Ctrl-C.
run_limited() { env --default-signal=INT timeout --signal=INT --kill-after=10 "$@"; }

# Run a step, the command $3..., for at most $2 seconds, with its output in the log file of its name $1.
step() {
  local name=$1 limit status
  no_time "$name" && return 1
  limit=$(seconds_left "$2")
  shift 2
  echo "== $SECONDS s, at most $limit s: $name"
  run_limited "$limit" "$@" >"$raw/$name.log" 2>&1
  status=$?
  tail -n 25 "$raw/$name.log" | cut -c1-180
  [ "$status" = 0 ] || failed+=("$name: $status")
  archive
  return "$status"
}

# Start a benchmark of the step. It compiles and captures now, and starts timing when `time_step` allows it.
warm_step() {
  local name=$1
  no_time "step-$name" && return
  shift
  # shellcheck disable=SC2086
  TORCHINDUCTOR_COMPILE_THREADS=4 $bench "$@" ${BENCH:-} --output "$raw/step-$name" --wait-for "$work/$name.go" \
    >"$raw/step-$name.log" 2>&1 &
  warming[$name]=$!
}

# Give the report of a benchmark of the step the name of the benchmark.
rename_report() {
  mv -f "$raw/step-$1"/*.json "$raw/step-$1.json" 2>/dev/null && rmdir "$raw/step-$1"
}

# Wait until every benchmark of the step is warm. One that takes too long is killed, because it would disturb the others.
wait_until_warm() {
  local name until=$((SECONDS + $(seconds_left "${STEP_LIMIT:-60}")))
  for name in "${!warming[@]}"; do
    while kill -0 "${warming[$name]}" 2>/dev/null && [ ! -f "$work/$name.warm" ] && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
    [ -f "$work/$name.warm" ] || kill "${warming[$name]}" 2>/dev/null
  done
  echo "== $SECONDS s: ready to be timed: $(cd "$work" && shopt -s nullglob && echo *.warm)"
}

# Let a benchmark of the step, $1, time for at most $2 seconds, and print the last $3 lines of its log.
time_step() {
  local name=$1 until pid=${warming[$1]:-}
  [ -n "$pid" ] || return # there was no time to start it
  no_time "step-$name" && {
    kill "$pid" 2>/dev/null
    return
  }
  until=$((SECONDS + $(seconds_left "$2")))
  echo "== $SECONDS s, until $until s: step-$name"
  touch "$work/$name.go"
  while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
  kill "$pid" 2>/dev/null
  wait "$pid" || failed+=("step-$name: $?")
  rename_report "$name"
  tail -n "$3" "$raw/step-$name.log" | cut -c1-150
  archive
}

tests() {
  local name processes arguments names=() pids=() number
  no_time tests && return
  echo "== $SECONDS s: all tests of the GPU"
  while read -r name processes arguments; do
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2 run_limited "$(seconds_left "${TESTS_LIMIT:-170}")" \
      $pytest $arguments -n "$processes" --dist worksteal ${TESTS:-} >"$raw/tests-$name.log" 2>&1 </dev/null &
    names+=("$name") pids+=($!)
  done < <(test_selections)
  for number in "${!pids[@]}"; do
    wait "${pids[number]}" || failed+=("tests-${names[number]}: $?")
    echo "== $SECONDS s: tests-${names[number]}"
    grep -vE "^\\.|^$" "$raw/tests-${names[number]}.log" | tail -n 14 | cut -c1-200
  done
  archive
}

facts() {
  local name inductor
  unpack_images >"$raw/unpack.log" 2>&1 &
  warm_step main --batch 128 --recipes standard,r-mc-la,r-mc-la+ --rivals port,plain,lean --rounds 10 --profile
  for name in $variants; do
    case ${name%-[2-9]} in
      combo-kernels) inductor=(--inductor combo_kernels=1) ;;
      cooperative-reductions) inductor=(--inductor triton.cooperative_reductions=1) ;;
      combo-kernels-cooperative-reductions) inductor=(--inductor combo_kernels=1,triton.cooperative_reductions=1) ;;
      no-cudnn-benchmark) inductor=(--no-cudnn-benchmark) ;;
      *) inductor=() ;;
    esac
    export TORCHINDUCTOR_ENABLE_PDL=$([ "${name%-[2-9]}" = pdl ] && echo 1 || echo 0)
    warm_step "$name" --batch 128 --recipes r-mc-la --rivals none --rounds 8 "${inductor[@]}"
  done
  unset TORCHINDUCTOR_ENABLE_PDL
  tests
  wait_until_warm
  time_step main 60 70
  if [ ! -f "$raw/step-main.json" ]; then # measure at least a step that is not captured
    # shellcheck disable=SC2086
    step step-uncaptured 90 $bench --capture compile --batch 128 --recipes standard,r-mc-la --rivals plain --rounds 8 \
      ${BENCH:-} --output "$raw/step-uncaptured"
    rename_report uncaptured
  fi
  # shellcheck disable=SC2086
  step operators 80 python3 -m pytest -q $operator_files -m compact --benchmark-disable-gc --references-for 25 \
    --rows "$raw/operators.json" ${OPERATORS:-}
  for name in $variants; do time_step "$name" 20 8; done
  name=$(tail -n 1 "$raw/unpack.log")
  echo "== images for train: ${name:-not unpacked yet}"
}

# Print how many epochs, at most 30, leave half of the time for the attacks, given the time of a step in `facts`.
choose_epochs() {
  python3 - "$raw" "$(seconds_left 9999)" "$#" <<'P'
import json, pathlib, statistics, sys

found = pathlib.Path(sys.argv[1], "step-main.json")
step = statistics.median(json.loads(found.read_text())["seconds"]["r-mc-la+ step"]["wall"]) if found.exists() else 0.006
seconds = float(sys.argv[2]) / 2 / int(sys.argv[3]) - 15
print(max(1, min(30, int(seconds / (391 * step + 0.7)))))
P
}

# Exit with a message if there is no recipe of one of these names.
check_recipes() {
  python3 -c 'import sys
from rmcla_fast import recipes
for name in sys.argv[1:]:
    try: recipes.get(name)
    except ValueError as error: sys.exit(str(error))' "$@" || exit 2
}

train() {
  local recipe name count pids=() attacked=() rmcla="python3 -m rmcla_fast.cli"
  [ $# -gt 0 ] || set -- r-mc-la+ n-fgsm
  unpack_images || {
    failed+=("unpack: $?")
    return 1
  }
  count=${EPOCHS:-$(choose_epochs "$@")}
  echo "== $SECONDS s: train each recipe for $count epochs"
  for recipe; do
    name=${recipe//+/-plus}
    no_time "train-$name" && continue # the results of an earlier run are kept
    rm -rf "$work/runs/$name"
    # shellcheck disable=SC2086
    step "train-$name" 150 $rmcla train --data folder --data-dir "$DATA" --model preact-resnet18 --recipe "$recipe" \
      --epsilon 8/255 --epochs "$count" --schedule one-cycle --lr 0.2 --weight-decay 5e-4 --batch-size 128 \
      --precision bf16 --augment --ema 0.999 --monitor-images 1000 --monitor-every 5 --checkpoint-every 0 \
      --out "$work/runs/$name" ${TRAIN:-}
    for file in config.json metrics.jsonl curves.png; do cp "$work/runs/$name/$file" "$raw/$name-$file" 2>/dev/null; done
  done
  for recipe; do
    name=${recipe//+/-plus}
    [ -f "$work/runs/$name/checkpoint.pt" ] || continue # its training failed
    no_time "evaluate-$name" && continue
    attack "$name" >"$raw/evaluate-$name.log" 2>&1 &
    pids+=($!) attacked+=("$name")
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed+=("an evaluation: $?"); done
  for name in "${attacked[@]}"; do tail -n 20 "$raw/evaluate-$name.log" | cut -c1-160; done
}

# Attack a model, first with what takes only seconds, so that there are results if the time ends before AutoAttack does.
attack() {
  local attacks
  # Each command goes on from the one before it, so AutoAttack does not repeat APGD.
  for attacks in clean,fgsm,ce20,cw100 clean,fgsm,ce20,cw100,apgd clean,fgsm,ce20,cw100,apgd,autoattack; do
    no_time "$attacks" && return 1
    # shellcheck disable=SC2086
    run_limited "$(seconds_left 999)" python3 -m rmcla_fast.cli evaluate "$work/runs/$1" --attacks "$attacks" \
      --images 500 --batch-size 500 --epsilon 8/255 --json "$raw/$1-evaluation.json" ${EVALUATE:-} || return
    archive
  done
}

new_tests=$(echo tests/test_{recipe_changes,soft_cross_entropy,slots,apgd,fab,square,hardly_finite}.py)
# Tests of what no GPU has run yet, side by side with the other preparations.
screen_tests() {
  # shellcheck disable=SC2086
  OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2 run_limited "$(seconds_left 100)" \
    $pytest ${SCREEN_TESTS:-$new_tests} -m gpu -n 6 --dist worksteal >"$raw/tests-screen.log" 2>&1
}

# Run the study of one-step recipes on this device, with all images. $1 is the name of the result.
study() {
  local name=$1
  shift
  # shellcheck disable=SC2086
  step "$name" 999 python3 benchmarks/one_step_study.py --device "$device" --data-dir "$DATA" --runs "$work/$name" \
    --out "$raw/$name" --model resnet18 --images-per-class 0 --ema 0.999 --precision bf16 --monitor-images 1000 \
    --batch-size 1000 "$@" ${STUDY:-}
  for log in "$work/$name"/*.log; do cp "$log" "$raw/$name-${log##*/}" 2>/dev/null; done
  archive
}

screen() {
  local unpacking testing
  unpack_images >"$raw/unpack.log" 2>&1 &
  unpacking=$!
  screen_tests &
  testing=$!
  wait "$unpacking" || {
    failed+=("unpack: $?")
    return 1
  }
  DATA=${DATA:-$work/data}
  TORCHINDUCTOR_COMPILE_THREADS=4 study screen --epochs 16 --monitor-every 8 --workers 3 --images 1000 --kinds average \
    --attacks clean,ce20,cw100 --variants n-fgsm "silu, hard labels" silu \
    "n-fgsm, smoothed" "n-fgsm-la, beta 30" "batch statistics"
  wait "$testing" || failed+=("tests-screen: $?")
  tail -n 14 "$raw/tests-screen.log" | cut -c1-200
  archive
}

# Train the candidate that withstood CW100 best, among those of five passes and the protocol's network. Attack its best
# checkpoint, and time the step of such recipes in the time that is left.
champion() {
  local best attacks run recipes=standard,n-fgsm,r-mc-la
  unpack_images >"$raw/unpack.log" 2>&1 || {
    failed+=("unpack: $?")
    return 1
  }
  best=$(best_candidate) || best=n-fgsm
  echo "== the best candidate: $best"
  study champion --variants "$best" --epochs "${EPOCHS:-100}" --ema 0.9995 --monitor-every 5 --workers 1 --images 1000 \
    --kinds best --attacks clean
  run=$(echo "$work"/champion/*/checkpoint.pt)
  for file in config.json metrics.jsonl curves.png; do cp "${run%/checkpoint.pt}/$file" "$raw/champion-$file" 2>/dev/null; done
  for attacks in clean,ce20,cw100 clean,ce20,cw100,apgd clean,ce20,cw100,apgd,autoattack; do
    # shellcheck disable=SC2086
    step "champion-evaluation" $(($(seconds_left 999) - ${STEP_SECONDS:-70})) python3 -m rmcla_fast.cli evaluate \
      "${run%/checkpoint.pt}" --which best --attacks "$attacks" --images 1000 --batch-size 1000 --epsilon 8/255 \
      --json "$raw/champion-evaluation.json" ${EVALUATE:-} || break
  done
  warm_step recipes --model "${MODEL:-resnet18}" --batch 128 --recipes "$recipes" --rivals fastat --rounds 10
  wait_until_warm
  time_step recipes 40 40
}

best_candidate() {
  python3 - "$raw/screen.json" <<'P'
import json, sys

found = json.load(open(sys.argv[1]))["results"]
fair = [r for r in found if r["passes"] == 5 and "model" not in r["options"] and "cw100" in r["attacks"]["average"]]
print(max(fair, key=lambda r: r["attacks"]["average"]["cw100"]["accuracy"])["variant"])
P
}

sanitize() {
  step sanitize-alone 120 python3 benchmarks/sanitize.py # without the tool first, because Triton keeps what it compiles
  for tool in memcheck racecheck initcheck; do
    # Without PyTorch's cache each tensor is a separate allocation, so that the tool notices accesses beyond its end.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "sanitize-$tool" 300 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 python3 benchmarks/sanitize.py
  done
}

operators() {
  # shellcheck disable=SC2086
  step operators 560 python3 -m pytest -q $operator_files --benchmark-disable-gc --rows "$raw/operators.json"
}

network_step() {
  # shellcheck disable=SC2086
  step "step-$1" 560 $bench $network --output "$raw/step-$1"
  rename_report "$1"
}

# Set $network to the options of the benchmark for a network's step.
choose_network() {
  local rest="--recipes standard,r-mc-la,r-mc-la+ --rivals plain,lean --rounds 10 --profile"
  case ${1:-} in
    preact-512) network="--model preact-resnet18 --batch 512 $rest" ;;
    wrn) network="--model wrn-28-10 --batch 128 $rest" ;;
    resnet50) # only two recipes, because each captured step keeps its memory
      network="--model resnet50 --batch 256 --size 224 --classes 1000 --recipes standard,r-mc-la --rivals none --rounds 5 --profile"
      ;;
    *) usage "there is no network '${1:-}'; give one of preact-512, wrn and resnet50" ;;
  esac
}

. benchmarks/gpu_setup.sh
case $stage in
  prepare) prepare "$@" ;;
  check) check ;;
  facts | sanitize | operators) get_ready && "$stage" "$@" ;;
  train) check_recipes "$@" && get_ready && train "$@" ;;
  screen | champion) get_ready && "$stage" ;;
  step) choose_network "$@" && get_ready && network_step "$@" ;;
  *) usage "there is no stage '$stage'; give one of $stages" ;;
esac
[ -d "$raw" ] && [ -d "$OUT" ] && archive
reasons=$(printf '; %s' "${failed[@]:-nothing}")
echo "== $stage ended after $SECONDS s; failed: ${reasons#; }"
[ ${#failed[@]} = 0 ]
