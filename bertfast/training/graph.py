"""A whole training step as one CUDA graph.

The launches of a step's kernels, some two thousand for BERT-base, are recorded once. One call then
sends them to the GPU, so that short steps no longer wait for the host. Every shape and address is
then fixed. Batches are padded to a budget (`PackedBatch.pad_to`) and copied into place. What
changes from step to step (batch, dropout seed, learning rate, the optimizer's age) is read from the
device. Gradients and activations live in the graph's own memory.

Source: PyTorch's notes on CUDA semantics, "CUDA Graphs", whole-network capture.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from bertfast.packed import Budget, PackedBatch

from .optimizer import AdamW, clip_at_next_step

# Steps before the capture, in which kernels are compiled and loaded and libraries take their
# workspaces: none of that can be recorded.
WARMUP = 3


class GraphedStep:
    """Forward, backward, clipping and update of a batch in one call.

    The first calls on a GPU train too, launch by launch, and the one after them records and
    replays. A step that cannot be recorded goes on launch by launch, and says so once. On the CPU
    every call runs the same code as it is, which is for tests.

    Args:
        model: whose dropouts, if it trains, take the seed given with each batch.
        optimizer: over all of the model's parameters that take a gradient, each of the same age.
        clip_norm: the joint norm that gradients are scaled down to.
        budget: the sizes that batches are padded to.
        device: of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: AdamW,
        clip_norm: float,
        budget: Budget,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.clip_norm, self.budget = (
            model,
            optimizer,
            clip_norm,
            budget,
        )
        self.batch: PackedBatch | None = None
        self.seed = torch.zeros(1, dtype=torch.int64, device=device)
        self.rate = torch.zeros((), device=device)
        self.age = torch.zeros((), dtype=torch.float64, device=device)
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.refused = False
        self.result: tuple[Any, Tensor]
        # Warm-up and capture share a stream, and so a library's workspaces; the default one cannot
        # be captured.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: PackedBatch, seed: int, rate: float, age: int) -> tuple[Any, Tensor]:
        """One update.

        Args:
            batch: within the budget, on the model's device.
            seed: of the dropouts.
            rate: the learning rate.
            age: how many updates this makes for the parameters, all of which have had one less.

        Returns:
            The model's output for the padded batch, detached, and the norm of the gradients before
            clipping; both change at the next call.

        Raises:
            BertfastError: the batch exceeds the budget.
        """
        self._load(batch, seed, rate, age)
        self.calls += 1
        if self.stream is None:
            self.result = self._step()
        elif self.graph is not None:
            self.graph.replay()
            self.optimizer.count()
        elif self.calls <= WARMUP or self.refused or not self._capture():
            current = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                self.result = self._step()
            current.wait_stream(self.stream)
        return self.result

    def _capture(self) -> bool:
        """Records the step and replays it; False, with nothing trained, where it cannot be."""
        graph = torch.cuda.CUDAGraph()
        ages = [state["step"].clone() for state in self.optimizer.state.values()]
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                self.result = self._step()
        except Exception as error:  # whatever it is, launching meets it again if it matters
            self.refused = True
            self.optimizer.zero_grad()
            self.optimizer.gradient_scale = 1.0
            for state, age in zip(self.optimizer.state.values(), ages, strict=True):
                state["step"].copy_(age)
            reason = " ".join(str(error).split())
            print(
                f"bertfast: the step cannot be captured as a CUDA graph ({reason}); "
                "the run goes on without it, launch by launch",
                file=sys.stderr,
            )
            return False
        self.graph = graph
        graph.replay()
        return True

    def _load(self, batch: PackedBatch, seed: int, rate: float, age: int) -> None:
        """Writes what this step reads to where every step reads it."""
        padded = batch.pad_to(*self.budget)
        if self.batch is None:
            self.batch = padded
        for name, x in padded.tensors().items():
            self.batch.tensors()[name].copy_(x)
        self.seed.fill_(seed)
        self.rate.fill_(rate)
        self.age.fill_(age)

    def _step(self) -> tuple[Any, Tensor]:
        """What is captured: nothing in it reads a value on the host, or brings one from there."""
        output = self.model(self.batch, seed=self.seed)
        output["loss"].backward()
        norm = clip_at_next_step(self.optimizer, self.clip_norm)
        self.optimizer.step(lr=self.rate, age=self.age)
        self.optimizer.zero_grad()
        if isinstance(output, dict):
            return {name: x.detach() for name, x in output.items()}, norm
        return output.detach(), norm
