"""`truncation: "auto"` of /v1/responses: which items of a conversation go, so that its prompt fits the model; knows no HTTP.

What goes is what is oldest, in steps that a chat template can do without: first whole exchanges, each a user's message and all
that answers it, then, of the last exchange, the assistant's turns before its last one, each with the outputs of its calls. What a
system or a developer says stays, and so do the last user's message and what is to be answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from itertools import pairwise

from nereid.serving.gateway.chats import ChatAsked, chat_asked
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.offered import Offered
from nereid.serving.gateway.response_bodies import CALLS, OUTPUTS, Kept, MessageItem, ResponsesBody
from nereid.serving.gateway.response_items import Items, chat_body, messages_of
from nereid.serving.gateway.schemas import MOST_MESSAGES
from nereid_client.errors import ContextLengthError


async def fitted_chat(body: ResponsesBody, conversation: Items, model: Offered) -> ChatAsked:
    """The chat of as much of a conversation as fits; where its least part does not, of that, which `llm` will refuse.

    Raises ApiError, in a chat's names or in the caller's, and InvalidRequestError.
    """
    if body.truncate_prompt_tokens is not None:
        sentence = "'auto' is not allowed with truncate_prompt_tokens; one of them must be absent"
        raise ApiError(400, f"truncation: {sentence}", param="truncation")
    return await asyncio.to_thread(_fitted, body, conversation, model)


def _fitted(body: ResponsesBody, conversation: Items, model: Offered) -> ChatAsked:
    steps = list(steps_of(conversation))

    def without(count: int) -> tuple[ChatAsked, bool] | None:
        """The chat without so many steps, and whether it fits; None: it has too many messages."""
        left = remaining(conversation, {place for step in steps[:count] for place in step})
        if count < len(steps) and len(messages_of(left, body.instructions)) > MOST_MESSAGES:
            return None
        chat = chat_asked(chat_body(body, left), model)
        return chat, _fits(chat, model)

    least, most = 0, len(steps)
    best = without(least)
    if best is not None and (best[1] or most == 0):
        return best[0]
    best = without(most)
    assert best is not None
    while best[1] and most - least > 1:  # without `least` it does not fit, without `most` it does
        middle = (least + most) // 2
        found = without(middle)
        if found is not None and found[1]:
            best, most = found, middle
        else:
            least = middle
    return best[0]


def _fits(chat: ChatAsked, model: Offered) -> bool:
    """Whether the prompt has room in the context, beside as many tokens of an answer as are asked for, or one."""
    try:
        tokens = len(chat.tokens(model))
    except ContextLengthError:
        return False
    return tokens + max(1, chat.sampling.get("max_tokens") or 1) <= model.tokenizer.longest


def steps_of(conversation: Items) -> Iterator[list[int]]:
    """What may go together, as places, in the order in which it goes."""
    users = [place for place, item in enumerate(conversation) if _said_by(item, "user")]
    last = users[-1] if users else -1
    for begin, end in pairwise(sorted({0, *users})):
        if places := [place for place in range(begin, end) if not _stays(conversation[place])]:
            yield places
    turns: list[list[int]] = []
    for place in range(last + 1, len(conversation)):
        item = conversation[place]
        if _stays(item):
            continue
        if not turns or (isinstance(conversation[turns[-1][-1]], OUTPUTS) and not isinstance(item, OUTPUTS)):
            turns.append([])
        turns[-1].append(place)
    yield from turns[:-1]


def remaining(conversation: Items, gone: Collection[int]) -> list[Kept]:
    """The items of the other places, without outputs of calls that have gone."""
    left: list[Kept] = []
    called: set[str] = set()
    for place, item in enumerate(conversation):
        if place in gone or (isinstance(item, OUTPUTS) and item.call_id not in called):
            continue
        if isinstance(item, CALLS):
            called.add(item.call_id)
        left.append(item)
    return left


def _stays(item: Kept) -> bool:
    return _said_by(item, "system", "developer")


def _said_by(item: Kept, *roles: str) -> bool:
    return isinstance(item, MessageItem) and item.role in roles
