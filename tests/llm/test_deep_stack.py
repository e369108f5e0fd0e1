"""Grammars whose rules and references lead each to the next: what compiles them goes as deep, and no process ends by it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from test_orders import loop_of
from test_requests import parse, text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nereid.llm import deep_stack
from nereid.llm.deep_stack import run_deep
from nereid.llm.orders import Order
from nereid.llm.structure import StructureFactory

RULES = "\n".join(["start: r0", *(f"r{number}: r{number + 1}" for number in range(4000)), 'r4000: "a"'])
REFERENCES: dict[str, Any] = {
    "$ref": "#/$defs/a0",
    "$defs": {f"a{number}": {"type": "array", "items": {"$ref": f"#/$defs/a{number + 1}"}} for number in range(4000)}
    | {"a4000": {"type": "null"}},
}


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> StructureFactory:
    """One token a byte."""
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(file))
    return StructureFactory.of(file, made.get_vocab_size(), (made.get_vocab_size() - 1,))


def outcome(task: Callable[[], object]) -> int:
    """How a process of its own ends that does this."""

    def run() -> None:
        if task():
            os._exit(3)

    pid = os.fork()
    if not pid:
        run_deep(run)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("kind", "value"), [("grammar", RULES), ("json", REFERENCES)])
def test_rules_and_references_that_lead_each_to_the_next_are_compiled(
    structures: StructureFactory, kind: str, value: object
) -> None:
    assert outcome(lambda: structures.compile(kind, value).copy().allowed().any()) == 3


def test_the_worker_compiles_so() -> None:
    found: list[str] = []

    class Structures:
        def compile(self, *_: object) -> None:
            found.append(threading.current_thread().name)
            raise ValueError

    loop = loop_of()
    stand_in: Any = Structures()
    loop.structures = stand_in
    order = Order.of(parse(sampling_parameters=text(json.dumps({"structured_outputs": {"regex": "a"}}))))
    loop._inbox.put(order.message(7))
    loop._take_orders(wait=True)
    loop._compiler.shutdown()
    assert found == ["deep"]


def test_where_no_such_stack_is_to_be_had_the_task_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    before, found = threading.stack_size(), []
    monkeypatch.setattr(deep_stack, "STACK_BYTES", 2**50)
    run_deep(lambda: found.append(threading.current_thread()))
    assert found == [threading.current_thread()]
    assert threading.stack_size() == before
