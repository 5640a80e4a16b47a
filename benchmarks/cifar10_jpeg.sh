#!/usr/bin/env bash
# Eight recipes on a folder of 32x32 images (train/<class>/*, test/<class>/*), small enough for two CPU cores: the same 10 epochs
# of small-cnn each, attacked on 1,000 test images. The figures in docs/results.md are of CIFAR-10 as JPEG. Stopped, it goes on.
#
#   benchmarks/cifar10_jpeg.sh DATA_DIR [OUT]
set -euo pipefail
data=${1:?the image folder with train/ and test/}
out=${2:-benchmarks/results/cifar10-jpeg}
recipes="standard fgsm-rs n-fgsm r-mc r-mc-la r-mc-la+ n-mc-la madry-pgd7-2"
runs=()
for recipe in $recipes; do
  run=runs/cifar10-jpeg/$recipe
  rmcla train --data folder --data-dir "$data" --model small-cnn --recipe "$recipe" --epsilon 8/255 --epochs 10 \
    --schedule one-cycle --lr 0.1 --batch-size 128 --augment --out "$run" --resume
  runs+=("$run")
done
rmcla compare "${runs[@]}" --attacks clean,fgsm,ce20,cw100,autoattack --images 1000 --out "$out"
