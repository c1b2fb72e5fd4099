"""What docs/drop-in.md says of child processes, in one fresh process for each kind of parent."""

import subprocess
import sys

import pytest

PROGRAM = """
import multiprocessing, sys, torch, bertfast

def compute():
    torch.manual_seed(0)
    config = bertfast.BertConfig(
        vocab_size=99, hidden_size=64, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=64)
    with torch.no_grad():
        model = bertfast.BertModel(config).eval()
        return float(model(torch.arange(64)[None]).last_hidden_state.abs().sum())

def child(threads, answer):
    if threads:
        torch.set_num_threads(threads)
    answer.put(compute())

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return compute()

if __name__ == "__main__":
    kind, parents, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if parents:
        torch.set_num_threads(parents)
        compute()
    if kind == "workers":
        print(float(next(iter(torch.utils.data.DataLoader(Rows(), num_workers=1)))))
    else:
        context = multiprocessing.get_context(kind)
        answer = context.SimpleQueue()
        process = context.Process(target=child, args=(threads, answer))
        process.start()
        print(answer.get())
        process.join()
"""


@pytest.mark.parametrize(
    ("kind", "parents", "threads"),
    [
        ("fork", 0, 2),
        ("fork", 1, 2),
        ("fork", 2, 1),
        ("forkserver", 2, 2),
        ("spawn", 2, 2),
        ("workers", 2, 0),
    ],
)
@pytest.mark.slow
def test_a_child_computes_after_its_parent(kind, parents, threads, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    call = [sys.executable, str(program), kind, str(parents), str(threads)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) > 0
