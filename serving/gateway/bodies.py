"""Request bodies as OpenAI's clients send them, checked field by field; fields that mean nothing here are left alone.

`vllm_xargs` and `cache_salt` are among those: what a request may use is decided by its key alone.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from merge.tensor_io.json_file import parse_json
from serving.access.errors import RequestError

MOST_LIKELY = 20  # tokens listed beside each
MOST_ANSWERS = 128  # of one body


def _whole(value: Any) -> Any:
    """JSON's numbers are taken as they are meant: 1.0 is no integer, and true is no number."""
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


Number = Annotated[float, BeforeValidator(_whole), Field(allow_inf_nan=False)]
Integer = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, Field(max_length=8_000_000)]
Token = Annotated[int, Field(ge=0, lt=2**31)]


B = TypeVar("B", bound="Body")


class StreamOptions(BaseModel):
    include_usage: bool = False


class Body(BaseModel):
    """What both kinds of requests have. `experts` narrows what the key allows; `shares` adds them to each token."""

    model_config = ConfigDict(strict=True, extra="ignore")
    model: str | None = None
    experts: list[str] | None = None
    shares: bool = False
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Annotated[Integer, Field(ge=1, le=MOST_ANSWERS)] | None = None
    seed: Annotated[Integer, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(max_length=500)] | list[Annotated[str, Field(max_length=500)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[Number, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @field_validator("stop")
    @classmethod
    def _some(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > 4 or not all(stops):
            raise ValueError("expected one to four texts, none of them empty")
        return value

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionBody(Body):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=MOST_LIKELY)] | None = None
    echo: bool | None = None
    best_of: Annotated[Integer, Field(ge=1)] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None

    @field_validator("best_of")
    @classmethod
    def _all(cls, value: int | None, info: Any) -> int | None:
        if value not in (None, info.data.get("n") or 1):
            raise ValueError("expected n: every answer is returned")
        return value

    @property
    def prompts(self) -> list[str | list[int]]:
        given: Any = self.prompt
        single = isinstance(given, str) or isinstance(given[0], int)
        return [given] if single else given


class Part(BaseModel):
    type: Literal["text"]
    text: Text


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]

    def plain(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[Integer, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Integer, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MOST_LIKELY)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None


def parsed(kind: type[B], data: bytes) -> B:
    """A body of a request; raises `RequestError` 400 that says which field is wrong."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8 at byte {error.start + 1}. Send JSON in UTF-8.") from None
    try:
        value = parse_json(text)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(400, "the body has half of a surrogate pair, which is no character. Send UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON ({str(error)[:100]}). Send one JSON object.") from None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        _refuse(error)


def _refuse(error: ValidationError) -> NoReturn:
    first = error.errors(include_url=False, include_context=False)[0]
    where = next((str(part) for part in first["loc"]), None)
    got = repr(first["input"])
    got = f", got {got[:60]}" if first["type"] != "missing" and where else ""
    message = first["msg"].removeprefix("Value error, ")
    raise RequestError(400, f"{where or 'the body'}: {message[:1].lower()}{message[1:]}{got}.", param=where)
