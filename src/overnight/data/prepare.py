"""Text into a dataset folder: the same bytes for any number of workers and after any kill.

Each part of the source becomes a spill (tokenizing.py); when all are there, they are merged into shards (merge.py), and
the manifest is written last. Until then DIR/.work holds the plan and the spills; the same command goes on from those.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overnight.data.dataset import NAME, SPLITS, Manifest, fingerprint
from overnight.data.disk import check, check_free, taken
from overnight.data.engines import Engine, open_engine
from overnight.data.fetching import Fetching, Local, on_disk
from overnight.data.gathering import Gathering
from overnight.data.lock import locked
from overnight.data.merge import LeftOut, Output, Splits, merge_bins, merge_ordered
from overnight.data.meter import Meter, Progress, Quiet
from overnight.data.plan import Plan, PrepareOptions
from overnight.data.planning import WORK, Request, planned
from overnight.data.pool import cores
from overnight.data.shards import remove_shards
from overnight.data.sizes import size
from overnight.data.sources import RemoteSource, Source
from overnight.data.spill import Spill
from overnight.data.tokenizing import EXAMPLES, Task
from overnight.errors import UserError
from overnight.files import sha256, write_atomic, write_json
from overnight.tokenizers import Tokenizer, dtype_for
from overnight.words import duration

__all__ = ["PrepareOptions", "prepare"]


def prepare(
    source: Source, out: Path | str, options: PrepareOptions | None = None, progress: Progress | None = None
) -> Manifest:
    """Writes the dataset folder `out` and returns its manifest.

    An unfinished folder is completed, one that is complete with the same settings is left as it is. Raises UserError
    for bad text, too little disk, a folder that another prepare is writing or that holds something else.
    """
    out, say = Path(out), progress or Quiet()
    try:
        _check_folder(out)
        options = options or PrepareOptions()
        engine = open_engine(options, say)
        request = Request(source, out, options)
        manifest = request.complete()
        if manifest is None or (out / WORK).exists():
            with locked(
                out / WORK / "lock", f"another prepare is writing {out}; wait for it, or choose another folder"
            ):
                manifest = request.complete() or _made(request, engine, say)
                shutil.rmtree(out / WORK)
        else:
            unkept = options.keep_raw and isinstance(source, RemoteSource) and not source.held()
            missing = "; what was downloaded was not kept" if unkept else ""
            say.line(f"{out} is complete already, with these settings: nothing to do{missing}")
        return manifest
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {out} is full; make room, and the same command goes on") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise UserError(f"{error.filename or out}: {error.strerror}; choose another folder for --out") from None
        raise


def _check_folder(out: Path) -> None:
    """UserError where `out` is something that prepare must not write into."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; --out names a folder")
    if out.exists() and not (out / WORK).exists() and not (out / NAME).exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty, and no dataset; choose another folder for --out")


def _made(request: Request, engine: Engine, say: Progress) -> Manifest:
    """Makes the dataset, or what is still missing of it, while the folder is locked."""
    started = time.monotonic()
    request.refuse_begun()
    for note in request.source.notes:
        say.line(note)
    source = request.source
    if isinstance(source, RemoteSource):
        source.begin()
        source.traffic.aloud(say)
        check_free(request.out, downloads := _downloads(request))
        say.line(f"disk: up to {size(downloads)} for downloads at a time; what tokens take is said after a first look")
    remove_shards(request.out)
    plan, tokenizer = planned(request, say)
    dtype = dtype_for(tokenizer.vocab_size)
    gathering = Gathering(_task(request, plan, tokenizer, dtype.name), request.parts, plan.tokens)
    present = sum(spill.path.stat().st_size for spill in gathering.done.values())
    say.line(check(request.out, plan.disk, present, _downloads(request)))
    before = [spill.contents for spill in gathering.done.values()]
    meter = Meter(
        say,
        request.text_bytes,
        request.options.limit_tokens,
        (sum(contents.bytes for contents in before), sum(contents.tokens for contents in before)),
    )
    supply = _supply(request, plan, gathering, engine, meter)
    if request.options.keep_raw and (gone := supply.gone()):
        say.line(f"{gone:,} files were tokenized before --keep-raw was given: they are not in {request.out / 'raw'}")
    with supply:
        kept = gathering.tokenize(engine, meter.tick, supply)
        ordered = gathering.split_by_position(kept, plan.fraction) if plan.by_position else None
    options = request.options
    output = Output(request.out, tokenizer, dtype.name, options.shard_tokens, options.val_tokens, options.dedup)
    tick = meter.writing(sum(spill.contents.tokens for spill in kept)).tick
    if ordered is not None:
        splits, left_out = merge_ordered(*ordered, output, tick)
    else:
        splits, left_out = merge_bins(kept, plan.bits, plan.fraction, output, tick)
    manifest = _written(request, plan, output, kept, splits, left_out)
    _tell_skipped(kept, say)
    downloads = source.held() if isinstance(source, RemoteSource) else 0
    say.line(f"disk: {size(taken(request.out) - downloads)} at the peak, {size(plan.disk)} predicted")
    say.line(f"done in {duration(time.monotonic() - started)}")
    return manifest


