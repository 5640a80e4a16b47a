#!/usr/bin/env bash
# A day on a GPU, in stages that each end within nine minutes and can be run alone and again:
#
#   benchmarks/gpu_day.sh correct           build, the whole test suite on the GPU, compute-sanitizer
#   benchmarks/gpu_day.sh fast              operators and train steps against their rivals, with clocks and versions
#   benchmarks/gpu_day.sh robust DATA_DIR   train every recipe on an image folder (train/, test/), evaluate; again: goes on
#
# Uses the python3 on PATH, whose torch sees the GPU. Raw output goes to $OUT, or to benchmarks/results/<device>-<date>.
set -uo pipefail
cd "$(dirname "$0")/.."
stage=${1:?correct, fast or robust}
device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr ' /' '--' | tr '[:upper:]' '[:lower:]')
out=${OUT:-benchmarks/results/$device-$(date +%F)}
mkdir -p "$out"
touch "$out/started"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
unset TRITON_INTERPRET

context() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu --format=csv
  python3 -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, "CUDA", torch.version.cuda)'
  git log -1 --format='commit %h' 2>/dev/null
}

build() {
  capability=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  TORCH_CUDA_ARCH_LIST=$capability RMCLA_WITH_CUDA=1 MAX_JOBS=$(nproc) python3 setup.py -q build_ext --inplace
}

correct() {
  time build || return 1
  python3 -m rmcla_fast.cli info
  timeout 240 python3 -m pytest tests -q -x --maxfail=20 -m gpu -p no:cacheprovider
  timeout 60 python3 -m pytest tests/test_perturb_step.py tests/test_random_start.py tests/test_joint_gradient.py -q -p no:cacheprovider
  for tool in memcheck racecheck initcheck; do
    echo "== compute-sanitizer $tool"
    timeout 60 compute-sanitizer --tool "$tool" --error-exitcode 9 python3 benchmarks/sanitize.py
  done
}

fast() {
  build || return 1
  timeout 200 python3 -m pytest benchmarks -q --benchmark-disable-gc
  step="timeout 110 python3 benchmarks/bench_train_step.py --device cuda --precision bf16 --recipes standard,r-mc-la,r-mc-la+"
  $step --capture cuda-graph --batch 128
  $step --capture cuda-graph --batch 512 --rivals ""
  $step --capture cuda-graph --batch 128 --model wrn-28-10 --rivals ""
  find benchmarks/results -maxdepth 1 -name '*.json' -newer "$out/started" -exec mv {} "$out" ';'
}

# Ends in time by itself: each run checkpoints, and the next call of this stage takes up where this one was stopped.
robust() {
  data=${1:?the image folder with train/ and test/}
  build || return 1
  runs=${RUNS:-local/gpu-runs}
  end=$((SECONDS + 500))
  for seed in 0 1 2; do
    for entry in r-mc-la+ standard n-fgsm fgsm-rs r-mc-la madry-pgd7-2 n-mc-la n-fgsm-la n-fgsm-la:30 r-mc r-mc-la9+ r-mosa-la+; do
      recipe=${entry%%:*} beta=9
      [ "$entry" = "$recipe" ] || beta=${entry#*:}
      run=$runs/$recipe-$beta-$seed
      [ -f "$run/done" ] && continue
      left=$((end - SECONDS)); [ "$left" -gt 30 ] || return 0
      timeout --signal=INT "$left" python3 -m rmcla_fast.cli train --data folder --data-dir "$data" --model preact-resnet18 \
        --recipe "$recipe" --beta "$beta" --epsilon 8/255 --epochs 30 --schedule one-cycle --lr 0.2 --batch-size 128 --precision bf16 \
        --augment --seed "$seed" --out "$run" --resume || return 0
      left=$((end - SECONDS)); [ "$left" -gt 30 ] || return 0
      timeout --signal=INT "$left" python3 -m rmcla_fast.cli evaluate "$run" --attacks clean,fgsm,ce20,cw100 \
        --json "$out/$recipe-$beta-$seed.json" || return 0
      left=$((end - SECONDS)); [ "$left" -gt 30 ] || return 0
      timeout --signal=INT "$left" python3 -m rmcla_fast.cli evaluate "$run" --attacks clean,autoattack --images 1000 \
        --json "$out/$recipe-$beta-$seed-autoattack.json" || return 0
      python3 -m rmcla_fast.cli gradients "$run" --images 1000 | tail -5
      touch "$run/done"
    done
  done
}

{ context; "$stage" "${@:2}"; context; } 2>&1 | tee "$out/$stage.log"
