"""Published numbers to judge a run by, each as it stands in the source that is named."""

from __future__ import annotations

from dataclasses import dataclass

VAL_LOSS = "val_loss"
COMPLETION, HARNESS = "completion style", "lm-evaluation-harness"
"""The protocols that numbers are known for: build-nanogpt's scoring of endings, and the harness's."""

OF_HARNESS = "harness_"  # begins the names of the metrics that HellaSwag has of lm-evaluation-harness too
HELLASWAG_ROWS = 10_042  # of its validation file

_SCRIPT = "karpathy/build-nanogpt hellaswag.py, notes at its top"
_NOTEBOOK = "karpathy/build-nanogpt play.ipynb, where the log is drawn"
_README = "karpathy/nanoGPT README.md, baselines"
_PAPER = "Zellers et al. 2019, HellaSwag: Can a Machine Really Finish Your Sentence?, abstract: above 95%"


@dataclass(frozen=True)
class Baseline:
    """A number somebody published."""

    name: str
    task: str
    """The evaluation's name, or `val_loss` for a validation loss in nats per token."""
    metric: str
    """As in an evaluation's results: acc, acc_norm; `loss` for a validation loss."""
    value: float
    protocol: str
    """How it was measured. Of an evaluation: COMPLETION or HARNESS; empty where it holds for any."""
    corpus: str | None
    """Of a validation loss: the source, as `overnight prepare` names it, that its text is from."""
    tokens: int | None
    """How many tokens that model was trained on, where the source says so."""
    source: str


def _hellaswag(name: str, metric: str, value: float, protocol: str, source: str) -> Baseline:
    return Baseline(name, "hellaswag", metric, value, protocol, None, None, source)


def _loss(name: str, value: float, corpus: str, protocol: str, source: str) -> Baseline:
    return Baseline(name, VAL_LOSS, "loss", value, protocol, corpus, None, source)


# The notebook has 0.294463 and 0.488946 for GPT-2 124M and 1558M: the script's own numbers stand here, the two
# sizes between them are the notebook's.
BASELINES: tuple[Baseline, ...] = (
    _hellaswag("GPT-2 124M", "acc_norm", 0.2955, COMPLETION, _SCRIPT),
    _hellaswag("GPT-2 350M", "acc_norm", 0.375224, COMPLETION, _NOTEBOOK),
    _hellaswag("GPT-2 774M", "acc_norm", 0.431986, COMPLETION, _NOTEBOOK),
    _hellaswag("GPT-2 1558M", "acc_norm", 0.4893, COMPLETION, _SCRIPT),
    _hellaswag("GPT-2 124M", "acc", 0.2859, COMPLETION, _SCRIPT),
    _hellaswag("GPT-2 1558M", "acc", 0.3842, COMPLETION, _SCRIPT),
    _hellaswag("GPT-2 124M", "acc", 0.2892, HARNESS, _SCRIPT),
    _hellaswag("GPT-2 124M", "acc_norm", 0.3114, HARNESS, _SCRIPT),
    _hellaswag("GPT-2 1558M", "acc", 0.4004, HARNESS, _SCRIPT),
    _hellaswag("GPT-2 1558M", "acc_norm", 0.5089, HARNESS, _SCRIPT),
    # As the notebook draws them, beside the completion style; by its names for the sizes.
    _hellaswag("GPT-3 124M", "acc_norm", 0.337, COMPLETION, _NOTEBOOK),
    _hellaswag("GPT-3 350M", "acc_norm", 0.436, COMPLETION, _NOTEBOOK),
    _hellaswag("GPT-3 774M", "acc_norm", 0.510, COMPLETION, _NOTEBOOK),
    _hellaswag("GPT-3 1558M", "acc_norm", 0.547, COMPLETION, _NOTEBOOK),
    *(_hellaswag("chance", metric, 0.25, "", "one of four endings") for metric in ("acc", "acc_norm")),
    *(_hellaswag("humans", metric, 0.95, "", _PAPER) for metric in ("acc", "acc_norm")),
    _loss("GPT-2 124M", 3.12, "openwebtext", "nanoGPT's validation split, windows of 1024", _README),
    _loss("GPT-2 350M", 2.84, "openwebtext", "nanoGPT's validation split, windows of 1024", _README),
    _loss("GPT-2 774M", 2.67, "openwebtext", "nanoGPT's validation split, windows of 1024", _README),
    _loss("GPT-2 1558M", 2.54, "openwebtext", "nanoGPT's validation split, windows of 1024", _README),
    _loss("GPT-2 124M", 3.2924, "fineweb-edu", "build-nanogpt's validation shard, windows of 1024", _NOTEBOOK),
)


def for_task(task: str, metric: str, protocol: str) -> list[Baseline]:
    """The published numbers that a result of this task, metric and protocol can stand beside."""
    found = [one for one in BASELINES if (one.task, one.metric) == (task, metric)]
    return [one for one in found if one.protocol in ("", protocol)]


def for_corpus(corpus: str) -> list[Baseline]:
    """The published validation losses on text from a source."""
    return [one for one in BASELINES if one.task == VAL_LOSS and one.corpus == corpus]
