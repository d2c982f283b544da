"""The Python interface: the same things as the command line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from overnight import checkpoint, deadline, generate, hanging, session, tracking
from overnight.bands import Look, in_the_run
from overnight.bands import find as find_band
from overnight.config import Config, EvalConfig
from overnight.console import Console
from overnight.data import unchanged
from overnight.data.mixture import Mixture
from overnight.distributed import PATIENCE, World, current_world, joined
from overnight.ending import Ending
from overnight.errors import UserError, suggestion
from overnight.evals import registry
from overnight.evals.fitting import require_fit
from overnight.exchange import sources as exchange
from overnight.hooks import Samples, Task, Validation
from overnight.machine import device as machine
from overnight.model import LanguageModel
from overnight.presets import PRESETS
from overnight.pretrained import Pretrained
from overnight.runs import RunFolder, datasets_of
from overnight.stopping import stop_signals
from overnight.tokenizers import Tokenizer, prompt_ids
from overnight.training import Hook, Training
from overnight.training import train as train_loop


class Model:
    """A trained model with its tokenizer.

    `model(tokens)` gives logits (B, T, vocab_size); `model.generate(prompt)` gives text.
    """

    def __init__(self, gpt: LanguageModel, tokenizer: Tokenizer) -> None:
        self.gpt, self.tokenizer = gpt, tokenizer

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, vocab_size), float32, of tokens (B, T) int64."""
        with torch.no_grad():
            logits: torch.Tensor = self.gpt(tokens.to(self.gpt.wte.weight.device))
        return logits

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int = 200,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_at_end: bool = True,
    ) -> str:
        """The prompt and its continuation. An empty prompt starts from end-of-text."""
        pieces = self.stream(
            prompt,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_at_end=stop_at_end,
        )
        text: str = self.tokenizer.decode(list(pieces))
        return prompt + text

    def stream(
        self,
        prompt: str = "",
        max_new_tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int = 200,
        top_p: float = 1.0,
        seed: int | None = None,
        stop_at_end: bool = True,
        use_cache: bool = True,
    ) -> Iterator[int]:
        """The ids of the continuation, as they are sampled."""
        device = self.gpt.wte.weight.device
        generator = torch.Generator(device)
        generator.seed() if seed is None else generator.manual_seed(seed)
        tokens = torch.tensor([prompt_ids(self.tokenizer, prompt)], device=device)
        for column in generate.stream(
            self.gpt,
            tokens,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            use_cache=use_cache,
            vocab_size=self.tokenizer.vocab_size,
        ):
            if stop_at_end and int(column) == self.tokenizer.end_of_text:
                return
            yield int(column)


def load(source: str | Path, checkpoint_name: str = "best", device: str = "auto") -> Model:
    """A trained model: a run folder, whose checkpoint is best, last, or a step; or what `overnight.exchange` reads: a
    folder in transformers' GPT-2 format, a checkpoint of nanoGPT, build-nanogpt or llm.c."""
    found = exchange.use(str(source), checkpoint_name)
    tokenizer = found.known_tokenizer()
    return Model(found.build().to(machine.choose_device(device)), tokenizer)


def preset(name: str) -> Config:
    """A named configuration, to change with `dataclasses.replace`."""
    if name not in PRESETS:
        raise UserError(f"there is no preset '{name}'{suggestion(name, PRESETS)}; `overnight presets` lists them")
    return PRESETS[name]()


