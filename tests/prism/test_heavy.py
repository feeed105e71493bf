"""Large values: counted as if nothing in them were shared, and never in the event loop's way."""

from __future__ import annotations

import asyncio
import time

import pytest

from parallax.prism import Effect, Limits, Outcome, PrismLimitError, PrismRuntime, evaluate
from parallax.prism import compile as compile_prism

from .fakes import longest_turn

SHARED = "let a = [1]; let b = [1]; for i in range(60) { a = [a, a]; b = [b, b] } "
READERS = ["a == b", "a === b", "[b].includes(a)", "voting([a, b])", "String(a)", "JSON.stringify(a)", "a"]


@pytest.mark.parametrize("reader", READERS)
def test_a_small_value_that_reads_endlessly_is_refused(reader: str) -> None:
    """Sixty doublings are sixty small arrays, and 2^60 elements for whoever reads them."""
    with pytest.raises(PrismLimitError, match="live heap"):
        evaluate(SHARED + reader)


def test_a_shared_text_weighs_each_time() -> None:
    with pytest.raises(PrismLimitError, match="live heap"):
        evaluate("const s = 'x'.repeat(1000000); range(100).map(i => s)")
    assert len(evaluate("const s = 'x'.repeat(1000); range(100).map(i => s)").value) == 100


def test_builtins_that_read_much_count_as_nodes() -> None:
    source = "const xs = range(100000); for i in range(100000) { xs.indexOf(-1) }"
    started = time.process_time()
    with pytest.raises(PrismLimitError, match="evaluated nodes"):
        evaluate(source)
    assert time.process_time() - started < 5


def test_a_comparison_counts_as_what_it_reads() -> None:
    large = "const xs = range(100000); const ys = range(100000); "
    assert evaluate(large + "for i in range(2000) { xs == null; xs === [1]; xs == 1 } 1").value == 1
    with pytest.raises(PrismLimitError, match="evaluated nodes"):
        evaluate(large + "for i in range(2000) { xs === ys } 1")


class Watched:
    """A host that keeps what was printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def perform(self, effect: Effect) -> Outcome:
        return Outcome(value=None)

    def recall(self, key: str) -> None:
        return None

    def print(self, line: str) -> None:
        asyncio.get_running_loop()  # told where the run lives, whoever wrote the line
        self.lines.append(line[:3])


@pytest.mark.parametrize(
    "work",
    ["JSON.stringify(o)", "voting(s)", '"${o}"', "String(o)", "sortBy('k')(xs)", "groupBy('k')(xs)", "xs === ys"],
)
async def test_a_heavy_builtin_leaves_the_loop_free(work: str) -> None:
    """The loop turns every 10 ms (three times as much is allowed here), whatever a program reads."""
    source = f"""
        const s = range(30000).map(i => "k" + i); now()
        const xs = range(30000).map(i => ({{k: i}})); now()
        const ys = range(30000).map(i => ({{k: i}})); now()
        const o = [xs, ys, s]; now()
        {work}
        return 1
    """
    _, longest = await longest_turn(source, Limits.hosted())
    print(f"{work}: {longest * 1000:.1f} ms")
    assert longest < 0.03


async def test_lines_of_heavy_values_are_told_in_order() -> None:
    host = Watched()
    source = 'print("one"); const xs = range(20000); print("two", xs); print("thr"); console.log(xs, "x")'
    await PrismRuntime(compile_prism(source), host, limits=Limits.hosted()).run()
    assert host.lines == ["one", "two", "thr", "[0,"]


async def test_what_fails_in_a_thread_has_its_place() -> None:
    source = "const xs = range(20000)\ntry { xs.join(1, 2, 3) } catch (e) { print(e) }\nreturn JSON.parse(xs.join(','))"
    runtime = PrismRuntime(compile_prism(source), Watched(), limits=Limits.hosted())
    with pytest.raises(Exception, match=r"JSON\.parse") as caught:
        await runtime.run()
    assert caught.value.line == 3  # type: ignore[attr-defined]
    assert runtime.output[0].startswith("Array.join() requires")
