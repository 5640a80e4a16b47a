#!/usr/bin/env bash
# A day on a GPU, in stages that each end within nine minutes and can be run alone and again:
#
#   benchmarks/gpu_day.sh operators-tests   build; the operators on every backend, streams, graphs, more than 2^31 elements
#   benchmarks/gpu_day.sh training-tests    the captured update and the captured attack against eager ones
#   benchmarks/gpu_day.sh sanitize          compute-sanitizer's memcheck, racecheck and initcheck over every operator
#   benchmarks/gpu_day.sh operators [NAME]  operators against their rivals and the roof; again: goes on with what is left
#   benchmarks/gpu_day.sh step NETWORK      the update against its rivals, its memory, and its kernels by class, for
#                                           preact-128, preact-512, wrn or resnet50
#   benchmarks/gpu_day.sh robust DATA_DIR   train every recipe on an image folder (train/, test/), evaluate; again: goes on
#
# Uses the python3 on PATH, whose torch sees the GPU; beside torch, triton and nvcc it needs pytest, hypothesis,
# pytest-benchmark, rich and typer. Raw output goes to $OUT, or to benchmarks/results/<device>-<date>.
set -uo pipefail
cd "$(dirname "$0")/.."
stage=${1:?operators-tests, training-tests, sanitize, operators, step or robust}
device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr ' /' '--' | tr '[:upper:]' '[:lower:]')
out=${OUT:-benchmarks/results/$device-$(date +%F)}
mkdir -p "$out"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
unset TRITON_INTERPRET

context() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu --format=csv
  python3 -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, "CUDA", torch.version.cuda)'
  git log -1 --format='commit %h' 2>/dev/null
}

# Runs a command in what is left of the stage's time, stopping it as Ctrl-C does: what it had found it still reports.
within() {
  local left=$((510 - SECONDS))
  [ "$left" -gt 20 ] || { echo "== no time is left for: $*"; return 1; }
  echo "== $SECONDS s: $*"
  timeout --signal=INT --kill-after=15 "$left" "$@"
}

build() {
  capability=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  TORCH_CUDA_ARCH_LIST=$capability RMCLA_WITH_CUDA=1 MAX_JOBS=$(nproc) within python3 setup.py -q build_ext --inplace ||
    echo "== the CUDA kernels are not built: Triton's run"
  python3 -c 'from rmcla_fast import native; print("kernels:", native.build_config or native.missing_reason)'
}

tests() { within python3 -m pytest -q --maxfail=20 -p no:cacheprovider "$@"; }

operators-tests() {
  build
  tests tests/test_cuda_device.py
  parallel=$(python3 -c 'import xdist; print("-n", 8)' 2>/dev/null)  # Triton compiles for every shape and dtype
  # shellcheck disable=SC2086
  tests $parallel -k "(cuda or triton) and not emulated" \
    tests/test_{perturb_step,random_start,augment_start,joint_gradient,redistribute_labels,soft_cross_entropy}.py \
    tests/test_{out,bad_input,compile,backend,label_theory,cuda_elements,cuda_kernels,triton_kernels}.py
}

training-tests() {
  build
  tests -m gpu tests/test_ascent.py tests/test_step_cuda.py
}

sanitize() {
  build
  within python3 benchmarks/sanitize.py  # by itself first: Triton keeps what it compiles
  for tool in memcheck racecheck initcheck; do
    # Without PyTorch's cache each tensor is an allocation of its own, beyond whose end the tool sees.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 within compute-sanitizer --tool "$tool" --error-exitcode 9 python3 benchmarks/sanitize.py
    echo "== $tool: exit code $?"
  done
}

operators() {
  build
  for file in benchmarks/bench_${1:-*}.py; do
    name=$(basename "$file" .py)
    case $name in bench_pgd | bench_train_step) continue ;; esac
    [ -f "$out/$name.json" ] && continue
    within python3 -m pytest "$file" -q --benchmark-disable-gc --benchmark-json="$out/$name.partial" &&
      mv "$out/$name.partial" "$out/$name.json"
  done
}

# The plain rival is the public step under autocast, channels last; the port is the public step in float32 with TF32
# convolutions, fed from the device and from a DataLoader.
step() {
  build
  case ${1:?preact-128, preact-512, wrn or resnet50} in
    preact-128) network="--model preact-resnet18 --batch 128" ;;
    preact-512) network="--model preact-resnet18 --batch 512" ;;
    wrn) network="--model wrn-28-10 --batch 128" ;;
    resnet50) network="--model resnet50 --batch 256 --size 224 --classes 1000" ;;
    *) echo "no such network: $1"; return 2 ;;
  esac
  bench="python3 benchmarks/bench_train_step.py --device cuda --capture cuda-graph --precision bf16 --channels-last --rounds 40"
  profile="python3 benchmarks/profile_step.py --device cuda --precision bf16 --channels-last"
  within $profile $network --recipe r-mc-la
  if [ "$1" = resnet50 ]; then  # each captured step keeps its memory: few at a time
    within $bench $network --recipes standard,r-mc-la --rivals none --no-memory --output "$out/$1"
    within $bench $network --recipes r-mc-la --rivals plain --no-memory --output "$out/$1-plain"
    within $bench --model resnet50 --batch 128 --size 224 --classes 1000 --recipes r-mc-la --rivals port --no-memory \
      --output "$out/$1-port-128"
  else
    within $bench $network --recipes standard,r-mc-la,r-mc-la+ --rivals plain,port,fed --output "$out/$1"
    within $profile $network --recipe standard
  fi
}

# Each run checkpoints, and the next call of this stage takes up where this one was stopped.
robust() {
  data=${1:?the image folder with train/ and test/}
  build
  runs=${RUNS:-local/gpu-runs}
  rmcla="python3 -m rmcla_fast.cli"
  recipes="r-mc-la+ standard n-fgsm fgsm-rs r-mc-la madry-pgd7-2 n-mc-la n-fgsm-la n-fgsm-la:30 r-mc r-mc-la9+ r-mosa-la+"
  {
    for seed in 0 1 2; do for entry in $recipes; do echo "preact-resnet18 $seed $entry"; done; done
    echo "wrn-28-10 0 r-mc-la+"
  } >"$out/robust.list"
  while read -r model seed entry <&3; do
    recipe=${entry%%:*} beta=9
    [ "$entry" = "$recipe" ] || beta=${entry#*:}
    name=$recipe-$beta-$seed
    [ "$model" = preact-resnet18 ] || name=$model-$name
    run=$runs/$name
    [ -f "$run/done" ] && continue
    within $rmcla train --data folder --data-dir "$data" --model "$model" --recipe "$recipe" --beta "$beta" --epsilon 8/255 \
      --epochs 30 --schedule one-cycle --lr 0.2 --batch-size 128 --precision bf16 --augment --seed "$seed" --out "$run" \
      --resume || return 0
    within $rmcla evaluate "$run" --attacks clean,fgsm,ce20,cw100 --json "$out/$name.json" || return 0
    within $rmcla evaluate "$run" --attacks clean,autoattack --images 1000 --json "$out/$name-autoattack.json" || return 0
    within $rmcla gradients "$run" --images 1000 || return 0
    touch "$run/done"
  done 3<"$out/robust.list"
}

{ context; "$stage" "${@:2}"; context; } 2>&1 | tee -a "$out/$stage${2:+-$(basename "$2")}.log"
