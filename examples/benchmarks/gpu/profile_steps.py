#!/usr/bin/env python3
"""Profile of the training step of a recipe on this GPU, printed as one JSON document.

    profile_steps.py machine                    copy bandwidth, matrix rate, cost of a graph node, fused Adam
    profile_steps.py steps RECIPE [--dry]       epochs, parts of an epoch, kernels of a replayed step, what-ifs

Pixels are random, because speed does not depend on them. A part that fails has the key "error" instead of its results.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from cifarnet import ImageDataset, Trainer, randomness
from cifarnet.inference.loader import TensorLoader
from cifarnet.recipes import build_trainer, get_recipe
from cifarnet.training import loop
from cifarnet.training.cuda_graph import WINDOW_IMAGES, GraphedUpdate, prepare_optimizer
from cifarnet.training.step import forward

Run = Callable[[], object]

#: Category of a kernel, and the pattern of its name; the first match counts.
CATEGORIES = (
    ("adam", r"adam"),
    ("sgd", r"FusedSgd|fused_sgd"),
    ("triton", r"^triton_"),
    ("max pool", r"max_pool"),
    ("batch norm", r"batch_norm|bn_fw|bn_bw|BatchNorm"),
    ("convolution", r"conv|wgrad|dgrad|fprop|implicit|cudnn"),
    ("matrix product", r"gemm|gemv|splitK|cublas|nvjet|cutlass|ampere_|sm90_"),
    ("softmax and loss", r"softmax|nll_loss|cross_entropy"),
    ("dropout", r"dropout"),
    ("copy, cast, fill", r"copy|Memcpy|Memset|fill|FillFunctor|CatArray|to_copy"),
    ("reduction", r"reduce"),
    ("gather, sort", r"index|gather|scatter|sort|Radix"),
    ("elementwise", r"elementwise|multi_tensor|foreach"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("machine", "steps"))
    parser.add_argument("recipe", nargs="?", default="reference")
    parser.add_argument("--dry", action="store_true", help="run on the CPU, tiny")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds after which no what-if starts")
    parser.add_argument("--out", type=Path, help="file that is written after each part")
    args = parser.parse_args()
    device = torch.device("cpu") if args.dry else torch.device("cuda", 0)
    document = {"what": args.what, "recipe": args.recipe, "hardware": name_of(device), "torch": torch.__version__}
    parts = machine(device) if args.what == "machine" else Steps(args.recipe, device, args.seconds).parts()
    for part in parts:
        document |= part
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def tried(function: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a function, or its error."""
    try:
        return function(*args)
    except Exception as error:  # one part must not stop the others
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def microseconds(run: Run, device: torch.device, *, times: int = 20, rounds: int = 5) -> float:
    """Time one call in microseconds: the median over ``rounds`` of the mean over ``times`` calls."""
    found = []
    for _ in range(rounds if device.type == "cuda" else 1):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            for _ in range(times):
                run()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) * 1e3 / times)
        else:
            started = time.perf_counter()
            run()
            found.append((time.perf_counter() - started) * 1e6)
    return float(round(statistics.median(found), 3))


def captured(run: Run, device: torch.device) -> Run:
    """Return the replay of a graph after three warm-up runs; on a CPU, return the function itself."""
    if device.type != "cuda":
        run()
        return run
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        run()
    return graph.replay


# The machine --------------------------------------------------------------------------------------------------------


def machine(device: torch.device) -> Iterator[dict[str, Any]]:
    yield {"python": sys.version.split()[0]}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        yield {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "l2_mb": round(getattr(properties, "L2_cache_size", 0) / 1e6, 1),
        }
    parts = {
        "copy_tb_per_s": copy_rate,
        "bf16_matmul_tflops": matmul_rate,
        "graph_node_us": node_cost,
        "launch_us": launch_cost,
        "fused_adam_6447754_us": adam_cost,
        "cast_6422528_us": cast_cost,
    }
    yield from ({key: tried(part, device)} for key, part in parts.items())


