"""The lives of a transaction and of a watch, as tables.

A client's connection keeps two kinds of state beside its requests: open transactions, and watches.
`ClientConnection` holds the state of each, and changes it by looking up (state, input) in a table
of this module. Only two changes have no table. A transaction begins as STARTED. RESET_WATCHES drops
all transactions, and the end of the connection drops the watches as well. The diagrams of the
manual are drawn from the same tables.

A pair that a table lacks is an error. If a caller asks for it, for example to commit a transaction
whose end is on its way, the engine refuses the request before it sends anything
(`TransactionEnded`, `TransactionLost`). If the engine itself makes the move, the engine has a bug,
and `next_state` raises `ImpossibleMove`. No state is guessed.

**Transactions.** The engine knows a transaction from the answer to TRANSACTION_START until it is
ENDED, and then forgets it. So there are no moves out of ENDED. An input that comes later, such as
the answer to a TRANSACTION_END that RESET_WATCHES has overtaken, moves nothing.

Two inputs concern requests without an answer. An abandoned request may have taken place or not, so
nobody knows what the transaction holds, and it is DOOMED: it can only be rolled back. It is DOOMED,
too, if its TRANSACTION_END is withdrawn. The caller gave up before the end was sent, and the state
ENDING does not tell which state came before it. If that was DOOMED, a commit would be wrong. A
rollback is right in any case.

A guest that was suspended and resumed may meet a daemon that has forgotten its transactions and
gives the id of an old one to a new one (FORGET). A request of either would act on the new one. So
the engine gives up both: the transaction is LOST and can only be rolled back, which ends the new
one in the daemon.

**Watches.** A caller may send any number of WATCH and UNWATCH for one path and token without
waiting for the answers, and may withdraw those that are unsent. The engine must work out from the
requests whether the watch will be set. No finite table can hold such a sequence, because its length
has no bound. Nor is the last request enough. If the UNWATCH between two WATCH is withdrawn, the
daemon refuses the second WATCH, and yet the watch is set.

Daemons act on these requests in order. So the engine keeps the requests of a watch in a line, and
the table is about the request at its head alone:

- A request that comes to the head moves the watch from SET or UNSET into one of the other states.
- The request's end (answered, refused, withdrawn) moves the watch on to SET or UNSET, and the next
  request comes to the head. A request behind the head may end first; its end counts in its turn.

Two of the states are for requests that change nothing. UNSETTING_NOTHING is an UNWATCH without a
watch: the engine sends it, and the daemon refuses it. SETTING_AGAIN is a WATCH of a watch that is
set. No caller can ask for that, hence the input WATCH_AGAIN, but it remains when the UNWATCH before
it is withdrawn. Without these two states, the withdrawal of an UNWATCH would set a watch that never
was, and the refusal of a WATCH would unset one that the daemon has.

To its callers the engine shows where the watch is going: SETTING or UNSETTING after the last
request in line that is not withdrawn, SET or UNSET if there is none.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeVar

__all__ = [
    "HELD",
    "TRANSACTION",
    "WATCH",
    "ImpossibleMove",
    "TransactionInput",
    "TransactionState",
    "WatchInput",
    "WatchState",
    "next_state",
]


class TransactionState(StrEnum):
    """Where a transaction is in its life."""

    STARTED = "started"
    DOOMED = "doomed"  # a request in it, or its end, was given up: it may only be rolled back
    LOST = "lost"  # the daemon gave its id to another one, which a rollback ends
    ENDING = "ending"
    ENDING_LOST = "ending, and lost"
    ENDED = "ended"


class TransactionInput(StrEnum):
    """What moves a transaction."""

    USE = "use"  # a request in it
    COMMIT = "commit"
    ROLLBACK = "rollback"
    ABANDON = "abandon"  # the caller of a request in it no longer waits for the answer
    WITHDRAW = "withdraw"  # its TRANSACTION_END was taken back unsent
    FORGET = "forget"  # the daemon gave its id to another transaction
    ANSWER = "answer"  # the daemon answered its TRANSACTION_END; a refusal ends it, too


class WatchState(StrEnum):
    """Where a watch is in its life.

    `ClientConnection.watches` shows SETTING_AGAIN as SETTING, and UNSETTING_NOTHING as UNSETTING.
    """

    UNSET = "unset"
    SETTING = "setting"
    SET = "set"
    UNSETTING = "unsetting"
    SETTING_AGAIN = "setting again"  # it is set; an UNWATCH before this WATCH was withdrawn
    UNSETTING_NOTHING = "unsetting nothing"  # it is not set


class WatchInput(StrEnum):
    """What moves a watch. All but RESET are about the request at the head of the watch's line."""

    WATCH = "watch"
    WATCH_AGAIN = "watch again"  # a WATCH while the watch is set
    UNWATCH = "unwatch"
    ANSWER = "answer"
    REFUSAL = "refusal"
    WITHDRAW = "withdraw"
    RESET = "reset"  # RESET_WATCHES was answered