def _supply(request: Request, plan: Plan, gathering: Gathering, engine: Engine, meter: Meter) -> Fetching | Local:
    """What brings the text while it is entered."""
    if not isinstance(request.source, RemoteSource):
        return Local()
    request.source.traffic.aloud(None)
    meter.traffic = request.source.traffic
    return Fetching(
        request.source,
        request.parts,
        gathering.done,
        gathering.task.limit,
        plan.tokens / max(1, sum(part.size for part in request.parts)),
        ahead=not engine.at_once,
        # where the position splits, a part is cut in two once all are known
        keep=plan.by_position,
    )


def _downloads(request: Request) -> int:
    """Bytes of downloaded files that may lie on the disk at a time, beside those that are there already."""
    if not isinstance(request.source, RemoteSource):
        return 0
    absent, options = request.source.absent(), request.options
    if options.keep_raw or options.tokenizer == "chars":  # which reads all of it before anything is tokenized
        return sum(absent.values())
    return on_disk(absent, len(request.parts), options.workers or cores())


def _task(request: Request, plan: Plan, tokenizer: Tokenizer, dtype: str) -> Task:
    return Task(
        source=request.source,
        tokenizer=tokenizer,
        work=request.out / WORK,
        dtype=dtype,
        seed=request.options.seed,
        bits=plan.bits,
        by_position=plan.by_position,
        skip_bad=request.options.skip_bad,
        limit=request.options.limit_tokens,
        cleaning=plan.cleaning,
        held_out=request.held_out,
    )


def _tell_skipped(kept: Sequence[Spill], say: Progress) -> None:
    if empty := sum(spill.contents.empty for spill in kept):
        names = [name for spill in kept for name in spill.contents.empty_files][:EXAMPLES]
        such_as = ", ".join(names) + (", ..." if empty > len(names) else "")
        say.line(f"passed over {empty:,} empty {'file' if empty == 1 else 'files'}: {such_as}")
    if skipped := sum(spill.contents.skipped for spill in kept):
        examples = [example for spill in kept for example in spill.contents.examples][:EXAMPLES]
        say.line(f"skipped {skipped:,} that could not be read, such as:")
        for example in examples:
            say.line(f"  {example}")


def _written(
    request: Request, plan: Plan, output: Output, kept: Sequence[Spill], splits: Splits, left_out: LeftOut
) -> Manifest:
    """The tokenizer and, last, the manifest."""
    for split in SPLITS:
        if not splits[split]["tokens"]:
            raise UserError(f"the {split} split would be empty: there is too little text")
    described = {"name": output.tokenizer.name, "vocab_size": output.tokenizer.vocab_size}
    described |= {"end_of_text": output.tokenizer.end_of_text, "file": None, "sha256": None}
    if (content := output.tokenizer.to_json()) is not None:
        file = request.out / "tokenizer.json"
        write_atomic(file, content)
        described |= {"file": file.name, "sha256": sha256(file)}
    totals: dict[str, Any] = {
        name: sum(splits[split][name] for split in SPLITS) for name in ("tokens", "documents", "bytes")
    }
    totals |= {"left_out_documents": left_out.documents, "left_out_tokens": left_out.tokens}
    parts = [spill.contents for spill in kept]
    totals |= {
        "duplicate_documents": left_out.copies + sum(part.copies for part in parts),
        "duplicate_tokens": left_out.copied_tokens + sum(part.copied_tokens for part in parts),
        "too_short_documents": sum(part.too_short for part in parts),
        "too_long_documents": sum(part.too_long for part in parts),
    }
    manifest = Manifest(
        folder=request.out,
        tokenizer=described,
        dtype=output.dtype,
        splits={split: splits[split] for split in SPLITS},
        sources=[
            {
                **request.described,
                "skipped": sum(part.skipped for part in parts),
                "empty_files": sum(part.empty for part in parts),
            }
        ],
        settings=plan.full_settings(),
        totals=totals,
        fingerprint=fingerprint(described, output.dtype, splits),
    )
    write_json(request.out / NAME, manifest.to_json())
    return manifest
