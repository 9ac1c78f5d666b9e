"""How a captured request is told: steps, a verdict, and nothing of the challenge. Texts hold what the peer wrote."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NoReturn

from ca_core.errors import InternalError, Refusal
from scep_server.answer import refusal_answer
from scep_server.errors import Unusable, fail_info

__all__ = ["Captured", "Explanation", "Line", "Over", "Step", "Story", "Verdict"]


@dataclass(frozen=True, slots=True)
class Captured:
    """A request as somebody caught it. `form` says what was caught, in `size` bytes.

    `target` is the request target, None where a message alone was caught; `host` is in lower case, without port. `body`
    is that message, or the body of a POST. `fault` is why the server's HTTP would refuse it.
    """

    form: str
    size: int
    body: bytes = field(default=b"", repr=False)
    method: str = "POST"
    target: str | None = field(default=None, repr=False)
    host: str | None = None
    fault: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at. `ok` is None where it could not be told; a step that fails has its code and remedy.

    The words in `step` are stable.
    """

    step: str
    ok: bool | None
    text: str
    code: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What would be answered. `outcome` is issued, answered (nothing new), pending, refused, error or unknown.

    `answer` is what the client would get to see; `serial` is of a certificate that it would get again.
    """

    outcome: str
    sentence: str
    answer: str | None = None
    code: str | None = None
    remedy: str | None = None
    device: str | None = None
    means: str | None = None
    profile: str | None = None
    serial: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that can be said of a request. `locked` is why the RA's key could not be used, None where it could."""

    form: str
    realm: str | None
    operation: str | None
    transaction_id: str | None
    steps: tuple[Step, ...]
    verdict: Verdict
    locked: InternalError | None = field(default=None, repr=False)


class Over(Exception):
    """There is nothing more to tell."""


@dataclass(frozen=True, slots=True)
class Line:
    """A step to be told, and the codes that mean that it is the one that fails. Without a text it is told only then."""

    step: str
    text: str = ""
    codes: tuple[str, ...] = ()


_LONGEST = 400
_FAIL_INFOS = ("badAlg", "badMessageCheck", "badRequest", "badTime", "badCertId")
_ESCAPED = str.maketrans({char: f"\\{char}" for char in '\\"+,;<>'})  # as RFC 4514 writes them


class Story:
    """What has been told so far."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.realm: str | None = None
        self.operation: str | None = None
        self.transaction_id: str | None = None
        self.locked: InternalError | None = None
        self.steps: list[Step] = []
        self.verdict = Verdict("unknown", "")
        self._hidden: set[str] = set()

    def hide(self, challenge: str | None) -> None:
        """Never tell this, wherever else in the request it may stand."""
        if challenge is not None and len(challenge) >= 4:
            parts = (challenge, *(part for part in challenge.split(".") if len(part) >= 8))
            self._hidden |= {form for part in parts for form in (part, part.translate(_ESCAPED), ascii(part)[1:-1])}

    def tell(self, step: str, text: str) -> None:
        """One step that holds."""
        self.steps.append(Step(step, True, text))

    def tell_all(self, lines: Iterable[Line], refusal: Refusal | None = None, last: str = "") -> None:
        """The steps up to the one that fails, which is `last` where no line claims the refusal's code."""
        for line in lines:
            if refusal is not None and refusal.code in line.codes:
                self.refuse(line.step, refusal, line.text)
            if line.text:
                self.tell(line.step, line.text)
        if refusal is not None:
            self.refuse(last, refusal)

    def refuse(self, step: str, refusal: Refusal, text: str = "") -> NoReturn:
        """A step that fails, which is the end."""
        device = f"device {refusal.device[1]}" if refusal.device else ""
        more = "; ".join(part for part in (text, "" if device in refusal.detail else device, refusal.detail) if part)
        told = f"{refusal.message.removesuffix('.')} ({more})" if more else refusal.message
        self.steps.append(Step(step, False, told, refusal.code, refusal.remedy))
        answer: str | None = None  # before it is a request, HTTP has its own ways
        if self.transaction_id is not None and not isinstance(refusal, Unusable):
            answer = f"a CertRep FAILURE with {_FAIL_INFOS[fail_info(refusal)]}"
        elif step != "input":
            answer = f"HTTP {refusal_answer(refusal, '').status}"
        self.end("refused", f"It would be refused: {refusal.code}.", answer, refusal.code, refusal.remedy)
        if refusal.device:
            self.verdict = replace(self.verdict, device=refusal.device[1])
        raise Over

    def fail(self, step: str, error: InternalError) -> NoReturn:
        """A fault of our own, which is the end."""
        remedy = "It is not the client's fault; 'enrolld check' may know more."
        self.steps.append(Step(step, False, str(error), "internal_error", remedy))
        self.end("error", f"It could not be decided now: {error}.", "HTTP 503", "internal_error", remedy)
        raise Over

    def end(
        self, outcome: str, sentence: str, answer: str | None, code: str | None = None, remedy: str | None = None
    ) -> None:
        """The verdict; who asks is kept."""
        self.verdict = replace(
            self.verdict, outcome=outcome, sentence=sentence, answer=answer, code=code, remedy=remedy
        )

    def told(self) -> Explanation:
        """All of it, without what must not be told."""
        clean = self._without_challenge
        verdict = replace(self.verdict, sentence=clean(self.verdict.sentence), device=clean(self.verdict.device or ""))
        return Explanation(
            form=self.form,
            realm=self.realm,
            operation=self.operation,
            transaction_id=clean(self.transaction_id or "") or None,
            steps=tuple(replace(step, text=clean(step.text)) for step in self.steps),
            verdict=replace(verdict, device=verdict.device or None),
            locked=self.locked,
        )

    def _without_challenge(self, text: str) -> str:
        # Nothing was cut before: half of a challenge would not be found.
        for hidden in sorted(self._hidden, key=len, reverse=True):
            text = text.replace(hidden, "(the challenge)")
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
