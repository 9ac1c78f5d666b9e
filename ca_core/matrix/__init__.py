"""The realm matrix: every kind of credential of one realm, shown to another one by every operation, must be refused.

"A laptop must never authenticate as a pacemaker." Each cell has a twin that succeeds in the credential's own realm, and
compares the reason of a refusal, so that a cell can't pass because of something else. It stands on the core and uses
its public rooms alone: what is proven is the door that devices use. It runs over a core that may be thrown away.
"""

from ca_core.matrix.cells import ADMIN_OPERATIONS, OPERATIONS, Cell, Finding, Kind, Relation, Report, Skipped, Wire
from ca_core.matrix.credentials import Credentials
from ca_core.matrix.door import CoreDoor, Door, Outcome, Shown
from ca_core.matrix.ground import Ground, Policy, read_policy
from ca_core.matrix.run import Size, run
from ca_core.matrix.webhook import AllowingWebhook

__all__ = [
    "ADMIN_OPERATIONS",
    "OPERATIONS",
    "AllowingWebhook",
    "Cell",
    "CoreDoor",
    "Credentials",
    "Door",
    "Finding",
    "Ground",
    "Kind",
    "Outcome",
    "Policy",
    "Relation",
    "Report",
    "Shown",
    "Size",
    "Skipped",
    "Wire",
    "read_policy",
    "run",
]
