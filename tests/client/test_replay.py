"""Refusals are tried again and deaths replayed, within one deadline, by one mechanism."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from nereid_client import (
    CancelledError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    LostError,
    NereidError,
    NotReadyError,
    ServerError,
    UnavailableError,
    UnhealthyError,
)
from nereid_client.replay import GRACE_SECONDS
from nereid_client.server import ReplayPolicy
from nereid_client.transport import Answered

from scripted import HANGS, Script, World, answers, delta, draw, draw_stream, fails, image, progress, state, texts, write_stream

GOOD = answers(image())
DEATHS = [
    LostError("denoise: its process died"),
    UnhealthyError("Stub process 'denoise_0_0' is not healthy."),
    ConnectionLostError("Socket closed", sent=True),
]
OLD = InvalidRequestError("unexpected inference input 'run_id' for model 'text_to_image'")


def sent(world: World) -> list[dict[str, Any]]:
    """What was sent at each attempt, except the time that was left."""
    return [
        {name: value.tolist() for name, value in call.tensors.items() if name != "timeout_seconds"} for _, call in world.calls
    ]


# Refusals


def test_refusals_are_tried_again_after_growing_pauses() -> None:
    world = World(*[fails(UnavailableError("queue: full"))] * 3, GOOD)
    draw(world, ReplayPolicy(retries=3, backoff=1.0))
    pauses = np.diff([when for when, _ in world.calls])
    assert [0.5 * 2**i <= pause <= 1.5 * 2**i for i, pause in enumerate(pauses)] == [True] * 3
    assert (world.server.statistics.retries, world.server.statistics.replays) == (3, 0)


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_end(retries: int) -> None:
    world = World(*[fails(UnavailableError(str(i))) for i in range(4)])
    with pytest.raises(UnavailableError, match=str(retries)):
        draw(world, ReplayPolicy(retries=retries))
    assert len(world.calls) == retries + 1


def test_a_refusal_is_the_answer_where_the_next_attempt_would_come_after_the_deadline() -> None:
    world = World(fails(UnavailableError("queue: full")))
    with pytest.raises(UnavailableError, match="full"):
        draw(world, ReplayPolicy(retries=5, backoff=10.0), timeout=2.0)
    assert world.now < 2.0


@pytest.mark.parametrize(
    "error", [InvalidRequestError("width: 13"), ServerError("broken"), DeadlineExceededError("late"), CancelledError("gone")]
)
def test_what_will_not_get_better_is_not_tried_again(error: NereidError) -> None:
    world = World(fails(error))
    with pytest.raises(type(error)):
        draw(world)
    assert len(world.calls) == 1


# Deaths


@pytest.mark.parametrize("death", DEATHS, ids=lambda error: type(error).__name__)
def test_a_death_is_replayed_with_the_same_seed_and_run(death: NereidError) -> None:
    world = World(fails(death), GOOD)
    made = draw(world)
    first, second = sent(world)
    assert first == second
    assert made.run_id.encode() == first["run_id"][0][0]
    assert first["seed"][0][0] >= 0
    assert (world.server.statistics.retries, world.server.statistics.replays) == (0, 1)


def test_two_requests_without_a_seed_have_two() -> None:
    worlds = [World(GOOD), World(GOOD)]
    for world in worlds:
        draw(world)
    assert sent(worlds[0])[0]["seed"] != sent(worlds[1])[0]["seed"]


def test_a_text_without_a_seed_is_sent_with_one() -> None:
    world = World(answers(delta([1], "a", "stop")))
    list(write_stream(world))
    assert '"seed": ' in sent(world)[0]["sampling_parameters"][0].decode()


def test_nothing_is_sent_until_all_models_are_back() -> None:
    world = World(fails(ConnectionLostError("reset", sent=True)), GOOD, back_at=9.0)
    draw(world)
    assert [when >= 9.0 for when, _ in world.calls] == [False, True]
    assert world.now < 11.0


def test_a_model_that_claims_to_be_ready_is_asked_before_it_gets_the_request_again() -> None:
    dead = fails(UnhealthyError("Stub process 'denoise_0_0' is not healthy."))
    world = World(fails(LostError("died")), GOOD, watch=lambda now: dead if now < 6.0 else state("unknown"))
    draw(world)
    assert world.calls[1][0] >= 6.0


def test_a_server_that_does_not_come_back_is_given_up_after_the_healing_time() -> None:
    world = World(fails(ConnectionLostError("reset", sent=True)), back_at=1e9)
    with pytest.raises(ConnectionLostError, match="reset"):
        draw(world, ReplayPolicy(heal_seconds=20.0))
    assert 15.0 < world.now < 21.0


@pytest.mark.parametrize("replays", [0, 1, 2])
def test_replays_end_with_the_loss(replays: int) -> None:
    world = World(*[fails(LostError(f"death {i}")) for i in range(4)])
    with pytest.raises(LostError, match=f"death {replays}"):
        draw(world, ReplayPolicy(replays=replays))
    assert len(world.calls) == replays + 1
    assert world.server.statistics.lost == 1


def test_a_dead_process_that_is_met_again_before_it_is_replaced_has_not_died_again() -> None:
    dead = UnhealthyError("Stub process 'vae_decoder_0_0' is not healthy.")
    world = World(*[fails(dead)] * 6, GOOD)
    draw(world, ReplayPolicy(replays=1))
    assert len(world.calls) == 7


def test_a_process_that_dies_long_after_the_first_has_died_anew() -> None:
    dead = UnhealthyError("Stub process 'denoise_0_0' is not healthy.")
    world = World(fails(dead), fails(dead, after=100.0), GOOD)
    draw(world)
    assert world.server.statistics.replays == 2
    with pytest.raises(UnhealthyError):
        draw(World(fails(dead), fails(dead, after=100.0)), ReplayPolicy(replays=1))


def test_a_server_that_is_away_is_asked_at_growing_pauses() -> None:
    world = World(fails(ConnectionLostError("reset", sent=True)), GOOD, back_at=25.0)
    draw(world)
    assert len(world.probed) < 2 * 60


def test_a_full_queue_after_a_death_does_not_lose_the_request() -> None:
    world = World(fails(LostError("died")), *[fails(UnavailableError("queue: full"))] * 4, GOOD)
    assert draw(world, ReplayPolicy(retries=0)).seeds == (5,)


def test_an_address_where_nobody_ever_answered_is_given_up_soon() -> None:
    world = World(*[fails(ConnectionLostError("connection refused"))] * 4, back_at=1e9)
    with pytest.raises(ConnectionLostError):
        draw(world)
    assert world.now < 3.0


def test_a_server_that_is_known_is_waited_for_when_it_refuses_connections() -> None:
    world = World(fails(UnavailableError("queue: full")), fails(ConnectionLostError("connection refused")), GOOD, back_at=9.0)
    draw(world)
    assert world.calls[2][0] >= 9.0
    assert world.server.statistics.replays == 0


def test_a_model_that_is_being_loaded_is_waited_for() -> None:
    world = World(fails(NotReadyError("'denoise' has no available versions")), GOOD, back_at=5.0)
    draw(world)
    assert world.calls[1][0] >= 5.0


# Deadlines


def test_one_deadline_covers_all_attempts_and_the_server_gets_what_is_left() -> None:
    world = World(fails(UnavailableError("full"), after=2.0), fails(LostError("died"), after=2.0), HANGS)
    with pytest.raises(DeadlineExceededError, match="timeout"):
        draw(world, timeout=10.0)
    assert world.now == pytest.approx(10.0 + GRACE_SECONDS)
    left = [float(call.tensors["timeout_seconds"].reshape(-1)[0]) for _, call in world.calls]
    assert left == pytest.approx([10.0 - when for when, _ in world.calls])
    assert all(call.timeout == pytest.approx(10.0 - when + GRACE_SECONDS) for when, call in world.calls)


def test_the_deadline_ends_the_wait_for_a_server() -> None:
    world = World(fails(ConnectionLostError("reset", sent=True)), back_at=1e9)
    with pytest.raises(DeadlineExceededError):
        draw(world, timeout=4.0)
    assert world.now == pytest.approx(4.0)


@pytest.mark.parametrize("ends", [HANGS, fails(DeadlineExceededError("Deadline Exceeded", bare=True), after=3.0 + GRACE_SECONDS)])
def test_whoever_notices_first_a_deadline_is_told_with_the_call_the_seconds_and_what_to_raise(ends: Script) -> None:
    with pytest.raises(DeadlineExceededError) as ended:
        draw(World(ends), timeout=3.0)
    assert str(ended.value) == "timeout: text_to_image has not answered within 3 s; raise timeout"
    assert ended.value.request_id
    read: list[str] = []
    stream = write_stream(World([*answers(delta([1], "a"), after=1.0)[:1], *ends]), timeout=3.0)
    with pytest.raises(DeadlineExceededError) as ended:
        read.extend(made.text for made in stream)
    assert read == ["a"]
    assert str(ended.value) == "timeout: llm has not ended its answer within 3 s; raise timeout"


def test_what_kept_a_request_waiting_is_told_at_its_deadline() -> None:
    with pytest.raises(DeadlineExceededError, match=r"within 4 s \(the attempt before: reset\); raise timeout$"):
        draw(World(fails(ConnectionLostError("reset", sent=True)), back_at=1e9), timeout=4.0)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_call_that_a_proxy_has_ended_is_not_told_as_the_callers_own_deadline(timeout: float | None) -> None:
    script = fails(DeadlineExceededError("upstream request timeout", bare=True), after=15.0)
    with pytest.raises(DeadlineExceededError, match=r"^text_to_image: the server, or a proxy .* after 15 s \(upstream "):
        draw(World(script), timeout=timeout)


def test_the_servers_own_sentence_stands() -> None:
    said = "timeout_seconds: the request was still waiting after 3 s"
    for timeout, more in ((3.0, " (text_to_image was given 3 s); raise timeout"), (None, "")):
        with pytest.raises(DeadlineExceededError) as ended:
            draw(World(fails(DeadlineExceededError(said, "timeout_seconds"), after=3.5)), timeout=timeout)
        assert (str(ended.value), ended.value.field) == (said + more, "timeout_seconds")
    with pytest.raises(DeadlineExceededError, match=r"^ticket: it was not used in time$"):
        draw(World(fails(DeadlineExceededError("ticket: it was not used in time"))), timeout=3.0)


def test_a_call_past_its_deadline_is_ended_here_and_on_the_server() -> None:
    world = World(HANGS)
    with pytest.raises(DeadlineExceededError):
        draw(world, timeout=3.0, run_id="mine")
    assert len(world.given_up) == 1
    assert world.cancelled == [b"mine"]


def test_a_timeout_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="timeout"):
        draw(World(), timeout=0.0)


# Runs that are lost without a word


def test_a_run_that_was_there_and_is_unknown_is_replayed() -> None:
    world = World(HANGS, GOOD, watch=lambda now: state("running" if now < 4.0 else "unknown"))
    draw(world)
    assert len(world.given_up) == 1
    assert world.calls[1][0] < 7.0
    assert world.cancelled == []  # the replay has the run's id


def test_one_strange_answer_is_no_loss() -> None:
    world = World(answers(image(), after=20.0), watch=lambda now: state("unknown" if 4.0 <= now < 5.0 else "running"))
    draw(world)
    assert len(world.calls) == 1


def test_a_dead_holder_means_a_lost_run() -> None:
    dead = fails(UnhealthyError("Stub process 'denoise_0_0' is not healthy."), after=1.0)
    world = World(HANGS, GOOD, watch=lambda now: dead if now < 6.0 else state("unknown"))
    draw(world)
    assert 6.0 <= world.calls[1][0] < 9.0


def test_a_run_may_take_its_time_to_arrive() -> None:
    world = World(answers(image(), after=4.0), watch=lambda now: state("unknown" if now < 4.0 else "running"))
    draw(world)
    assert len(world.calls) == 1


def test_a_run_that_never_arrives_is_replayed_but_never_given_up_for_that() -> None:
    world = World(HANGS, HANGS, answers(image(), after=100.0), watch=lambda now: state("unknown"))
    draw(world, ReplayPolicy(replays=2))
    assert len(world.calls) == 3
    first, second = np.diff([when for when, _ in world.calls])
    assert second > 1.5 * first  # a server that is only slow is not given ever more to do


def test_a_run_that_is_lost_at_its_last_attempt_is_said_to_be() -> None:
    world = World(HANGS, watch=lambda now: state("running" if now < 4.0 else "unknown"))
    with pytest.raises(LostError, match="gone from denoise"):
        draw(world, ReplayPolicy(replays=0))


def test_unknown_now_and_then_is_no_loss() -> None:
    turns = itertools.cycle(["running", "unknown"])
    world = World(answers(image(), after=20.0), watch=lambda now: state(next(turns)))
    draw(world)
    assert len(world.calls) == 1


def test_a_stream_that_goes_on_needs_no_answers_about_its_run() -> None:
    pieces: Script = [(float(i), Answered(delta([i], "a"))) for i in range(40)]
    world = World(
        [*pieces, *answers(delta([99], "b", "stop"), after=40.0)], watch=lambda now: fails(DeadlineExceededError("3 s"))
    )
    list(write_stream(world, ReplayPolicy(heal_seconds=10.0)))
    assert len(world.calls) == 1


def test_a_run_that_is_done_and_does_not_answer_is_replayed() -> None:
    """A stream's own process can die, too; the run is then known and done."""
    world = World(HANGS, answers(progress(3, 3), image()), watch=lambda now: state("done"))
    assert len(list(draw_stream(world))) == 2
    assert 10.0 < world.calls[1][0] < 20.0


