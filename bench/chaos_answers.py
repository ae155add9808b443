"""The odd answers of bench.chaos_model, for both wire formats, and odd commands. One line each."""

# ruff: noqa: E501 - one answer, one line

from __future__ import annotations

import gzip
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

TEXT = ("Hypothesis: a larger rate learns faster, größer ist besser\nCategory: optimizer\n\ntrain.py\n"
        "<<<<<<< SEARCH\nLR = 1e-3\n=======\nLR = 3e-3\n>>>>>>> REPLACE\n")  # fmt: skip
HALF = len(TEXT) // 2
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
CHUNKED = SSE.replace(b"connection: close", b"transfer-encoding: chunked")
GZIP = SSE.replace(b"connection", b"content-encoding: gzip\r\nconnection")
Event = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the server writes for one request."""

    head: bytes | None
    pieces: tuple[bytes, ...]
    after: str = "close"
    """Or `hang`, or `reset`."""
    complete: bool = False
    """It holds all of the model's reply, so the call is paid for."""
    text: str | None = None
    """What must come out of a complete one; None: nothing, as it must not be applied."""


@dataclass(frozen=True)
class Case:
    """`api`: anthropic, openai or command."""

    name: str
    api: str
    answers: tuple[Answer, ...] = ()
    command: str = ""
    text: str | None = None
    """What the command's reply is; None: there must be none."""


def openai_events(text: str = TEXT, **last: Any) -> list[Event]:
    def chunk(**choice: Any) -> Event:
        return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [{"index": 0, "finish_reason": None, **choice}]}  # fmt: skip

    half = len(text) // 2
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 10}}
    return [chunk(delta={"role": "assistant", "content": ""}), chunk(delta={"content": text[:half]}),
            chunk(delta={"content": text[half:]}), chunk(delta={}, **{"finish_reason": "stop", **last}),
            {"object": "chat.completion.chunk", "choices": [], "usage": usage}]  # fmt: skip


def anthropic_events(text: str = TEXT, **last: Any) -> list[Event]:
    half = len(text) // 2
    usage = {"input_tokens": 90, "cache_read_input_tokens": 10, "output_tokens": 1}
    return [
        {"type": "message_start", "message": {"type": "message", "role": "assistant", "content": [], "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text[:half]}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text[half:]}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", **last}, "usage": {"output_tokens": 50}},
        {"type": "message_stop"},
    ]


def lines(api: str, events: list[Any], end: str = "\n", done: bool = True) -> bytes:
    """Server-sent events; what is no dict goes out as it is."""
    out = ""
    for event in events:
        name = f"event: {event['type']}{end}" if api == "anthropic" and isinstance(event, dict) and "type" in event else ""
        out += f"{name}data: {event if isinstance(event, str) else json.dumps(event)}{end}{end}"
    return (out + (f"data: [DONE]{end}{end}" if done and api == "openai" else "")).encode("utf-8", "surrogatepass")


def good(api: str) -> Answer:
    events = openai_events() if api == "openai" else anthropic_events()
    return Answer(SSE, (lines(api, events),), complete=True, text=TEXT)


def http_cases() -> Iterator[Case]:
    for api in ("openai", "anthropic"):
        for name, answer in {**transport(api), **(openai(api) if api == "openai" else anthropic(api))}.items():
            yield Case(name, api, (answer,))


