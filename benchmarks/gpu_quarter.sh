#!/usr/bin/env bash
# A quarter of an hour on a GPU, in two runs, and what is worth doing when there is more time:
#
#   benchmarks/gpu_quarter.sh facts              every GPU test; the step, Inductor's options and the operators, timed
#   benchmarks/gpu_quarter.sh train [RECIPE...]  train each recipe on images, then attack all of them at once
#   benchmarks/gpu_quarter.sh sanitize           compute-sanitizer over every operator
#   benchmarks/gpu_quarter.sh operators          every size of every operator
#   benchmarks/gpu_quarter.sh step NETWORK       the step of preact-512, wrn or resnet50
#   benchmarks/gpu_quarter.sh prepare IMAGES.tar.xz   for a GPU that is elsewhere: put all that it lacks into local/gpu
#   benchmarks/gpu_quarter.sh check              without a GPU: the files, selections and options named here are there
#
# The python3 on PATH is used; its torch must see the GPU. `train` reads the folder DATA (train/CLASS/*, test/CLASS/*), or
# unpacks what `prepare` was given. BUDGET is the time for a run in seconds: each step is stopped, as Ctrl-C does, when it is
# used up, and what was found before is kept. All raw output is one archive, $OUT/raw.tgz, written anew after every step;
# benchmarks/gpu_report.py makes tables of it. What failed stands in the last line and makes the exit code 1. To rehearse
# without a GPU: DEVICE=cpu, and the other variables in capitals with what a CPU can do.
set -uo pipefail
usage() {
  echo "$1"
  exit 2
}
stages="facts, train, sanitize, operators, step, prepare and check"
absolute() { realpath -m -- "$1"; }
stage=${1:-}
[ -n "$stage" ] || usage "the stage is missing; give one of $stages"
shift
case $stage in facts | train) budget=330 ;; *) budget=570 ;; esac
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
declare -A warming  # process ids of the benchmarks that wait for their turn
# The step with Inductor's options and cuDNN's choice. NAME-2 is NAME in a second process, since processes differ by 5 %.
variants=${VARIANTS:-default combo-kernels default-2 combo-kernels-2 default-3 combo-kernels-3}
for name in $variants; do
  case ${name%-[2-9]} in
    default | combo-kernels | cooperative-reductions | combo-kernels-cooperative-reductions | pdl | no-cudnn-benchmark) ;;
    *) usage "VARIANTS knows no '$name'" ;;
  esac
done
operator_files=$(echo benchmarks/bench_{perturb_step,random_start,joint_gradient,soft_cross_entropy,augment}.py)
bench="python3 benchmarks/bench_train_step.py --device $device --precision bf16 --channels-last --no-memory"
[ "$device" = cpu ] && bench+=" --capture compile"
pytest="python3 -m pytest -q --tb=short -p no:cacheprovider -rfEs --maxfail=60"

# Selections of tests, which run side by side: name, processes, pytest's arguments. A capture that breaks on purpose may
# take its process with it, and has one of its own.
selections() {
  cat <<'S'
device 0 tests/test_cuda_device.py
cuda 6 tests -m gpu --ignore=tests/test_cuda_device.py --ignore=tests/test_step_cuda.py
triton 6 tests -k triton --ignore=tests/test_cuda_device.py --ignore=tests/test_triton_aot.py --ignore=tests/test_triton_jit.py
step 3 tests/test_step_cuda.py --deselect=tests/test_step_cuda.py::test_a_capture_that_breaks_leaves_nothing_behind
broken 0 tests/test_step_cuda.py::test_a_capture_that_breaks_leaves_nothing_behind
S
}

archive() { tar -C "$raw" -czf "$OUT/raw.tgz" .; }

left() { # seconds, at most $1 and at least 1
  local rest=$((budget - SECONDS))
  [ "$rest" -lt "$1" ] || rest=$1
  [ "$rest" -gt 1 ] || rest=1
  echo "$rest"
}

# Whether too little time is left for anything, not even for Python to start; it is said, and counts as failed.
no_time() {
  [ "$(left 5)" -lt 5 ] || return 1
  echo "== $1: no time is left"
  failed+=("$1: no time")
}

# Runs a command for so many seconds at most. What a shell starts in the background ignores Ctrl-C, if it is not told.
limited() { env --default-signal=INT timeout --signal=INT --kill-after=10 "$@"; }

# The same in the foreground, its output in a log of its own.
step() {
  local name=$1 limit status
  no_time "$name" && return 1
  limit=$(left "$2")
  shift 2
  echo "== $SECONDS s, at most $limit s: $name"
  limited "$limit" "$@" >"$raw/$name.log" 2>&1
  status=$?
  tail -n 25 "$raw/$name.log" | cut -c1-180
  [ "$status" = 0 ] || failed+=("$name: $status")
  archive
  return "$status"
}

