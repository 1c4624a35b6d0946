"""Owns what one call of ``generate`` has shown of itself, and the records made of it: one for each sequence.

Field semantics, from transformers' ``generation/utils.py`` (5.19):

- Decoder-only models return prompt and answer; with ``inputs_embeds`` alone the answer only;
  encoder-decoder models what the decoder began with (its start token) and the answer. How long that
  beginning is shows at the first call of a stopping criterion, which sees the sequences with one token
  more. In assisted generation that call sees several more; there it is the length of what was passed.
- A sequence that ended before the others of its batch is filled up with the pad token, which may be the
  same as the end-of-sequence token. Its tokens are those up to and with the first end-of-sequence token;
  where it was ended by a criterion of the caller's, up to where the criterion said so; by a stop string, up
  to there.
- Of beam search the returned beams are recorded; beams that were thrown away are not.
- In assisted generation each step adds the accepted draft tokens and one more. How many were drafted is not
  shown.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ABORT", "ERROR", "Answer", "Prompts", "Steps", "Stops", "answers", "reason_of_error", "setting"]

ABORT = "abort"
"""The caller stopped the generation. Its tokens are those that were there by then."""
ERROR = "error"
"""The engine failed after tokens had been generated."""

_logger = logging.getLogger("tallystick.emit")
_DEFAULT_NEW_TOKENS = 20
"""What ``generate`` makes where neither ``max_new_tokens`` nor ``max_length`` is said."""


def setting(name: str, arguments: Mapping[str, Any], model: Any) -> Any:
    """A parameter as ``generate`` resolves it: arguments, then the config passed, then the model's."""
    if name in arguments:
        return arguments[name]
    value = getattr(arguments.get("generation_config"), name, None)
    return getattr(getattr(model, "generation_config", None), name, None) if value is None else value


def reason_of_error(error: BaseException) -> str:
    """How a generation ended that was left by an exception: the caller went away, or something failed."""
    gone = (KeyboardInterrupt, GeneratorExit, ConnectionError, TimeoutError)
    cancelled = type(error).__name__ in ("CancelledError", "ClientDisconnect")
    return ABORT if isinstance(error, gone) or cancelled else ERROR


class Steps:
    """A stopping criterion that stops nothing of its own accord: it notes when each step was done.

    Owned by the thread that generates.

    Args:
        should_stop: the callers' wish to end, asked at each step.
    """

    def __init__(self, should_stop: Sequence[Callable[[], bool]] = ()) -> None:
        self.steps_ns: list[int] = []
        self.sequences: Any = None
        self.first_length = 0
        self.stopped = False
        self._should_stop = list(should_stop)
        self._none: Any = None

    def __call__(self, input_ids: Any, scores: Any = None, **_: Any) -> Any:
        """Note the step; say of no sequence that it is done, unless the caller wants to end."""
        del scores
        rows = input_ids.shape[0]
        if self._none is None or self._none.shape[0] != rows:
            import torch

            self._none = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        if not self.steps_ns:
            self.first_length = input_ids.shape[1]
            if input_ids.device.type != "cpu":
                input_ids[0, -1].item()  # waits for the prompt, as ``generate`` itself is about to
        self.sequences = input_ids
        self.steps_ns.append(time.monotonic_ns())
        if self._should_stop and self._wants_to_stop():
            self.stopped = True
            return ~self._none
        return self._none

    def _wants_to_stop(self) -> bool:
        for ask in list(self._should_stop):
            try:
                if ask():
                    return True
            except Exception:
                self._should_stop.remove(ask)
                _logger.exception("should_stop failed and is not asked again")
        return False

    @property
    def asynchronous(self) -> bool:
        """Whether a step's time is that of queueing it, so that the next step's tells when it was done."""
        return self.sequences is not None and self.sequences.device.type != "cpu"


