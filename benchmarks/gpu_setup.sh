# Sourced by gpu_quarter.sh: get this machine ready for a stage, prepare files for a machine elsewhere, and check without a GPU
# that everything that the stages name exists. It uses the variables and functions of gpu_quarter.sh.

# Check that this machine can run the stage, set up its folders and environment, and find or build the kernels.
get_ready() {
  if ! python3 -c "import torch, triton, numpy, pytest, rich, typer"; then
    echo "python3 lacks a package; see the line above"
    exit 1
  fi
  [ "$device" != cuda ] || sees_gpu || exit 1
  [ "$stage" != facts ] || rm -rf "$raw" # results of an earlier measurement; `train` adds to those of `facts`
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
  has_kernels || install_prepared_extension || build_extension
}

# Succeed if torch sees a GPU; otherwise print the reason, which torch gives when CUDA is initialised.
sees_gpu() {
  local reason
  reason=$(python3 -W ignore -c 'import sys, torch
if not torch.cuda.is_available():
    try: torch.cuda.init()
    except Exception as error: print(" ".join(str(error).split()).rstrip("."))
    sys.exit(1)') && return
  echo "python3's torch sees no GPU (${reason:-torch gives no reason}); DEVICE=cpu rehearses without one"
  return 1
}

# Install the kernels that `prepare` put into local/gpu, if they load here; otherwise restore what was there before.
install_prepared_extension() {
  local name own
  ls "$gpu"/_*_kernels.so >/dev/null 2>&1 || return 1
  for name in cpu cuda; do
    own=rmcla_fast/_${name}_kernels.so
    rm -f "$own.before"
    [ ! -f "$own" ] || mv "$own" "$own.before"
    [ ! -f "$gpu/_${name}_kernels.so" ] || cp "$gpu/_${name}_kernels.so" "$own"
  done
  has_kernels && rm -f rmcla_fast/*.before && return
  for name in cpu cuda; do
    own=rmcla_fast/_${name}_kernels.so
    rm -f "$own"
    [ ! -f "$own.before" ] || mv "$own.before" "$own"
  done
  echo "== the extension in $gpu does not load here, so this machine builds its own"
  return 1
}

build_extension() {
  local capability='' cuda=0
  if [ "$device" = cuda ]; then
    cuda=1
    capability=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  fi
  TORCH_CUDA_ARCH_LIST=$capability RMCLA_WITH_CUDA=$cuda MAX_JOBS=$(nproc) step build 120 python3 setup.py -q build_ext --inplace
  has_kernels || echo "== there are no compiled kernels for $device: a GPU runs the Triton kernels, a CPU plain PyTorch"
}

# Succeed if the extension has kernels for the device. The log catches the shell's report if an incomplete extension ends
# Python.
has_kernels() {
  {
    python3 -c 'import sys
from rmcla_fast.ops import extension
print("kernels:", extension.why_missing(sys.argv[1]) or extension.build_config or extension.why_no_report)
sys.exit(not extension.has_kernels(sys.argv[1]))' "$device"
  } 2>>"$raw/kernels.log"
}

# Set $DATA to the folder of the images, after unpacking their archive if needed, and load them once so that they are cached.
unpack_images() {
  local message=
  if [ -z "${DATA:-}" ]; then
    DATA=$work/data
    if [ ! -f "$DATA/unpacked" ]; then
      [ -f "$gpu/images.tar.xz" ] || {
        echo "there are no images: give DATA=FOLDER, or prepare IMAGES.tar.xz"
        return 1
      }
      mkdir -p "$DATA" && message=$(tar -C "$DATA" --touch -xf "$gpu/images.tar.xz" 2>&1) && touch "$DATA/unpacked" || {
        rm -rf "$DATA" # otherwise an incomplete folder would be used later
        echo "$gpu/images.tar.xz cannot be unpacked (${message%%$'\n'*}): prepare it again"
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

# Put the images, the extension, the commit and the package of AutoAttack into local/gpu, for a machine elsewhere.
prepare() {
  local images=${1:-} built fresh=$gpu.new
  [ -n "$images" ] || usage "prepare needs the archive of the images: prepare IMAGES.tar.xz"
  [ -f "$images" ] || usage "there is no $images"
  tar -tf "$images" >/dev/null 2>&1 || usage "$images is not an archive, or it is incomplete"
  rm -rf "$fresh"
  mkdir -p "$fresh/packages" && cp "$images" "$fresh/images.tar.xz" || exit 1
  for built in rmcla_fast/_*_kernels.so; do
    if [ -f "$built" ]; then
      strip --strip-unneeded -o "$fresh/${built##*/}" "$built" || exit 1
    else
      echo "no kernels are built here, so the other machine will build its own"
    fi
  done
  python3 -m pip download -q --no-deps -d "$fresh" pyautoattack==0.2.0 &&
    python3 -m zipfile -e "$fresh"/pyautoattack-*.whl "$fresh/packages" || exit 1
  rm -rf "$fresh"/*.whl "$fresh/packages/pyautoattack/examples" # 42 MB of models that are not needed
  git describe --always --dirty >"$fresh/commit" 2>/dev/null
  rm -rf "$gpu" && mv "$fresh" "$gpu" && du -sh "$gpu"
  echo "copy this folder to local/gpu in the checkout on the other machine, and run there: benchmarks/gpu_quarter.sh facts"
}

# Check that the files, tests and options that the stages use exist.
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
  done < <(test_selections)
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