class ImpossibleMove(AssertionError):
    """The engine made a move that its table lacks. This is a bug in xsproto."""


_T = TransactionState
_TI = TransactionInput
_W = WatchState
_WI = WatchInput

#: The life of a transaction.
TRANSACTION: Final[Mapping[tuple[TransactionState, TransactionInput], TransactionState]] = (
    MappingProxyType(
        {
            (_T.STARTED, _TI.USE): _T.STARTED,
            (_T.STARTED, _TI.COMMIT): _T.ENDING,
            (_T.STARTED, _TI.ROLLBACK): _T.ENDING,
            (_T.STARTED, _TI.ABANDON): _T.DOOMED,
            # A TRANSACTION_END can be withdrawn or answered though the state is not ENDING: it was
            # meant for an earlier transaction with the same id, which RESET_WATCHES ended.
            (_T.STARTED, _TI.WITHDRAW): _T.DOOMED,
            (_T.STARTED, _TI.FORGET): _T.LOST,
            (_T.STARTED, _TI.ANSWER): _T.ENDED,
            (_T.DOOMED, _TI.ROLLBACK): _T.ENDING,
            (_T.DOOMED, _TI.ABANDON): _T.DOOMED,
            (_T.DOOMED, _TI.WITHDRAW): _T.DOOMED,
            (_T.DOOMED, _TI.FORGET): _T.LOST,
            (_T.DOOMED, _TI.ANSWER): _T.ENDED,
            (_T.LOST, _TI.ROLLBACK): _T.ENDING,
            (_T.LOST, _TI.ABANDON): _T.LOST,
            (_T.LOST, _TI.WITHDRAW): _T.LOST,
            (_T.LOST, _TI.FORGET): _T.LOST,
            (_T.LOST, _TI.ANSWER): _T.ENDED,
            (_T.ENDING, _TI.ABANDON): _T.ENDING,
            (_T.ENDING, _TI.WITHDRAW): _T.DOOMED,
            (_T.ENDING, _TI.FORGET): _T.ENDING_LOST,
            (_T.ENDING, _TI.ANSWER): _T.ENDED,
            (_T.ENDING_LOST, _TI.ABANDON): _T.ENDING_LOST,
            (_T.ENDING_LOST, _TI.WITHDRAW): _T.LOST,
            (_T.ENDING_LOST, _TI.FORGET): _T.ENDING_LOST,
            (_T.ENDING_LOST, _TI.ANSWER): _T.ENDED,
        }
    )
)

#: The life of a watch, as the request at the head of its line moves it.
WATCH: Final[Mapping[tuple[WatchState, WatchInput], WatchState]] = MappingProxyType(
    {
        (_W.UNSET, _WI.WATCH): _W.SETTING,
        (_W.UNSET, _WI.UNWATCH): _W.UNSETTING_NOTHING,
        (_W.SETTING, _WI.ANSWER): _W.SET,
        (_W.SETTING, _WI.REFUSAL): _W.UNSET,
        (_W.SETTING, _WI.WITHDRAW): _W.UNSET,
        (_W.SET, _WI.UNWATCH): _W.UNSETTING,
        (_W.SET, _WI.WATCH_AGAIN): _W.SETTING_AGAIN,
        (_W.SET, _WI.RESET): _W.UNSET,
        (_W.UNSETTING, _WI.ANSWER): _W.UNSET,
        (_W.UNSETTING, _WI.REFUSAL): _W.UNSET,  # a daemon refuses it only where there is none
        (_W.UNSETTING, _WI.WITHDRAW): _W.SET,
        # What is unanswered at a reset was asked later than it, and takes effect later.
        (_W.UNSETTING, _WI.RESET): _W.UNSETTING_NOTHING,
        (_W.SETTING_AGAIN, _WI.ANSWER): _W.SET,
        (_W.SETTING_AGAIN, _WI.REFUSAL): _W.SET,
        (_W.SETTING_AGAIN, _WI.WITHDRAW): _W.SET,
        (_W.SETTING_AGAIN, _WI.RESET): _W.SETTING,
        (_W.UNSETTING_NOTHING, _WI.ANSWER): _W.UNSET,
        (_W.UNSETTING_NOTHING, _WI.REFUSAL): _W.UNSET,
        (_W.UNSETTING_NOTHING, _WI.WITHDRAW): _W.UNSET,
    }
)

#: The states in which the daemon has the watch, as far as its answers tell.
HELD: Final = frozenset({_W.SET, _W.UNSETTING, _W.SETTING_AGAIN})

_State = TypeVar("_State", bound=StrEnum)
_Input = TypeVar("_Input", bound=StrEnum)


def next_state(
    table: Mapping[tuple[_State, _Input], _State], state: _State, happens: _Input
) -> _State:
    """Look up the move that the engine makes.

    Raises:
        ImpossibleMove: the table lacks it.
    """
    move = (state, happens)
    if move not in table:
        raise ImpossibleMove(f"{happens!r} in {state!r}: this is a bug in xsproto")
    return table[move]
