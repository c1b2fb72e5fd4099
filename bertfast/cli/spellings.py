"""The names that Hugging Face's trainers and examples have for our options.

Each holds where a command has the option; a command may add its own.
"""

SPELLINGS = {
    "model-name-or-path": "model",
    "model-revision": "revision",
    "config-name": "shape",
    "tokenizer-name": "tokenizer",
    "output-dir": "out",
    "learning-rate": "lr",
    "num-train-epochs": "epochs",
    "per-device-train-batch-size": "batch-size",
    "gradient-accumulation-steps": "accumulation",
    "max-steps": "steps",
    "max-grad-norm": "clip-norm",
    "warmup-steps": "warmup",
    "save-steps": "checkpoint-every",
    "logging-steps": "log-every",
    "eval-steps": "evaluate-every",
    "text-column-name": "text-column",
    "label-column-name": "label-column",
}
# The same name is another option in each command.
TOKENIZER = {"train-file": "data"}
PRETRAIN = {
    "train-file": "data",
    "validation-file": "valid",
    "max-seq-length": "seq-len",
}
FINETUNE = {
    "train-file": "train",
    "validation-file": "dev",
    "max-seq-length": "max-length",
    "early-stopping-patience": "early-stopping",
    "metric-for-best-model": "metric-for-best",
    "label-smoothing-factor": "label-smoothing",
}
SENTENCES = {
    "train-file": "train",
    "validation-file": "dev",
    "max-seq-length": "max-length",
    "early-stopping-patience": "early-stopping",
    "mini-batch-size": "mini-batch",
    "matryoshka-dims": "matryoshka",
}
EVALUATE = {"validation-file": "data", "test-file": "data"}
EMBED = {"per-device-eval-batch-size": "batch-size"}