def test_a_holder_that_is_silent_for_a_while_and_still_has_the_run_is_let_be() -> None:
    world = World(
        answers(image(), after=25.0), watch=lambda now: fails(DeadlineExceededError("3 s")) if now < 20 else state("running")
    )
    draw(world)
    assert len(world.calls) == 1


def test_a_holder_that_stays_silent_means_a_lost_run() -> None:
    world = World(HANGS, watch=lambda now: fails(DeadlineExceededError("3 s"), after=3.0), back_at=1e9)
    with pytest.raises(LostError, match="has not answered"):
        draw(world, ReplayPolicy(heal_seconds=10.0))
    assert world.now < 30.0


def test_one_whose_server_is_not_back_in_time_is_counted_and_told_which_option_waits_longer() -> None:
    world = World(fails(DEATHS[0]), back_at=1e9)
    with pytest.raises(NereidError, match=r"the server was not back within heal_seconds \(10 s\)"):
        draw(world, ReplayPolicy(heal_seconds=10.0))
    assert world.server.statistics.lost == 1


def test_runs_are_asked_for_about_once_a_second_and_only_after_one() -> None:
    world = World(answers(image(), after=10.5))
    draw(world)
    assert 8 <= len(world.questions) <= 10
    quick = World(answers(image(), after=0.9))
    draw(quick)
    assert quick.questions == []