begin() {
  if ! python3 -c "import torch, triton, numpy, pytest, rich, typer"; then
    echo "python3 lacks a package; see the line above"
    exit 1
  fi
  [ "$device" != cuda ] || sees_gpu || exit 1
  [ "$stage" != facts ] || rm -rf "$raw" # of an earlier day; a training adds to the facts
  mkdir -p "$raw" "$OUT" || exit 1
  rm -f "$work"/*.go "$work"/*.warm
  export OUT PYTHONUNBUFFERED=1 PYTHONPATH=$PWD:$gpu/packages COMMIT=${COMMIT:-$(cat "$gpu/commit" 2>/dev/null)}
  unset TRITON_INTERPRET
  trap 'kill $(jobs -p) 2>/dev/null; archive' EXIT
  [ "$device" = cpu ] || nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu --format=csv,noheader \
    -lms 500 >"$raw/$stage-clocks.csv" 2>/dev/null &
  python3 -c 'import os, torch, triton, numpy
print("torch", torch.__version__, "triton", triton.__version__, "numpy", numpy.__version__, os.cpu_count(), "cores")'
  echo "commit ${COMMIT:-unknown}"
  kernels || bring || build
}

# Whether torch sees a GPU; if not, the reason is the one that it gives where it is made to start.
sees_gpu() {
  local reason
  reason=$(python3 -W ignore -c 'import sys, torch
if not torch.cuda.is_available():
    try: torch.cuda.init()
    except Exception as error: print(" ".join(str(error).split()).rstrip("."))
    sys.exit(1)') && return
  echo "python3's torch sees no GPU (${reason:-it does not say why}); DEVICE=cpu rehearses without one"
  return 1
}

# The extension that `prepare` brought, if it loads here. If not, what was there before is there again: a file cut short
# would end every later command with a bus error.
bring() {
  local suffix own
  suffix=$(python3 -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
  own=rmcla_fast/_C$suffix
  [ -f "$gpu/_C$suffix" ] || return 1
  rm -f "$own.before"
  [ ! -f "$own" ] || mv "$own" "$own.before"
  cp "$gpu/_C$suffix" "$own" && kernels && rm -f "$own.before" && return
  rm -f "$own"
  [ ! -f "$own.before" ] || mv "$own.before" "$own"
  echo "== the extension in $gpu does not load here: this machine builds its own"
  return 1
}

build() {
  local capability='' cuda=0
  if [ "$device" = cuda ]; then
    cuda=1
    capability=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  fi
  TORCH_CUDA_ARCH_LIST=$capability RMCLA_WITH_CUDA=$cuda MAX_JOBS=$(nproc) step build 120 python3 setup.py -q build_ext --inplace
  kernels || echo "== there are no compiled kernels for $device: Triton's run on a GPU, the plain ones on a CPU"
}

kernels() { # with a log, since an extension that is cut short ends Python, and the shell reports that
  {
    python3 -c 'import sys
from rmcla_fast.ops import extension as native
print("kernels:", native.build_config or native.missing_reason)
sys.exit(not native.has_kernels(sys.argv[1]))' "$device"
  } 2>>"$raw/kernels.log"
}

# The images, unpacked and packed; the folder is in $DATA.
unpack() {
  local said=
  if [ -z "${DATA:-}" ]; then
    DATA=$work/data
    if [ ! -f "$DATA/unpacked" ]; then
      [ -f "$gpu/images.tar.xz" ] || {
        echo "there are no images: give DATA=FOLDER, or prepare IMAGES.tar.xz"
        return 1
      }
      mkdir -p "$DATA" && said=$(tar -C "$DATA" --touch -xf "$gpu/images.tar.xz" 2>&1) && touch "$DATA/unpacked" || {
        rm -rf "$DATA" # half of the images would pass for all of them
        echo "$gpu/images.tar.xz cannot be unpacked (${said%%$'\n'*}): prepare it again"
        return 1
      }
    fi
  fi
  nice python3 -c 'import sys
from rmcla_fast import data
from rmcla_fast.errors import UserError
try: print(len(data.load("folder", sys.argv[1]).train), "images")
except UserError as error: sys.exit(str(error))' "$DATA"
}

# Starts a benchmark of the step that compiles and captures now, and is timed when `time_step` says so.
warm_step() {
  local name=$1
  no_time "step-$name" && return
  shift
  # shellcheck disable=SC2086
  TORCHINDUCTOR_COMPILE_THREADS=4 $bench "$@" ${BENCH:-} --output "$raw/step-$name" --wait-for "$work/$name.go" \
    >"$raw/step-$name.log" 2>&1 &
  warming[$name]=$!
}

# The report of a benchmark of the step, by the benchmark's name.
collect() {
  mv -f "$raw/step-$1"/*.json "$raw/step-$1.json" 2>/dev/null && rmdir "$raw/step-$1"
}

# Waits until every benchmark of the step is warm; one that is not in time goes, since it would disturb the others.
wait_until_warm() {
  local name until=$((SECONDS + $(left "${STEP_LIMIT:-60}")))
  for name in "${!warming[@]}"; do
    while kill -0 "${warming[$name]}" 2>/dev/null && [ ! -f "$work/$name.warm" ] && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
    [ -f "$work/$name.warm" ] || kill "${warming[$name]}" 2>/dev/null
  done
  echo "== $SECONDS s: warm are $(cd "$work" && shopt -s nullglob && echo *.warm)"
}

time_step() {
  local name=$1 until pid=${warming[$1]:-}
  [ -n "$pid" ] || return # there was no time to start it
  no_time "step-$name" && {
    kill "$pid" 2>/dev/null
    return
  }
  until=$((SECONDS + $(left "$2")))
  echo "== $SECONDS s, until $until s: step-$name"
  touch "$work/$name.go"
  while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
  kill "$pid" 2>/dev/null
  wait "$pid" || failed+=("step-$name: $?")
  collect "$name"
  tail -n "$3" "$raw/step-$name.log" | cut -c1-150
  archive
}

tests() {
  local name processes arguments names=() pids=() number
  no_time tests && return
  echo "== $SECONDS s: every test of the GPU"
  while read -r name processes arguments; do
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2 limited "$(left "${TESTS_LIMIT:-170}")" \
      $pytest $arguments -n "$processes" --dist worksteal ${TESTS:-} >"$raw/tests-$name.log" 2>&1 </dev/null &
    names+=("$name") pids+=($!)
  done < <(selections)
  for number in "${!pids[@]}"; do
    wait "${pids[number]}" || failed+=("tests-${names[number]}: $?")
    echo "== $SECONDS s: tests-${names[number]}"
    grep -vE "^\\.|^$" "$raw/tests-${names[number]}.log" | tail -n 14 | cut -c1-200
  done
  archive
}

facts() {
  local name inductor
  unpack >"$raw/unpack.log" 2>&1 &
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
  if [ ! -f "$raw/step-main.json" ]; then # then at least without the capture
    # shellcheck disable=SC2086
    step step-uncaptured 90 $bench --capture compile --batch 128 --recipes standard,r-mc-la --rivals plain --rounds 8 \
      ${BENCH:-} --output "$raw/step-uncaptured"
    collect uncaptured
  fi
  # shellcheck disable=SC2086
  step operators 80 python3 -m pytest -q $operator_files -m compact --benchmark-disable-gc --references-for 25 \
    --rows "$raw/operators.json" ${OPERATORS:-}
  for name in $variants; do time_step "$name" 20 8; done
  name=$(tail -n 1 "$raw/unpack.log")
  echo "== for train: ${name:-the images are not unpacked yet}"
}

# As many epochs as leave half of the time to the attacks, by what a step took in `facts`; 30 at the most.
epochs() {
  python3 - "$raw" "$(left 9999)" "$#" <<'P'
import json, pathlib, statistics, sys

found = pathlib.Path(sys.argv[1], "step-main.json")
step = statistics.median(json.loads(found.read_text())["seconds"]["r-mc-la+ step"]["wall"]) if found.exists() else 0.006
seconds = float(sys.argv[2]) / 2 / int(sys.argv[3]) - 15
print(max(1, min(30, int(seconds / (391 * step + 0.7)))))
P
}

known_recipes() {
  python3 -c 'import sys
from rmcla_fast import recipes
for name in sys.argv[1:]:
    try: recipes.get(name)
    except ValueError as error: sys.exit(str(error))' "$@" || exit 2
}

train() {
  local recipe name count pids=() attacked=() rmcla="python3 -m rmcla_fast.cli"
  [ $# -gt 0 ] || set -- r-mc-la+ n-fgsm
  unpack || {
    failed+=("unpack: $?")
    return 1
  }
  count=${EPOCHS:-$(epochs "$@")}
  echo "== $SECONDS s: $count epochs of each recipe"
  for recipe; do
    name=${recipe//+/-plus}
    no_time "train-$name" && continue # an earlier run's results stay
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
    [ -f "$work/runs/$name/checkpoint.pt" ] || continue # its training has failed
    no_time "evaluate-$name" && continue
    attack "$name" >"$raw/evaluate-$name.log" 2>&1 &
    pids+=($!) attacked+=("$name")
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed+=("an evaluation: $?"); done
  for name in "${attacked[@]}"; do tail -n 20 "$raw/evaluate-$name.log" | cut -c1-160; done
}

# First what takes seconds, so that it is there when the time ends before AutoAttack does.
attack() {
  local attacks
  for attacks in clean,fgsm,ce20,cw100 clean,fgsm,ce20,cw100,autoattack; do
    no_time "$attacks" && return 1
    # shellcheck disable=SC2086
    limited "$(left 999)" python3 -m rmcla_fast.cli evaluate "$work/runs/$1" --attacks "$attacks" \
      --images 500 --batch-size 500 --epsilon 8/255 --json "$raw/$1-evaluation.json" ${EVALUATE:-} || return
    archive
  done
}

sanitize() {
  step sanitize-alone 120 python3 benchmarks/sanitize.py # by itself first: Triton keeps what it compiles
  for tool in memcheck racecheck initcheck; do
    # Without PyTorch's cache each tensor is an allocation of its own, beyond whose end the tool sees.
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
  collect "$1"
}

# What the benchmark of a network's step is asked for, in $network.
choose_network() {
  local rest="--recipes standard,r-mc-la,r-mc-la+ --rivals plain,lean --rounds 10 --profile"
  case ${1:-} in
    preact-512) network="--model preact-resnet18 --batch 512 $rest" ;;
    wrn) network="--model wrn-28-10 --batch 128 $rest" ;;
    resnet50) # each captured step keeps its memory
      network="--model resnet50 --batch 256 --size 224 --classes 1000 --recipes standard,r-mc-la --rivals none --rounds 5 --profile"
      ;;
    *) usage "there is no network '${1:-}'; give one of preact-512, wrn and resnet50" ;;
  esac
}

prepare() {
  local images=${1:-} built fresh=$gpu.new suffix
  [ -n "$images" ] || usage "prepare takes the archive of the images"
  [ -f "$images" ] || usage "there is no $images"
  tar -tf "$images" >/dev/null 2>&1 || usage "$images is no archive, or cut short"
  rm -rf "$fresh"
  mkdir -p "$fresh/packages" && cp "$images" "$fresh/images.tar.xz" || exit 1
  suffix=$(python3 -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
  built=rmcla_fast/_C$suffix
  if [ -f "$built" ]; then
    strip --strip-unneeded -o "$fresh/_C$suffix" "$built" || exit 1
  else
    echo "no extension is built for this python3 ($suffix): the other machine will build its own"
  fi
  python3 -m pip download -q --no-deps -d "$fresh" pyautoattack==0.2.0 &&
    python3 -m zipfile -e "$fresh"/pyautoattack-*.whl "$fresh/packages" || exit 1
  rm -rf "$fresh"/*.whl "$fresh/packages/pyautoattack/examples" # 42 MB of models
  git describe --always --dirty >"$fresh/commit" 2>/dev/null
  rm -rf "$gpu" && mv "$fresh" "$gpu" && du -sh "$gpu"
  echo "on the other machine, with this folder as local/gpu in the checkout: benchmarks/gpu_quarter.sh facts"
}

check() {
  local name processes arguments collected option help
  export PYTHONPATH=$PWD
  for file in $operator_files benchmarks/{bench_train_step,profile_step,sanitize}.py; do
    [ -f "$file" ] || failed+=("there is no $file")
  done
  while read -r name processes arguments; do
    # shellcheck disable=SC2086
    collected=$(python3 -m pytest -q --collect-only $arguments 2>/dev/null </dev/null | grep -c "::")
    echo "tests-$name: $collected tests"
    [ "$collected" -ge 1 ] || failed+=("the selection $name has no tests")
  done < <(selections)
  help=$(python3 benchmarks/bench_train_step.py --help)
  for option in $(grep -oE ' --[a-z][a-z-]+' <<<"$bench $(declare -f facts warm_step network_step choose_network)" | sort -u); do
    case $option in --benchmark-disable-gc | --references-for | --rows) continue ;; esac
    grep -qE -- "$option\b" <<<"$help" || failed+=("bench_train_step.py has no $option")
  done
  help=$(python3 -m rmcla_fast.cli train --help; python3 -m rmcla_fast.cli evaluate --help)
  for option in $(grep -oE ' --[a-z][a-z-]+' <<<"$(declare -f train attack)" | sort -u); do
    grep -qE -- "$option\b" <<<"$help" || failed+=("rmcla has no $option")
  done
}

case $stage in
  prepare) prepare "$@" ;;
  check) check ;;
  facts | sanitize | operators) begin && "$stage" "$@" ;;
  train) known_recipes "$@" && begin && train "$@" ;;
  step) choose_network "$@" && begin && network_step "$@" ;;
  *) usage "there is no stage '$stage'; give one of $stages" ;;
esac
[ -d "$raw" ] && [ -d "$OUT" ] && archive
reasons=$(printf '; %s' "${failed[@]:-nothing}")
echo "== $stage ended after $SECONDS s; failed: ${reasons#; }"
[ ${#failed[@]} = 0 ]
