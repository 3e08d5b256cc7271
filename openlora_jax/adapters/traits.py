"""What an engine must know of an adapter beside its pages."""

from collections.abc import Sequence
from dataclasses import dataclass

ALONE = "it answers alone and with the weight 1"


@dataclass(frozen=True, slots=True)
class Traits:
    """How an adapter acts.

    Attributes:
        invocation: the tokens that it acts from (activated LoRA, https://arxiv.org/abs/2504.12397); none if it acts
            everywhere.
        gains: it scales what the base computes (DoRA, https://arxiv.org/abs/2402.09353), which is not linear in its
            weight: it can be part of no mix.
        saved: it has a module of its own in the place of the base's (`modules_to_save`): nor can it.
    """

    invocation: tuple[int, ...] = ()
    gains: bool = False
    saved: bool = False

    @property
    def alone(self) -> str | None:
        """Why it answers alone and with the weight 1, to follow its name; None if it may be part of a mix."""
        if self.gains:
            return f"is a DoRA adapter, whose gain on what the base computes is not linear: {ALONE}"
        if self.saved:
            return f"has modules of its own in the place of the base's (modules_to_save): {ALONE}"
        return None

    def begin(self, prompt: Sequence[int]) -> int | None:
        """The position from which it acts on a prompt and on what is generated after it; None if it never does.

        That is, as in PEFT, where its invocation tokens begin for the last time in the prompt. Those that are generated
        change nothing, and so those in a completion that is scored: it has the probability with which it is generated.
        (PEFT's forward pass alone looks at all that it is given, and lets a token's score depend on what follows it.)
        """
        if not self.invocation:
            return 0
        count = len(self.invocation)
        starts = range(len(prompt) - count, -1, -1)
        return next((start for start in starts if tuple(prompt[start : start + count]) == self.invocation), None)


PLAIN = Traits()
"""Those of a plain LoRA."""