def train(
    config: Config,
    data: str | Path,
    out: str | Path,
    hooks: Sequence[Hook] | None = None,
    *,
    console: Console | None = None,
    command: Sequence[str] = (),
    begun: float | None = None,
    after: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """Trains to the end, or goes on with the run in `out`; returns the run folder.

    `data` is a dataset folder, or several with weights: 'DIR:0.7,DIR:0.3'. Without `hooks` it measures the
    validation loss and samples as `config.observe` says. At the end it writes report.html. Raises `Stopped` where it
    was asked to end before the last step.

    Started by torchrun it trains on all processes together; each calls it with the same arguments.

    `config.machine.hours` count from `begun`, in seconds since 1970, by default from now; `after` is what is kept
    of them for what the caller does when this has returned: seconds, and how many times that of an evaluation.
    """
    begun = time.time() if begun is None else begun
    deadline.asked(config.machine)
    tracking.require(config.observe)
    out, world = Path(out), current_world()
    with joined(world, _patience(config.machine.timeout)):
        mixture = Mixture.open(data)
        _check_prompt(config, mixture)
        length = config.recipe.data.sequence_length
        # a bad file is told at once
        tasks = world.in_turn(lambda: _tasks(config.observe.eval, mixture.tokenizer(), length)) if hooks is None else []
        first = world.rank == 0
        if first and not (out / "config.json").exists() and config.recipe.data.sequence_length > 0:
            # what cannot be is refused before anything is written
            deadline.made(config.machine, begun)
            session.open_dataset(config, mixture)
        with RunFolder(out).lock() if first else nullcontext():
            printer = (console if first else Console.silent()) or Console(out / "log.txt")
            made = (lambda training: [*default_hooks(training, mixture), *tasks]) if hooks is None else hooks
            clock = begun, after
            finished = _train(config, mixture, out, made, printer, command or sys.argv, world, clock)
            world.wait()
    if not finished:
        raise Stopped(f"{out} stopped before its last step")
    return out


def _patience(timeout: float) -> float:
    """Minutes for the others: more than a process has to find out by itself that it hangs, and to say where."""
    return (timeout or 10 * PATIENCE) + 10


def _train(
    config: Config,
    data: Mixture,
    out: Path,
    hooks: Sequence[Hook] | Callable[[Training], Sequence[Hook]],
    console: Console,
    command: Sequence[str],
    world: World,
    clock: tuple[float, tuple[float, float]],
) -> bool:
    """On every rank of a world: opens the run and trains; False where it was asked to end before the last step."""
    initial, opened = None, None
    device = session.choose_device(config.machine.device, console.line, world)  # before anything is written
    if config.machine.precision != "auto":
        machine.check_precision(config.machine.precision, device)
    if world.rank == 0:
        RunFolder(out).clear_stop()
        for line in checkpoint.set_damaged_aside(out / "checkpoints"):
            console.line(line)
        initial = _initial(config, out)
        manifests = [corpus.manifest for corpus in data.corpora]
        known = unchanged.require_unchanged(manifests, unchanged.recorded(out), say=console.line)
        opened = session.open_run(config, data, out, initial)
        unchanged.record(out, known)
    folder, config = session.share(opened, out, world)
    with console, stop_signals(folder) as stop:
        training = session.build_training(folder, config, data, device, console, command, initial, world)
        training.stop = stop
        begun, after = world.first(clock)
        opening, has = time.time() - begun, deadline.settle(folder, config.machine, training.step, begun)
        training.ending = Ending(has, after, opening)
        used = hooks(training) if callable(hooks) else hooks
        for line in [*banner(training, data), *_origin(initial)]:
            console.line(line)
        beside = tracking.beside(out, config.observe, training.step, console) if folder.writes else nullcontext()
        with beside, hanging.watched(config.machine.timeout, out, world.rank):
            finished = train_loop(training, used)
        if folder.writes:
            _report(out, console)
        if finished:
            for line in _beside_the_band(out) if folder.writes else ():
                console.line(line)
            for line in (summary(training), training.ending.farewell()):
                if line:
                    console.line(line)
    return finished


def _initial(config: Config, out: Path) -> Pretrained | None:
    """The weights that a run starts from, as long as it has no checkpoint of its own: of a run, those it began with."""
    source = config.recipe.init_from
    if not source or checkpoint.steps(out / "checkpoints"):
        return None
    begun = RunFolder.open(out).decided("init_from", 0) if (out / "config.json").exists() else None
    step = begun.get("step") if isinstance(begun, dict) else begun  # a run of an earlier version wrote the step alone
    return exchange.read(source, str(step) if isinstance(step, int) else "best")


def _origin(initial: Pretrained | None) -> list[str]:
    """Where a run's first weights are from, and what did not come along."""
    if initial is None:
        return []
    return [f"starts    from {initial.where}", *(f"note      {note}" for note in initial.notes)]


def _check_prompt(config: Config, data: Mixture) -> None:
    """Refuses a prompt for samples that the tokenizer cannot encode, before anything is written."""
    sample = config.observe.sample
    if sample.every:
        try:
            prompt_ids(data.tokenizer(), sample.prompt)
        except UserError as error:
            raise UserError(
                f"{error} (samples begin with {sample.prompt!r}; --sample.prompt TEXT changes it)"
            ) from None


def _report(out: Path, console: Console) -> None:
    """Writes report.html; that it cannot be written takes nothing from the run."""
    from overnight.report import write_report

    try:
        write_report([out], out / "report.html")
    except (OSError, UserError) as error:
        console.line(f"the report could not be written: {error}")


def _band(training: Training) -> Callable[[Look], str] | None:
    """What says where an evaluation lies in the band of the run's preset, where that has one."""
    band = find_band(training.config.preset)
    if band is None:
        return None
    return in_the_run(band, datasets_of(training.folder.path)[-1])


def _beside_the_band(out: Path) -> list[str]:
    """The verdict on a finished run; that a damaged band cannot be read takes nothing from it."""
    from overnight.report.bands import verdict
    from overnight.report.run_data import read_run

    try:
        found = verdict(read_run(out))
    except (OSError, UserError) as error:
        return [f"the run could not be set beside a band: {error}"]
    return [] if found is None else found.sentences()


class Stopped(Exception):
    """The run was asked to end before its last step; it has its checkpoint."""


def default_hooks(training: Training, data: Mixture) -> list[Hook]:
    """What a run does beside training, unless it is told otherwise."""
    observe, tokenizer = training.config.observe, training.tokenizer
    validation = Validation(
        every=observe.eval.every,
        streams={corpus.name: session.open_stream(corpus.manifest, "val") for corpus in data.corpora},
        weights=[corpus.weight for corpus in data.corpora],
        token_bytes=tokenizer.token_bytes(),
        tokens=observe.eval.tokens,
        train_streams={corpus.name: session.open_stream(corpus.manifest, "train") for corpus in data.corpora},
        train_tokens=observe.eval.train_tokens,
        band=_band(training),
    )
    hooks: list[Hook] = [validation] if observe.eval.every else []
    if observe.sample.every:
        hooks.append(Samples(observe.sample.every, tokenizer, observe.sample))
    return hooks


def _tasks(observe: EvalConfig, tokenizer: Tokenizer, block_size: int) -> list[Hook]:
    """The evaluations that a run makes as it goes on; UserError where one cannot be made."""
    hooks: list[Hook] = []
    for asked in registry.parse(observe.tasks):
        every = observe.every if asked.every is None else asked.every
        if asked.name == "loss" or not every:
            raise UserError(
                f"--eval.tasks: {asked.name} "
                + ("is measured anyway" if asked.name == "loss" else f"needs an interval, as in {asked.name}@1000")
            )
        evaluation = registry.make(asked, observe.examples, print, trusted=False)
        require_fit(evaluation, tokenizer, block_size)
        hooks.append(Task(every, evaluation, tokenizer))
    return hooks


def banner(training: Training, data: Mixture) -> list[str]:
    """What a run is, before it begins."""
    config, recipe = training.config, training.config.recipe
    parameters = list(training.model.parameters())
    trained_ones = [p for p in parameters if p.requires_grad]
    decayed = [p for group in training.optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    micro_batch = training.folder.decided("micro_batch", training.step)
    share = training.world.share(training.sequences_per_step)
    timed = training.ending.plan(training)
    lines = [
        *([timed] if timed else []),
        f"{config.preset} in {training.folder.path}, on {machine.describe(training.device)}",
        f"model     {sum(p.numel() for p in parameters):,} parameters; {recipe.model.n_layer} layers of "
        f"{recipe.model.n_embd}, {recipe.model.n_head} heads, {recipe.model.vocab_size:,} ids",
        f"decay     {len(decayed)} tensors, {sum(p.numel() for p in decayed):,} parameters; not on the other "
        f"{len(trained_ones) - len(decayed)}",
        f"step      {recipe.train.tokens_per_step:,} tokens = {training.sequences_per_step} sequences of "
        f"{recipe.data.sequence_length}, in {-(-share // micro_batch)} micro-batches of up to {micro_batch} "
        f"({training.precision})",
        *_data_lines(training, data),
    ]
    if frozen := len(parameters) - len(trained_ones):
        kept = sum(p.numel() for p in parameters if not p.requires_grad)
        lines.insert(2 + bool(timed), f"frozen    {frozen} tensors, {kept:,} parameters")
    constant = recipe.optim.schedule == "constant"
    if not constant and training.learning_rate(training.steps - 1) > 0.5 * recipe.optim.lr:
        lines.append(
            "note      the learning rate does not come down within these steps (--optim.schedule, --optim.decay-end)"
        )
    if training.step:
        lines.append(f"goes on   from step {training.step:,} of {training.steps:,}")
    return lines


def _data_lines(training: Training, data: Mixture) -> list[str]:
    """How much text there is, and how often the run goes through it."""
    trained = training.steps * training.config.recipe.train.tokens_per_step
    epochs = training.dataset.epochs(training.steps * training.sequences_per_step)
    splits = [corpus.manifest.splits["train"] for corpus in data.corpora]
    making = f"{training.steps:,} steps make {trained:,} tokens"
    if len(splits) == 1:
        tokens, shards = splits[0]["tokens"], len(splits[0]["shards"])
        making = "" if training.ending.undecided(training) else f"; {making}, {epochs['epoch']:.2f} epochs"
        return [f"data      {tokens:,} tokens in {shards} shards{making}"]
    total = sum(corpus.weight for corpus in data.corpora)
    return [f"data      {len(splits)} corpora; {making}"] + [
        f"          {corpus.weight / total:.1%} {corpus.name}: {split['tokens']:,} tokens, "
        f"{epochs[f'epoch_{corpus.name}']:.2f} epochs"
        for corpus, split in zip(data.corpora, splits, strict=True)
    ]


def summary(training: Training) -> str:
    """The last line of a finished run."""
    out = training.folder.path
    found = checkpoint.best(training.folder.checkpoints)
    best = ""
    if found is not None:
        loss = checkpoint.read_state(training.folder.checkpoints / checkpoint.folder_name(found)).val_loss
        best = f", best validation loss {loss:.4f} at step {found}"
    return (
        f"finished at step {training.step}{best}; `overnight sample {out}` talks to it, {out / 'report.html'} shows it"
    )