def error(status: int, body: Any, *headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "\r\n".join([f"HTTP/1.1 {status} No", "content-type: application/json", "connection: close", *headers, "", ""])
    return Answer(head.encode(), (data,))


def whole(api: str, text: Any = TEXT, **over: Any) -> Event:
    if api == "openai":
        return {"object": "chat.completion", "choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 50}, **over}  # fmt: skip
    blocks = [{"type": "thinking", "thinking": "no"}, {"type": "text", "text": text}]
    return {"type": "message", "role": "assistant", "content": blocks, "stop_reason": "end_turn",
            "usage": {"input_tokens": 100, "output_tokens": 50}, **over}  # fmt: skip


class Good:
    """A good answer in either format, and others made of it."""

    def __init__(self, api: str):
        self.api, self.fine = api, good(api)
        self.events = openai_events() if api == "openai" else anthropic_events()
        self.body, self.document = lines(api, self.events), json.dumps(whole(api)).encode()
        self.half = lines(api, self.events[:3], done=False)

    def with_(self, body: bytes, **over: Any) -> Answer:
        return replace(self.fine, pieces=(body,), **over)

    def also(self, *extra: Any) -> Answer:
        """The good events, with others before and after each of them."""
        return self.with_(lines(self.api, [e for event in self.events for e in (*extra, event)] + list(extra)))


def transport(api: str) -> dict[str, Answer]:
    """What can happen to any answer, in either format."""
    return {**complete(api), **not_to_be_applied(api), **refused(), **broken_off(api)}


def complete(api: str) -> dict[str, Answer]:
    """Complete answers in odd clothes."""
    it = Good(api)
    events, body, document, fine, with_, also = it.events, it.body, it.document, it.fine, it.with_, it.also
    return {
        "as it should be": fine,
        "one byte at a time": replace(fine, pieces=tuple(body[i : i + 1] for i in range(len(body)))),
        "split within a character": replace(fine, pieces=tuple(body[i : i + 7] for i in range(0, len(body), 7))),
        "CRLF": with_(lines(api, events, "\r\n")),
        "CRLF one byte at a time": replace(fine, pieces=tuple(bytes([b]) for b in lines(api, events, "\r\n"))),
        "CR alone": with_(lines(api, events, "\r")),
        "a byte order mark": with_(b"\xef\xbb\xbf" + body),
        "no blank line between events": with_(body.replace(b"\n\n", b"\n")),
        "no blank after data:": with_(body.replace(b"data: ", b"data:")),
        "an event over several data lines": with_(body.replace(b', "', b',\ndata: "')),
        "comments, ids and retry": with_(body.replace(b"data: ", b": ping\nid: 1\nretry: 9\ndata: ")),
        "events that are null": also("null"), "events that are lists": also("[]", "[1, 2]"),
        "events that are words": also("ping", '"a"', "true"), "events that are numbers": also("5", "-1e9", "NaN"),
        "events that are empty": also("{}", ""), "events with error: null": also({"error": None}, {"error": {}}),
        "events of no known type": also({"type": "news", "text": "x"}, {"object": 5}),
        "raw characters, no escapes": with_(lines(api, [json.dumps(e, ensure_ascii=False) for e in events])
                                            if api == "openai" else body.replace(b"\\u00f6", "ö".encode())),
        "bytes that are no UTF-8": with_(body.replace(b"\\u00f6", b"\xff\xfe"), text=TEXT.replace("ö", "\ufffd\ufffd")),
        "half a character": with_(body.replace(b"\\u00f6", b"\xc3"), text=TEXT.replace("ö", "\ufffd")),
        "NUL": with_(body.replace(b"\\u00f6", b"\\u0000"), text=TEXT.replace("ö", "\ufffd")),
        "a lone surrogate": with_(body.replace(b"\\u00f6", b"\\ud83d"), text=TEXT.replace("ö", "\ufffd")),
        "a pair of surrogates": with_(body.replace(b"\\u00f6", b"\\ud83d\\ude00"), text=TEXT.replace("ö", "😀")),
        "a line separator within": with_(body.replace(b"\\u00f6", "\u2028".encode()), text=TEXT.replace("ö", "\u2028")),
        "a control character within": with_(body.replace(b"\\u00f6", b"\t"), text=TEXT.replace("ö", "\t")),
        "gzip": Answer(GZIP, (gzip.compress(body),), complete=True, text=TEXT),
        "another content type": replace(fine, head=SSE.replace(b"text/event-stream", b"text/html; charset=latin-9")),
        "no content type": replace(fine, head=b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"),
        "HTTP/1.0": replace(fine, head=b"HTTP/1.0 200 OK\r\n\r\n"),
        "status 201": replace(fine, head=SSE.replace(b"200 OK", b"201 Created")),
        "a connection that stays open": replace(fine, after="hang"),
        "a reset after the end": replace(fine, after="reset"),
        "chunks without an end": Answer(CHUNKED, (b"%x\r\n%s\r\n" % (len(body), body),), complete=True, text=TEXT),
        "chunks that break after the end": Answer(CHUNKED, (b"%x\r\n%s\r\nzz\r\n" % (len(body), body),),
                                                  complete=True, text=TEXT),
        "fewer bytes than promised, all said": Answer(SSE.replace(b"connection: close", b"content-length: 99999"),
                                                      (body,), complete=True, text=TEXT),
        "garbage after the end": with_(body + b"data: {broken\n\n\xff\xff"),
        "an error after the end": with_(body + lines(api, [{"type": "error", "error": {"message": "late"}}], done=False)),
        "thoughts in the text": with_(body.replace(b"Hypothesis", b"<think>draft\\n</think>\\nHypothesis")),
        "a whole answer": with_(document, head=JSON),
        "a whole answer, indented": with_(json.dumps(whole(api), indent=2).encode(), head=JSON),
        "a whole answer as an event": with_(b"data: " + document + b"\n\n"),
        "a whole answer in a list": with_(b"[" + document + b"]", head=JSON),
        "a whole answer without figures": with_(json.dumps(whole(api, usage=None)).encode(), head=JSON),
        "a whole answer in 5-byte pieces": replace(fine, head=JSON, pieces=tuple(document[i : i + 5]
                                                                               for i in range(0, len(document), 5))),
        "one JSON object a line": with_(b"\n".join(json.dumps(e).encode() for e in events), head=JSON),
        "a deep object": also({"deep": json.loads("[" * 100 + "]" * 100)}),
    }  # fmt: skip


def not_to_be_applied(api: str) -> dict[str, Answer]:
    """Complete, and nothing that could be applied."""
    with_ = Good(api).with_
    return {
        "an empty reply": with_(lines(api, openai_events("") if api == "openai" else anthropic_events("")), text=None),
        "a reply of blanks": with_(lines(api, openai_events(" \n") if api == "openai" else anthropic_events(" \n")),
                                   text=None),
        "nothing but thoughts": with_(json.dumps(whole(api, "<think>hm</think>")).encode(), head=JSON, text=None),
    }  # fmt: skip


def refused() -> dict[str, Answer]:
    """Nothing but a status: to be asked again."""
    slow = {"error": {"type": "rate_limit_error", "message": "slow down"}}
    return {
        "429": error(429, slow), "429 and a date that is none": error(429, slow, "retry-after: soon"),
        "429 and less than no time": error(429, slow, "retry-after: -5"),
        "429 and nan": error(429, slow, "retry-after: nan"), "429 and for ever": error(429, slow, "retry-after: 1e999"),
        "429 and another day": error(429, slow, "retry-after: Fri, 99 Foo 0 99:99:99 GMT"),
        "500 and null": error(500, None), "500 and a list": error(500, [1, "x"]), "500 and a word": error(500, b"\xffno"),
        "500 and lists for words": error(500, {"error": {"code": [1], "type": {}, "message": ["a"]}}),
        "500 and a text for an error": error(500, {"error": "overloaded"}), "502 and HTML": error(502, b"<html>bad</html>"),
        "503 and nothing": error(503, b""), "529": error(529, {"error": {"type": "overloaded_error"}}),
        "408": error(408, {}), "409": error(409, {}), "425": error(425, {}), "599": error(599, {"error": 5}),
        "304": error(304, b""),
        # For the policy: no use in asking again, or a shorter request.
        "400": error(400, {"error": {"message": "no"}}), "400 and a list": error(400, [{"error": 1}]),
        "400 and a context too short": error(400, {"error": {"message": "maximum context length is 4096"}}),
        "401": error(401, b""), "402": error(402, {"error": None}), "403": error(403, b"<html>"),
        "404": error(404, {"detail": "Not Found"}), "413": error(413, b"too large"), "422": error(422, {"detail": [{}]}),
        "no credit": error(429, {"error": {"code": "insufficient_quota", "type": "billing_error"}}),
    }  # fmt: skip


def broken_off(api: str) -> dict[str, Answer]:
    """Not complete: to be asked again."""
    it = Good(api)
    body, document, half = it.body, it.document, it.half
    return {
        "hung up before the head": Answer(None, ()), "reset": Answer(None, (), "reset"),
        "no HTTP": Answer(None, (b"SSH-2.0-OpenSSH_9.6\r\n\r\n",)),
        "a head that breaks off": Answer(None, (b"HTTP/1.1 200 OK\r\ncontent-ty",)),
        "200 and nothing": Answer(SSE, ()), "200 and HTML": Answer(SSE, (b"<html>\n<p>data: hello</p>\n</html>",)),
        "200 and another JSON": Answer(JSON, (b'{"ok": true}',)), "200 and no object": Answer(JSON, (b"[]",)),
        "200 and a hang": Answer(SSE, (), "hang"), "half, then closed": Answer(SSE, (half,)),
        "half, then reset": Answer(SSE, (half,), "reset"), "half, then a hang": Answer(SSE, (half,), "hang"),
        "half an event": Answer(SSE, (body[: len(half) - 20],)),
        "a hole": Answer(SSE, (body.replace(b'{"', b'{', 3),)),
        "gzip that is none": Answer(GZIP, (body,)), "gzip that breaks off": Answer(GZIP, (gzip.compress(half)[:-20],)),
        "chunks that are none": Answer(CHUNKED, (b"zz\r\n" + half,)),
        "half of a whole answer": Answer(JSON, (document[: len(document) // 2],)),
        "an error in the stream": Answer(SSE, (half + lines(api, [{"type": "error", "error": {"type": "overloaded_error"}}],
                                                            done=False),)),
        "an error in the stream, a word": Answer(SSE, (half + lines(api, [{"error": "busy"}], done=False),)),
        "an error in the stream, a list": Answer(SSE, (lines(api, [{"error": [1, {}]}], done=False),)),
        "an error in the stream, code 503": Answer(SSE, (lines(api, [{"error": {"code": 503}}], done=False),)),
        "an object too deep": Answer(SSE, (b"data: " + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n\n",)),
    }  # fmt: skip


def openai(api: str) -> dict[str, Answer]:
    """Fields of another type than documented, in Chat Completions."""
    fine, events = good(api), openai_events()

    def having(*others: Any) -> Answer:
        return replace(fine, pieces=(lines(api, [events[0], *others, *events[1:]]),))

    def figures(usage: Any) -> Answer:
        return replace(fine, pieces=(lines(api, [*events[:4], {"choices": [], "usage": usage}]),))

    def content(first: Any, second: Any) -> Answer:
        texts = [{"choices": [{"delta": {"content": part}}]} for part in (first, second)]
        return replace(fine, pieces=(lines(api, [events[0], *texts, *events[3:]]),))

    def ending(reason: Any, done: bool = True, **over: Any) -> Answer:
        return replace(fine, pieces=(lines(api, openai_events(finish_reason=reason), done=done),), **over)

    a, b = TEXT[:HALF], TEXT[HALF:]
    legacy = {"choices": [{"text": TEXT, "finish_reason": "stop"}]}
    return {
        "choices null": having({"choices": None}), "no choices": having({"id": "x"}), "choices {}": having({"choices": {}}),
        "choices a word": having({"choices": "x"}), "choices of null": having({"choices": [None, 5, "x", []]}),
        "delta null": having({"choices": [{"delta": None}]}), "no delta": having({"choices": [{"index": 0}]}),
        "delta a list": having({"choices": [{"delta": ["x"]}]}), "delta a word": having({"choices": [{"delta": "x"}]}),
        "content a number": having({"choices": [{"delta": {"content": 5}}]}),
        "content true": having({"choices": [{"delta": {"content": True}}]}),
        "content in blocks": content([{"type": "text", "text": a}], [{"type": "text", "text": b}, None, 5]),
        "content a list of texts": content([a], [b, ""]), "content a block": content({"text": a}, {"text": b}),
        "thoughts beside the content": having({"choices": [{"delta": {"reasoning_content": "hm", "content": None}}]}),
        "refusal null, tool_calls []": having({"choices": [{"delta": {"refusal": None, "tool_calls": []}}]}),
        "figures as texts": figures({"prompt_tokens": "100", "completion_tokens": "5e1"}),
        "figures negative": figures({"prompt_tokens": -100, "completion_tokens": -1}),
        "figures broken": figures({"prompt_tokens": 1.5, "completion_tokens": float("nan")}),
        "figures null": figures({"prompt_tokens": None, "completion_tokens": None}), "figures a list": figures([1, 2]),
        "figures a word": figures("many"), "figures true": figures({"prompt_tokens": True}),
        "figures beyond reason": figures({"prompt_tokens": 10**40, "completion_tokens": 1e300}), "no figures": figures(None),
        "figures' details a word": figures({"prompt_tokens": 10, "prompt_tokens_details": "x"}),
        "more from the cache than there is": figures({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 99}}),
        "figures in every event": replace(fine, pieces=(lines(api, [{**e, "usage": {"prompt_tokens": 1}} for e in events]),)),
        "the end as eos": ending("eos"), "the end as STOP": ending("STOP"), "the end as true": ending(True),
        "the end as {}": ending({"type": "stop"}), "the end twice": replace(
            fine, pieces=(lines(api, [*events[:4], events[3], events[4]]),)),
        "the end only as [DONE]": ending(None), "no [DONE]": ending("stop", done=False),
        "the end, then a hang": ending("stop", done=False, after="hang"),
        "the end, then a reset": ending("stop", done=False, after="reset"),
        "[DONE], then a hang": ending(None, after="hang"),
        "all again at the end": replace(fine, pieces=(lines(api, [*events[:3], {"choices": [
            {"delta": {}, "message": {"content": TEXT}, "finish_reason": "stop"}]}]),)),
        "messages for deltas": replace(fine, pieces=(lines(api, [
            {"choices": [{"message": {"content": part}}]} for part in (a, b)]),)),
        "a second choice": having({"choices": [{"index": 0, "delta": {}}, {"index": 1, "delta": {"content": "no"}}]}),
        "a whole answer in blocks": replace(fine, head=JSON, pieces=(json.dumps(whole(
            api, [{"type": "text", "text": a}, {"type": "text", "text": b}])).encode(),)),
        "a whole answer of the older kind": replace(fine, head=JSON, pieces=(json.dumps(legacy).encode(),)),
        "a whole answer without an end": replace(fine, head=JSON, pieces=(json.dumps(
            {"choices": [{"message": {"content": TEXT}}]}).encode(),)),
        "cut off": ending("length", text=None), "cut off by another name": ending("MAX_TOKENS", text=None),
        "filtered": ending("content_filter", text=None), "tool calls": ending("tool_calls", text=None),
        "refused": replace(fine, text=None, pieces=(lines(
            api, [{"choices": [{"delta": {"refusal": ["I", "can't"]}}]}, *events[3:]]),)),
    }  # fmt: skip


def anthropic(api: str) -> dict[str, Answer]:
    """Fields of another type than documented, in Messages."""
    fine, events = good(api), anthropic_events()

    def at(index: int, *others: Any) -> Answer:
        """Other events in the place of one."""
        return replace(fine, pieces=(lines(api, [*events[:index], *others, *events[index + 1 :]]),))

    def figures(usage: Any) -> Answer:
        start = {"type": "message_start", "message": {"usage": usage}}
        end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
        return replace(fine, pieces=(lines(api, [start, *events[1:5], end, events[6]]),))

    def ending(reason: Any, **over: Any) -> Answer:
        return replace(fine, pieces=(lines(api, anthropic_events(stop_reason=reason)),), **over)

    unnamed = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events)
    untyped = {"type": "content_block_delta", "delta": {"text": TEXT[:HALF]}}
    return {
        "message null": at(0, {"type": "message_start", "message": None}), "no message_start": at(0),
        "message a word": at(0, {"type": "message_start", "message": "x"}),
        "usage null": figures(None), "usage a list": figures([1]), "usage a word": figures("x"),
        "usage as texts": figures({"input_tokens": "90", "output_tokens": "50"}),
        "usage negative": figures({"input_tokens": -90, "output_tokens": -5, "cache_read_input_tokens": -1}),
        "usage null inside": figures({"input_tokens": None, "output_tokens": None}),
        "usage beyond reason": figures({"input_tokens": 10**40, "output_tokens": 1e308}),
        "no usage at the end": at(5, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
        "no block started": at(1), "block null": at(1, {"type": "content_block_start", "content_block": None}),
        "block a list": at(1, {"type": "content_block_start", "content_block": [5]}),
        "delta null": at(1, {"type": "content_block_delta", "delta": None}),
        "delta a word in a list": at(4, {"type": "content_block_delta", "delta": 5}),
        "delta without a type": at(2, untyped), "a delta of thoughts": at(1, {
            "type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}}),
        "a delta of a tool": at(1, {"type": "content_block_delta", "delta": {
            "type": "input_json_delta", "partial_json": "{"}}),
        "text in the started block": at(1, {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}),
        "events without names": replace(fine, pieces=(unnamed,)), "pings": at(1, {"type": "ping"}, {"type": "ping"}),
        "types only as names": replace(fine, pieces=(b"".join(
            f"event: {e['type']}\ndata: {json.dumps({k: v for k, v in e.items() if k != 'type'})}\n\n".encode()
            for e in events),)),
        "end delta null, then stop": at(5, {"type": "message_delta", "delta": None, "usage": None}),
        "no message_delta": at(5), "no message_stop": at(6), "stop details a word": ending("end_turn", after="close"),
        "no message_stop, then a hang": replace(fine, pieces=(lines(api, events[:6]),), after="hang"),
        "no message_stop, then a reset": replace(fine, pieces=(lines(api, events[:6]),), after="reset"),
        "the end as eos": ending("eos"), "the end as true": ending(True), "the end as {}": ending({"a": 1}),
        "details null": at(5, {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_details": None}}),
        "details a list": at(5, {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_details": [1]}}),
        "a whole answer, content a text": replace(fine, head=JSON, pieces=(json.dumps(whole(api, content=TEXT)).encode(),)),
        "a whole answer without an end": replace(fine, head=JSON, pieces=(json.dumps(
            whole(api, stop_reason=None)).encode(),)),
        "cut off": ending("max_tokens", text=None), "context full": ending("model_context_window_exceeded", text=None),
        "a tool": ending("tool_use", text=None), "refused": ending("refusal", text=None),
    }  # fmt: skip


def command_cases() -> Iterator[Case]:
    def python(code: str) -> str:
        return f"{sys.executable} -c {shlex.quote(code)}"

    def printing(data: bytes, more: str = "") -> str:
        return python(f"import os, sys; sys.stdin.read(); sys.stdout.buffer.write({data!r}); sys.stdout.flush(); {more}")

    good_bytes = TEXT.encode()
    replies = {
        "as it should be": (printing(good_bytes), TEXT),
        "reads nothing": (python(f"import sys; sys.stdout.buffer.write({good_bytes!r})"), TEXT),
        "closes its input": (python(f"import os, sys; os.close(0); sys.stdout.buffer.write({good_bytes!r})"), TEXT),
        "NUL": (printing(TEXT.replace("ö", "\0").encode()), TEXT.replace("ö", "\ufffd")),
        "bytes that are no UTF-8": (printing(good_bytes.replace("ö".encode(), b"\xff")), TEXT.replace("ö", "\ufffd")),
        "a lone surrogate": (printing(good_bytes.replace("ö".encode(), b"\xed\xa0\xbd")), TEXT.replace("ö", "\ufffd" * 3)),
        "a line separator": (printing(TEXT.replace("ö", "\u2028").encode()), TEXT.replace("ö", "\u2028")),
        "thoughts": (printing(b"<think>\ndraft\n</think>\n" + good_bytes), TEXT),
        "much on stderr": (printing(good_bytes, "print('x' * 10**6, file=sys.stderr)"), TEXT),
        "a grandchild that stays": (printing(good_bytes, "os.fork() or __import__('time').sleep(600)"), TEXT),
        "a grandchild that leaves the session": (printing(
            good_bytes, "os.fork() or (os.setsid(), os.close(1), os.close(2), __import__('time').sleep(3))"), TEXT),
        "closes its output": (printing(good_bytes, "os.close(1); os.close(2); os._exit(0)"), TEXT),
        "prints nothing": (python("pass"), None), "prints blanks": (printing(b" \n\t"), None),
        "only thoughts": (printing(b"<think>hm</think>\n"), None), "only stderr": (printing(b"", "print(1, file=sys.stderr)"), None),
        "fails": (python("import sys; sys.exit(3)"), None), "fails in odd letters": (printing(b"\xff\0\x1b[31m", "sys.exit(1)"), None),
        "kills itself": (python("import os; os.kill(os.getpid(), 9)"), None),
        "hangs": (python("import time; time.sleep(600)"), None),
        "ignores SIGTERM": (python("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"), None),
        "is not there": ("/no/such/program", None), "is a folder": ("/tmp", None), "has an empty name": ("''", None),
        "can't be run": ("/etc/hostname", None),
    }  # fmt: skip
    for name, (command, text) in replies.items():
        yield Case(name, "command", command=command, text=text)