class Stops:
    """The caller's own stopping criteria as one, which notes at which step each sequence was done by them."""

    def __init__(self, criteria: Sequence[Any]) -> None:
        self._criteria = criteria
        self._said: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any = None, **more: Any) -> Any:
        """As ``StoppingCriteriaList``: done if one of them says so."""
        import torch

        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for each in self._criteria:
            said = each(input_ids, scores, **more)
            done = done | (said if isinstance(said, torch.Tensor) else torch.full_like(done, bool(said)))
        self._said.append(done)
        return done

    def lengths(self) -> list[int | None]:
        """How many tokens each sequence had when a criterion said that it was done."""
        import torch

        if not self._said or len({each.shape for each in self._said}) > 1:
            return []
        said = torch.stack(self._said).tolist()
        return [
            next((at + 1 for at, row in enumerate(column) if row), None) for column in zip(*said, strict=True)
        ]


@dataclass
class Prompts:
    """The prompts of one call.

    Attributes:
        count: how many.
        tokens: of each, the padding left out; None where the engine gets no token ids (embeddings, audio).
        lengths: of each.
        cached: how many of them were in a cache that the caller passed.
    """

    count: int
    lengths: list[int]
    tokens: list[list[int]] | None = None
    cached: int | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any], model: Any) -> Prompts:
        """Read the arguments of ``generate``. Tokens are copied, since the caller may change them."""
        embeds, mask = arguments.get("inputs_embeds"), arguments.get("attention_mask")
        ids: Any = arguments.get("input_ids")
        if ids is None:
            ids = arguments.get("inputs")
        cache: Any = arguments.get("past_key_values")
        cached = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else None
        is_ids = ids is not None and ids.dim() == 2 and not ids.dtype.is_floating_point
        if embeds is not None or not is_ids:
            given = [each for each in (embeds, ids, arguments.get("input_features")) if each is not None]
            if not given:  # the model begins on its own, with its start token
                start = _ids(setting("bos_token_id", arguments, model))
                return cls(1, [len(start[:1])], [start[:1]])
            count = int(given[0].shape[0])
            if embeds is None:
                return cls(count, [0] * count, None, cached)
            used: Any = mask
            lengths = (
                [int(embeds.shape[1])] * count if used is None else [int(n) for n in used.sum(-1).tolist()]
            )
            return cls(count, lengths, None, cached)
        rows = ids.tolist()
        if mask is None:
            pad, eos = _pad(arguments, model), _ids(setting("eos_token_id", arguments, model))
            if pad is not None and pad not in eos:
                rows = [[token for token in row if token != pad] for row in rows]
        elif mask.shape == ids.shape:
            rows = [
                [token for token, on in zip(row, ons, strict=True) if on]
                for row, ons in zip(rows, mask.tolist(), strict=True)
            ]
        elif mask.dim() == 2 and mask.shape[1] > ids.shape[1]:  # what comes before is in the cache alone
            lengths = [int(each) for each in mask.sum(-1).tolist()]
            return cls(ids.shape[0], lengths, None, cached)
        lengths = [len(row) for row in rows]
        return cls(len(rows), lengths, rows, None if cached is None else min(cached, *lengths))


@dataclass
class Answer:
    """One sequence of the answer."""

    prompt: int
    tokens: list[int] | None
    count: int
    reason: str
    ended_ns: int
    accepted: int | None = None
    steps: list[int] = field(default_factory=list, repr=False)


