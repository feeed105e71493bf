"""The orchestration words against a fake host: requests, keys, branches, joins, replay, cancellation."""

from __future__ import annotations

import asyncio

import pytest

from parallax.prism import (
    Effect,
    Limits,
    Outcome,
    PrismCancelled,
    PrismError,
    PrismHostError,
    PrismLimitError,
    PrismRuntime,
    PrismRuntimeError,
    evaluate,
)
from parallax.prism import compile as compile_prism

from .fakes import FakeHost, longest_turn, run
from .generator import Generator


def confident(effect: Effect) -> Outcome:
    return Outcome(value={"done": effect.key}, confidence=0.8)


REQUESTS = [
    ('assign("dev", "do ${1}", {id: "a", verify: "quick", timeout: 5, x: null})', "assign",
     {"target": "dev", "task": "do 1", "options": {"verify": "quick", "timeout": 5}}),
    ('assign({role: "dev", prefer: null}, {goal: "x"} ~> 0.9, {input: "i" ~> 0.5})', "assign",
     {"target": {"role": "dev"}, "task": {"goal": "x"}, "options": {"input": {"step": None, "value": "i", "confidence": 0.5}}}),
    ('review("lead", {a: 1} ~> 0.4)', "review",
     {"role": "lead", "subject": {"step": None, "value": {"a": 1}, "confidence": 0.4}, "options": {}}),
    ('verify(["npm", "test"], {id: "v"})', "verify", {"check": ["npm", "test"], "options": {}}),
    ('integrate(null, {onConflict: "lead"})', "integrate", {"results": None, "options": {"onConflict": "lead"}}),
    ('askHuman("ok?", {input: 3})', "askHuman",
     {"question": "ok?", "options": {"input": {"step": None, "value": 3, "confidence": None}}}),
    ('escalate("dev", "how?")', "escalate", {"from": "dev", "question": "how?", "options": {}}),
    ('pattern("other", {n: 1} ~> 0.5)', "pattern", {"name": "other", "input": {"n": 1}, "options": {}}),
    ('llm("hi", {model: "m", extractor: null})', "llm", {"prompt": "hi", "options": {"model": "m"}}),
    ("now()", "now", {}),
    ("delay(1)", "sleep", {"ms": 1}),
    ('emit("e", [1])', "emit", {"name": "e", "data": [1]}),
    ('select("dev")', "select", {"role": "dev", "criteria": "availability"}),
    ('org({lead: {}}, {routing: []})', "org", {"roles": {"lead": {}}, "routing": [], "escalation": None}),
]  # fmt: skip


@pytest.mark.parametrize(("source", "kind", "request_"), REQUESTS)
async def test_a_request_is_plain_json_of_a_fixed_shape(source: str, kind: str, request_: object) -> None:
    host = FakeHost(confident)
    await run(source, host)
    assert [(e.kind, e.request) for e in host.effects] == [(kind, request_)]


async def test_keys_are_ids_or_call_paths() -> None:
    host = FakeHost(confident)
    await run(
        """
        assign("a", "1"); assign("a", "2", {id: "named"})
        parallel([() => assign("a", "3"), () => parallel([() => now()], {id: "in"})], {id: "outer"})
        for i in [1, 2] { random() }
        """,
        host,
    )
    keys = ["assign#1", "named", "outer[0]/assign#1", "in[0]/now#1", "in", "outer", "random#1", "random#2"]
    assert sorted(host.keys()) == sorted(keys)
    now = next(e for e in host.effects if e.kind == "now")
    assert now.branch == (("outer", 1), ("in", 0))


async def test_an_effect_knows_its_place() -> None:
    host = FakeHost()
    await run('let x = 1\n  emit("e", x)', host)
    assert (host.effects[0].span.line, host.effects[0].span.column) == (2, 2)


async def test_workspace_results_remember_their_step() -> None:
    host = FakeHost(lambda e: [
        {"agent": "x", "value": "v", "confidence": 0.9, "step": "cand 1"},
        {"agent": "y", "value": None, "confidence": 0, "error": "bad", "step": None},
    ] if e.kind == "fanout" else confident(e))  # fmt: skip
    result = await run(
        """
        let one = assign("dev", "t", {id: "one"})
        let many = fanout("dev", "t", {id: "many"})
        let best_ = best([one, one ~?? 1])
        integrate([one, null, ...many, best_], {id: "all"})
        """,
        host,
    )
    refs = host.effects[-1].request["results"]
    assert [(ref["step"], ref["confidence"]) for ref in refs] == [("one", 0.8), ("cand 1", 0.9), ("one", 0.8)]
    assert refs[1]["value"] == "v"
    assert result.step == "all"
    assert (await run('fanout("d", "t")', FakeHost(host.answer))).value[0] == {
        "agent": "x",
        "value": "v",
        "confidence": 0.9,
    }