@pytest.mark.parametrize("words", ["unexpected inference input 'watch' for model 'denoise'", "expected 4 inputs but got 1"])
def test_a_server_without_watch_is_asked_once(words: str) -> None:
    world = World(answers(image(), after=60.0), watch=lambda now: fails(InvalidRequestError(words)))
    draw(world)
    assert len(world.questions) == 1


def test_a_server_without_run_ids_gets_the_request_without_one() -> None:
    world = World(fails(OLD), fails(LostError("died")), answers(image(), after=5.0))
    draw(world)
    assert ["run_id" in call.tensors for _, call in world.calls] == [True, False, False]
    assert world.questions == []
    assert world.server.statistics.retries == 0


def test_a_reader_who_pauses_is_not_a_silent_server() -> None:
    pieces: Script = [(float(i), Answered(delta([i], str(i)))) for i in range(4)]
    world = World([*pieces, *answers(delta([9], "9", "stop"), after=4.0)])
    for _ in write_stream(world):
        world.now += 100.0
    assert len(world.calls) == 1


# The same server


def fingerprint(name: str) -> dict[str, np.ndarray]:
    return {"system_fingerprint": texts(name)}


def test_a_replay_onto_another_server_is_an_error() -> None:
    pieces = [delta([1], "a", **fingerprint("one"))]
    world = World(fails(LostError("died"), *pieces), answers(delta([1], "a", "stop", **fingerprint("two"))))
    with pytest.raises(ServerError, match="changed"):
        list(write_stream(world))


