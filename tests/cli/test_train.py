"""`overnight train`, `sample`, `stop`, `report` as a user runs them."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from overnight import checkpoint
from overnight.errors import UserError
from overnight.presets import PRESETS
from overnight.runs import RunFolder, read_lines


@pytest.fixture(scope="module")
def run(overnight, dataset, tiny, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "first"
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", out, *tiny)
    return out


def lines(path: Path, kind: str | None = None) -> list[dict]:
    """Lines without what is about clocks."""
    found = [{k: v for k, v in line.items() if k != "time"} for line in read_lines(path)]
    return [line for line in found if kind is None or line["kind"] == kind]


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "overnight", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (out / "metrics.jsonl").exists() and any(line["step"] >= step for line in lines(out / "metrics.jsonl")):
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within a minute")


def test_a_run_has_everything_that_the_format_promises(run, dataset):
    train = lines(run / "metrics.jsonl", "train")
    assert [line["step"] for line in train] == list(range(1, 13))
    assert [line["tokens"] for line in train] == [256 * step for step in range(1, 13)]
    assert [line["step"] for line in lines(run / "metrics.jsonl", "eval")] == [0, 5, 10, 12]
    assert [line["step"] for line in lines(run / "samples.jsonl")] == [5, 10, 12]
    assert all(text.startswith("def ") for line in lines(run / "samples.jsonl") for text in line["texts"])
    assert checkpoint.steps(run / "checkpoints") == [8, 12]
    assert 5.3 < lines(run / "metrics.jsonl", "eval")[0]["val_loss"] < 5.9  # ln 257 = 5.55
    attempt = read_lines(run / "attempts.jsonl")[0]
    assert attempt["dataset"]["path"] == str(dataset) and attempt["step"] == 0
    assert {line["name"] for line in read_lines(run / "decisions.jsonl")} >= {"device", "precision", "micro_batch"}
    assert "step 12/12" in (run / "log.txt").read_text()
    assert (run / "report.html").stat().st_size > 10_000


def test_the_same_command_again_says_that_it_is_finished(run, overnight, dataset, tiny):
    before = (run / "metrics.jsonl").read_bytes()
    done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", run, *tiny)
    assert "finished at step 12" in done.stdout
    assert (run / "metrics.jsonl").read_bytes().startswith(before)


def test_more_steps_continue_and_are_a_decision(overnight, dataset, tiny, tmp_path):
    out = tmp_path / "longer"
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", out, *tiny)
    done = overnight("train", out, "--train.steps", "16")
    assert "goes on   from step 12 of 16" in done.stdout
    assert lines(out / "metrics.jsonl", "train")[-1]["step"] == 16
    assert [d["value"] for d in read_lines(out / "decisions.jsonl") if d["name"] == "train.steps"] == [16]
    assert RunFolder.open(out).config().recipe.train.steps == 12
    fewer = overnight("train", out, "--train.steps", "14", check=False)
    assert fewer.returncode == 2 and "can only be made longer" in fewer.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--optim.lr", "0.5"], f"optim.lr: {PRESETS['gpt2-tiny']().recipe.optim.lr} in the run, 0.5 now"),
        (["--seed", "7"], "seed: 1337 in the run, 7 now"),
    ],
)
def test_another_recipe_is_refused_and_shown(run, overnight, dataset, tiny, change, message):
    done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", run, *tiny, *change, check=False)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_machine_and_observe_may_change(run, overnight, dataset, tiny):
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", run, *tiny, "--micro-batch", "2", "--log.every", "3")
    assert RunFolder.open(run).decided("micro_batch", 12) == 2


def test_another_dataset_is_refused(run, overnight, tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\n" * 500)
    overnight("prepare", "files", text, "--out", tmp_path / "data", "--tokenizer", "bytes")
    done = overnight("train", "gpt2-tiny", "--data", tmp_path / "data", "--out", run, *tiny, check=False)
    assert done.returncode == 2 and "is not the dataset" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt2-123m"], "did you mean gpt2-124m"),
        (["gpt2-tiny", "--optim.lrr", "1"], "did you mean --optim.lr"),
        (["gpt2-tiny", "--train.steps", "x"], "--train.steps"),
        (["gpt2-tiny"], "--data DIR"),
        (["gpt2-tiny", "--data", "nowhere"], "nowhere"),
        (["gpt2-tiny", "--train.steps", "5", "--train.tokens", "5000"], "keep one"),
        (["missing.toml"], "missing.toml"),
        (["nothing:there"], "nothing"),
        (
            ["gpt2-tiny", "--seed", str(2**63), "--data", "DATASET"],
            "seed is 9223372036854775808: it must be below 2**63",
        ),
        (["gpt2-tiny", "--seed", "-1", "--data", "DATASET"], "seed is -1"),
        (["gpt2-tiny", "--model.n-head", "0", "--data", "DATASET"], "overnight: --model.n-head is 0"),
        (["gpt2-tiny", "--model.vocab-size", "0", "--data", "DATASET"], "--model.vocab-size is 0"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(overnight, dataset, tmp_path, arguments, message):
    arguments = [dataset if argument == "DATASET" else argument for argument in arguments]
    done = overnight("train", *arguments, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.sequence-length", "100"], "the nearest are"),
        (["--model.n-head", "7"], "--model.n-head 7"),
        (["--data.sequence-length", "1048576", "--train.tokens-per-step", "1048576"], "needs at least 1048577"),
        (["--device", "cuda:9"], "--device cuda:9"),
        (["--precision", "tf32"], "tf32"),
        (["--sample.prompt", "é" * 3, "--train.steps", "-1"], "train.steps is -1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(overnight, dataset, tmp_path, arguments, message):
    done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *arguments, check=False)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "run" / "config.json").exists() or arguments[0] in ("--device", "--precision")


def test_print_config_shows_flags_and_toml_alike(overnight, tmp_path):
    toml = tmp_path / "mine.toml"
    toml.write_text('preset = "gpt2-124m"\nseed = 3\nmicro_batch = 2\n[train]\nsteps = 7\n[optim]\nlr = 1e-3\n')
    shown = json.loads(overnight("train", toml, "--eval.every", "9", "--print-config").stdout)
    assert shown["recipe"]["seed"] == 3 and shown["recipe"]["train"]["steps"] == 7
    assert shown["recipe"]["optim"]["lr"] == 1e-3 and shown["machine"]["micro_batch"] == 2
    assert shown["observe"]["eval"]["every"] == 9
    toml.write_text("[train]\nstpes = 7\n")
    done = overnight("train", toml, "--print-config", check=False)
    assert done.returncode == 2 and "did you mean steps" in done.stderr


def test_a_function_gives_a_configuration(overnight, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import dataclasses, overnight\n\n"
        "def small():\n    return dataclasses.replace(overnight.preset('gpt2-tiny'), preset='small')\n"
    )
    assert json.loads(overnight("train", "mine:small", "--print-config", cwd=tmp_path).stdout)["preset"] == "small"


RAISES = """
def fails():
    raise RuntimeError("two\\nlines")