async def test_computing_forgets_the_step() -> None:
    with pytest.raises(PrismRuntimeError, match=r"integrate\(\) result 0 has no workspace"):
        await run('integrate([assign("dev", "t").done])', FakeHost(confident))


async def test_parallel_keeps_submission_order_and_overlaps() -> None:
    host = FakeHost()
    result = await run("parallel([150, 80, 10], (ms, i) => { sleep(ms); print(ms); return i })", host)
    assert result.value == [0, 1, 2]
    assert host.lines == ["10", "80", "150"]


async def test_the_limit_of_parallel_holds() -> None:
    running = most = 0

    class Counting(FakeHost):
        async def perform(self, effect: Effect) -> Outcome:
            nonlocal running, most
            running += 1
            most = max(most, running)
            outcome = await super().perform(effect)
            running -= 1
            return outcome

    await run("parallel(range(8), x => { sleep(5) }, {limit: 3})", Counting())
    assert most == 3


async def test_the_first_error_cancels_the_other_branches() -> None:
    host = FakeHost(lambda e: Outcome(error="broke") if e.kind == "assign" else None)
    with pytest.raises(PrismHostError, match=r"^broke$"):
        await run('parallel([() => sleep(1000), () => { assign("a", "b") }], {id: "p"})', host)
    assert host.effects[-1].request == {"word": "parallel", "branches": 2, "winner": None, "failed": 1}


async def test_collect_makes_records_of_failures() -> None:
    host = FakeHost(lambda e: Outcome(error="broke"))
    result = await run(
        'parallel([() => 1, () => assign("a", "b"), () => { throw {a: 1} }], {onError: "collect"})', host
    )
    record = {"agent": None, "value": None, "confidence": 0, "error": "broke"}
    assert result.value == [1, record, {**record, "error": "{ a: 1 }"}]


async def test_race_takes_the_first_that_is_sure_enough() -> None:
    source = """race([() => { sleep(30); return 1 ~> 0.9 }, () => { sleep(1); return 2 ~> 0.3 }, () => sleep(1000)],
                 {id: "r", minConfidence: 0.5})"""
    host = FakeHost()
    result = await run(source, host)
    assert (result.value, result.confidence) == (1, 0.9)
    again = FakeHost(journal=host.journal)
    assert await run(source, again) == result
    assert again.fresh == []
    assert again.keys() == ["r[0]/sleep#1"]


async def test_race_without_a_winner_is_null_at_zero() -> None:
    result = await run("race([() => 1 ~> 0.1, () => { throw 1 }], {minConfidence: 0.5})")
    assert (result.value, result.confidence) == (None, 0)


async def test_a_failed_parallel_is_replayed_by_its_failing_branch() -> None:
    source = 'parallel([() => sleep(1), () => assign("a", "b"), () => now()], {id: "p"})'
    host = FakeHost(lambda e: Outcome(error="broke") if e.kind == "assign" else 1)
    with pytest.raises(PrismHostError):
        await run(source, host)
    again = FakeHost(journal=host.journal)
    with pytest.raises(PrismHostError):
        await run(source, again)
    assert again.keys() == ["p[1]/assign#1"]


async def test_a_replay_takes_the_same_course() -> None:
    source = """
    let plan = assign("lead", "plan", {id: "plan"})
    let built = parallel([1, 2, 3], (x, i) => assign("dev", "t${x}", {id: "build ${i}"}))
    let t = now()
    for b in built { emit("built", b.done) }
    integrate(built)
    """
    host = FakeHost(lambda e: 7 if e.kind == "now" else confident(e))
    first = await run(source, host)
    again = FakeHost(journal=host.journal)
    assert await run(source, again) == first
    assert again.fresh == []
    assert [(e.key, e.request) for e in again.effects if e.kind != "join"] == [
        (e.key, e.request) for e in host.effects if e.kind != "join"
    ]


