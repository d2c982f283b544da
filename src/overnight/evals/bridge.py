"""What lm-evaluation-harness calls a model, over our scorer and our generation."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from overnight import generate
from overnight.config import Precision
from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.scoring import Answer, Question, score
from overnight.exchange import sources
from overnight.session import choose_device
from overnight.tokenizers import END_OF_TEXT, prompt_ids

DEFAULT_DEVICE = "cuda:0"  # the harness's
SEED = 1234  # for tasks that sample: the harness's own seed of torch


class OvernightLM(TemplateLM):  # type: ignore[misc]
    """`--model overnight --model_args path=RUN,checkpoint=best,precision=fp32,tokens=4096`.

    `path` is whatever `overnight eval` takes. `tokens` bounds what is computed at once, in the place of `batch_size`,
    which is not used. In a world of several processes each one is asked everything, and computes its part of it.
    """

    def __init__(
        self,
        path: str,
        checkpoint: str | int = "best",
        device: str = "auto",
        precision: Precision = "fp32",
        tokens: int = 0,
        max_gen_toks: int = 256,
        world: World | None = None,
    ) -> None:
        super().__init__()
        self.world = world or World()
        found = self.world.in_turn(lambda: sources.read(str(path), str(checkpoint)))
        if found.tokenizer is None:
            raise UserError(f"{found.where} does not say which tokenizer it was trained with, and none lies beside it")
        self._device = choose_device(device, lambda line: print(line, file=sys.stderr), self.world)
        self.model, self.text = found.build().to(self._device), found.tokenizer
        self.precision, self.tokens, self.max_gen_toks = precision, int(tokens), int(max_gen_toks)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> OvernightLM:
        """From the command's --model_args; of its other options only --device says something here.

        It fills in cuda:0 for that where nothing is said, on every machine.
        """
        device = (additional_config or {}).get("device") or DEFAULT_DEVICE
        return cls(**{"device": "auto" if device == DEFAULT_DEVICE else device, **arg_dict})

    @property
    def eot_token_id(self) -> int:
        """End of text; for a tokenizer that has none, what an empty prompt begins with."""
        return prompt_ids(self.text, "")[0]

    @property
    def max_length(self) -> int:
        return self.model.block_size

    @property
    def tokenizer_name(self) -> str:
        """It tells apart what the harness keeps of prompts: also two trained tokenizers of one size."""
        content = self.text.to_json()
        return self.text.name + (f"-{hashlib.sha256(content.encode()).hexdigest()[:16]}" if content else "")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return [int(token) for token in self.text.encode_prompt(string)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for asked, _, ending in requests:
            if not ending:
                raise UserError(f"the harness asks for an ending without a token of its own: {asked!r:.200}")
        answers = self._score([(context, ending) for _, context, ending in requests])
        found = [(-answer.nats, answer.greedy) for answer in answers]
        for (asked, _, _), answer in zip(requests, found, strict=True):
            if asked is not None:
                self.cache_hook.add_partial("loglikelihood", asked, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows = [[make_disjoint_window(window) for window in self._rolling(request.args[0])] for request in requests]
        answers = iter(self._score([window for own in windows for window in own]))
        found = [-sum(next(answers).nats for _ in own) for own in windows]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return found

    def _rolling(self, text: str) -> Any:
        return get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Answer]:
        questions = [Question(tuple(context), (tuple(ending),)) for context, ending in pairs]
        answers = score(
            self.model,
            questions,
            device=self._device,
            precision=self.precision,
            world=self.world,
            tokens_at_once=self.tokens,
        )
        return [answer for (answer,) in answers]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        own = [self._continue(*request.args) for request in self.world.mine(requests)]
        found = self.world.interleaved(own)
        for request, text in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found

    def _continue(self, context: str, asked: dict[str, Any]) -> str:
        """The text after `context` up to a stop sequence, end of text or the limit."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(asked, self.max_gen_toks))
        limit, stops = settings["max_gen_toks"], handle_stop_sequences(settings["until"], eos=END_OF_TEXT)
        if limit >= self.max_length:
            raise UserError(
                f"a task generates up to {limit:,} tokens, and the model sees {self.max_length:,}: "
                "set fewer with --gen_kwargs max_gen_toks=N"
            )
        begin = self.tok_encode(context)[-(self.max_length - limit) :] or [self.eot_token_id]
        sampled = settings["do_sample"]
        ids: list[int] = []
        for column in generate.stream(
            self.model,
            torch.tensor([begin], device=self._device),
            limit,
            temperature=settings.get("temperature", 1.0) if sampled else 0.0,
            top_k=int(settings.get("top_k", 0)),
            top_p=float(settings.get("top_p", 1.0)),
            generator=torch.Generator(self._device).manual_seed(SEED),
            vocab_size=self.text.vocab_size,
        ):
            if int(column) == self.text.end_of_text:
                break
            ids.append(int(column))
            if any(stop in self.text.decode(ids) for stop in stops if stop):
                break
        text: str = postprocess_generated_text(self.text.decode(ids), stops, None)
        return text