def answers(
    result: Any,
    steps: Steps,
    stops: Stops | None,
    prompts: Prompts,
    arguments: Mapping[str, Any],
    model: Any,
    ended_ns: int,
    failure: str | None = None,
) -> list[Answer]:
    """Read what ``generate`` returned; or, with ``failure``, how far it had come.

    Returns:
        One for each sequence, in the order of the result.
    """
    sequences = getattr(result, "sequences", result)
    if failure is not None or not (hasattr(sequences, "dim") and sequences.dim() == 2):
        sequences = steps.sequences
    if sequences is None:
        return []
    beams = (setting("num_beams", arguments, model) or 1) > 1
    assisted = is_assisted(arguments, model)
    begins = _begins_at(steps, arguments, model, assisted)
    if failure is not None and beams:  # candidates: nobody was shown any of them
        count, per = sequences.shape[1] - begins, setting("num_return_sequences", arguments, model) or 1
        return [Answer(at // per, None, count, failure, ended_ns) for at in range(prompts.count * per)]
    rows = sequences.tolist()
    per = max(1, len(rows) // prompts.count)
    done = stops.lengths() if stops is not None else []
    accepted = None
    if assisted and steps.steps_ns and len(rows) == 1:
        accepted = len(rows[0]) - begins - len(steps.steps_ns)
    found = []
    for at, row in enumerate(rows):
        tokens = row[begins:]
        own = done[at] if at < len(done) and not beams else None
        tokens, reason = _cut(tokens, own, len(rows), begins, arguments, model)
        if failure is not None and reason != "stop":
            reason = failure
        elif reason is None:
            reason = ABORT if steps.stopped else "stop"
        step = None if beams or assisted else len(tokens) - (0 if steps.asynchronous else 1)
        known = step is not None and 0 <= step < len(steps.steps_ns)
        end = steps.steps_ns[step] if known and step is not None else ended_ns
        found.append(Answer(at // per, tokens, len(tokens), reason, end, accepted))
    return found


def is_assisted(arguments: Mapping[str, Any], model: Any) -> bool:
    """As ``GenerationConfig.get_generation_mode`` decides it."""
    names = ("prompt_lookup_num_tokens", "assistant_early_exit")
    return (
        arguments.get("assistant_model") is not None
        or bool(setting("use_mtp", arguments, model))
        or any(setting(name, arguments, model) is not None for name in names)
    )


def _begins_at(steps: Steps, arguments: Mapping[str, Any], model: Any, assisted: bool) -> int:
    """How many tokens of a returned sequence were there before the first one was generated."""
    if steps.steps_ns and not assisted:
        return steps.first_length - 1
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        given = arguments.get("decoder_input_ids")
        return 1 if given is None else int(given.shape[1])
    ids = arguments.get("input_ids")
    ids = arguments.get("inputs") if ids is None else ids
    if ids is None:
        return 1 if arguments.get("inputs_embeds") is None else 0
    return int(ids.shape[1])


def _cut(
    tokens: list[int], done: int | None, rows: int, begins: int, arguments: Mapping[str, Any], model: Any
) -> tuple[list[int], str | None]:
    """The tokens as generated, without what fills up the batch; and why there are no more, if that shows."""
    eos = _ids(setting("eos_token_id", arguments, model))
    end = next((at + 1 for at, token in enumerate(tokens) if token in eos), None)
    if done is not None and (end is None or done < end) and done <= len(tokens):
        # After a criterion said so, only filling follows, if there is an end-of-sequence token at all.
        return (tokens[:done] if eos and rows > 1 else tokens), "stop"
    strings = setting("stop_strings", arguments, model)
    if strings:
        found = _stop_string(
            tokens if end is None else tokens[: end - 1], strings, arguments.get("tokenizer")
        )
        if found is not None:
            return tokens[:found], "stop"
    if end is not None:
        return tokens[:end], "stop"
    limit = setting("max_new_tokens", arguments, model)
    if limit is None:
        total = setting("max_length", arguments, model)
        limit = _DEFAULT_NEW_TOKENS if total is None else total - begins
    if limit is not None and len(tokens) < limit and setting("max_time", arguments, model):
        return tokens, "max_time"
    return tokens, "length" if limit is not None and len(tokens) >= limit else None


def _stop_string(tokens: list[int], strings: str | Sequence[str], tokenizer: Any) -> int | None:
    """After how many tokens a stop string is complete; None if there is none in them."""
    strings = [strings] if isinstance(strings, str) else list(strings)
    if tokenizer is None:
        return None

    def complete(count: int) -> bool:
        text = tokenizer.decode(tokens[:count])
        return any(each in text for each in strings)

    if not complete(len(tokens)):
        return None
    low, high = 1, len(tokens)  # once complete, it stays so
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if complete(middle) else (middle + 1, high)
    return low


def _pad(arguments: Mapping[str, Any], model: Any) -> int | None:
    found = _ids(setting("pad_token_id", arguments, model))
    return found[0] if found else None


def _ids(value: Any) -> list[int]:
    """Token ids of a parameter that may be one, a list, a tensor or None."""
    if value is None:
        return []
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [int(each) for each in value] if isinstance(value, (list, tuple)) else [int(value)]