async def test_functions_assigning_outside_their_branch_fail_when_they_run() -> None:
    with pytest.raises(PrismRuntimeError, match="A parallel branch may not assign 'n'"):
        await run("let n = 0; let f = () => { n += 1 }; parallel([f])")
    assert (await run("let f = () => { let n = 0; [1, 2].forEach(x => { n += x }); n }; parallel([f, f])")).value == [
        3,
        3,
    ]


async def test_an_id_is_used_once() -> None:
    with pytest.raises(PrismRuntimeError, match="Step id 'x' is used twice"):
        await run('now({id: "x"}); now({id: "x"})')


async def test_what_the_host_forbids_to_catch_is_not_caught() -> None:
    host = FakeHost(lambda e: Outcome(error="stop", catchable=e.kind != "now"))
    assert (await run('try { assign("a", "b") } catch (e) { e }', host)).value == "stop"
    with pytest.raises(PrismHostError, match="stop"):
        await run("try { now() } catch (e) { e }", host)


async def test_a_reported_confidence_outside_its_range_is_an_error() -> None:
    with pytest.raises(PrismRuntimeError, match="must be a number between 0 and 1"):
        await run('assign("a", "b")', FakeHost(lambda e: Outcome(value=1, confidence=1.5)))


async def test_nan_is_no_request() -> None:
    with pytest.raises(PrismRuntimeError, match=r"emit\(\) cannot send NaN"):
        await run('emit("x", [Number("no")])')


async def test_the_extractor_runs_after_the_reply() -> None:
    host = FakeHost(lambda e: Outcome(value="yes: 0.25", confidence=0.9))
    result = await run('llm("q", {extractor: r => Number(r.content.split(": ").at(1))})', host)
    assert (result.value, result.confidence) == ("yes: 0.25", 0.25)
    with pytest.raises(PrismHostError, match="LLM call failed: down"):
        await run('llm("q")', FakeHost(lambda e: Outcome(error="down")))


async def test_org_comes_first_and_once() -> None:
    with pytest.raises(PrismRuntimeError, match=r"org\(\) must come before any other effect, and once"):
        await run("now(); org({a: {}})")


async def test_cancel_runs_finally_and_leaves_no_task() -> None:
    host = FakeHost()
    source = 'try { parallel([() => sleep(5000), () => sleep(5000)]) } finally { print("bye"); now() }'
    runtime = PrismRuntime(compile_prism(source), host)
    task = asyncio.create_task(runtime.run())
    await asyncio.sleep(0.02)
    runtime.cancel()
    with pytest.raises(PrismCancelled):
        await task
    assert host.lines == ["bye"]
    assert host.keys("now") == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_the_caller_cancels_the_run() -> None:
    task = asyncio.create_task(PrismRuntime(compile_prism("sleep(5000)"), FakeHost()).run())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_long_run_lets_others_work() -> None:
    source = "let t = 0; for i in range(60000) { t += [1, 2, 3].map(x => x + i).length }; t"
    value, longest = await longest_turn(source, Limits(nodes=3_000_000))
    assert value == 180_000
    assert longest < 0.03  # 10 ms, three times


async def test_limits_of_a_hosted_run() -> None:
    with pytest.raises(PrismLimitError, match=r"Limit exceeded: effects total \(3\)"):
        await run("for i in range(9) { now() }", limits=Limits(effects=3))
    with pytest.raises(PrismLimitError, match="Limit exceeded: total wall time"):
        await run("try { sleep(5000) } catch (e) { 1 }", limits=Limits(wall_time_s=0.05))
    loop = "let n = 0; for i in range(4000) { n += i }"
    assert (await run(f"{loop}; now(); {loop.replace('let ', '')}; 1", limits=Limits(nodes=40_000))).value == 1
    with pytest.raises(PrismLimitError, match="evaluated nodes"):
        await run(loop * 1, limits=Limits(nodes=10_000))


async def test_both_worlds_agree() -> None:
    """What runs without a host runs the same with one."""
    for seed in range(400):
        source = Generator(seed).program()
        if any(word in source for word in ("assign", "parallel", "input")):
            continue
        outcomes = []
        for hosted in (False, True):
            try:
                result = await run(source) if hosted else evaluate(source)
                outcomes.append((repr(result.value), result.confidence, result.output))
            except PrismError as error:
                outcomes.append((type(error).__name__, error.message, error.line, error.column))
        assert outcomes[0] == outcomes[1], f"seed {seed}: {source!r}"
