"""The orchestration words of section 11: what a program can ask of its host.

Each word checks its arguments at once, then takes its step id, then needs a host; only then it returns a coroutine
that performs the effect. The table at the top is all that a program can name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .branches import Branches
from .effects import Options
from .errors import PrismHostError
from .helpers import step_of
from .host import Json
from .values import (
    Array,
    Confident,
    Function,
    Object,
    Value,
    fail,
    from_plain,
    peel,
    tag,
)


class Words(Branches):
    """The words of one run."""

    def table(self) -> dict[str, Value]:
        names: dict[str, Callable[..., Value]] = {
            "assign": self.assign,
            "fanout": self.fanout,
            "parallel": self.parallel,
            "race": self.race,
            "integrate": self.integrate,
            "review": self.reviewer("review"),
            "approve": self.reviewer("approve"),
            "askHuman": self.ask_human,
            "escalate": self.escalate,
            "verify": self.verify,
            "pattern": self.pattern,
            "llm": self.llm,
            "now": self.bare("now"),
            "random": self.bare("random"),
            "uuid": self.bare("uuid"),
            "sleep": self.sleeper("sleep"),
            "delay": self.sleeper("delay"),
            "emit": self.emit,
            "select": self.select,
            "org": self.org,
        }
        return {name: Function(name, call) for name, call in names.items()}

    def name_or_selector(self, word: str, what: str, value: Value) -> Json:
        inner = peel(value)
        if type(inner) is str:
            return inner
        if type(inner) is Object:
            return self.json(word, self.meter.object({k: peel(v) for k, v in inner.items() if peel(v) is not None}))
        raise fail(f"{word}() {what} must be a name or a selector, got {tag(inner)}")

    def text(self, word: str, what: str, value: Value) -> str:
        inner = peel(value)
        if type(inner) is not str:
            raise fail(f"{word}() {what} must be a string, got {tag(inner)}")
        return inner

    def task(self, word: str, value: Value) -> Json:
        inner = peel(value)
        if type(inner) not in (str, Object):
            raise fail(f"{word}() task must be a string or an object, got {tag(inner)}")
        return self.json(word, inner)

    def assign(self, _depth: int, *args: Value) -> Value:
        self.count_args("assign", args, 2, 3, "target, task and optional options")
        options = self.with_refs(args, 2, self.options("assign", args, 2))
        target = self.name_or_selector("assign", "target", args[0])
        task = self.task("assign", args[1])
        self.check_review(options)
        self.check_id("assign", options)
        key = self.take_id("assign", options)
        request = {"target": target, "task": task, "options": self.sent_options("assign", options)}
        return self.effect("assign", key, request, confident=True, workspace=True)

    def check_review(self, options: Options) -> None:
        review = options.get("review")
        if review is None:
            return
        if type(review) is not Object:
            raise fail("assign() review must be an object")
        if type(peel(review.get("role"))) is not str:
            raise fail("assign() review role must be a string")
        rounds = peel(review.get("maxRounds"))
        if rounds is not None and (
            type(rounds) is not float or not math.isfinite(rounds) or rounds < 1 or rounds != int(rounds)
        ):
            raise fail("assign() review maxRounds must be an integer of at least 1")
        inner = {key: peel(value) for key, value in review.items() if peel(value) is not None}
        self.check_id("assign", inner)
        options["review"] = self.meter.object(inner)

    def fanout(self, _depth: int, *args: Value) -> Value:
        self.count_args("fanout", args, 2, 3, "selector, task and optional options")
        options = self.options("fanout", args, 2)
        selector = self.name_or_selector("fanout", "selector", args[0])
        task = self.task("fanout", args[1])
        self.check_id("fanout", options)
        key = self.take_id("fanout", options)
        return self.run_fanout(
            key, {"selector": selector, "task": task, "options": self.sent_options("fanout", options)}
        )

    async def run_fanout(self, key: str, request: Json) -> Value:
        span = self.place()
        outcome = await self.perform("fanout", key, request, span)
        if not isinstance(outcome.value, list):
            raise PrismHostError("fanout() needs a list of records from its host", span=span)
        records = []
        for each in outcome.value:
            shown = {k: v for k, v in each.items() if k != "step"}
            record = from_plain(shown, self.meter)
            record.step = each.get("step")
            records.append(record)
        result = self.meter.array(records)
        return result if outcome.confidence is None else Confident(result, float(outcome.confidence))

    def integrate(self, _depth: int, *args: Value) -> Value:
        self.count_args("integrate", args, 0, 2, "results and options")
        results = peel(args[0]) if args else None
        if results is not None and type(results) is not Array:
            raise fail(f"integrate() requires an array of results, got {tag(results)}")
        options = self.options("integrate", args, 1)
        if options.get("onConflict", "owner") not in ("owner", "lead", "fail"):
            raise fail('integrate() onConflict must be one of "owner", "lead", "fail"')
        self.check_id("integrate", options)
        key = self.take_id("integrate", options)
        refs = None
        if results is not None:
            refs = []
            for index, result in enumerate(results):
                inner, step = peel(result), step_of(result)
                if step is None:
                    if inner is None or (type(inner) is Object and peel(inner.get("error")) is not None):
                        continue
                    raise fail(f"integrate() result {index} has no workspace")
                if (
                    type(inner) is Object
                    and "confidence" in inner
                    and "value" in inner
                    and peel(inner.get("error")) is not None
                ):
                    continue
                refs.append(self.ref("integrate", result))
        request = {"results": refs, "options": self.sent_options("integrate", options)}
        return self.effect("integrate", key, request, confident=True, workspace=True)

    def reviewer(self, word: str) -> Callable[..., Value]:
        def run(_depth: int, *args: Value) -> Value:
            self.count_args(word, args, 2, 3, "role, subject and optional options")
            options = self.with_refs(args, 2, self.options(word, args, 2))
            role = self.text(word, "role", args[0])
            self.check_id(word, options)
            key = self.take_id(word, options)
            request = {"role": role, "subject": self.ref(word, args[1]), "options": self.sent_options(word, options)}
            return self.effect(word, key, request, confident=True)

        return run

    def ask_human(self, _depth: int, *args: Value) -> Value:
        self.count_args("askHuman", args, 1, 2, "question and optional options")
        options = self.with_refs(args, 1, self.options("askHuman", args, 1))
        question = self.text("askHuman", "question", args[0])
        self.check_id("askHuman", options)
        key = self.take_id("askHuman", options)
        return self.effect("askHuman", key, {"question": question, "options": self.sent_options("askHuman", options)})

    def escalate(self, _depth: int, *args: Value) -> Value:
        self.count_args("escalate", args, 2, 3, "from, question and optional options")
        options = self.with_refs(args, 2, self.options("escalate", args, 2))
        source = self.text("escalate", "from", args[0])
        question = self.text("escalate", "question", args[1])
        self.check_id("escalate", options)
        key = self.take_id("escalate", options)
        return self.effect(
            "escalate", key, {"from": source, "question": question, "options": self.sent_options("escalate", options)}
        )

    def verify(self, _depth: int, *args: Value) -> Value:
        check = peel(args[0]) if args else None
        problem = "verify() requires a check name, an array of arguments or an object"
        if not args:
            raise fail(problem)
        if len(args) > 2:
            raise fail("verify() requires 1 or 2 arguments: check and optional options")
        if type(check) is Array:
            check = self.meter.array([peel(item) for item in check])
            if not check or not all(type(item) is str for item in check):
                raise fail("verify() arguments must be a non-empty array of strings")
        elif type(check) not in (str, Object):
            raise fail(f"{problem}, got {tag(check)}")
        options = self.with_refs(args, 1, self.options("verify", args, 1))
        self.check_id("verify", options)
        key = self.take_id("verify", options)
        request = {"check": self.json("verify", check), "options": self.sent_options("verify", options)}
        return self.effect("verify", key, request, confident=True)

    def pattern(self, _depth: int, *args: Value) -> Value:
        self.count_args("pattern", args, 1, 3, "name, input and optional options")
        options = self.options("pattern", args, 2)
        name = self.text("pattern", "name", args[0])
        self.check_id("pattern", options)
        key = self.take_id("pattern", options)
        given = self.ref("pattern", args[1] if len(args) > 1 else None)["value"]
        return self.effect(
            "pattern", key, {"name": name, "input": given, "options": self.sent_options("pattern", options, ())}
        )

    def llm(self, depth: int, *args: Value) -> Value:
        if not args:
            raise fail("llm() requires at least one argument")
        prompt = peel(args[0])
        if type(prompt) is not str:
            raise fail("llm() first argument must be a string")
        options = self.llm_options(args)
        self.check_id("llm", options)
        key = self.take_id("llm", options)
        return self.run_llm(depth, key, prompt, options)

    @staticmethod
    def llm_options(args: tuple[Value, ...]) -> Options:
        given = args[1] if len(args) > 1 else None
        if given is None:
            return {}
        if type(given) is not Object:
            raise fail("llm() options must be an object")
        options = {key: value for key, value in given.items() if value is not None}
        kinds = {
            **dict.fromkeys(("provider", "model"), (str, "string")),
            **dict.fromkeys(("temperature", "maxTokens", "topP", "timeout"), (float, "number")),
            **dict.fromkeys(("structuredOutput", "includeReasoning"), (bool, "boolean")),
        }
        for key, (kind, name) in kinds.items():
            if key in options and type(options[key]) is not kind:
                raise fail(f"llm() option '{key}' must be a {name}")
        if "extractor" in options and type(options["extractor"]) is not Function:
            raise fail("llm() extractor must be a function")
        if "id" in options and type(options["id"]) is not str:
            raise fail("llm() option 'id' must be a string")
        return options

    async def run_llm(self, depth: int, key: str, prompt: str, options: Options) -> Value:
        sent = self.sent_options("llm", options, (), ("extractor",))
        outcome = await self.perform("llm", key, {"prompt": prompt, "options": sent}, self.place())
        value = from_plain(outcome.value, self.meter)
        reply = value if type(value) is Object and "content" in value else Object({"content": value})
        level = 1.0 if outcome.confidence is None else float(outcome.confidence)
        content = reply["content"]
        extractor = options.get("extractor")
        if extractor is not None:
            shown = {
                "content": content,
                "confidence": level,
                "model": reply.get("model", options.get("model")),
                "tokensUsed": reply.get("tokensUsed"),
                "provider": reply.get("provider", options.get("provider")),
                "prompt": prompt,
                "options": from_plain(sent, self.meter),
            }
            level = self.extracted(await self.settle(self.call(extractor, depth, self.meter.object(shown))))
        return self.meter.confident(content, level)

    @staticmethod
    def extracted(found: Value) -> float:
        if type(found) is Confident:
            return float(found.confidence)
        level = peel(found.get("confidence")) if type(found) is Object else found
        if type(level) is not float or not 0 <= level <= 1:
            raise fail(
                "llm() extractor must return a number in [0, 1], a confident value or an object with a confidence"
            )
        return level

    def bare(self, word: str) -> Callable[..., Value]:
        """`now`, `random` and `uuid`: nothing but options."""

        def run(_depth: int, *args: Value) -> Value:
            self.count_args(word, args, 0, 1, "options")
            options = self.options(word, args, 0)
            self.check_id(word, options)
            return self.effect(word, self.take_id(word, options), {})

        return run

    def sleeper(self, word: str) -> Callable[..., Value]:
        def run(_depth: int, *args: Value) -> Value:
            self.count_args(word, args, 1, 2, "milliseconds and optional options")
            ms = peel(args[0])
            if type(ms) is not float or ms != ms:
                raise fail(f"{word}() requires a number of milliseconds")
            options = self.options(word, args, 1)
            self.check_id(word, options)
            key = self.take_id(word, options)
            return self.pause(key, self.json(word, ms))

        return run

    async def pause(self, key: str, ms: Json) -> Value:
        await self.perform("sleep", key, {"ms": ms}, self.place())
        return None

    def emit(self, _depth: int, *args: Value) -> Value:
        self.count_args("emit", args, 1, 3, "name, data and optional options")
        name = self.text("emit", "name", args[0])
        options = self.options("emit", args, 2)
        self.check_id("emit", options)
        key = self.take_id("emit", options)
        data = self.json("emit", peel(args[1])) if len(args) > 1 else None
        return self.quietly("emit", key, {"name": name, "data": data})

    async def quietly(self, word: str, key: str, request: Json) -> Value:
        await self.perform(word, key, request, self.place())
        return None

    def select(self, _depth: int, *args: Value) -> Value:
        self.count_args("select", args, 1, 2, "role and optional options")
        options = self.options("select", args, 1)
        role = self.text("select", "role", args[0])
        criteria = options.get("criteria", "availability")
        if criteria not in ("availability", "expertise", "round_robin", "best"):
            raise fail('select() criteria must be one of "availability", "expertise", "round_robin", "best"')
        self.check_id("select", options)
        return self.effect("select", self.take_id("select", options), {"role": role, "criteria": criteria})

    def org(self, _depth: int, *args: Value) -> Value:
        self.count_args("org", args, 1, 2, "roles and optional routing and escalation")
        roles = peel(args[0])
        if type(roles) is not Object:
            raise fail(f"org() roles must be an object, got {tag(roles)}")
        options = self.options("org", args, 1)
        self.check_id("org", options)
        late = self.effects_seen
        key = self.take_id("org", options)
        if late:
            raise fail("org() must come before any other effect, and once")
        request = {
            "roles": self.json("org", roles),
            "routing": self.json("org", options.get("routing")),
            "escalation": self.json("org", options.get("escalation")),
        }
        return self.quietly("org", key, request)