def _size(device: torch.device, full: int) -> int:
    return full if device.type == "cuda" else max(64, full // 2**12)


def copy_rate(device: torch.device) -> float:
    source = torch.randn(_size(device, 2**30), device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return round(2 * source.nbytes / microseconds(lambda: target.copy_(source), device, times=5) / 1e6, 3)


def matmul_rate(device: torch.device) -> float:
    n = 8192 if device.type == "cuda" else 64
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return round(2 * n**3 / microseconds(lambda: a @ b, device, times=10) / 1e6, 1)


def node_cost(device: torch.device) -> dict[str, float]:
    """Time one node in a chain of 200 graph nodes, in microseconds.

    A node adds 1 to one number, or to 3.2 million bf16 numbers, which is the size of an activation.
    """
    found = {}
    for name, count, dtype in (("one_number", 1, torch.float32), ("activation_6_mb", 3_211_264, torch.bfloat16)):
        x = torch.zeros(_size(device, count) if count > 1 else 1, device=device, dtype=dtype)

        def chain(x: torch.Tensor = x) -> None:
            for _ in range(200):
                x.add_(1)

        found[name] = round(microseconds(captured(chain, device), device) / 200, 4)
    return found


def launch_cost(device: torch.device) -> float:
    """Time the host for the launch of one eager kernel, in microseconds."""
    x = torch.zeros(1, device=device)
    x.add_(1)
    synchronize(device)
    started = time.perf_counter()
    for _ in range(2000):
        x.add_(1)
    host = time.perf_counter() - started
    synchronize(device)
    return round(host / 2000 * 1e6, 3)


def adam_cost(device: torch.device) -> float:
    """Time the Adam update of as many weights as the reference network has, in one tensor, in microseconds."""
    weights = torch.nn.Parameter(torch.randn(_size(device, 6_447_754), device=device))
    weights.grad = torch.randn_like(weights)
    rate = torch.tensor(1e-3, device=device)
    optimizer = torch.optim.Adam([weights], lr=rate, fused=True, capturable=device.type == "cuda", weight_decay=1e-4)
    optimizer.step()
    return microseconds(captured(optimizer.step, device), device)


def cast_cost(device: torch.device) -> float:
    """Time the cast from float32 to bf16 of the largest layer of the reference network, in microseconds."""
    weights = torch.randn(_size(device, 6_422_528), device=device)
    target = torch.empty_like(weights, dtype=torch.bfloat16)
    return microseconds(captured(lambda: target.copy_(weights), device), device)


# The steps of a recipe ----------------------------------------------------------------------------------------------


class Steps:
    """Measurements of one recipe.

    Args:
        recipe: Name of the recipe.
        device: GPU, or the CPU for a dry run.
        seconds: Seconds after which no what-if starts.
    """

    def __init__(self, recipe: str, device: torch.device, seconds: float) -> None:
        self.started, self.seconds, self.device = time.perf_counter(), seconds, device
        self.is_dry = device.type == "cpu"
        self.recipe = get_recipe(recipe)
        self.batch_size = 20 if self.is_dry else self.recipe.batch_size
        count = 100 if self.is_dry else 50_000
        generator = torch.Generator().manual_seed(0)
        self.data = ImageDataset(
            torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator),
            torch.randint(0, 10, (count,), generator=generator),
            tuple(f"class {i}" for i in range(10)),
        )
        self.graph: GraphedUpdate | None = None

    def build(self, *, cuda_graph: bool = True) -> Trainer:
        """Build a trainer of the recipe."""
        return build_trainer(self.recipe, self.data, device=str(self.device), cuda_graph=cuda_graph)

    def remember(self, trainer: Trainer) -> GraphedUpdate:
        """Create the CUDA graphs of a run, and keep them for `graphs` and `kernels`."""
        self.graph = GraphedUpdate(trainer)
        return self.graph

    def parts(self) -> Iterator[dict[str, Any]]:
        """Yield parts of the document. A later part with the same key replaces an earlier one and contains it."""
        yield {"batch_size": self.batch_size, "steps_an_epoch": -(-len(self.data) // self.batch_size)}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            setattr(loop, "GraphedUpdate", self.remember)  # noqa: B010  # the loop creates it
            trainer = self.build()
            backend = "cuda-graph" if trainer.uses_cuda_graph else "eager"
            yield {"epochs": tried(self.epochs, trainer, 2 if self.is_dry else 5), "backend": backend}
            if not self.is_dry:
                yield {"kernels": tried(self.kernels, trainer)}
            of_epoch = {}
            for name, part in self.of_an_epoch().items():
                of_epoch[name] = tried(part, trainer)
                yield {"parts": of_epoch}
            yield {"eager_epoch": tried(self.epochs, self.build(cuda_graph=False), 1)}
            what_ifs: dict[str, Any] = {}
            for name, chosen in WHAT_IFS.items():
                late = time.perf_counter() - self.started > self.seconds
                what_ifs[name] = {"left_out": "no time"} if late else tried(self.what_if, chosen)
                yield {"what_if_step_us": what_ifs}
        yield {
            "warnings": sorted({str(warning.message).splitlines()[0][:300] for warning in caught}),
            "seconds": round(time.perf_counter() - self.started, 1),
        }

    def epochs(self, trainer: Any, count: int) -> dict[str, Any]:
        """Time whole epochs of the trainer. The first ones load kernels and capture the graphs."""
        started = time.perf_counter()
        records = list(trainer.epochs(self.data, max_epochs=count, batch_size=self.batch_size))
        train_s = [round(record.train_s, 5) for record in records]
        steps = -(-len(self.data) // self.batch_size)
        return {
            "train_s": train_s,
            "all_s": round(time.perf_counter() - started, 4),
            "step_us": round(min(train_s) / steps * 1e6, 2),
            "peak_memory_mb": None if self.is_dry else round(torch.cuda.max_memory_allocated() / 1e6),
        }

    # Parts of an epoch

    def of_an_epoch(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "order_us": self.order,
            "window": self.window,
            "check_finite_us": self.check_finite,
            "evaluation_10000_images_ms": self.evaluation,
            "graphs": self.graphs,
        }

    def batches(self) -> Any:
        data = self.data
        return TensorLoader(data.images, data.labels, data.ids, batch_size=self.batch_size, device=self.device, seed=0)

    def order(self, trainer: Any) -> float:
        batches = self.batches()
        return microseconds(lambda: batches.order(1), self.device)

    def window(self, trainer: Any) -> dict[str, float]:
        """Time augmentation and preprocessing of an epoch: on the host alone, and until the device has finished."""
        batches, chunk = self.batches(), WINDOW_IMAGES

        def prepare() -> None:
            order = batches.order(1)
            for first in range(0, len(order), chunk):
                batch = batches.select(order[first : first + chunk])
                with randomness.scope(0, 1, batch.ids):
                    trainer.precision.prepare(trainer.transforms.train(batch.images))

        prepare()
        synchronize(self.device)
        started = time.perf_counter()
        prepare()
        host = time.perf_counter() - started
        synchronize(self.device)
        both = time.perf_counter() - started
        return {"chunk": chunk, "host_ms": round(host * 1e3, 3), "host_and_device_ms": round(both * 1e3, 3)}

    def check_finite(self, trainer: Any) -> float:
        """Time the check for finite values at the end of an epoch."""
        tensors = [*trainer.model.parameters(), *trainer.model.buffers()]

        def check() -> None:
            trainer.state.metrics.read()
            bool(torch.stack([tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]).all())

        check()
        return microseconds(check, self.device, times=5)

    def evaluation(self, trainer: Any) -> float:
        test = self.data.subset(range(min(len(self.data), 10_000)))
        trainer.evaluate(test)
        started = time.perf_counter()
        trainer.evaluate(test)
        return round((time.perf_counter() - started) * 1e3, 3)

    def graphs(self, trainer: Trainer) -> dict[str, Any]:
        """Time the replay of each captured step, in microseconds."""
        if self.graph is None:
            return {"none": "no graphs"}
        found: dict[str, Any] = {}
        for step in self.graph._steps.values():
            facts: dict[str, Any] = {"captured": step.replay is not None}
            if step.replay is not None:
                with self.on(self.graph._stream):
                    facts["replay_us"] = microseconds(step.replay, self.device, times=10)
            found[f"{len(step.labels)} images of {step.images.shape[-1]} pixels"] = facts
        return found

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            yield

    # Kernels

    def kernels(self, trainer: Any) -> dict[str, Any]:
        """Profile replays of the step with the most images."""
        from torch.profiler import ProfilerActivity, profile

        assert self.graph is not None, "the step is not captured"
        largest = max(self.graph._steps.values(), key=lambda step: len(step.labels))
        assert largest.replay is not None
        replays, run, count, size = 64, largest.replay, 1, len(largest.labels)
        with self.on(self.graph._stream):
            with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
                for _ in range(replays):
                    run()
                synchronize(self.device)
            plain_us = microseconds(run, self.device, times=10) / count
        steps, times, spans = replays * count, defaultdict(list), []
        for event in profiler.events():
            if str(event.device_type).endswith("CUDA") and event.time_range.elapsed_us() > 0:
                times[event.name].append(event.time_range.elapsed_us())
                spans.append((event.time_range.start, event.time_range.end))
        total = sum(map(sum, times.values()))
        categories: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for name, values in times.items():
            entry = categories[category(name)]
            entry[0] += len(values) / steps
            entry[1] += sum(values) / steps
        top = sorted(times.items(), key=lambda item: -sum(item[1]))
        return {
            "steps": count,
            "images_a_step": size,
            "kernels_a_step": round(sum(map(len, times.values())) / steps, 2),
            "kernel_us_a_step": round(total / steps, 3),
            "step_us_without_profiler": round(plain_us, 3),
            "idle_share_without_profiler": round(1 - total / steps / plain_us, 4),
            "idle_share_under_profiler": idle_share(spans),
            "categories": {
                name: {"kernels": round(n, 2), "us": round(us, 3)}
                for name, (n, us) in sorted(categories.items(), key=lambda item: -item[1][1])
            },
            "top": [
                {
                    "us": round(sum(v) / steps, 3),
                    "n": round(len(v) / steps, 3),
                    "mean_us": round(statistics.fmean(v), 3),
                    "name": k[:160],
                }
                for k, v in top[:60]
            ],
        }

    # What-ifs

    def what_if(self, chosen: dict[str, bool]) -> float:
        """Time a variant of the step in microseconds, in a graph of four steps."""
        count = 1 if self.is_dry else 4
        trainer = self.build()
        if not self.is_dry:
            prepare_optimizer(trainer.optimizer)
        device = self.device
        optimizer, model = trainer.optimizer, trainer.model
        model.train()
        beside: torch.optim.Optimizer | None = None
        if chosen.get("second_stream"):
            optimizer, beside = apart(optimizer, model)
        for group in [*optimizer.param_groups, *(beside.param_groups if beside else [])]:
            group["lr"] = torch.tensor(
                float(group["lr"]) * 1e-6, device=device
            )  # small steps, because the pixels are random
        side = torch.cuda.Stream(device) if beside and device.type == "cuda" else None  # type: ignore[no-untyped-call]

        def update_large(_: torch.Tensor) -> None:
            """Update the largest layer once its gradient is computed, during the backward pass of earlier layers."""
            assert beside is not None
            if side is not None:
                side.wait_stream(torch.cuda.current_stream(device))
            with self.on(side):
                beside.step()

        if beside:
            beside.param_groups[0]["params"][0].register_post_accumulate_grad_hook(update_large)
        images = torch.randn(self.batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
        labels = torch.randint(0, 10, (self.batch_size,), device=device)
        sums, step = trainer.state.metrics, torch.zeros((), dtype=torch.int64, device=device)

        def loss_and_logits(images: torch.Tensor, labels: torch.Tensor) -> Any:
            return forward(trainer, images, labels)

        compute = loss_and_logits
        if chosen.get("compiled"):
            torch._dynamo.reset()
            backend = "aot_eager" if self.is_dry else "inductor"  # Inductor's first compilation takes 10 s on a CPU
            compute = torch.compile(loss_and_logits, dynamic=False, backend=backend)

        def run() -> None:
            for _ in range(count):
                if chosen.get("forward_only"):
                    with torch.no_grad():
                        compute(images, labels)
                    continue
                loss, logits = compute(images, labels)
                model.zero_grad()
                loss.backward()
                if not chosen.get("no_optimizer"):
                    optimizer.step()
                if side is not None:
                    torch.cuda.current_stream(device).wait_stream(side)
                if not chosen.get("no_sums"):
                    sums.add(loss, logits, labels, step)
            model.zero_grad()

        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            return round(microseconds(captured(run, device), device, times=10) / count, 3)
        finally:
            torch.backends.cudnn.benchmark = benchmark


#: Variants of a step by name, with the options of `Steps.what_if`.
WHAT_IFS = {
    "as it is": {},
    "no sums": {"no_sums": True},
    "Adam of the largest layer on a second stream": {"second_stream": True},
    "network and loss compiled": {"compiled": True},
    "compiled, no sums, Adam of the largest layer on a second stream": {
        "compiled": True,
        "no_sums": True,
        "second_stream": True,
    },
    "no sums, no optimizer": {"no_sums": True, "no_optimizer": True},
    "compiled, no sums, no optimizer": {"compiled": True, "no_sums": True, "no_optimizer": True},
    "forward only": {"forward_only": True, "no_sums": True},
}


def apart(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return two Adam optimizers: one for all parameters except the largest, one for the largest."""
    if type(optimizer) is not torch.optim.Adam:
        raise TypeError(f"The second stream needs Adam, got {type(optimizer).__name__}. Use a recipe with Adam")
    largest = max(model.parameters(), key=torch.Tensor.numel)
    rest = [parameter for parameter in model.parameters() if parameter is not largest]
    keys = ("betas", "eps", "weight_decay", "fused", "foreach", "capturable")
    group = optimizer.param_groups[0]
    settings = {key: group[key] for key in keys} | {"lr": float(group["lr"])}
    return torch.optim.Adam(rest, **settings), torch.optim.Adam([largest], **settings)


def category(name: str) -> str:
    return next((what for what, pattern in CATEGORIES if re.search(pattern, name, re.IGNORECASE)), "other")


def idle_share(spans: list[tuple[float, float]]) -> float:
    """Return the fraction of the time from first to last kernel in which no kernel runs."""
    if not spans:
        return 1.0
    covered, reached = 0.0, min(start for start, _ in spans)
    first = reached
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return round(1 - covered / max(reached - first, 1e-9), 4)


if __name__ == "__main__":
    main()
