"""All messages: what crosses from one process to another.

Plain tuples, the code first (a tuple pickles six times faster than a named tuple). Whatever can
arrive late carries a number that its receiver checks: the task's attempt, the registration's
token; the link that it comes by names the sender's incarnation.

Owner to executor
    TASK      task, attempt, function, entries, args, slots, name, returns
                  returns: None for one value, else (count, first, until, last): see `returns`;
                  function: key of a DEFINE; entries: keys of the namespace entries it needs;
                  args: the value of (args, kwargs); slots: values of the futures among them
    DEFINE    key, body                 a function's pickle, once per worker
    ENTRY     key, body                 a global of __main__, when it differs from the last sent
    RECALL    tasks                     give back those that have not started
    FORGET    keys                      these definitions will not be used again
    FREE      serials                   extents of the receiver that nobody needs any more
    OUTCOME   object, status, value, entries
                  to a borrower: the object is there, or failed; entries: as in TASK
    STOP      -                         end once the queue is empty
    SPILL     serial                    copy this extent of the receiver to disk
    MOVED     serial, taken             taken: the copy stands for the value now, and the memory is
                                        free; else the copy is not needed
    CREDIT    task, attempt, until, last
                  a stream: values with an index below `until` may be yielded; last: and no others

Executor to owner
    ALIVE     pid                       the initializer has run; tasks may come
    INIT_FAILED  error                  it raised: the pool is of no use
    DONE      task, attempt, status, value, elapsed_ns, extras
                  extras: None, or (borrowed, pinned, nested, entries): references and mappings
                  that outlive the task, the objects whose futures are inside the value, and the
                  namespace entries that its readers need
    YIELD     task, attempt, index, status, value, extras
                  one of several values is there, before the DONE; extras: as there
    RECALLED  asked, given              the answer to RECALL
    RELEASE   ((object, token), ...)    the borrower has dropped its last handle
    PINNED    ((number, serial), ...)   these extents are mapped here, beyond any task
    UNMAPPED  ((number, serial), ...)   the last mapping of these extents is gone
    BORROW    object                    tell me its outcome
    BLOCKED   object                    the running task waits for this object; None: for credit
    UNBLOCKED -                         it waits no more
    SPILLED   serial, segment           the answer to SPILL: the file, or None
"""

from __future__ import annotations

from typing import Any

Message = tuple[Any, ...]

TASK, DEFINE, ENTRY, RECALL, FREE, OUTCOME, STOP, FORGET = range(1, 9)
YIELD, CREDIT = 50, 51
ALIVE, INIT_FAILED, DONE, RECALLED, RELEASE, UNMAPPED, BORROW, BLOCKED, UNBLOCKED, PINNED = range(
    20, 30
)
SPILL, MOVED, SPILLED = range(40, 43)
