"""The assignment over several processes is that of one, whoever holds which clip."""

import threading

import pytest
import torch

from tpdiff.pyramid.alignment import align

COUNT = 3


class Threads:
    """Processes as threads: what each puts down, all pick up."""

    def __init__(self):
        self.barrier, self.table = threading.Barrier(COUNT, timeout=30), [None] * COUNT

    def member(self, index):
        return Member(self, index)


class Member:
    num_processes = COUNT

    def __init__(self, threads, index):
        self.threads, self.process_index = threads, index

    def gather(self, tensor):
        self.threads.table[self.process_index] = tensor
        self.threads.barrier.wait()
        everyone = torch.cat(self.threads.table)
        self.threads.barrier.wait()
        return everyone


def aligned_in_parts(clean, noise, method, condition):
    threads, results = Threads(), [None] * COUNT

    def work(index):
        mine = slice(index, None, COUNT)
        told = None if condition is None else condition[mine]
        results[index] = align(clean[mine], noise[mine], method, told, threads.member(index))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(COUNT)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


@pytest.mark.parametrize("method", ["none", "assignment"])
@pytest.mark.parametrize("condition", [None, ["a", None, "b", "a", "a", "b", "b", "a", None, "a", "b", "a"], "equal"])
def test_processes_assign_as_one(method, condition):
    g = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(12, 2, 4, 4, generator=g), torch.randn(12, 2, 4, 4, generator=g)
    if condition == "equal":
        clean[5] = clean[3]  # two of the same clip, which only their order tells apart
        condition = torch.tensor([0, 1] * 6)
        condition[5] = condition[3]
    whole = align(clean, noise, method, condition)
    parts = aligned_in_parts(clean, noise, method, condition)
    for index, part in enumerate(parts):
        assert torch.equal(part.noise, whole.noise[index::COUNT])
        assert part.before == pytest.approx(whole.before, rel=1e-6)
        assert part.after == pytest.approx(whole.after, rel=1e-6)
    assert (method == "assignment") == (whole.reduction > 0.01)
    alone = [align(clean[i::COUNT], noise[i::COUNT], method) for i in range(COUNT)]
    assert method == "none" or not all(torch.equal(a.noise, p.noise) for a, p in zip(alone, parts, strict=True))
