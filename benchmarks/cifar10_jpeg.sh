#!/usr/bin/env bash
# Train small-cnn with eight recipes for 10 epochs each, on a folder of 32x32 images (train/<class>/*, test/<class>/*), and
# attack each model on 1,000 test images. This is small enough for two CPU cores. The figures in docs/results.md are those of
# CIFAR-10 as JPEG. If it is stopped, the same command goes on from there.
#
#   benchmarks/cifar10_jpeg.sh DATA_DIR [OUT]
set -euo pipefail
data=${1:?give the image folder with train/ and test/}
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