def test_another_server_is_noticed_before_anything_is_sent_to_it() -> None:
    world = World(
        fails(ConnectionLostError("reset", sent=True), after=3.0),
        watch=lambda now: state("running", **fingerprint("one" if now < 3.0 else "two")),
    )
    with pytest.raises(ServerError, match="changed"):
        draw(world)
    assert len(world.calls) == 1


# Leaving


def test_leaving_a_stream_cancels_the_call_and_names_the_run() -> None:
    world = World([(0.0, Answered(progress(1, 9)))])
    stream = draw_stream(world)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(world.given_up) == 1
    assert world.cancelled == [world.calls[0][1].tensors["run_id"][0]]


def test_a_request_that_has_ended_is_not_cancelled() -> None:
    world = World(GOOD)
    draw(world)
    failed = World(fails(InvalidRequestError("width: 13")))
    with pytest.raises(InvalidRequestError):
        draw(failed)
    assert (world.cancelled, failed.cancelled, world.given_up, failed.given_up) == ([], [], [], [])


def test_a_replay_that_differs_is_cancelled_on_the_server() -> None:
    world = World(fails(LostError("died"), delta([1], "a")), [(0.0, Answered(delta([2], "a")))])
    with pytest.raises(ServerError, match="tokens"):
        list(write_stream(world))
    assert len(world.cancelled) == 1


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "ä"])
def test_run_ids_have_a_form(given: str) -> None:
    with pytest.raises(InvalidRequestError, match="run_id"):
        draw(World(GOOD), run_id=given)