def gives_none():
    pass
"""


@pytest.mark.parametrize(
    ("content", "function", "message"),
    [
        (RAISES, "fails", "mine_raises:fails: RuntimeError: two lines"),
        (RAISES, "gives_none", "mine_raises:gives_none gave NoneType"),
        (RAISES, "absent", "mine_raises:absent: AttributeError"),
        ("1 +", "fails", "mine_raises:fails: SyntaxError"),
        ("1 / 0", "fails", "mine_raises:fails: ZeroDivisionError"),
    ],
)
def test_what_a_function_raises_is_one_line_that_names_it(overnight, tmp_path, content, function, message):
    (tmp_path / "mine_raises.py").write_text(content)
    sys.modules.pop("mine_raises", None)
    importlib.invalidate_caches()
    done = overnight("train", f"mine_raises:{function}", check=False, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    if function == "fails" and content is RAISES:
        with pytest.raises(UserError) as error:
            overnight("train", f"mine_raises:{function}", "--debug", check=False, cwd=tmp_path)
        assert isinstance(error.value.__cause__, RuntimeError)


def test_a_toml_file_calls_no_code_and_reads_no_other_formats(run, overnight, tmp_path):
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    for name in ("evil:f", str(run), str(run / "config.json"), "gpt2-123m"):
        (tmp_path / "a.toml").write_text(f'preset = "{name}"\n')
        done = overnight("train", "a.toml", "--print-config", check=False, cwd=tmp_path)
        assert done.returncode == 2 and "neither a TOML file nor a name" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "executed").exists()


def test_toml_files_build_on_each_other_but_not_in_a_circle(overnight, tmp_path):
    (tmp_path / "a.toml").write_text('preset = "b.toml"\n[train]\nsteps = 7\n')
    (tmp_path / "b.toml").write_text('preset = "gpt2-tiny"\nseed = 5\n[train]\nsteps = 6\n')
    shown = json.loads(overnight("train", "a.toml", "--print-config", cwd=tmp_path).stdout)
    assert (shown["preset"], shown["recipe"]["seed"], shown["recipe"]["train"]["steps"]) == ("a", 5, 7)
    for circle in ("a.toml", "b.toml", "./a.toml"):
        (tmp_path / "b.toml").write_text(f'preset = "{circle}"\n')
        done = overnight("train", "a.toml", "--print-config", check=False, cwd=tmp_path)
        assert done.returncode == 2 and "its preset leads back to itself" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["gpt2-tiny", "gpt2-350m", "shakespeare-char"])
def test_help_shows_the_values_of_the_preset(overnight, name):
    recipe = PRESETS[name]().recipe
    for arguments in ([name, "--help"], ["--help", name], [name, "--seed", "1", "-h"]):
        shown = " ".join(re.sub("[│╭╮╰╯─]", " ", overnight("train", *arguments).stdout).split())
        for flag, value in (
            ("--model.n-layer INT", recipe.model.n_layer),
            ("--optim.lr FLOAT", recipe.optim.lr),
            ("--train.steps INT", recipe.train.steps),
        ):
            assert re.search(rf"{flag} [^-]*\(default: {value}\)", shown), (flag, value)


def test_help_without_a_preset(overnight):
    assert "--model.n-layer" in overnight("train", "--help").stdout
    unknown = overnight("train", "gpt2-123m", "--help", check=False)
    assert unknown.returncode == 2 and "did you mean gpt2-124m" in unknown.stderr


def test_an_attempt_without_its_dataset_is_named(run, overnight, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_bytes((run / "config.json").read_bytes())
    (out / "attempts.jsonl").write_text('{"attempt": 1}\n')
    done = overnight("train", out, check=False)
    assert done.returncode == 2 and "attempts.jsonl, line 1: 'dataset' is missing" in done.stderr


def test_tokens_instead_of_steps(overnight, dataset, tiny, tmp_path):
    tiny = [*tiny]
    del tiny[tiny.index("--train.steps") :][:2], tiny[tiny.index("--train.steps") : tiny.index("--train.steps") + 2]
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *tiny, "--train.tokens", "1000")
    assert lines(tmp_path / "run" / "metrics.jsonl", "train")[-1]["step"] == 4  # 256 tokens a step


def test_overfitting_one_batch(overnight, dataset, tiny, tmp_path):
    out = tmp_path / "run"
    options = ["--overfit", "1", "--train.steps", "60", "--optim.lr", "0.01"]
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", out, *tiny, *options)
    losses = [line["loss"] for line in lines(out / "metrics.jsonl", "train")]
    assert losses[-1] < 0.6 * losses[0]


def test_evaluations_and_samples_change_nothing(overnight, dataset, tiny, tmp_path):
    """With dropout, so that also what they might do to the global random state is seen."""
    loud, quiet = tmp_path / "loud", tmp_path / "quiet"
    arguments = ["train", "gpt2-tiny", "--data", dataset, *tiny, "--model.dropout", "0.1"]
    overnight(*arguments, "--out", loud)
    overnight(*arguments, "--out", quiet, "--eval.every", "0", "--sample.every", "0")
    for name in ("model.safetensors", "optimizer.safetensors"):
        a, b = (folder / "checkpoints" / "step_00000012" / name for folder in (loud, quiet))
        assert a.read_bytes() == b.read_bytes()
    assert lines(loud / "metrics.jsonl", "train") == lines(quiet / "metrics.jsonl", "train")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, "stop"])
def test_stopped_and_continued_is_bit_identical(overnight, dataset, tiny, tmp_path, how):
    seldom = ["--eval.every", "25", "--sample.every", "60", "--checkpoint.every", "50", "--train.steps", "300"]
    arguments = ["train", "gpt2-tiny", "--data", dataset, *tiny, *seldom, "--model.dropout", "0.1"]
    out = tmp_path / "stopped"
    process = start(*arguments, "--out", out)
    wait_for_step(out, 9, process)
    if how == "stop":
        assert "stopped" in overnight("stop", out).stdout
    else:
        process.send_signal(how)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    stopped_at = checkpoint.steps(out / "checkpoints")[-1]
    assert f"stopped at step {stopped_at} of 300, checkpoint written" in printed
    assert "is not being trained" in overnight("stop", out).stdout
    overnight(*arguments, "--out", out)
    overnight(*arguments, "--out", tmp_path / "whole")
    for name in ("model.safetensors", "optimizer.safetensors"):
        a, b = (folder / "checkpoints" / "step_00000300" / name for folder in (out, tmp_path / "whole"))
        assert a.read_bytes() == b.read_bytes()
    assert lines(out / "metrics.jsonl") == lines(tmp_path / "whole" / "metrics.jsonl")
    assert lines(out / "samples.jsonl") == lines(tmp_path / "whole" / "samples.jsonl")


def test_two_processes_cannot_train_one_run(overnight, dataset, tiny, tmp_path):
    arguments = ["train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *tiny, "--train.steps", "5000"]
    process = start(*arguments)
    wait_for_step(tmp_path / "run", 1, process)
    second = overnight(*arguments, check=False)
    process.kill()
    process.communicate()
    assert second.returncode == 2 and f"is being trained by process {process.pid}" in second.stderr


def test_detached_it_survives_a_hangup_and_stops_cleanly(overnight, dataset, tiny, tmp_path):
    out = tmp_path / "run"
    done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", out, *tiny, "--train.steps", "5000", "--detach")
    pid = int(done.stdout.split("as process ")[1].split()[0])
    wait_for_step(out, 2)
    os.kill(pid, signal.SIGHUP)
    step = lines(out / "metrics.jsonl", "train")[-1]["step"]
    wait_for_step(out, step + 20)
    overnight("stop", out)
    assert "checkpoint written" in (out / "log.txt").read_text()


def test_what_is_detached_imports_nothing_from_the_current_folder_but_what_it_is_told_to(
    overnight, dataset, tiny, tmp_path
):
    (tmp_path / "tomllib.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    (tmp_path / "mine_detached.py").write_text(
        "import overnight\n\ndef config():\n    return overnight.preset('gpt2-tiny')\n"
    )
    arguments = ["train", "mine_detached:config", "--data", dataset, "--out", "run", *tiny, "--detach"]
    overnight(*arguments, cwd=tmp_path)
    wait_for_step(tmp_path / "run", 12)
    assert not (tmp_path / "executed").exists()


def test_detached_a_mistake_is_told(overnight, tmp_path):
    failed = overnight("train", "gpt2-tiny", "--data", "nowhere", "--out", tmp_path / "other", "--detach", check=False)
    assert failed.returncode == 2 and "nowhere" in failed.stderr


def test_on_a_terminal_there_is_a_live_line(dataset, tiny, tmp_path):
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "overnight",
        "train",
        "gpt2-tiny",
        "--data",
        str(dataset),
        "--out",
        str(tmp_path / "run"),
        *tiny,
    ]
    with subprocess.Popen(command, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
    os.close(leader)
    assert process.returncode == 0
    assert b"\r\x1b[2K" in shown and b"step 12/12" in shown


def test_a_closed_terminal_does_not_end_a_run(dataset, tiny, tmp_path):
    leader, follower = pty.openpty()
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "overnight",
        "train",
        "gpt2-tiny",
        "--data",
        str(dataset),
        "--out",
        str(out),
        *tiny,
    ]
    process = subprocess.Popen(
        [*command, "--train.steps", "200", "--sample.every", "0", "--eval.every", "50"],
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    wait_for_step(out, 1)
    os.close(leader)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0
    assert checkpoint.steps(out / "checkpoints")[-1] == 200


def test_init_from_another_run(run, overnight, dataset, tiny, tmp_path):
    out = tmp_path / "run"
    options = ["--init-from", run, "--data.sequence-length", "16", "--train.steps", "1"]
    printed = overnight("train", "finetune-shakespeare", "--data", dataset, "--out", out, *tiny, *options).stdout
    assert "moments stay behind" in printed and "model.n_layer is that of" in printed
    theirs = lines(run / "metrics.jsonl", "eval")[-1]["val_loss"]
    assert abs(lines(out / "metrics.jsonl", "eval")[0]["val_loss"] - theirs) < 0.5
    none = overnight("train", "finetune-shakespeare", "--data", dataset, "--out", tmp_path / "none", check=False)
    assert none.returncode == 2 and "--init-from" in none.stderr


def test_python_interface(run):
    import torch

    import overnight

    model = overnight.load(run, device="cpu")
    text = model.generate("def ", max_new_tokens=10, seed=1)
    assert text.startswith("def ") and text == model.generate("def ", max_new_tokens=10, seed=1)
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 257)


def test_a_device_that_is_not_there_leaves_no_run_behind(overnight, dataset, tiny, tmp_path):
    flags = [flag for flag in tiny if flag not in ("--device", "cpu")]
    for wrong, message in ((["--device", "tpu"], "--device tpu"), (["--device", "cpu", "--precision", "tf32"], "tf32")):
        done = overnight(
            "train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *flags, *wrong, check=False
        )
        assert done.returncode == 2 and message in done.stderr
        assert not (tmp_path / "run" / "config.json").exists()


def test_flags_of_nanogpt_are_told_by_their_names_here(overnight, dataset):
    done = overnight("train", "gpt2-tiny", "--data", dataset, "--max_iters", "60", check=False)
    assert done.returncode == 2 and "nanoGPT's; here --train.steps" in done.stderr
