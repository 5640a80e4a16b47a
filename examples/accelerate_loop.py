"""Train with Accelerate, on one device or in several processes, in float32 or in mixed precision.

    python examples/accelerate_loop.py
    torchrun --nproc-per-node 2 examples/accelerate_loop.py --precision bf16    # or with `accelerate launch` on GPUs

It needs torch and accelerate, and scikit-learn for the images. The first process prints the accuracy on clean test
images and under PGD, which all of the processes attack together.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed.nn.functional  # once there is a process group, it would keep it for ever
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

import rmcla_fast
from rmcla_fast import adversarial_example, recipes, soft_cross_entropy

EPSILON = 0.15  # pixels lie in [0, 1]
SEED = 0


def main(epochs: int, precision: str) -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
    set_seed(SEED)
    data = rmcla_fast.data.load("digits")  # uint8 images (N, 1, 8, 8) and int64 labels (N,)
    batch_size = 64 // accelerator.num_processes  # of one process, so that an update is the same for any number of them
    loader = DataLoader(TensorDataset(data.train.images, data.train.labels), batch_size, shuffle=True, drop_last=True)
    model = rmcla_fast.models.create("small-cnn", data.num_classes, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer.optimizer, max_lr=0.1, total_steps=epochs * len(loader))
    network = accelerator.unwrap_model(model)  # without DistributedDataParallel; `prepare` has put it under autocast

    recipe = recipes.get("r-mc-la").replace(epsilon=EPSILON)
    # (seed, step) of the attack's noise. The seed holds the rank, so that each process draws noise of its own.
    rng = torch.tensor([SEED + (accelerator.process_index << 32), 0], device=accelerator.device)
    for _ in range(epochs):
        for images, labels in loader:
            # The attack runs the network without the wrapper: it has no gradients to share, and the wrapper would
            # expect a backward pass to the weights after each forward pass.
            example = adversarial_example(network, images, labels, recipe, rng=rng)
            loss = soft_cross_entropy(model(example.images), example.soft_labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            rng[1] += 1

    # Each process attacks its share of the test images, and the sums over all of them make the accuracies.
    network = accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the float32 network, without autocast
    rows = slice(accelerator.process_index, None, accelerator.num_processes)
    found = rmcla_fast.attacks.evaluate(
        network, data.test.images[rows], data.test.labels[rows], attacks="clean,ce20", epsilon=EPSILON
    )
    right = torch.tensor([float(result.right.sum()) for result in found.values()], device=accelerator.device)
    clean, pgd = (100 * accelerator.reduce(right) / len(data.test.labels)).tolist()
    accelerator.print(
        f"processes: {accelerator.num_processes}, mixed precision: {precision}, batch in each: {batch_size}"
    )
    accelerator.print(f"clean accuracy {clean:.1f} %")
    accelerator.print(f"PGD accuracy {pgd:.1f} % (20 steps, epsilon {EPSILON})")
    accelerator.wait_for_everyone()  # a process that ends while another still talks to it can bring that one down
    # On a CPU the processes talk through gloo, whose threads need Python to free the tensors of the last call. A thread
    # that still waits for Python when it ends aborts the process. `end_training` waits for these threads, but only if
    # nothing else holds the process group. DistributedDataParallel holds it, so that goes first.
    model, optimizer, loader = accelerator.free_memory(model, optimizer, loader)
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--precision", choices=("no", "bf16", "fp16"), default="no", help="no is float32; fp16 needs a GPU"
    )
    options = parser.parse_args()
    main(options.epochs, options.precision)
