"""Output of a sequence for a step: new tokens up to the answer's end, with their text and log-probabilities."""

from __future__ import annotations

import time

from entmtp.decoding.outputs import RequestOutput, check_stop
from entmtp.decoding.sequence import Sequence


def make_output(sequence: Sequence) -> RequestOutput:
    """Add the last step's tokens to the sequence's completion, up to the answer's end."""
    done, params, stop_ids = sequence.completion, sequence.request.params, sequence.sampler.stop_ids
    begin = len(done.tokens)
    count, reason = check_stop(sequence.tokens[begin:], params.max_tokens - begin, stop_ids)
    constraint = sequence.sampler.constraint
    if constraint is not None and constraint.end is not None and constraint.end <= begin + count:
        count, reason = constraint.end - begin, "stop"
    new = sequence.tokens[begin : begin + count]
    text = ""
    if (stream := sequence.text_stream) is not None:
        for at, token in enumerate(new):
            text += "" if token in stop_ids and not params.include_stop_str_in_output else stream.push(token)
            if stream.stopped:
                new, reason = new[: at + 1], "stop"
                break
        text += stream.finish() if reason else ""
    prompt_logprobs = [] if begin else done.prompt_logprobs
    logprobs = sequence.logprobs[begin : begin + len(new)]
    done.tokens += new
    done.text += text
    done.logprobs += logprobs
    done.seconds = time.perf_counter() - sequence.arrival
    done.first_token_seconds = done.first_token_seconds or done.seconds
    stats = done.stats if reason else None
    return RequestOutput(sequence.request.id, new, text, logprobs, prompt_logprobs, reason, stats=stats)
