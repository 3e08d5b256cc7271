"""Every error that a caller can cause: typed, with its data, in one line of text: what, the limit, the way out."""

MAX_PROBLEMS = 20
"""Problems of one file that an error's text lists."""


class OpenLoraError(Exception):
    """The base of all: the CLI prints its text and exits with 2, the wire maps each class to a status."""


class InvalidRequest(OpenLoraError):
    """A request that can never be served as it is: a field, what was wrong with it, and the limit."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class InvalidConfig(OpenLoraError):
    """A configuration value that cannot work."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"configuration {key}: {problem}")
        self.key = key
        self.problem = problem


class BadCheckpoint(OpenLoraError):
    """A file that is not what its format promises; lists the problems found, not only the first."""

    def __init__(self, path: object, *problems: str) -> None:
        rest = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        super().__init__(f"{path}: " + "; ".join([*problems[:MAX_PROBLEMS], *rest]))
        self.path = str(path)
        self.problems = problems


class CannotInstall(OpenLoraError):
    """A result that cannot be written where it was asked for."""

    def __init__(self, destination: object, problem: str) -> None:
        super().__init__(f"cannot write {destination}: {problem}")
        self.destination = str(destination)
        self.problem = problem


class UnsupportedFeature(OpenLoraError):
    """A well-formed input that asks for what this software does not do; says what to do instead."""

    def __init__(self, path: object, feature: str, remedy: str) -> None:
        super().__init__(f"{path}: {feature} is not supported; {remedy}")
        self.path = str(path)
        self.feature = feature
        self.remedy = remedy


class UnknownAdapter(OpenLoraError):
    """No adapter of that name is registered."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown adapter {name!r}: `openlora adapters list` shows the registered ones")
        self.name = name


class AdapterExists(OpenLoraError):
    """The name is taken by other content."""

    def __init__(self, name: str, digest: str) -> None:
        super().__init__(f"adapter {name!r} is already registered with digest {digest}; use --replace or another name")
        self.name = name
        self.digest = digest


class AdapterUnavailable(OpenLoraError):
    """A registered adapter that cannot be served now: it is for another base model, or its pages fit no pool.

    Attributes:
        retry_after: seconds until it is tried again for whoever asks; 0 where time alone does not help.
    """

    def __init__(self, name: str, digest: str, reason: str, retry_after: float = 0.0) -> None:
        retry = f"; it is tried again in {retry_after:.3g} s" if retry_after > 0 else ""
        super().__init__(f"adapter {name!r} ({digest}) cannot be served: {reason}{retry}")
        self.name = name
        self.digest = digest
        self.reason = reason
        self.retry_after = retry_after


class AdapterDamaged(AdapterUnavailable):
    """Its files are missing, damaged or not what its digest names."""


class AdapterUnreachable(AdapterUnavailable):
    """Where it is stored, it cannot be read, or not in time."""


class AdapterOutOfMemory(AdapterUnavailable):
    """There was no memory to load it."""


class NotFinite(OpenLoraError):
    """The model's output for this request is NaN or infinite; other requests are not touched."""

    def __init__(self, adapters: str) -> None:
        super().__init__(f"the output of {adapters} is not finite; use smaller weights, or convert the adapter again")
        self.adapters = adapters


class Overloaded(OpenLoraError):
    """A limit of the server is reached; the same request may succeed later."""

    def __init__(self, limit: str, value: int) -> None:
        super().__init__(f"the server is at its limit of {value} {limit}; try again later")
        self.limit = limit
        self.value = value


class CannotMeetDeadline(OpenLoraError):
    """A deadline for the first token, or for each token, that the server cannot keep now, as it has measured."""

    def __init__(self, deadline: str, limit: float, estimate: float) -> None:
        problem = f"it would take {estimate:.3g} s now; allow more time, or try again later"
        super().__init__(f"{deadline} of {limit:g} s cannot be kept: {problem}")
        self.deadline = deadline
        self.limit = limit
        self.estimate = estimate


class EngineStopped(OpenLoraError):
    """The engine is shutting down or has failed; the request was not finished."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the engine has stopped: {reason}")
        self.reason = reason


class DeadlineExceeded(OpenLoraError):
    """The request's deadline passed before it was finished."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"the deadline passed while the request was in {phase}")
        self.phase = phase
