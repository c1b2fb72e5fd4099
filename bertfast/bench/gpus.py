"""Sizes of GPUs, for the model of a step on one that is not there (`modelled.py`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU's sizes.

    Attributes:
        name: as NVIDIA has it.
        capability: 80, 90 or 100.
        multiprocessors: that are enabled.
        clock: Hz, at which the multiprocessors have the data sheet's dense bfloat16 peak.
        rate: the best bfloat16 FLOP/s that products were measured at.
        bandwidth: bytes a second of the memory's data sheet.
        memory: bytes.
        nvlink: bytes a second that one sends, to others of its machine.
        network: bytes a second that one sends, to other machines.
    """

    name: str
    capability: int
    multiprocessors: int
    clock: float
    rate: float
    bandwidth: float
    memory: float
    nvlink: float
    network: float


# Sizes and clocks: NVIDIA, data sheets of A100 80GB SXM, H100 SXM, H200 SXM and B200, and "H100
# Tensor Core GPU Architecture". Rates of A100 and H100: Bekman, "Machine Learning Engineering",
# maximum achievable matmul FLOPS. An H200 has the same processors as an H100, and of a B200 the
# same share is taken. Links: NVIDIA, data sheets of DGX A100, DGX H100, DGX H200 and DGX B200,
# each of eight GPUs with a network card of its own.
GPUS = {
    "a100": Gpu("A100 80GB SXM", 80, 108, 1.410e9, 271.2e12, 2.039e12, 80e9, 300e9, 25e9),
    "h100": Gpu("H100 SXM", 90, 132, 1.830e9, 794.5e12, 3.35e12, 80e9, 450e9, 50e9),
    "h200": Gpu("H200 SXM", 90, 132, 1.830e9, 794.5e12, 4.8e12, 141e9, 450e9, 50e9),
    "b200": Gpu("B200", 100, 148, 1.856e9, 2250e12 * 794.5 / 989.4, 8e12, 180e9, 900e9, 50e9),
}
# Clocks of a load from memory: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU
# Architecture via Microbenchmarking", table of latencies.
LATENCY = 480
# Assumed, and not measured here. COPY_SHARE is the share of the bandwidth that a copy reaches.
# START is the seconds from a launch's start to its first bytes and from its last ones to its end.
# GAP is the seconds between two nodes of a graph. ALONE is the clocks from one instruction of a
# warp to its next, where no other warp fills them.
COPY_SHARE, START, GAP, ALONE = 0.9, 1e-6, 1e-6, 2
# Assumed likewise. LINK_SHARE is the share of a link's speed that sums of gradients reach. HOP and
# FAR_HOP are the seconds from one GPU to the next, on a machine and between machines.
LINK_SHARE, HOP, FAR_HOP = 0.8, 3e-6, 1e-5
NODE = 8  # GPUs of a machine
